//! File descriptors: the soft limit is raised to the hard one, and connections are bounded by what is left.

use crate::exit_code::{Fatal, FatalReason};
use crate::limits::{CONNECTIONS_MIN, DESCRIPTORS_RESERVED};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises RLIMIT_NOFILE and returns how many connections fit, at most `wanted`.
pub fn raise(wanted: u32) -> Result<u32, Fatal> {
    let limit = getrlimit(Resource::Nofile);
    let soft = limit.current.unwrap_or(u64::MAX);
    let hard = limit.maximum.unwrap_or(u64::MAX);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    connections(if raised.is_ok() { hard } else { soft }, wanted)
}

fn connections(descriptors: u64, wanted: u32) -> Result<u32, Fatal> {
    let left = descriptors.saturating_sub(DESCRIPTORS_RESERVED);
    if left < CONNECTIONS_MIN {
        return Err(Fatal::new(
            FatalReason::TooFewDescriptors,
            format!(
                "RLIMIT_NOFILE is {descriptors}, and {} are needed to serve anybody. Raise it: `ulimit -Hn 65536` \
                 in the shell, LimitNOFILE=65536 in a systemd unit, --ulimit nofile=65536 for docker",
                DESCRIPTORS_RESERVED + CONNECTIONS_MIN
            ),
        ));
    }
    Ok(u32::try_from(left).map_or(wanted, |left| left.min(wanted)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_bounded_by_descriptors() {
        assert!(connections(64, 1024).is_err());
        assert_eq!(connections(DESCRIPTORS_RESERVED + CONNECTIONS_MIN, 1024).unwrap(), 16);
        assert_eq!(connections(1_048_576, 1024).unwrap(), 1024);
        assert_eq!(connections(u64::MAX, 1024).unwrap(), 1024);
    }
}
