//! Where the goals are measured: servers of their own on fresh directories, load from child processes that run the
//! very benches that a user can run, and the end of all of them when the run ends or is interrupted.

use crate::bench::machine::Limits;
use crate::bench::report::BOUND_PERCENT;
use crate::bench::stats::{Goal, Interval, Verdict};
use crate::child::{Launch, ServerProcess};
use serde::Serialize;
use serde_json::Value;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How often a child is looked at.
const POLL: Duration = Duration::from_millis(5);
/// A server that reads 10 GiB to get ready would have failed its goal long before.
const READY_MAX: Duration = Duration::from_secs(120);
/// What an interrupted step answers.
pub(super) const INTERRUPTED: &str = "interrupted";

/// How large everything is made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    /// Of the server; the default of `ringmq server --dev`.
    pub(super) memory: u64,
    pub(super) segment: u64,
    /// Kept where only the rate is of interest.
    pub(super) retained: u64,
    pub(super) partitions: u32,
    pub(super) subscribers: usize,
    /// Cold bytes that a consumer has before it.
    pub(super) backlog: u64,
    /// Stored when starts and memory are measured.
    pub(super) stored: u64,
    /// File of the floor.
    pub(super) floor_file: u64,
    /// What a group works off beside producers.
    pub(super) sale_backlog: u64,
    /// Delayed messages that wait.
    pub(super) pending: u64,
    /// Half messages of open transactions.
    pub(super) halves: u64,
    /// Subscribers of a broadcast.
    pub(super) cursors: u64,
    pub(super) connections: u64,
    pub(super) idle_partitions: u32,
    pub(super) warmup: Duration,
}

impl Sizes {
    pub(super) const FULL: Self = Self {
        memory: 256 << 20,
        segment: 256 << 20,
        retained: 2 << 30,
        partitions: 10_000,
        subscribers: 100,
        backlog: 4 << 30,
        stored: 10 << 30,
        floor_file: 256 << 20,
        sale_backlog: 10 << 30,
        pending: 1_000_000,
        halves: 100_000,
        cursors: 10_000,
        connections: 2_000,
        idle_partitions: 16_000,
        warmup: Duration::from_secs(1),
    };
    pub(super) const TINY: Self = Self {
        memory: 64 << 20,
        segment: 8 << 20,
        retained: 64 << 20,
        partitions: 200,
        subscribers: 5,
        backlog: 48 << 20,
        stored: 64 << 20,
        floor_file: 8 << 20,
        sale_backlog: 512 << 20,
        pending: 2_000,
        halves: 500,
        cursors: 100,
        connections: 50,
        idle_partitions: 500,
        warmup: Duration::from_millis(50),
    };
}

/// Side of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    A,
    B,
}

/// Everything that a row needs.
pub(super) struct Lab<'a> {
    pub(super) pairs: usize,
    pub(super) time: Duration,
    pub(super) sizes: Sizes,
    pub(super) server_cpu: usize,
    pub(super) load_cpu: usize,
    /// Removed at the end with all that is in it.
    pub(super) directory: &'a Path,
    pub(super) stop: &'a AtomicBool,
    /// Called behind each pair.
    pub(super) step: &'a dyn Fn(usize),
    /// The server that holds `sizes.stored`, once a row has filled it.
    pub(super) stored: Option<super::rows::Stored>,
}

impl Lab<'_> {
    pub(super) fn check_stop(&self) -> Result<(), String> {
        if self.stop.load(Ordering::Relaxed) { Err(INTERRUPTED.to_owned()) } else { Ok(()) }
    }

    /// N pairs of values, interleaved A B B A …, so that a drift of the machine meets both sides alike.
    pub(super) fn pairs(
        &mut self,
        mut one: impl FnMut(&mut Self, Side) -> Result<f64, String>,
    ) -> Result<Vec<(f64, f64)>, String> {
        let mut found = Vec::with_capacity(self.pairs);
        for pair in 0..self.pairs {
            let order = if pair.is_multiple_of(2) { [Side::A, Side::B] } else { [Side::B, Side::A] };
            let mut values = [0.0; 2];
            for side in order {
                self.check_stop()?;
                values[side as usize] = one(self, side)?;
            }
            found.push((values[0], values[1]));
            (self.step)(pair + 1);
        }
        Ok(found)
    }

    /// N values of one thing.
    pub(super) fn repeats(
        &mut self,
        mut one: impl FnMut(&mut Self) -> Result<f64, String>,
    ) -> Result<Vec<f64>, String> {
        let mut found = Vec::with_capacity(self.pairs);
        for repeat in 0..self.pairs {
            self.check_stop()?;
            found.push(one(self)?);
            (self.step)(repeat + 1);
        }
        Ok(found)
    }

    pub(super) fn limits(&self) -> Result<Limits, String> {
        Limits::prepare(self.directory, self.server_cpu, self.load_cpu, self.sizes.floor_file)
    }

    /// Refuses a row that would fill the disk.
    pub(super) fn demand_space(&self, bytes: u64) -> Result<(), Skip> {
        let free = rustix::fs::statvfs(self.directory).map_or(u64::MAX, |stat| stat.f_bavail * stat.f_frsize);
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        if free >= bytes {
            return Ok(());
        }
        Err(Skip::Because(format!("needs {:.1} GiB free, there are {:.1}", gib(bytes), gib(free))))
    }

    /// A server on `name` in the directory, with one shard on the server's core. Its directory is removed with it.
    pub(super) fn server(&self, name: &str, retain: Option<u64>) -> Result<Server, String> {
        let Sizes { memory, segment, .. } = self.sizes;
        let mut args = vec![
            OsString::from("--shards=1"),
            format!("--memory={memory}").into(),
            format!("--segment-size={segment}").into(),
        ];
        args.extend(retain.map(|bytes| format!("--retain-size={bytes}").into()));
        Server::start(self, name, args)
    }

    /// A bench of this binary against a server, on the load core.
    pub(super) fn load(&self, server: &Server, bench: &str, args: &[String]) -> Result<Load, String> {
        let program = std::env::current_exe().map_err(|e| format!("cannot find this program: {e}"))?;
        self.spawn(Command::new(program), server, bench, args)
    }

    /// As [`Lab::load`], behind whatever else is to run on that core.
    pub(super) fn load_behind(&self, server: &Server, bench: &str, args: &[String]) -> Result<Load, String> {
        let program = std::env::current_exe().map_err(|e| format!("cannot find this program: {e}"))?;
        let mut nice = Command::new("nice");
        nice.args(["-n", "19"]).arg(program);
        self.spawn(nice, server, bench, args)
    }

    fn spawn(
        &self,
        mut program: Command,
        server: &Server,
        bench: &str,
        args: &[String],
    ) -> Result<Load, String> {
        let child = program
            .args(["bench", bench, "--json", "--server", server.address()])
            .arg(format!("--pin={}", self.load_cpu))
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| format!("cannot start a load generator: {e}"))?;
        Ok(Load { child })
    }

    /// `bench produce` for the time of a side, to its end.
    pub(super) fn produce(&self, server: &Server, args: &[&str]) -> Result<Value, String> {
        self.load(server, "produce", &self.produce_args(args))?.finish(self.stop)
    }

    pub(super) fn produce_args(&self, args: &[&str]) -> Vec<String> {
        let mut args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        args.push(format!("--warmup={}ms", self.sizes.warmup.as_millis()));
        args.push(format!("--duration={}ms", self.time.as_millis()));
        args
    }

    /// Stores so many bytes of records of 1 KiB, as fast as the server takes them.
    pub(super) fn fill(&self, server: &Server, topic: &str, bytes: u64) -> Result<(), String> {
        let mut args: Vec<String> = ["--batch=1000", "--in-flight=4", "--warmup=0"].map(str::to_owned).into();
        args.extend([format!("--topic={topic}"), format!("--records={}", bytes >> 10)]);
        self.load(server, "produce", &args)?.finish(self.stop).map(drop)
    }
}

/// Why a row has no figures.
#[derive(Debug)]
pub(super) enum Skip {
    Because(String),
    Failed(String),
}

impl From<String> for Skip {
    fn from(why: String) -> Self {
        Self::Failed(why)
    }
}

/// A number in the report of a bench.
pub(super) fn number(report: &Value, name: &str) -> Result<f64, String> {
    let value = name.split('.').fold(report, |value, part| &value[part]);
    value.as_f64().ok_or_else(|| format!("the load generator's report has no {name}"))
}

/// A load generator. Killed when it goes out of scope.
pub(super) struct Load {
    child: Child,
}

impl Load {
    /// Its report.
    pub(super) fn finish(mut self, stop: &AtomicBool) -> Result<Value, String> {
        loop {
            if let Some(status) = self.child.try_wait().map_err(|e| e.to_string())? {
                let read = |stream: Option<&mut dyn Read>| {
                    let mut text = String::new();
                    stream.map_or(Ok(0), |stream| stream.read_to_string(&mut text)).map(|_| text)
                };
                let out = read(self.child.stdout.as_mut().map(|s| s as &mut dyn Read))
                    .map_err(|e| e.to_string())?;
                if status.success() {
                    return serde_json::from_str(&out).map_err(|e| format!("a load generator's report: {e}"));
                }
                let err = read(self.child.stderr.as_mut().map(|s| s as &mut dyn Read))
                    .map_err(|e| e.to_string())?;
                return Err(format!("a load generator failed ({status}): {}", err.trim()));
            }
            if stop.load(Ordering::Relaxed) {
                return Err(INTERRUPTED.to_owned());
            }
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server and its directory.
pub(super) struct Server {
    process: Option<ServerProcess>,
    args: Vec<OsString>,
    log: PathBuf,
    data: PathBuf,
    core: usize,
}

impl Server {
    pub(super) fn start(lab: &Lab<'_>, name: &str, mut args: Vec<OsString>) -> Result<Self, String> {
        let data = lab.directory.join(name);
        args.extend(["--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0", "--data"].map(OsString::from));
        args.push(data.clone().into());
        let log = lab.directory.join(format!("{name}.log"));
        let mut server = Self { process: None, args, log, data, core: lab.server_cpu };
        server.restart()?;
        Ok(server)
    }

    fn process(&self) -> &ServerProcess {
        let Some(process) = &self.process else { panic!("a server is looked at only while it runs") };
        process
    }

    fn address(&self) -> &str {
        &self.process().address
    }

    /// HOST:PORT that clients dial.
    pub(super) fn dialled(&self) -> String {
        self.address().to_owned()
    }

    pub(super) fn pid(&self) -> u32 {
        self.process().pid()
    }

    /// Starts it on its directory; seconds from there until it serves.
    pub(super) fn restart(&mut self) -> Result<f64, String> {
        let launch =
            Launch { args: self.args.clone(), log: &self.log, core: Some(self.core), ready_max: READY_MAX };
        let process = ServerProcess::start(launch).map_err(|failure| failure.to_string())?;
        let waited = process.waited.as_secs_f64();
        self.process = Some(process);
        Ok(waited)
    }

    /// SIGTERM.
    pub(super) fn stop(&mut self) -> Result<(), String> {
        let Some(process) = self.process.take() else { return Ok(()) };
        match process.stop().map_err(|failure| failure.to_string())? {
            (status, _) if status.success() => Ok(()),
            (status, _) => Err(format!("the server did not stop cleanly: {status}")),
        }
    }

    /// `kill -9`.
    pub(super) fn kill(&mut self) -> Result<(), String> {
        self.process.take().map_or(Ok(()), |process| process.kill().map_err(|failure| failure.to_string()))
    }

    /// The sum over all shards of a metric.
    pub(super) fn metric(&self, name: &str) -> Result<f64, String> {
        let page = self.page("/metrics")?;
        let values = page.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            rest.starts_with(['{', ' ']).then(|| line.rsplit(' ').next()?.parse::<f64>().ok())?
        });
        values.reduce(|sum, value| sum + value).ok_or_else(|| format!("/metrics has no {name}"))
    }

    fn page(&self, path: &str) -> Result<String, String> {
        let address = self.process().admin.as_deref().ok_or("the server has no admin pages")?;
        let get = || {
            let mut stream = TcpStream::connect(address)?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).map(|_| answer)
        };
        get().map_err(|e: std::io::Error| format!("cannot read http://{address}{path}: {e}"))
    }

    /// A line of /proc/PID/status that is in KiB, in MiB.
    pub(super) fn resident_mib(&self, line: &str) -> Result<f64, String> {
        let path = format!("/proc/{}/status", self.pid());
        let status = std::fs::read_to_string(&path).map_err(|e| format!("cannot read {path}: {e}"))?;
        let kib = status.lines().find_map(|found| {
            found.strip_prefix(line)?.trim_start_matches(':').trim().strip_suffix(" kB")?.parse::<f64>().ok()
        });
        kib.map(|kib| kib / 1024.0).ok_or_else(|| format!("{path} has no {line}"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process = None;
        let _ = std::fs::remove_dir_all(&self.data);
    }
}

/// A figure, what it was compared with, and whether it is what was promised.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Figure {
    pub(super) what: &'static str,
    pub(super) unit: &'static str,
    /// Median of what was measured.
    pub(super) a: f64,
    /// Median of what it was compared with.
    pub(super) b: Option<f64>,
    pub(super) b_what: &'static str,
    /// Of A to B pair by pair, or of A alone where there is no B.
    pub(super) ratio: Interval,
    pub(super) ratios: Vec<f64>,
    pub(super) goal: Goal,
    pub(super) verdict: Verdict,
}

impl Figure {
    /// A against B.
    pub(super) fn ratio(
        (what, b_what): (&'static str, &'static str),
        unit: &'static str,
        pairs: &[(f64, f64)],
        goal: Goal,
    ) -> Self {
        let ratios: Vec<f64> = pairs.iter().filter(|pair| pair.1 > 0.0).map(|(a, b)| a / b).collect();
        let side =
            |of: fn(&(f64, f64)) -> f64| Interval::of(&pairs.iter().map(of).collect::<Vec<_>>()).median;
        let (a, b) = (side(|pair| pair.0), Some(side(|pair| pair.1)));
        let ratio = Interval::of(&ratios);
        Self { what, unit, a, b, b_what, ratio, ratios, goal, verdict: goal.judge(ratio) }
    }

    /// A alone, against a number.
    pub(super) fn value(what: &'static str, unit: &'static str, values: Vec<f64>, goal: Goal) -> Self {
        let ratio = Interval::of(&values);
        let verdict = goal.judge(ratio);
        Self { what, unit, a: ratio.median, b: None, b_what: "", ratio, ratios: values, goal, verdict }
    }
}

/// What a row found.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Found {
    pub(super) figures: Vec<Figure>,
    /// Median busy share of the load generators' threads, together, in per cent of their core.
    pub(super) load_cpu_percent: Option<f64>,
    pub(super) notes: Vec<String>,
}

impl Found {
    pub(super) fn generator_bound(&self) -> bool {
        self.load_cpu_percent.is_some_and(|percent| percent > BOUND_PERCENT)
    }
}
