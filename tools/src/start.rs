//! `--from`: where a reader begins.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use ringmq_server::units::Span;
use std::str::FromStr;

/// Where a reader begins in each partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    /// At the first record that is kept.
    Earliest,
    /// Behind the last record there is now.
    Latest,
    /// At this offset.
    Offset(u64),
    /// At the first record published at or after this time, Unix milliseconds.
    Time(i64),
}

/// What `--from` takes, for `--help`.
pub(crate) const TIMES: &str = "\
Times of --from: 2026-11-22T06:29:44Z, 2026-11-22 (UTC), -15m (that long ago), @1795328984 (Unix seconds).";

impl FromStr for From {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "earliest" | "start" => return Ok(Self::Earliest),
            "latest" | "end" => return Ok(Self::Latest),
            _ => {}
        }
        if let Ok(offset) = text.parse() {
            return Ok(Self::Offset(offset));
        }
        let wrong = || {
            format!(
                "'{text}' is not earliest, latest, an offset or a time (2026-11-22T06:29:44Z, 2026-11-22, -15m, @1795328984)"
            )
        };
        if let Some(ago) = text.strip_prefix('-') {
            let ago = ago.parse::<Span>().map_err(|_| wrong())?;
            let ago = i64::try_from(ago.0).map_err(|_| wrong())?;
            let time = Timestamp::now().checked_sub(ago.milliseconds()).map_err(|_| wrong())?;
            return Ok(Self::Time(time.as_millisecond()));
        }
        if let Some(seconds) = text.strip_prefix('@') {
            let time = seconds.parse().ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
            return time.map(|time| Self::Time(time.as_millisecond())).ok_or_else(wrong);
        }
        if let Ok(time) = text.parse::<Timestamp>() {
            return Ok(Self::Time(time.as_millisecond()));
        }
        let time = text.parse::<DateTime>().ok().and_then(|time| time.to_zoned(TimeZone::UTC).ok());
        time.map(|time| Self::Time(time.timestamp().as_millisecond())).ok_or_else(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_say_where() {
        for (text, expected) in [
            ("earliest", From::Earliest),
            ("start", From::Earliest),
            ("latest", From::Latest),
            ("42", From::Offset(42)),
            ("@1795328984", From::Time(1_795_328_984_000)),
            ("2026-11-22T06:29:44.120Z", From::Time(1_795_328_984_120)),
            ("2026-11-22T07:29:44+01:00", From::Time(1_795_328_984_000)),
            ("2026-11-22", From::Time(1_795_305_600_000)),
            ("2026-11-22 06:29:44", From::Time(1_795_328_984_000)),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for text in ["", "begin", "-", "-5", "@", "@soon", "2026-13-01", "1.5", "-99999999999w"] {
            assert!(text.parse::<From>().is_err(), "{text}");
        }
    }

    #[test]
    fn ago_counts_from_now() {
        let Ok(From::Time(time)) = "-1h".parse() else { panic!("not a time") };
        let ago = Timestamp::now().as_millisecond() - time;
        assert!((3_600_000..3_660_000).contains(&ago), "{ago}");
    }
}
