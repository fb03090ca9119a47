//! Checks of the kernel and of this process's limits.

use super::Check;
use io_uring::{IoUring, Probe, opcode};
use ringmq_server::limits::{CONNECTIONS_DEFAULT, CONNECTIONS_MIN, DESCRIPTORS_RESERVED, MEMORY_DEV};
use ringmq_server::units::Size;
use rustix::process::{Resource, getrlimit};
use std::fs::read_to_string;
use std::io;

/// Below, parts of io_uring that the server needs are missing.
const KERNEL_MIN: (u32, u32) = (5, 19);
/// From here on, completions are taken when the shard wants them (DEFER_TASKRUN).
const KERNEL_GOOD: (u32, u32) = (6, 1);

pub(super) fn checks() -> Vec<Check> {
    vec![kernel(), uring(), memlock(), nofile(), processors(), memory()]
}

fn kernel() -> Check {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let detail = format!("Linux {release}");
    match version(&release) {
        Some(version) if version < KERNEL_MIN => {
            Check::fail("kernel", detail, format!("upgrade to {}.{} or later", KERNEL_GOOD.0, KERNEL_GOOD.1))
        }
        Some(version) if version < KERNEL_GOOD => Check::warn(
            "kernel",
            format!("{detail}: no DEFER_TASKRUN, so more interruptions per message"),
            format!("upgrade to {}.{} or later", KERNEL_GOOD.0, KERNEL_GOOD.1),
        ),
        Some(_) => Check::ok("kernel", detail),
        None => Check::warn(
            "kernel",
            format!("{detail}: not a version that is understood"),
            "compare it with 6.1",
        ),
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn uring() -> Check {
    let best = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(8);
    let plain = match best {
        Ok(ring) => return uring_operations(&ring, "SINGLE_ISSUER and DEFER_TASKRUN"),
        Err(_) => IoUring::new(8),
    };
    match plain {
        Ok(ring) => uring_operations(&ring, "without DEFER_TASKRUN, slower"),
        Err(error) => {
            let (detail, cure) = uring_refusal(
                &error,
                read_to_string("/proc/sys/kernel/io_uring_disabled").ok().as_deref().map(str::trim),
                seccomp_filtered(),
            );
            Check::fail("io_uring", detail, cure)
        }
    }
}

fn uring_operations(ring: &IoUring, how: &str) -> Check {
    let mut probe = Probe::new();
    if ring.submitter().register_probe(&mut probe).is_err() {
        return Check::warn(
            "io_uring",
            format!("{how}; its operations cannot be listed"),
            "upgrade the kernel",
        );
    }
    let needed = [
        ("WRITE_FIXED", opcode::WriteFixed::CODE),
        ("READ_FIXED", opcode::ReadFixed::CODE),
        ("FSYNC", opcode::Fsync::CODE),
        ("ACCEPT", opcode::Accept::CODE),
        ("RECV", opcode::Recv::CODE),
        ("SENDMSG", opcode::SendMsg::CODE),
        ("TIMEOUT", opcode::Timeout::CODE),
    ];
    let missing = needed.iter().filter(|(_, code)| !probe.is_supported(*code)).map(|(name, _)| *name);
    let missing = missing.collect::<Vec<_>>();
    if missing.is_empty() {
        Check::ok("io_uring", how)
    } else {
        Check::fail("io_uring", format!("operations missing: {}", missing.join(", ")), "upgrade the kernel")
    }
}

/// Why a ring was refused, and the cure, from what can be seen.
fn uring_refusal(error: &io::Error, disabled: Option<&str>, seccomp: bool) -> (String, String) {
    let refused = matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES));
    match (error.raw_os_error(), disabled) {
        (_, Some("2")) if refused => (
            "kernel.io_uring_disabled is 2: off for everybody".to_owned(),
            "sysctl -w kernel.io_uring_disabled=0, and in /etc/sysctl.d to keep it".to_owned(),
        ),
        (_, Some("1")) if refused => (
            "kernel.io_uring_disabled is 1: off for users outside kernel.io_uring_group".to_owned(),
            "sysctl -w kernel.io_uring_disabled=0, or add this user to the group in kernel.io_uring_group".to_owned(),
        ),
        (Some(libc::ENOSYS), _) if !seccomp => {
            ("this kernel has none".to_owned(), "take a kernel built with CONFIG_IO_URING".to_owned())
        }
        (Some(libc::ENOMEM), _) => (
            "not enough locked memory for a ring".to_owned(),
            "raise RLIMIT_MEMLOCK: LimitMEMLOCK=infinity in a systemd unit, --ulimit memlock=-1 for docker".to_owned(),
        ),
        _ if seccomp => (
            format!("refused by a seccomp filter, as Docker's default profile does ({error})"),
            "docker run --security-opt seccomp=FILE with a profile that allows io_uring_setup, io_uring_enter and \
             io_uring_register (or seccomp=unconfined to try it out); in systemd SystemCallFilter="
                .to_owned(),
        ),
        _ => (format!("refused: {error}"), "look for a security module (SELinux, AppArmor) in `dmesg`".to_owned()),
    }
}

fn seccomp_filtered() -> bool {
    let status = read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().any(|line| line.strip_prefix("Seccomp:").is_some_and(|mode| mode.trim() == "2"))
}

fn memlock() -> Check {
    match getrlimit(Resource::Memlock).current {
        None => Check::ok("memlock", "unlimited"),
        Some(bytes) if bytes >= MEMORY_DEV => Check::ok("memlock", Size(bytes).to_string()),
        Some(bytes) => {
            let detail = format!("{}: buffers beyond that go unregistered, a little slower", Size(bytes));
            if rustix::process::geteuid().is_root() {
                return Check::ok("memlock", format!("{}, and root need not keep to it", Size(bytes)));
            }
            Check::warn(
                "memlock",
                detail,
                "ulimit -l unlimited, LimitMEMLOCK=infinity in a systemd unit, --ulimit memlock=-1 for docker",
            )
        }
    }
}

fn nofile() -> Check {
    let limit = getrlimit(Resource::Nofile);
    let cure = "ulimit -Hn 65536, LimitNOFILE=65536 in a systemd unit, --ulimit nofile=65536 for docker";
    match limit.maximum {
        Some(hard) if hard < DESCRIPTORS_RESERVED + CONNECTIONS_MIN => {
            Check::fail("nofile", format!("at most {hard} descriptors"), cure)
        }
        Some(hard) if hard < DESCRIPTORS_RESERVED + u64::from(CONNECTIONS_DEFAULT) => Check::warn(
            "nofile",
            format!("at most {hard} descriptors: {} connections", hard - DESCRIPTORS_RESERVED),
            cure,
        ),
        Some(hard) => Check::ok("nofile", format!("{hard} descriptors")),
        None => Check::ok("nofile", "unlimited"),
    }
}

fn processors() -> Check {
    match std::thread::available_parallelism().map_or(1, usize::from) {
        1 => Check::warn("processors", "1: clients and server share it", "give it 2 or more"),
        count => Check::ok("processors", count.to_string()),
    }
}

fn memory() -> Check {
    let available = read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    });
    match available {
        Some(kib) if kib << 10 < 2 * MEMORY_DEV => {
            Check::warn("memory", format!("{} available", Size(kib << 10)), "lower --memory")
        }
        Some(kib) => Check::ok("memory", format!("{} available", Size(kib << 10))),
        None => Check::warn("memory", "/proc/meminfo cannot be read", "mount /proc"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_understood() {
        for (release, expected) in
            [("6.18.44-fc-v595", Some((6, 18))), ("5.15.0-91-generic", Some((5, 15))), ("next", None)]
        {
            assert_eq!(version(release), expected);
        }
    }

    #[test]
    fn each_refusal_has_its_own_cure() {
        let cure = |errno, disabled, seccomp| {
            uring_refusal(&io::Error::from_raw_os_error(errno), disabled, seccomp).1
        };
        assert!(cure(libc::EPERM, Some("2"), false).contains("io_uring_disabled=0"));
        assert!(cure(libc::EPERM, Some("1"), false).contains("io_uring_group"));
        assert!(cure(libc::EPERM, Some("0"), true).contains("seccomp="));
        assert!(cure(libc::ENOSYS, None, true).contains("seccomp="));
        assert!(cure(libc::ENOSYS, None, false).contains("CONFIG_IO_URING"));
        assert!(cure(libc::ENOMEM, None, false).contains("MEMLOCK"));
        assert!(cure(libc::EPERM, Some("0"), false).contains("SELinux"));
    }
}
