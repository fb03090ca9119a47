//! What a seed stands for: which families of trouble are on, and how the shard is set up.

use ringmq_engine::format::superblock::Durability;
use ringmq_engine::planted::Planted;
use ringmq_engine::ring::sim::{DiskFaults, SimConfig};

/// A stream of numbers of the harness's own.
#[derive(Clone, Debug)]
pub(crate) struct Draw(u64);

impl Draw {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed ^ 0x9e37_79b9_7f4a_7c15)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// True in one of so many cases.
    pub(crate) fn one_in(&mut self, cases: u64) -> bool {
        self.below(cases) == 0
    }
}

/// How one run is set up.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) planted: Planted,
    /// Ends of a process that are wanted.
    pub(crate) crashes: u32,
    pub(crate) shards: u16,
    pub(crate) segment_size: u64,
    pub(crate) checkpoint_interval: u64,
    pub(crate) retain_size: Option<u64>,
    pub(crate) retain_time_ms: Option<u64>,
    pub(crate) disk_limit: Option<u64>,
    pub(crate) durability: Durability,
    /// Largest body of a record.
    pub(crate) body_max: u64,
    /// Frames that are sent at once, at most.
    pub(crate) burst: u64,
    /// Time between two actions, at most.
    pub(crate) pause_us: u64,
    /// I/O events that a process lives, at most.
    pub(crate) life: u64,
    /// Frames are sent before the RECOVERY group is durable.
    pub(crate) eager: bool,
    /// Errors happen by themselves, so that logs get poisoned.
    pub(crate) errors: bool,
    /// Half of what clients do is with transactions, delays and dead letters.
    pub(crate) late: bool,
    /// A third of what clients do is with groups and their positions.
    pub(crate) groups: bool,
    pub(crate) sim: SimConfig,
}

impl Plan {
    pub(crate) fn draw(seed: u64) -> Self {
        let mut draw = Draw::new(seed);
        let mut sim = SimConfig::swarm(seed);
        let segment_size = 4096 * [32, 40, 64, 128][draw.below(4) as usize];
        let errors = draw.one_in(4);
        if errors {
            let some = |draw: &mut Draw| if draw.one_in(2) { 200 + draw.below(5_000) as u32 } else { 0 };
            sim.disk.faults = DiskFaults {
                sync_error_ppm: some(&mut draw),
                write_error_ppm: some(&mut draw),
                ..sim.disk.faults
            };
        }
        let limited = draw.one_in(3);
        Self {
            seed,
            planted: Planted::default(),
            crashes: 6,
            shards: if draw.one_in(5) { 2 } else { 1 },
            segment_size,
            checkpoint_interval: segment_size * (1 + draw.below(3)),
            retain_size: (limited || draw.one_in(3)).then_some(segment_size * (2 + draw.below(5))),
            retain_time_ms: draw.one_in(8).then_some(20 + draw.below(2_000)),
            disk_limit: limited.then_some(segment_size * (9 + draw.below(4))),
            durability: if draw.one_in(2) { Durability::Flush } else { Durability::Dsync },
            body_max: [64, 700, 5_000, 30_000][draw.below(4) as usize],
            burst: 1 + draw.below(12),
            pause_us: [50, 400, 3_000, 12_000][draw.below(4) as usize],
            life: [60, 300, 900][draw.below(3) as usize],
            eager: draw.one_in(3),
            errors,
            late: draw.below(3) > 0,
            groups: draw.one_in(3),
            sim,
        }
    }

    /// A calm world in which only happens what a test does.
    pub(crate) fn calm() -> Self {
        Self {
            crashes: 0,
            shards: 1,
            segment_size: 64 * 4096,
            checkpoint_interval: 1 << 40,
            retain_size: None,
            retain_time_ms: None,
            disk_limit: None,
            durability: Durability::Flush,
            body_max: 3_000,
            burst: 4,
            eager: false,
            errors: false,
            late: false,
            groups: false,
            sim: SimConfig::default(),
            ..Self::draw(0)
        }
    }
}
