//! A real server in a process of its own, so that `kill -9` is a real one.

use crate::bench::pin;
use crate::doctor::has_direct_io;
use crate::failure::Failure;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// A drain is over by then, or it has failed.
const STOP_MAX: Duration = Duration::from_secs(10);

/// A running server. Killed when it goes out of scope.
pub(crate) struct ServerProcess {
    child: Child,
    /// Address that clients dial.
    pub(crate) address: String,
    /// Address of the admin pages, if it has any.
    pub(crate) admin: Option<String>,
    /// From the start of the process until it served, as it says itself.
    pub(crate) ready_after: Duration,
    /// The same, as it was waited for.
    pub(crate) waited: Duration,
}

/// How a server is started.
pub(crate) struct Launch<'a> {
    /// Flags of `ringmq server`; it says `--json` by itself.
    pub(crate) args: Vec<OsString>,
    /// Where its stderr goes.
    pub(crate) log: &'a Path,
    /// Core that all its threads keep to.
    pub(crate) core: Option<usize>,
    /// A server that is not ready by then is given up.
    pub(crate) ready_max: Duration,
}

impl ServerProcess {
    /// Starts this very binary as a server and waits until it serves.
    pub(crate) fn start(launch: Launch<'_>) -> Result<Self, Failure> {
        let since = Instant::now();
        let mut child = spawn(&launch)?;
        match wait_ready(&mut child, since + launch.ready_max) {
            Some(event) => Ok(Self {
                child,
                address: event["native"].as_str().unwrap_or_default().to_owned(),
                admin: event["admin"].as_str().map(str::to_owned),
                ready_after: Duration::from_secs_f64(event["seconds"].as_f64().unwrap_or_default().max(0.0)),
                waited: since.elapsed(),
            }),
            None => {
                let _ = child.kill();
                let status = child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
                let said = std::fs::read_to_string(launch.log).unwrap_or_default();
                let last = said.lines().last().unwrap_or("nothing").to_owned();
                Err(Failure::failed(format!("the server did not get ready ({status}); it said: {last}"))
                    .cure("`ringmq doctor` checks this machine"))
            }
        }
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `kill -9`: no destructor, no flush, no goodbye.
    pub(crate) fn kill(mut self) -> Result<(), Failure> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM; how it ended and how long that took.
    pub(crate) fn stop(mut self) -> Result<(ExitStatus, Duration), Failure> {
        let since = Instant::now();
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| Failure::failed("the server has no process id"))?;
        kill_process(pid, Signal::TERM).map_err(std::io::Error::from)?;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok((status, since.elapsed()));
            }
            if since.elapsed() > STOP_MAX {
                return Err(Failure::failed(format!(
                    "the server did not stop within {} s",
                    STOP_MAX.as_secs()
                )));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A child takes the core of the thread that starts it.
fn spawn(launch: &Launch<'_>) -> Result<Child, Failure> {
    let trouble = |what: &str, error: std::io::Error| Failure::failed(format!("{what}: {error}"));
    let program = std::env::current_exe().map_err(|error| trouble("cannot find this program", error))?;
    let stderr = File::options().create(true).append(true).open(launch.log);
    let stderr = stderr.map_err(|error| trouble("cannot write the server's log", error))?;
    let mut command = Command::new(program);
    command.args(["server", "--json", "--log-format", "human"]).args(&launch.args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr);
    let spawn = || {
        if let Some(core) = launch.core {
            pin(core).map_err(Failure::failed)?;
        }
        command.spawn().map_err(|error| trouble("cannot start a server", error))
    };
    let spawned = std::thread::scope(|scope| scope.spawn(spawn).join());
    spawned.unwrap_or_else(|_| Err(Failure::failed("the thread that starts servers panicked")))
}

/// The `ready` object of the banner; none if the server ended or took too long.
fn wait_ready(child: &mut Child, deadline: Instant) -> Option<Value> {
    let lines = BufReader::new(child.stdout.take()?).lines();
    let (sender, receiver) = mpsc::channel();
    // Goes on reading to the end, so that the server never meets a full pipe.
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            if let Ok(event) = serde_json::from_str::<Value>(&line) {
                let _ = sender.send(event);
            }
        }
    });
    loop {
        let event = receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()?;
        if event["event"] == "ready" {
            return Some(event);
        }
    }
}

/// A port P such that P to P + shards are free now: a restarted server must get the same ones, and the kernel gives
/// ports of this range to nobody by itself.
pub(crate) fn free_ports(shards: u16) -> Result<u16, Failure> {
    let seed = u16::try_from(std::process::id() % 9_000).unwrap_or(0);
    let candidates = (0..100).map(|step| 20_000 + (seed + step * 91) % 9_000);
    let free = |base: &u16| {
        let listeners = (*base..=*base + shards).map(|port| TcpListener::bind(("127.0.0.1", port)));
        listeners.collect::<Result<Vec<_>, _>>().is_ok()
    };
    candidates.into_iter().find(free).ok_or_else(|| {
        Failure::failed("no free ports between 20000 and 29000 on 127.0.0.1")
            .cure("`ss -ltn` shows who has them")
    })
}

/// A temporary directory for a server's data and its log.
pub(crate) struct Workspace(tempfile::TempDir);

impl Workspace {
    /// A new directory in `parent`, else in TMPDIR, else in the current one: the first that a server can run on.
    pub(crate) fn new(prefix: &str, parent: Option<&Path>) -> Result<Self, Failure> {
        let temporary = std::env::temp_dir();
        let candidates = parent.map_or(vec![temporary.as_path(), Path::new(".")], |parent| vec![parent]);
        let fit = candidates.iter().find(|candidate| has_direct_io(candidate));
        let Some(parent) = fit else {
            let names =
                candidates.iter().map(|candidate| candidate.display().to_string()).collect::<Vec<_>>();
            return Err(Failure::failed(format!(
                "no O_DIRECT, or no right to write, in {}",
                names.join(" and ")
            ))
            .cure("name another directory; `ringmq doctor --data DIR` says what is wrong"));
        };
        let directory = tempfile::Builder::new().prefix(prefix).tempdir_in(parent);
        let directory = directory
            .map_err(|error| Failure::failed(format!("no directory in {}: {error}", parent.display())))?;
        Ok(Self(directory))
    }

    /// The directory itself.
    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// The data directory of the server.
    pub(crate) fn data(&self) -> PathBuf {
        self.0.path().join("data")
    }

    /// What the server logs.
    pub(crate) fn log(&self) -> PathBuf {
        self.0.path().join("server.log")
    }

    /// Removes it, or keeps it and says where it is.
    pub(crate) fn close(self, keep: bool) -> Result<Option<PathBuf>, Failure> {
        if keep {
            return Ok(Some(self.0.keep()));
        }
        self.0.close()?;
        Ok(None)
    }
}
