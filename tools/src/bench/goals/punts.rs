//! Counts operations that the kernel handed to a worker thread because they could not be done at once: on the write
//! path there must be none but the flush.
//!
//! The kernel's tracepoint `io_uring:io_uring_queue_async_work` counts them exactly, by operation and by who asked for it; it needs root.
//! Without it only the worker threads can be counted, and that a flush needs one hides what else ran there.

use ringmq_engine::log::room;
use ringmq_engine::ring::Token;
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const EVENT: &str = "events/io_uring/io_uring_queue_async_work";
/// Of the trace's buffer on each core: some hundred thousand punts.
const BUFFER_KIB: u32 = 16 << 10;

/// Names of the kernel's worker threads for a ring begin so.
const WORKER: &str = "iou-wrk-";

/// Punts by who asked and operation, and how many more the buffer had no room for.
#[derive(Clone, Debug, Default)]
pub(super) struct Punts {
    pub(super) by_operation: BTreeMap<(&'static str, String), u64>,
    pub(super) overrun: u64,
}

impl Punts {
    pub(super) fn add(&mut self, other: &Self) {
        for (operation, count) in &other.by_operation {
            *self.by_operation.entry(operation.clone()).or_default() += count;
        }
        self.overrun += other.overrun;
    }

    /// On the way to an acknowledgement: writes of groups.
    pub(super) fn on_write_path(&self) -> u64 {
        self.by_operation.iter().filter(|((who, _), _)| *who == GROUPS).map(|(_, count)| count).sum()
    }

    /// `flushes: FSYNC 695`, and so on.
    pub(super) fn text(&self) -> String {
        let parts: Vec<_> = self
            .by_operation
            .iter()
            .map(|((who, operation), count)| format!("{who}: {operation} {count}"))
            .collect();
        if parts.is_empty() { "nothing".to_owned() } else { parts.join(", ") }
    }
}

const GROUPS: &str = "groups";

/// Who asked for an operation.
fn asker(user_data: u64) -> &'static str {
    match Token::unpack(user_data).room {
        room::GROUP => GROUPS,
        room::FLUSH => "flushes",
        room::ACTIVATE => "segment headers",
        room::SUPERBLOCK => "superblock",
        room::PREWRITE => "pre-writing",
        room::SIDECAR => "sidecars",
        room::CHECKPOINT => "checkpoints",
        room::COLD => "cold reads",
        _ => "others",
    }
}

/// A trace buffer of our own in the kernel.
pub(super) struct Trace {
    instance: PathBuf,
    /// Where tracefs is mounted nowhere, a mount that only this process sees.
    _mount: Option<OwnedFd>,
}

impl Trace {
    /// Traces the shards' threads of a process from now on.
    pub(super) fn start(pid: u32) -> Result<Self, String> {
        let (root, mount) = tracefs()?;
        let instance = root.join(format!("instances/ringmq-{}", std::process::id()));
        fs::create_dir(&instance).map_err(|e| format!("cannot make a trace instance: {e}"))?;
        let trace = Self { instance, _mount: mount };
        let filter: Vec<_> =
            threads(pid, "shard-").iter().map(|tid| format!("common_pid == {tid}")).collect();
        trace.write("buffer_size_kb", &BUFFER_KIB.to_string())?;
        trace.write(&format!("{EVENT}/filter"), &filter.join(" || "))?;
        trace.write(&format!("{EVENT}/enable"), "1")?;
        Ok(trace)
    }

    fn write(&self, file: &str, text: &str) -> Result<(), String> {
        fs::write(self.instance.join(file), text)
            .map_err(|e| format!("cannot write {file} of the trace: {e}"))
    }

    /// What was seen since the start.
    pub(super) fn finish(self) -> Result<Punts, String> {
        self.write(&format!("{EVENT}/enable"), "0")?;
        let read = |path: &Path| {
            fs::read_to_string(path).map_err(|e| format!("cannot read {} of the trace: {e}", path.display()))
        };
        let mut punts = Punts { by_operation: count(&read(&self.instance.join("trace"))?), overrun: 0 };
        let cores = fs::read_dir(self.instance.join("per_cpu")).map_err(|e| e.to_string())?;
        for core in cores.flatten() {
            let stats = read(&core.path().join("stats"))?;
            let lost = stats.lines().filter_map(|line| line.strip_prefix("overrun:"));
            punts.overrun += lost.filter_map(|number| number.trim().parse::<u64>().ok()).sum::<u64>();
        }
        Ok(punts)
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.instance);
    }
}

/// The mounted one, or one of our own that is in nobody's tree.
fn tracefs() -> Result<(PathBuf, Option<OwnedFd>), String> {
    for path in ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"] {
        if Path::new(path).join(EVENT).join("enable").exists() {
            return Ok((path.into(), None));
        }
    }
    let mount = || {
        let filesystem = fsopen("tracefs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(&filesystem)?;
        fsmount(&filesystem, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
    };
    let mount = mount().map_err(|e: rustix::io::Errno| format!("no tracefs: {e}"))?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()));
    if !path.join(EVENT).exists() {
        return Err("this kernel has no such tracepoint".to_owned());
    }
    Ok((path, Some(mount)))
}

fn count(trace: &str) -> BTreeMap<(&'static str, String), u64> {
    let mut counts = BTreeMap::new();
    let field = |line: &str, name: &str| {
        let (_, rest) = line.split_once(name)?;
        Some(rest.split(',').next().unwrap_or(rest).trim().to_owned())
    };
    for line in trace.lines().filter(|line| !line.starts_with('#')) {
        let Some(operation) = field(line, "opcode ") else { continue };
        let user_data = field(line, "user_data 0x").and_then(|hex| u64::from_str_radix(&hex, 16).ok());
        *counts.entry((user_data.map_or("others", asker), operation)).or_default() += 1;
    }
    counts
}

/// Threads of a process whose names begin so.
fn threads(pid: u32, prefix: &str) -> Vec<String> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let named = tasks.flatten().filter(|task| {
        fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.starts_with(prefix))
    });
    named.map(|task| task.file_name().to_string_lossy().into_owned()).collect()
}

/// Kernel worker threads of a process now.
pub(super) fn workers(pid: u32) -> usize {
    threads(pid, WORKER).len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn punts_are_counted_by_who_asked_and_operation() {
        let line = |room: u8, operation: &str| {
            let user_data = Token::new(room, 7, 9).pack();
            format!(
                "  shard-00-812 [000] ..... 1.0: io_uring_queue_async_work: ring 00c8, request 00f8, \
                 user_data {user_data:#x}, opcode {operation}, flags 0x11, normal queue, work 00b0\n"
            )
        };
        let trace = "# tracer: nop\n".to_owned()
            + &line(room::FLUSH, "FSYNC")
            + &line(room::GROUP, "WRITE_FIXED")
            + &line(room::FLUSH, "FSYNC")
            + &line(room::SIDECAR, "WRITE");
        let mut punts = Punts { by_operation: count(&trace), overrun: 0 };
        assert_eq!(punts.text(), "flushes: FSYNC 2, groups: WRITE_FIXED 1, sidecars: WRITE 1");
        punts.add(&punts.clone());
        assert_eq!(punts.on_write_path(), 2);
    }

    #[test]
    fn threads_are_found_by_name() {
        let worker = std::thread::Builder::new().name("iou-wrk-1".into());
        let (done, wait) = std::sync::mpsc::channel::<()>();
        let (begun, started) = std::sync::mpsc::channel();
        let thread = worker.spawn(move || {
            begun.send(()).unwrap();
            let _ = wait.recv();
        });
        started.recv().unwrap();
        assert_eq!(workers(std::process::id()), 1);
        drop(done);
        thread.unwrap().join().unwrap();
    }
}
