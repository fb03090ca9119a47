//! What a seed stands for: which families of trouble are on, how the node is set up, and who its clients are.

use super::groups::GroupPlan;
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
        self.next() % bound.max(1)
    }

    /// True in one of so many cases.
    pub(crate) fn one_in(&mut self, cases: u64) -> bool {
        self.below(cases) == 0
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// How one run is set up.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    /// A bug in the engine that the checks have to find.
    pub(crate) planted: Planted,
    pub(crate) shards: u16,
    /// Processes, one after the other, before the world is healed.
    pub(crate) lives: u32,
    /// Disk events that a process lives, at most.
    pub(crate) life: u64,
    pub(crate) segment_size: u64,
    pub(crate) checkpoint_interval: u64,
    pub(crate) retain_size: Option<u64>,
    pub(crate) disk_limit: Option<u64>,
    pub(crate) durability: Durability,
    pub(crate) connections_max: usize,
    /// Bytes that a shard may hold for its connections.
    pub(crate) connection_memory: usize,
    /// Writes and flushes fail by themselves, so that logs get poisoned.
    pub(crate) errors: bool,
    /// Clients break their connections, stop reading, finish early or vanish.
    pub(crate) breaks: bool,
    /// Producers give up after a while.
    pub(crate) gives_up: bool,
    /// Topics that live to the end, with their partitions.
    pub(crate) topics: Vec<(&'static str, u32)>,
    pub(crate) producers: u32,
    pub(crate) plain_producers: u32,
    pub(crate) subscribers: u32,
    pub(crate) fetchers: u32,
    pub(crate) admins: u32,
    pub(crate) hostiles: u32,
    /// Clients with transactions and delays.
    pub(crate) transactors: u32,
    /// Bursts of thousands of requests.
    pub(crate) bursts: bool,
    /// Records that one producer sends.
    pub(crate) records: u64,
    /// Largest body of a record.
    pub(crate) body_max: u64,
    /// Time between two actions of a client, at most.
    pub(crate) pause_us: u64,
    /// Consumer groups.
    pub(crate) groups: Vec<GroupPlan>,
    /// The same, in the server.
    pub(crate) planted_in_server: ringmq_server::planted::Planted,
    pub(crate) sim: SimConfig,
}

impl Plan {
    pub(crate) fn draw(seed: u64) -> Self {
        let mut draw = Draw::new(seed);
        let mut sim = SimConfig::swarm(seed);
        let disk = &mut sim.disk;
        // Longer stalls are the storage harness's: here they would only hide an answer that never comes.
        for latency in [&mut disk.write, &mut disk.read, &mut disk.sync] {
            latency.tail_us = latency.tail_us.min(200_000);
        }
        let net = &mut sim.net;
        net.packet_max = net.packet_max.max(64);
        net.buffer = net.buffer.max(1024);
        net.drop_ppm /= 4;
        if draw.one_in(4) {
            net.refuse_ppm = 50_000;
        }
        if draw.one_in(6) {
            // Few, but the log of the longest run has its files: without them no producer would ever get on.
            sim.descriptors_max = 160 + draw.below(80) as usize;
        }
        let errors = draw.one_in(6);
        if errors {
            let some = |draw: &mut Draw| if draw.one_in(2) { 200 + draw.below(5_000) as u32 } else { 0 };
            sim.disk.faults = DiskFaults {
                sync_error_ppm: some(&mut draw),
                write_error_ppm: some(&mut draw),
                ..sim.disk.faults
            };
        }
        let segment_size = 4096 * [32, 40, 64, 128][draw.below(4) as usize];
        let limited = draw.one_in(6);
        let slow_net = sim.net.packet_max < 512 || sim.net.buffer < 4096;
        let shards = 1 + draw.below(3) as u16;
        let mut plan = Self {
            seed,
            planted: Planted::default(),
            shards,
            lives: 1 + draw.below(4) as u32,
            life: [60, 200, 600][draw.below(3) as usize],
            segment_size,
            checkpoint_interval: segment_size * (1 + draw.below(3)),
            retain_size: (limited || draw.one_in(4)).then_some(segment_size * (2 + draw.below(5))),
            disk_limit: limited.then_some(segment_size * (9 + draw.below(4))),
            durability: if draw.one_in(2) { Durability::Flush } else { Durability::Dsync },
            connections_max: if draw.one_in(6) { 4 } else { 10_000 },
            connection_memory: if seed.is_multiple_of(3) { 512 << 10 } else { 64 << 20 },
            errors,
            breaks: !draw.one_in(4),
            gives_up: draw.one_in(5),
            topics: vec![("alpha", 1 + draw.below(4) as u32), ("beta", 1 + draw.below(6) as u32)],
            groups: Vec::new(),
            planted_in_server: ringmq_server::planted::Planted::default(),
            producers: 1 + draw.below(3) as u32,
            plain_producers: draw.below(3) as u32,
            subscribers: draw.below(3) as u32,
            fetchers: draw.below(3) as u32,
            admins: draw.below(3) as u32,
            hostiles: draw.below(4) as u32,
            transactors: [0, 1, 1, 2][draw.below(4) as usize],
            bursts: draw.one_in(6) && !slow_net,
            records: 20 + draw.below(120),
            body_max: if slow_net { 200 } else { [64, 700, 5_000, 20_000][draw.below(4) as usize] },
            pause_us: [200, 2_000, 12_000][draw.below(3) as usize],
            sim,
        };
        plan.groups = GroupPlan::draw(seed, &plan.topics);
        plan
    }

    /// Records may vanish from the front of a partition.
    pub(crate) fn retains(&self) -> bool {
        self.retain_size.is_some()
    }
}
