//! The floor: what plain system calls reach on this machine. Every figure of the other benches can be
//! printed as a ratio to it, because an absolute figure says more about the machine than about the server.

use serde::{Deserialize, Serialize};
use std::path::Path;

/// Raised when a field changes its meaning.
pub(super) const FLOORS_VERSION: u32 = 2;

/// Median over the rounds, with the lowest and the highest round.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

impl Spread {
    pub(super) fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        match values[..] {
            [] => Self::default(),
            _ => Self { median: values[values.len() / 2], min: values[0], max: values[values.len() - 1] },
        }
    }
}

/// One operation in one size.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Floor {
    /// What was done.
    pub(super) what: What,
    /// Bytes of one operation.
    pub(super) size: usize,
    /// Operations under way at a time.
    pub(super) in_flight: usize,
    /// Median latency of one operation, where one was timed.
    pub(super) p50_us: Option<Spread>,
    /// Its tail.
    pub(super) p99_us: Option<Spread>,
    /// Decimal megabytes per second.
    pub(super) mb_s: Spread,
}

/// The operations that are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum What {
    /// O_DIRECT write, then fdatasync; one in flight.
    WriteFlush,
    /// O_DIRECT write with RWF_DSYNC; one in flight.
    WriteDsync,
    /// O_DIRECT read, in the order of the file.
    Read,
    /// One TCP stream over loopback, from core to core.
    LoopbackCopy,
    /// 1,300 bytes there, 256 back.
    RoundTrip,
    /// One thread receives over loopback, writes, and flushes with fdatasync: no parsing, no checksum.
    PipeFlush,
    /// The same with RWF_DSYNC.
    PipeDsync,
    /// Receive 1 KiB, write 4 KiB and sync, answer: one in flight.
    PipeAnswered,
}

impl What {
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::WriteFlush => "direct write + fdatasync",
            Self::WriteDsync => "direct write, RWF_DSYNC",
            Self::Read => "direct read",
            Self::LoopbackCopy => "loopback copy",
            Self::RoundTrip => "loopback round trip",
            Self::PipeFlush => "floor-pipe, fdatasync",
            Self::PipeDsync => "floor-pipe, RWF_DSYNC",
            Self::PipeAnswered => "receive, write + sync, answer",
        }
    }
}

/// Where and when the floor was measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Machine {
    /// Cores that the process could use.
    pub(super) cores: usize,
    /// Core that received and wrote.
    pub(super) server_core: usize,
    /// Core that sent.
    pub(super) load_core: usize,
    pub(super) kernel: String,
    pub(super) filesystem: String,
    /// Load average over a minute, before the start.
    pub(super) load_before: f64,
    /// Unix seconds.
    pub(super) time: u64,
}

/// What `bench machine` measures.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Floors {
    pub(super) version: u32,
    pub(super) machine: Machine,
    pub(super) rounds: usize,
    pub(super) seconds: f64,
    pub(super) floors: Vec<Floor>,
}

impl Floors {
    pub(super) fn load(path: &Path) -> Result<Self, String> {
        let text = std::fs::read(path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
        let floors: Self = serde_json::from_slice(&text).map_err(|e| {
            format!("{} is not a file written by `ringmq bench machine --out`: {e}", path.display())
        })?;
        if floors.version != FLOORS_VERSION {
            return Err(format!(
                "{} has version {}, this binary reads {FLOORS_VERSION}",
                path.display(),
                floors.version
            ));
        }
        Ok(floors)
    }

    fn of(&self, what: &[What], size: Option<usize>) -> impl Iterator<Item = &Floor> {
        self.floors
            .iter()
            .filter(move |floor| what.contains(&floor.what) && size.is_none_or(|size| size == floor.size))
    }

    fn best_mb_s(&self, what: &[What], size: Option<usize>) -> Option<f64> {
        self.of(what, size).map(|floor| floor.mb_s.median).max_by(f64::total_cmp)
    }

    fn best_p50_us(&self, what: &[What], size: Option<usize>) -> Option<f64> {
        self.of(what, size).filter_map(|floor| Some(floor.p50_us?.median)).min_by(f64::total_cmp)
    }

    fn best_pipe(&self) -> Option<&Floor> {
        let pipes = self.of(&[What::PipeFlush, What::PipeDsync], None);
        pipes.max_by(|a, b| a.mb_s.median.total_cmp(&b.mb_s.median))
    }

    /// Limit of a durable stream that one thread receives and writes, at the best size and depth.
    pub(super) fn pipe_mb_s(&self) -> Option<f64> {
        self.best_pipe().map(|floor| floor.mb_s.median)
    }

    /// Where that limit was found.
    pub(super) fn pipe_shape(&self) -> String {
        self.best_pipe().map_or_else(String::new, |floor| {
            let call = if floor.what == What::PipeDsync { "DSYNC" } else { "fdatasync" };
            format!("{} KiB × {}, {call}", floor.size >> 10, floor.in_flight)
        })
    }

    /// Limit of one durable record in flight through one thread: p50 and p99.
    pub(super) fn one_thread_us(&self) -> Option<(f64, f64)> {
        let floor = self.of(&[What::PipeAnswered], None).next()?;
        Some((floor.p50_us?.median, floor.p99_us?.median))
    }

    /// Limit of whatever goes over one connection.
    pub(super) fn copy_mb_s(&self) -> Option<f64> {
        self.best_mb_s(&[What::LoopbackCopy], None)
    }

    /// Limit of a durable stream with one write in flight: the smaller of write + sync at 256 KiB and the loopback copy.
    pub(super) fn produce_mb_s(&self) -> Option<f64> {
        let disk = self.best_mb_s(&[What::WriteFlush, What::WriteDsync], Some(256 << 10))?;
        Some(disk.min(self.best_mb_s(&[What::LoopbackCopy], None)?))
    }

    /// Limit of one durable record in flight: a round trip and one block, written and synced.
    pub(super) fn one_in_flight_us(&self) -> Option<f64> {
        let disk = self.best_p50_us(&[What::WriteFlush, What::WriteDsync], Some(4 << 10))?;
        Some(disk + self.best_p50_us(&[What::RoundTrip], None)?)
    }

    /// Limit of a reader of what is not in memory: the smaller of direct read and loopback copy.
    pub(super) fn consume_mb_s(&self) -> Option<f64> {
        let disk = self.best_mb_s(&[What::Read], None)?;
        Some(disk.min(self.best_mb_s(&[What::LoopbackCopy], None)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floor(what: What, size: usize, us: f64, mb_s: f64) -> Floor {
        let spread = |v| Spread::of(vec![v, v * 2.0, v / 2.0]);
        Floor {
            what,
            size,
            in_flight: 1,
            p50_us: Some(spread(us)),
            p99_us: Some(spread(us)),
            mb_s: spread(mb_s),
        }
    }

    #[test]
    fn limits_take_the_better_call_and_the_smaller_resource() {
        let floors = Floors {
            version: FLOORS_VERSION,
            machine: Machine {
                cores: 2,
                server_core: 0,
                load_core: 1,
                kernel: String::new(),
                filesystem: String::new(),
                load_before: 0.0,
                time: 0,
            },
            rounds: 3,
            seconds: 1.0,
            floors: vec![
                floor(What::WriteFlush, 4 << 10, 200.0, 20.0),
                floor(What::WriteDsync, 4 << 10, 110.0, 37.0),
                floor(What::WriteFlush, 256 << 10, 250.0, 1000.0),
                floor(What::WriteDsync, 256 << 10, 260.0, 900.0),
                floor(What::Read, 1 << 20, 500.0, 4000.0),
                floor(What::LoopbackCopy, 256 << 10, 100.0, 2500.0),
                floor(What::RoundTrip, 1300, 60.0, 20.0),
                floor(What::PipeFlush, 256 << 10, 0.0, 800.0),
                floor(What::PipeDsync, 1 << 20, 0.0, 1500.0),
                floor(What::PipeAnswered, 1 << 10, 290.0, 3.0),
            ],
        };
        let file = std::env::temp_dir().join(format!("ringmq-floors-{}.json", std::process::id()));
        std::fs::write(&file, serde_json::to_vec(&floors).unwrap()).unwrap();
        let floors = Floors::load(&file).unwrap();
        std::fs::write(&file, "{}").unwrap();
        assert!(Floors::load(&file).unwrap_err().contains("bench machine --out"));
        std::fs::remove_file(&file).unwrap();
        assert_eq!(floors.pipe_mb_s(), Some(1500.0));
        assert_eq!(floors.pipe_shape(), "1024 KiB × 1, DSYNC");
        assert_eq!(floors.one_thread_us(), Some((290.0, 290.0)));
        assert_eq!(floors.copy_mb_s(), Some(2500.0));
        assert_eq!(floors.produce_mb_s(), Some(1000.0));
        assert_eq!(floors.one_in_flight_us(), Some(170.0));
        assert_eq!(floors.consume_mb_s(), Some(2500.0));
    }
}
