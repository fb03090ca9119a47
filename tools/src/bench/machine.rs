//! `ringmq bench machine`: measures the floor, without a server: with plain blocking calls, and where several writes
//! are under way through a ring ([`super::pipe`]).
//!
//! Rounds go over all operations and each figure is the median of its rounds, because a shared disk drifts by
//! the minute: a figure taken in one piece would show the minute, not the operation. The file is written through
//! once before anything is timed (an unwritten extent costs twice a written one) and has no name while in use, so
//! that an interrupted run leaves nothing behind.

use super::cpu;
use super::floor::{FLOORS_VERSION, Floor, Floors, Machine, Spread, What};
use super::latency::{Latencies, format_rate, format_us};
use super::pipe::{Pipe, Sync};
use comfy_table::{CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use rustix::fs::OFlags;
use rustix::io::{Errno, ReadWriteFlags, pwritev2};
use std::fs::{File, OpenOptions};
use std::io::{IoSlice, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// Alignment that every disk accepts for direct transfers.
const DIRECT_ALIGN: usize = 4096;
const WRITE_SIZES: [usize; 4] = [4 << 10, 64 << 10, 256 << 10, 1 << 20];
const READ_SIZES: [usize; 2] = [128 << 10, 1 << 20];
/// Buffers of `floor-pipe`, and how many of them are written at a time.
const PIPE_SIZES: [usize; 3] = [64 << 10, 256 << 10, 1 << 20];
const PIPE_DEPTHS: [usize; 3] = [1, 2, 4];
/// One write call of the loopback copy.
const COPY_CHUNK: usize = 256 << 10;
/// A record of 1 KiB with its headers, and an acknowledgement.
const REQUEST_LEN: usize = 1300;
const ANSWER_LEN: usize = 256;

const EXAMPLES: &str = "\
Examples:
  ringmq bench machine --data /var/lib/ringmq --out floors.json";

/// Measure what this machine can do at most: disk, loopback, and both in one thread.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct MachineArgs {
    /// Directory on the disk to measure; needs 256 MiB, which are given back.
    #[arg(long, value_name = "DIR", default_value = ".")]
    data: PathBuf,
    /// Core that receives and writes, and core that sends [default: the first and the last].
    #[arg(long, value_name = "A,B", value_delimiter = ',', num_args = 2)]
    cores: Option<Vec<usize>>,
    /// One short round on a 64 MiB file: about 4 s instead of 30, and noisier.
    #[arg(long)]
    quick: bool,
    /// Also write the figures as JSON, for `--floor` of the other benches.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Above this load average, others take the cores often enough to double a latency.
pub(super) const LOAD_QUIET: f64 = 0.5;

/// Time for each operation in each round, and the number of rounds.
#[derive(Clone, Copy)]
struct Plan {
    rounds: usize,
    slice: Duration,
    file_len: u64,
}

const FULL: Plan = Plan { rounds: 3, slice: Duration::from_millis(260), file_len: 256 << 20 };
const QUICK: Plan = Plan { rounds: 1, slice: Duration::from_millis(110), file_len: 64 << 20 };

pub(super) fn run(args: &MachineArgs, json: bool) -> Result<(), String> {
    let plan = if args.quick { QUICK } else { FULL };
    let floors = measure(&args.data, args.cores.as_deref(), plan, !json)?;
    let text = serde_json::to_string(&floors).map_err(|e| e.to_string())?;
    if let Some(path) = &args.out {
        std::fs::write(path, &text).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
    }
    super::print_line(&if json { text } else { table(&floors) });
    Ok(())
}

fn measure(data: &Path, cores: Option<&[usize]>, plan: Plan, show: bool) -> Result<Floors, String> {
    let started = Instant::now();
    let allowed = cpu::allowed_cores();
    let (server_core, load_core) = match cores {
        Some([server, load]) => (*server, *load),
        _ => (allowed[0], allowed[allowed.len() - 1]),
    };
    let machine = facts(data, server_core, load_core);
    let bench = Bench { cores: Cores { server: server_core, load: load_core }, slice: plan.slice };
    // All timing happens on threads of their own, so that pinning does not outlive the measurement.
    let prepared = std::thread::scope(|scope| join(scope.spawn(|| TestFile::prepare(data, plan.file_len))))?;
    let mut disk = prepared;

    let steps = (plan.rounds * bench.steps()) as u64;
    let progress = if show { ProgressBar::new(steps) } else { ProgressBar::hidden() }.with_message("floor");
    if let Ok(style) = ProgressStyle::with_template("{msg} {bar:30} {pos}/{len}") {
        progress.set_style(style);
    }
    let mut samples: Vec<(Shape, Vec<Sample>)> = Vec::new();
    for _ in 0..plan.rounds {
        bench.round(&mut disk, &mut |shape, sample| {
            progress.inc(1);
            match samples.iter_mut().find(|known| known.0 == shape) {
                Some(known) => known.1.push(sample),
                None => samples.push((shape, vec![sample])),
            }
        })?;
    }
    progress.finish_and_clear();

    let spread = |samples: &[Sample], of: fn(&Sample) -> Option<f64>| {
        let values: Vec<f64> = samples.iter().filter_map(of).collect();
        (!values.is_empty()).then(|| Spread::of(values))
    };
    let floors = samples
        .iter()
        .map(|((what, size, in_flight), samples)| Floor {
            what: *what,
            size: *size,
            in_flight: *in_flight,
            p50_us: spread(samples, |s| s.p50_us),
            p99_us: spread(samples, |s| s.p99_us),
            mb_s: spread(samples, |s| Some(s.mb_s)).unwrap_or_default(),
        })
        .collect();
    Ok(Floors {
        version: FLOORS_VERSION,
        machine,
        rounds: plan.rounds,
        seconds: started.elapsed().as_secs_f64(),
        floors,
    })
}

/// What is known of this machine before anything is measured.
pub(super) fn facts(data: &Path, server_core: usize, load_core: usize) -> Machine {
    Machine {
        cores: cpu::allowed_cores().len(),
        server_core,
        load_core,
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        filesystem: filesystem(data),
        load_before: rustix::system::sysinfo().loads[0] as f64 / 65536.0,
        time: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs(),
    }
}

/// Single limits of the floor, each as long as it is asked for: the other side of a pair.
pub(super) struct Limits {
    disk: TestFile,
    cores: Cores,
}

impl Limits {
    /// Writes a file of `file_len` bytes through, once.
    pub(super) fn prepare(data: &Path, server: usize, load: usize, file_len: u64) -> Result<Self, String> {
        let disk = std::thread::scope(|scope| join(scope.spawn(|| TestFile::prepare(data, file_len))))?;
        Ok(Self { disk, cores: Cores { server, load } })
    }

    /// `floor-pipe` at its best: each size and depth in turn for a share of `time`, in MB/s.
    pub(super) fn pipe_mb_s(&mut self, time: Duration) -> Result<f64, String> {
        // At 64 KiB one in flight is never the best: where the time is short it goes to the others.
        let shapes = PIPE_SIZES[1..].iter().flat_map(|size| PIPE_DEPTHS.map(|depth| (*size, depth)));
        let shapes =
            shapes.flat_map(|(size, depth)| [Sync::Flush, Sync::Dsync].map(|sync| (size, depth, sync)));
        let shapes: Vec<_> = shapes.collect();
        let bench = Bench { cores: self.cores, slice: time / shapes.len() as u32 };
        let rates = shapes.iter().map(|(size, depth, sync)| bench.pipe(&self.disk, *size, *depth, *sync));
        Ok(rates.collect::<Result<Vec<_>, _>>()?.iter().map(|sample| sample.mb_s).fold(0.0, f64::max))
    }

    /// One record in flight through one thread: p50 and p99 in microseconds, of the faster durability call.
    pub(super) fn one_thread_us(&mut self, time: Duration) -> Result<(f64, f64), String> {
        let bench = Bench { cores: self.cores, slice: time / 2 };
        let mut best: Option<(f64, f64)> = None;
        for sync in [Sync::Flush, Sync::Dsync] {
            let sample = bench.pipe_answered(&mut self.disk, sync)?;
            let found = (sample.p50_us.unwrap_or_default(), sample.p99_us.unwrap_or_default());
            best = Some(best.map_or(found, |best| if found.0 < best.0 { found } else { best }));
        }
        Ok(best.unwrap_or_default())
    }

    /// The smaller of direct read at 1 MiB, one in flight, and the loopback copy, in MB/s.
    pub(super) fn cold_read_mb_s(&mut self, time: Duration) -> Result<f64, String> {
        let disk = on_core(self.cores.server, || self.disk.timed_reads(READ_SIZES[1], time / 2))?;
        Ok(disk.mb_s.min(self.copy_mb_s(time / 2)?))
    }

    /// One TCP stream over loopback, in MB/s.
    pub(super) fn copy_mb_s(&self, slice: Duration) -> Result<f64, String> {
        let bench = Bench { cores: self.cores, slice };
        Ok(bench.loopback_copy()?.mb_s)
    }
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    p50_us: Option<f64>,
    p99_us: Option<f64>,
    mb_s: f64,
}

impl Sample {
    fn rate(bytes: u64, took: Duration) -> Self {
        Self { p50_us: None, p99_us: None, mb_s: bytes as f64 / 1e6 / took.as_secs_f64().max(1e-9) }
    }

    fn timed(latencies: &Latencies, bytes: u64, took: Duration) -> Self {
        let q = latencies.quantiles();
        Self { p50_us: Some(q.p50), p99_us: Some(q.p99), ..Self::rate(bytes, took) }
    }
}

#[derive(Clone, Copy)]
struct Cores {
    server: usize,
    load: usize,
}

struct Bench {
    cores: Cores,
    slice: Duration,
}

/// What, in which size, how many at a time.
type Shape = (What, usize, usize);

impl Bench {
    /// Figures of one round.
    fn steps(&self) -> usize {
        2 * WRITE_SIZES.len() + READ_SIZES.len() + 2 + 2 * PIPE_SIZES.len() * PIPE_DEPTHS.len() + 1
    }

    fn round(&self, disk: &mut TestFile, done: &mut dyn FnMut(Shape, Sample)) -> Result<(), String> {
        let server = self.cores.server;
        let mut best = [(0usize, Sync::Flush, 0f64); WRITE_SIZES.len()];
        for (size, best) in WRITE_SIZES.into_iter().zip(&mut best) {
            for (sync, what) in [(Sync::Flush, What::WriteFlush), (Sync::Dsync, What::WriteDsync)] {
                let sample = on_core(server, || disk.timed_writes(size, sync, self.slice))?;
                if sample.mb_s > best.2 {
                    *best = (size, sync, sample.mb_s);
                }
                done((what, size, 1), sample);
            }
        }
        let faster =
            |size: usize| best.iter().find(|known| known.0 == size).map_or(Sync::Flush, |known| known.1);
        for size in READ_SIZES {
            let sample = on_core(server, || disk.timed_reads(size, self.slice))?;
            done((What::Read, size, 1), sample);
        }
        done((What::LoopbackCopy, COPY_CHUNK, 1), self.loopback_copy()?);
        let trip = self.round_trip(REQUEST_LEN, ANSWER_LEN, &mut |_| Ok(()))?;
        done((What::RoundTrip, REQUEST_LEN, 1), trip);
        for size in PIPE_SIZES {
            for (sync, what) in [(Sync::Flush, What::PipeFlush), (Sync::Dsync, What::PipeDsync)] {
                for depth in PIPE_DEPTHS {
                    done((what, size, depth), self.pipe(disk, size, depth, sync)?);
                }
            }
        }
        done((What::PipeAnswered, 1 << 10, 1), self.pipe_answered(disk, faster(DIRECT_ALIGN))?);
        Ok(())
    }

    /// One record of 1 KiB in flight: received, written as one block and made durable, answered, by one thread.
    fn pipe_answered(&self, disk: &mut TestFile, sync: Sync) -> Result<Sample, String> {
        let mut block = Aligned::new(DIRECT_ALIGN);
        self.round_trip(1 << 10, ANSWER_LEN, &mut |request| {
            block.bytes_mut()[..request.len()].copy_from_slice(request);
            disk.append(block.bytes(), sync)
        })
    }

    /// One stream from the load core to the server core, received into one buffer.
    fn loopback_copy(&self) -> Result<Sample, String> {
        self.stream(|receiver| {
            let mut buffer = Aligned::new(COPY_CHUNK);
            let (mut bytes, mut started, mut took) = (0u64, None, Duration::ZERO);
            // What is left at the end and does not fill a buffer is not counted.
            while receive_full(receiver, buffer.bytes_mut())? {
                // The first buffer starts the clock, so that connecting is not measured.
                match started {
                    None => started = Some(Instant::now()),
                    Some(started) => {
                        bytes += COPY_CHUNK as u64;
                        took = started.elapsed();
                    }
                }
            }
            Ok(Sample::rate(bytes, took))
        })
    }

    /// `floor-pipe` with buffers of `size`, `depth` of them under way.
    fn pipe(&self, disk: &TestFile, size: usize, depth: usize, sync: Sync) -> Result<Sample, String> {
        self.stream(|receiver| {
            let (bytes, took) = Pipe::new(&disk.file, disk.len, size, depth, sync)?.run(receiver)?;
            Ok(Sample::rate(bytes, took))
        })
    }

    /// Sends from the load core as fast as `receive` takes it on the server core.
    fn stream(
        &self,
        receive: impl FnOnce(&mut TcpStream) -> Result<Sample, String> + Send,
    ) -> Result<Sample, String> {
        let (mut receiver, sender) = loopback_pair()?;
        let (cores, slice) = (self.cores, self.slice);
        std::thread::scope(|scope| {
            let sending = scope.spawn(move || {
                cpu::pin(cores.load)?;
                let chunk = vec![0x5a; COPY_CHUNK];
                let end = Instant::now() + slice;
                let mut sender = sender;
                while Instant::now() < end {
                    sender.write_all(&chunk).map_err(|e| format!("loopback send: {e}"))?;
                }
                sender.shutdown(Shutdown::Write).map_err(|e| format!("loopback shutdown: {e}"))
            });
            let receiving = scope.spawn(move || {
                cpu::pin(cores.server)?;
                receive(&mut receiver)
            });
            let sample = join(receiving);
            let sent = join(sending);
            // Why the receiver hung up says more than that it did.
            let sample = sample?;
            sent.map(|()| sample)
        })
    }

    /// One request in flight: sent from the load core, given to `work` on the server core, answered.
    fn round_trip(
        &self,
        request_len: usize,
        answer_len: usize,
        work: &mut (dyn FnMut(&[u8]) -> Result<(), String> + Send),
    ) -> Result<Sample, String> {
        let (mut server, mut client) = loopback_pair()?;
        let (cores, slice) = (self.cores, self.slice);
        std::thread::scope(|scope| {
            let serving = scope.spawn(move || {
                cpu::pin(cores.server)?;
                let mut request = vec![0; request_len];
                let answer = vec![0; answer_len];
                while receive_full(&mut server, &mut request)? {
                    work(&request)?;
                    server.write_all(&answer).map_err(|e| format!("loopback send: {e}"))?;
                }
                Ok(())
            });
            let asking = scope.spawn(move || {
                cpu::pin(cores.load)?;
                let request = vec![0x5a; request_len];
                let mut answer = vec![0; answer_len];
                let mut latencies = Latencies::new()?;
                let started = Instant::now();
                while started.elapsed() < slice {
                    let sent = Instant::now();
                    client.write_all(&request).map_err(|e| format!("loopback send: {e}"))?;
                    if !receive_full(&mut client, &mut answer)? {
                        return Err("the other thread hung up".to_owned());
                    }
                    latencies.record(sent.elapsed());
                }
                let bytes = latencies.quantiles().count * request_len as u64;
                Ok(Sample::timed(&latencies, bytes, started.elapsed()))
            });
            let sample = join(asking);
            join(serving)?;
            sample
        })
    }
}

/// A pre-written file without a name.
struct TestFile {
    file: File,
    len: u64,
    at: u64,
}

impl TestFile {
    fn prepare(data: &Path, len: u64) -> Result<Self, String> {
        let path = data.join(format!(".ringmq-bench-{}", std::process::id()));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .custom_flags(OFlags::DIRECT.bits() as i32)
            .open(&path)
            .map_err(|e| {
                if e.raw_os_error() == Some(Errno::INVAL.raw_os_error()) {
                    // The name may exist although the open failed.
                    let _ = std::fs::remove_file(&path);
                    format!(
                        "{} is on a file system without O_DIRECT; choose another with --data",
                        data.display()
                    )
                } else {
                    format!("cannot create a file in {}: {e}", data.display())
                }
            })?;
        std::fs::remove_file(&path).map_err(|e| format!("cannot unlink {}: {e}", path.display()))?;
        let mut chunk = Aligned::new(1 << 20);
        for (at, byte) in chunk.bytes_mut().iter_mut().enumerate() {
            *byte = (at / 7) as u8;
        }
        for at in (0..len).step_by(1 << 20) {
            file.write_all_at(chunk.bytes(), at)
                .map_err(|e| format!("cannot write {} MiB in {}: {e}", len >> 20, data.display()))?;
        }
        file.sync_all().map_err(|e| format!("cannot sync a file in {}: {e}", data.display()))?;
        Ok(Self { file, len, at: 0 })
    }

    /// Where the next operation of `size` bytes goes: one behind the other, and again from the start.
    fn advance(&mut self, size: usize) -> u64 {
        if self.at + size as u64 > self.len {
            self.at = 0;
        }
        let at = self.at;
        self.at += size as u64;
        at
    }

    fn append(&mut self, bytes: &[u8], sync: Sync) -> Result<(), String> {
        let at = self.advance(bytes.len());
        let flags = if sync == Sync::Dsync { ReadWriteFlags::DSYNC } else { ReadWriteFlags::empty() };
        let written = pwritev2(&self.file, &[IoSlice::new(bytes)], at, flags)
            .map_err(|e| format!("direct write of {} bytes: {e}", bytes.len()))?;
        if written != bytes.len() {
            return Err(format!("direct write of {} bytes wrote {written}", bytes.len()));
        }
        if sync == Sync::Flush {
            self.file.sync_data().map_err(|e| format!("fdatasync: {e}"))?;
        }
        Ok(())
    }

    fn timed_writes(&mut self, size: usize, sync: Sync, slice: Duration) -> Result<Sample, String> {
        let buffer = Aligned::new(size);
        self.timed(size, slice, |disk| disk.append(buffer.bytes(), sync))
    }

    fn timed_reads(&mut self, size: usize, slice: Duration) -> Result<Sample, String> {
        let mut buffer = Aligned::new(size);
        self.timed(size, slice, |disk| {
            let at = disk.advance(size);
            disk.file.read_exact_at(buffer.bytes_mut(), at).map_err(|e| format!("direct read: {e}"))
        })
    }

    fn timed(
        &mut self,
        size: usize,
        slice: Duration,
        mut operation: impl FnMut(&mut Self) -> Result<(), String>,
    ) -> Result<Sample, String> {
        operation(self)?;
        let mut latencies = Latencies::new()?;
        let started = Instant::now();
        while started.elapsed() < slice {
            let one = Instant::now();
            operation(self)?;
            latencies.record(one.elapsed());
        }
        let took = started.elapsed();
        Ok(Sample::timed(&latencies, latencies.quantiles().count * size as u64, took))
    }
}

/// Memory that the kernel accepts for direct transfers.
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    fn new(len: usize) -> Self {
        let bytes = vec![0; len + DIRECT_ALIGN];
        let start = bytes.as_ptr().align_offset(DIRECT_ALIGN);
        assert!(start < DIRECT_ALIGN, "no aligned address in a buffer that has room for one");
        Self { bytes, start, len }
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

/// Accepted and connected end of one loopback connection.
fn loopback_pair() -> Result<(TcpStream, TcpStream), String> {
    let pair = || {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let client = TcpStream::connect(listener.local_addr()?)?;
        let (server, _) = listener.accept()?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        Ok((server, client))
    };
    pair().map_err(|e: std::io::Error| format!("no loopback connection: {e}"))
}

/// Fills the buffer; `false` at the end of the stream.
fn receive_full(stream: &mut TcpStream, buffer: &mut [u8]) -> Result<bool, String> {
    match stream.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(format!("loopback receive: {e}")),
    }
}

fn on_core(core: usize, work: impl FnOnce() -> Result<Sample, String> + Send) -> Result<Sample, String> {
    std::thread::scope(|scope| {
        join(scope.spawn(move || {
            cpu::pin(core)?;
            work()
        }))
    })
}

fn join<T>(thread: std::thread::ScopedJoinHandle<'_, Result<T, String>>) -> Result<T, String> {
    thread.join().unwrap_or_else(|_| Err("a measuring thread panicked".to_owned()))
}

fn filesystem(data: &Path) -> String {
    let Ok(stat) = rustix::fs::statfs(data) else { return "unknown".to_owned() };
    match stat.f_type as u64 & 0xffff_ffff {
        0xef53 => "ext4".to_owned(),
        0x5846_5342 => "xfs".to_owned(),
        0x9123_683e => "btrfs".to_owned(),
        0x0102_1994 => "tmpfs".to_owned(),
        0x794c_7630 => "overlay".to_owned(),
        0xf2f5_2010 => "f2fs".to_owned(),
        0x2fc1_2fc1 => "zfs".to_owned(),
        magic => format!("{magic:#x}"),
    }
}

fn table(floors: &Floors) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["floor", "size", "p50", "p99", "rate", "rounds, MB/s"]);
    for floor in &floors.floors {
        let us = |spread: Option<Spread>| spread.map_or_else(String::new, |s| format_us(s.median));
        let mut size = if floor.size.is_multiple_of(1024) {
            format!("{} KiB", floor.size >> 10)
        } else {
            format!("{} B", floor.size)
        };
        if floor.in_flight > 1 {
            size += &format!(" × {}", floor.in_flight);
        }
        table.add_row([
            floor.what.text().to_owned(),
            size,
            us(floor.p50_us),
            us(floor.p99_us),
            format_rate(floor.mb_s.median),
            format!("{:.1}–{:.1}", floor.mb_s.min, floor.mb_s.max),
        ]);
    }
    for column in 1..6 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let machine = &floors.machine;
    let mut text = format!(
        "kernel {}, {}, {} cores (receives on {}, sends on {}), load {:.2} before, {} rounds in {:.1} s\n{}",
        machine.kernel,
        machine.filesystem,
        machine.cores,
        machine.server_core,
        machine.load_core,
        machine.load_before,
        floors.rounds,
        floors.seconds,
        table.trim_fmt(),
    );
    if machine.load_before > LOAD_QUIET {
        text += "\nthe machine was busy before the start: these figures are its state, not its floor";
    }
    let rate = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), format_rate);
    let (p50, p99) = floors.one_thread_us().unwrap_or_default();
    text += &format!(
        "\nlimits: floor-pipe {} ({})   one durable record through one thread p50 {}, p99 {}\n        \
         durable stream, one in flight {}   round trip + write {}   cold read {}   tail {}",
        rate(floors.pipe_mb_s()),
        floors.pipe_shape(),
        format_us(p50),
        format_us(p99),
        rate(floors.produce_mb_s()),
        floors.one_in_flight_us().map_or_else(|| "-".to_owned(), format_us),
        rate(floors.consume_mb_s()),
        rate(floors.copy_mb_s()),
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_is_measured_and_the_directory_is_left_empty() {
        let data = std::env::temp_dir().join(format!("ringmq-machine-{}", std::process::id()));
        std::fs::create_dir(&data).unwrap();
        let plan = Plan { rounds: 2, slice: Duration::from_millis(4), file_len: 4 << 20 };
        let floors = measure(&data, None, plan, false);
        let left = std::fs::read_dir(&data).unwrap().count();
        std::fs::remove_dir_all(&data).unwrap();
        assert_eq!(left, 0);
        let floors = match floors {
            // Not every directory for temporary files can do direct transfers.
            Err(e) => return assert!(e.contains("O_DIRECT") || e.contains("io_uring"), "{e}"),
            Ok(floors) => floors,
        };
        assert_eq!(floors.floors.len(), 13 + 2 * PIPE_SIZES.len() * PIPE_DEPTHS.len());
        assert!(floors.pipe_mb_s().unwrap() > 0.0);
        assert!(floors.one_thread_us().unwrap().0 > 0.0);
        assert!(floors.produce_mb_s().unwrap() > 0.0);
        assert!(floors.one_in_flight_us().unwrap() > 0.0);
        assert!(floors.consume_mb_s().unwrap() > 0.0);
        assert!(table(&floors).contains("limits: floor-pipe"));
    }

    #[test]
    fn a_directory_that_does_not_exist_is_named() {
        let Err(e) = measure(Path::new("/nonexistent/ringmq"), None, QUICK, false) else {
            panic!("measured")
        };
        assert!(e.contains("/nonexistent/ringmq"), "{e}");
    }

    #[test]
    fn aligned_memory_is_aligned() {
        for len in [1, 4096, 1 << 20] {
            let buffer = Aligned::new(len);
            assert_eq!(buffer.bytes().len(), len);
            assert_eq!(buffer.bytes().as_ptr().align_offset(DIRECT_ALIGN), 0);
        }
    }
}
