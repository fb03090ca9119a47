//! Counts operations that the kernel handed to a worker thread because they could not be done at once: on the write
//! path there must be none but the flush.
//!
//! The kernel's tracepoint `io_uring:io_uring_queue_async_work` counts them exactly, by operation; it needs root.
//! Groups are the only writes from registered buffers, so they are WRITE_FIXED; how many of those were submitted is
//! traced, too, because without registration they are WRITE like those of superblock, sidecars and checkpoints.
//! Without the tracepoint only the worker threads can be counted, and that a flush needs one hides what else ran
//! there.

use io_uring::opcode;
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const EVENT: &str = "events/io_uring/io_uring_queue_async_work";
/// Its name since Linux 6.4; without it every write counts as one of a group.
const SUBMIT: &str = "events/io_uring/io_uring_submit_req";
const GROUP_WRITE: &str = "WRITE_FIXED";
/// Of the trace's buffer on each core: some hundred thousand punts.
const BUFFER_KIB: u32 = 16 << 10;

/// Names of the kernel's worker threads for a ring begin so.
const WORKER: &str = "iou-wrk-";

/// Operations by name.
type Counts = BTreeMap<String, u64>;

/// Punts by operation, and how many more the buffer had no room for.
#[derive(Clone, Debug, Default)]
pub(super) struct Punts {
    punted: Counts,
    /// Writes only.
    submitted: Counts,
    pub(super) overrun: u64,
}

impl Punts {
    pub(super) fn add(&mut self, other: &Self) {
        for (all, one) in [(&mut self.punted, &other.punted), (&mut self.submitted, &other.submitted)] {
            for (operation, count) in one {
                *all.entry(operation.clone()).or_default() += count;
            }
        }
        self.overrun += other.overrun;
    }

    /// Writes of groups, of which there were so many; every write, if those cannot be told from others.
    pub(super) fn on_write_path(&self, groups: f64) -> u64 {
        let submitted = self.submitted.get(GROUP_WRITE).copied().unwrap_or(0);
        let told_apart = groups > 0.0 && submitted as f64 >= groups;
        let counts = |name: &str| name == GROUP_WRITE || (!told_apart && name.starts_with("WRITE"));
        self.punted.iter().filter(|(name, _)| counts(name)).map(|(_, count)| count).sum()
    }

    /// `FSYNC 695, WRITE 71 of 90 submitted`.
    pub(super) fn text(&self) -> String {
        let mut names: Vec<&String> = self.punted.keys().chain(self.submitted.keys()).collect();
        names.sort_unstable();
        names.dedup();
        let part = |name: &String| {
            let punted = self.punted.get(name).copied().unwrap_or(0);
            let of = self.submitted.get(name).map_or_else(String::new, |n| format!(" of {n} submitted"));
            format!("{name} {punted}{of}")
        };
        names.into_iter().map(part).collect::<Vec<_>>().join(", ")
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
        let threads = filter.join(" || ");
        if trace.instance.join(SUBMIT).exists() {
            let writes =
                [opcode::Write::CODE, opcode::WriteFixed::CODE].map(|code| format!("opcode == {code}"));
            trace.write(&format!("{SUBMIT}/filter"), &format!("({threads}) && ({})", writes.join(" || ")))?;
            trace.write(&format!("{SUBMIT}/enable"), "1")?;
        }
        trace.write(&format!("{EVENT}/filter"), &threads)?;
        trace.write(&format!("{EVENT}/enable"), "1")?;
        Ok(trace)
    }

    fn write(&self, file: &str, text: &str) -> Result<(), String> {
        fs::write(self.instance.join(file), text)
            .map_err(|e| format!("cannot write {file} of the trace: {e}"))
    }

    /// What was seen since the start.
    pub(super) fn finish(self) -> Result<Punts, String> {
        self.write("events/enable", "0")?;
        let read = |path: &Path| {
            fs::read_to_string(path).map_err(|e| format!("cannot read {} of the trace: {e}", path.display()))
        };
        let mut punts = count(&read(&self.instance.join("trace"))?);
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

fn count(trace: &str) -> Punts {
    let mut found = Punts::default();
    for line in trace.lines().filter(|line| !line.starts_with('#')) {
        let Some((event, rest)) = line.split_once("opcode ") else { continue };
        let counts = match event.contains("io_uring_submit_req:") {
            true => &mut found.submitted,
            false => &mut found.punted,
        };
        *counts.entry(rest.split(',').next().unwrap_or(rest).trim().to_owned()).or_default() += 1;
    }
    found
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
    fn punts_are_counted_by_operation_and_groups_are_told_apart() {
        let line = |event: &str, operation: &str| {
            format!(
                "  shard-00-812 [000] ..... 1.0: {event}: ring 00c8, request 00f8, user_data 0x100000003, \
                 opcode {operation}, flags 0x11, normal queue, work 00b0\n"
            )
        };
        let (punt, submit) = ("io_uring_queue_async_work", "io_uring_submit_req");
        let trace = "# tracer: nop\n".to_owned()
            + &line(submit, "WRITE_FIXED")
            + &line(submit, "WRITE_FIXED")
            + &line(submit, "WRITE")
            + &line(punt, "FSYNC")
            + &line(punt, "WRITE")
            + &line(punt, "WRITE_FIXED");
        let mut punts = count(&trace);
        assert_eq!(punts.text(), "FSYNC 1, WRITE 1 of 1 submitted, WRITE_FIXED 1 of 2 submitted");
        assert_eq!(punts.on_write_path(2.0), 1, "groups are WRITE_FIXED");
        assert_eq!(punts.on_write_path(3.0), 2, "not all of them: every write counts");
        punts.add(&punts.clone());
        assert_eq!(punts.on_write_path(4.0), 2);
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
