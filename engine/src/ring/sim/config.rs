//! What kind of world it is: latencies, budgets, and which faults happen by themselves and how often.

use std::path::PathBuf;

use super::rng::Rng;

/// How long something takes: `min_us` plus up to `spread_us`, and in `tail_ppm` of a million cases up to `tail_us`
/// more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latency {
    /// Least time.
    pub min_us: u64,
    /// Even spread on top.
    pub spread_us: u64,
    /// How often a tail is added, in parts per million.
    pub tail_ppm: u32,
    /// The longest tail.
    pub tail_us: u64,
}

impl Latency {
    /// Without a tail.
    pub const fn even(min_us: u64, spread_us: u64) -> Self {
        Self { min_us, spread_us, tail_ppm: 0, tail_us: 0 }
    }

    pub(super) fn draw(&self, rng: &mut Rng) -> u64 {
        let tail = if rng.chance(self.tail_ppm) { rng.below(self.tail_us + 1) } else { 0 };
        self.min_us + rng.below(self.spread_us + 1) + tail
    }
}

/// What is read where nothing was ever written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fresh {
    /// Zeros, as a file system gives for unwritten extents.
    #[default]
    Zeros,
    /// What an earlier owner of the blocks left: garbage in most pages, zeros in some; the same at each read.
    Garbage,
}

/// Faults of the disk that happen by themselves, each in parts per million of the ops of its kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskFaults {
    /// A read ends with `EIO`; the next one of the same bytes is good again.
    pub read_error_ppm: u32,
    /// A write ends with `EIO`; any of its sectors may have been written.
    pub write_error_ppm: u32,
    /// A sync ends with `EIO`, once; what it should have covered is dropped or stays dirty.
    pub sync_error_ppm: u32,
    /// A read returns fewer bytes than asked.
    pub read_short_ppm: u32,
    /// A write takes fewer bytes than asked.
    pub write_short_ppm: u32,
    /// A write is acknowledged and never happens.
    pub lost_write_ppm: u32,
    /// A write is acknowledged and lands somewhere else.
    pub misdirected_write_ppm: u32,
    /// Before a read, one stored bit among the bytes read flips for good.
    pub rot_ppm: u32,
    /// One bit flips in what a read returns, this time only.
    pub read_flip_ppm: u32,
}

/// How a power loss treats what is not durable: the weights with which one style is drawn for each crash, and what
/// may become of a single sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CrashModel {
    /// Weight of: everything survives.
    pub keep_all: u32,
    /// Weight of: nothing survives.
    pub lose_all: u32,
    /// Weight of: each write survives wholly or not at all.
    pub whole_writes: u32,
    /// Weight of: of each write the first sectors survive.
    pub prefix: u32,
    /// Weight of: of each write the last sectors survive.
    pub suffix: u32,
    /// Weight of: runs of sectors share a fate.
    pub runs: u32,
    /// Weight of: each sector has its own fate.
    pub sectors: u32,
    /// A sector may hold part of the old bytes and part of the new ones.
    pub shorn: bool,
    /// A sector may come back as zeros.
    pub zeros: bool,
    /// A sector may come back as garbage.
    pub garbage: bool,
    /// A sector that should have been damaged becomes unreadable (`EIO`) instead, in parts per million.
    pub unreadable_ppm: u32,
}

impl Default for CrashModel {
    fn default() -> Self {
        Self {
            keep_all: 10,
            lose_all: 10,
            whole_writes: 12,
            prefix: 14,
            suffix: 8,
            runs: 14,
            sectors: 32,
            shorn: true,
            zeros: true,
            garbage: true,
            unreadable_ppm: 0,
        }
    }
}

/// The disks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskConfig {
    /// Of writes.
    pub write: Latency,
    /// Of reads.
    pub read: Latency,
    /// Of syncs of files and directories, and added to durable writes.
    pub sync: Latency,
    /// Of everything else.
    pub meta: Latency,
    /// Bytes that a node's files may take.
    pub budget: u64,
    /// What never-written space holds.
    pub fresh: Fresh,
    /// Extents end at multiples of this; 0: one extent per file.
    pub extent_every: u64,
    /// What [`FileFacts`](crate::ring::FileFacts) says; 4096 is demanded all the same.
    pub dio_align: u32,
    /// Directories that exist, durably, on a new disk.
    pub roots: Vec<PathBuf>,
    /// What goes wrong by itself.
    pub faults: DiskFaults,
    /// What a power loss does.
    pub crash: CrashModel,
}

/// The network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetConfig {
    /// Of a packet.
    pub delay: Latency,
    /// Of a socket op that could go on at once.
    pub op: Latency,
    /// Largest packet; each is between 1 byte and this.
    pub packet_max: usize,
    /// Bytes that one direction of a connection holds, on the way and unread together.
    pub buffer: usize,
    /// A send or receive moves fewer bytes than it could.
    pub short_ppm: u32,
    /// A packet resets its connection.
    pub drop_ppm: u32,
    /// From this packet on nothing of its direction arrives, and nobody is told.
    pub black_hole_ppm: u32,
    /// A connection attempt is refused.
    pub refuse_ppm: u32,
}

/// The wall clocks. The monotonic clock is the virtual time and never goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockConfig {
    /// Unix milliseconds at virtual time 0.
    pub base_ms: i64,
    /// Nodes differ by up to this much, either way.
    pub offset_ms_max: i64,
    /// Nodes run fast or slow by up to this much.
    pub drift_ppm_max: i64,
    /// The clock jumps this often; 0: never.
    pub jump_every_us: u64,
    /// To anywhere within this much of the truth, either way.
    pub jump_ms_max: i64,
}

/// Everything about a world but its seed. The default is a calm one: completions out of order, crashes as bad as
/// they can be, nothing failing by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SimConfig {
    /// Its disks.
    pub disk: DiskConfig,
    /// Its network.
    pub net: NetConfig,
    /// Its clocks.
    pub clock: ClockConfig,
    /// Virtual time that a `wait` takes which found nothing and would not sleep, so that a polling ring lets
    /// the world go on.
    pub poll_us: u64,
    /// Files and sockets that a ring may have open, each.
    pub descriptors_max: usize,
    /// Lines of text kept for a failure report; 0 makes none.
    pub trace_lines: usize,
}

impl Default for SimConfig {
    fn default() -> Self {
        Self {
            disk: DiskConfig {
                write: Latency::even(20, 80),
                read: Latency::even(20, 60),
                sync: Latency::even(100, 400),
                meta: Latency::even(5, 20),
                budget: 1 << 40,
                fresh: Fresh::Zeros,
                extent_every: 0,
                dio_align: 4096,
                roots: vec![PathBuf::from("/data")],
                faults: DiskFaults::default(),
                crash: CrashModel::default(),
            },
            net: NetConfig {
                delay: Latency::even(20, 100),
                op: Latency::even(1, 4),
                packet_max: 16 * 1024,
                buffer: 64 * 1024,
                short_ppm: 50_000,
                drop_ppm: 0,
                black_hole_ppm: 0,
                refuse_ppm: 0,
            },
            clock: ClockConfig {
                base_ms: 1_700_000_000_000,
                offset_ms_max: 0,
                drift_ppm_max: 0,
                jump_every_us: 0,
                jump_ms_max: 0,
            },
            poll_us: 1,
            descriptors_max: 16 * 1024,
            trace_lines: 0,
        }
    }
}

impl SimConfig {
    /// Draws which families of trouble are on and how much: latency tails, short reads and writes, garbage in fresh
    /// space, extent edges, one style of crash, tiny packets and buffers, dropped connections, clocks that jump.
    /// Only trouble from which the engine loses nothing: no errors and no damage, which need other oracles.
    pub fn swarm(seed: u64) -> Self {
        let mut rng = Rng::new(seed, 0x53_5741_524d);
        let mut config = Self::default();
        let disk = &mut config.disk;
        for latency in [&mut disk.write, &mut disk.read, &mut disk.sync] {
            latency.min_us = rng.within(1, 100);
            latency.spread_us = rng.within(1, 1000);
            if rng.below(4) == 0 {
                latency.tail_ppm = rng.within(100, 50_000) as u32;
                latency.tail_us = 10u64.pow(rng.within(3, 8) as u32);
            }
        }
        if rng.coin() {
            disk.faults.read_short_ppm = rng.within(1_000, 200_000) as u32;
        }
        if rng.coin() {
            disk.faults.write_short_ppm = rng.within(1_000, 200_000) as u32;
        }
        if rng.below(3) == 0 {
            disk.fresh = Fresh::Garbage;
        }
        if rng.below(3) == 0 {
            disk.extent_every = 4096 << rng.below(10);
        }
        if rng.below(4) == 0 {
            let crash = &mut disk.crash;
            *crash = CrashModel { keep_all: 0, lose_all: 0, whole_writes: 0, prefix: 0, ..*crash };
            *crash = CrashModel { suffix: 0, runs: 0, sectors: 0, ..*crash };
            match rng.below(6) {
                0 => crash.lose_all = 1,
                1 => crash.whole_writes = 1,
                2 => crash.prefix = 1,
                3 => crash.suffix = 1,
                4 => crash.runs = 1,
                _ => crash.sectors = 1,
            }
        }
        let net = &mut config.net;
        if rng.below(3) == 0 {
            net.packet_max = 1 << rng.within(4, 12);
        }
        if rng.below(3) == 0 {
            net.buffer = 1 << rng.within(8, 16);
        }
        if rng.below(3) == 0 {
            net.drop_ppm = rng.within(10, 5_000) as u32;
        }
        if rng.below(6) == 0 {
            net.black_hole_ppm = rng.within(10, 1_000) as u32;
        }
        if rng.below(3) == 0 {
            config.clock.offset_ms_max = 60_000;
            config.clock.drift_ppm_max = 500;
        }
        if rng.below(3) == 0 {
            config.clock.jump_every_us = 10u64.pow(rng.within(4, 7) as u32);
            config.clock.jump_ms_max = 10i64.pow(rng.within(1, 8) as u32);
        }
        config
    }
}
