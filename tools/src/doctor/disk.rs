//! Checks of the data directory: rights, file system, O_DIRECT, space, and how long a durable write takes.

use super::{Check, device};
use crate::screen::duration;
use ringmq_server::limits::DISK_PER_SHARD_MIN;
use ringmq_server::units::Size;
use rustix::fs::{Mode, OFlags};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Durable writes that are timed.
const WRITES: usize = 16;
/// Space below which a server hardly starts, and below which it is soon full.
const SPACE_MIN: u64 = 2 * DISK_PER_SHARD_MIN;
const SPACE_GOOD: u64 = 2 << 30;

#[repr(align(4096))]
struct Block([u8; 4096]);

pub(super) fn checks(data: &Path) -> Vec<Check> {
    let Some(directory) = nearest_directory(data) else {
        return vec![Check::fail(
            "directory",
            format!("{}: neither it nor anything above it is a directory", data.display()),
            "choose another with --data DIR",
        )];
    };
    let mut checks = Vec::new();
    let mount = device::mount_of(&directory);
    checks.push(filesystem(mount.as_ref(), &directory));
    let probe = probe_in(&directory);
    let opened = open_direct(&probe);
    match &opened {
        Ok(file) => {
            checks.push(Check::ok("directory", writable_detail(data, &directory)));
            checks.push(direct_write(file));
        }
        Err(error) => checks.push(refused(error, &directory)),
    }
    drop(opened);
    let _ = std::fs::remove_file(&probe);
    checks.push(space(&directory));
    checks.push(mount.as_ref().map_or_else(device::unknown, device::write_cache));
    checks
}

/// Whether a server could keep its data in this directory.
pub(crate) fn has_direct_io(directory: &Path) -> bool {
    let probe = probe_in(directory);
    let written = open_direct(&probe).and_then(|file| Ok(rustix::io::pwrite(&file, &Block([0; 4096]).0, 0)?));
    let _ = std::fs::remove_file(&probe);
    written.is_ok_and(|written| written == size_of::<Block>())
}

fn probe_in(directory: &Path) -> PathBuf {
    directory.join(format!(".ringmq-doctor-{}", std::process::id()))
}

/// The directory itself, or where it would be made.
fn nearest_directory(data: &Path) -> Option<PathBuf> {
    let absolute = std::path::absolute(data).ok()?;
    absolute.ancestors().find(|path| path.is_dir()).map(Path::to_path_buf)
}

fn writable_detail(data: &Path, directory: &Path) -> String {
    if data.is_dir() {
        format!("{} can be written", data.display())
    } else {
        format!("{} can be made in {}", data.display(), directory.display())
    }
}

fn open_direct(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC | OFlags::DIRECT;
    Ok(rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?)
}

fn refused(error: &io::Error, directory: &Path) -> Check {
    let shown = directory.display();
    match error.raw_os_error() {
        Some(libc::EINVAL | libc::EOPNOTSUPP) => Check::fail(
            "O_DIRECT",
            format!("the file system under {shown} has none"),
            "use a directory on ext4 or xfs with --data DIR",
        ),
        Some(libc::EACCES | libc::EPERM | libc::EROFS) => Check::fail(
            "directory",
            format!("{shown} cannot be written: {error}"),
            "run as the directory's owner, chown it, remount it for writing, or choose another with --data DIR",
        ),
        _ => Check::fail("directory", format!("{shown}: {error}"), "choose another with --data DIR"),
    }
}

/// Writes one block, made durable, some times over, as a group of the log would be.
fn direct_write(file: &OwnedFd) -> Check {
    match timed_writes(file) {
        Ok(times) => {
            let middle = times[times.len() / 2];
            let detail = format!("4 KiB blocks; a durable write takes {}", duration(middle));
            if middle > Duration::from_millis(20) {
                return Check::warn(
                    "O_DIRECT",
                    detail,
                    "a faster disk answers sooner: every acknowledgement waits for it",
                );
            }
            Check::ok("O_DIRECT", detail)
        }
        Err(error) => Check::fail(
            "O_DIRECT",
            format!("a direct write of an aligned block of 4 KiB failed: {error}"),
            "use a directory on ext4 or xfs with --data DIR",
        ),
    }
}

fn timed_writes(file: &OwnedFd) -> io::Result<Vec<Duration>> {
    let block = Block([0x5a; 4096]);
    // Once ahead: the first write allocates, and a log never writes into a hole.
    rustix::io::pwrite(file, &block.0, 0)?;
    rustix::fs::fsync(file)?;
    let mut times = Vec::with_capacity(WRITES);
    for _ in 0..WRITES {
        let start = Instant::now();
        let written = rustix::io::pwrite(file, &block.0, 0)?;
        if written != block.0.len() {
            return Err(io::Error::new(io::ErrorKind::WriteZero, "a short write"));
        }
        rustix::fs::fdatasync(file)?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    Ok(times)
}

fn filesystem(mount: Option<&device::Mount>, directory: &Path) -> Check {
    let Some(mount) = mount else {
        return Check::warn("filesystem", "unknown: /proc/self/mountinfo does not name it", "mount /proc");
    };
    let detail = format!("{} on {}", mount.kind, mount.point.display());
    let advice = "ext4 and xfs are what it is tested on";
    match mount.kind.as_str() {
        "ext4" | "xfs" => Check::ok("filesystem", detail),
        "tmpfs" | "ramfs" => Check::warn(
            "filesystem",
            format!("{detail}: memory; what is acknowledged is gone with the power"),
            format!("put the data on a disk; {advice}"),
        ),
        "btrfs" | "zfs" | "bcachefs" | "f2fs" => Check::warn(
            "filesystem",
            format!(
                "{detail}: it writes every block to a new place, which costs what recycled segments save"
            ),
            format!("{advice}; on btrfs `chattr +C {}` before the first start", directory.display()),
        ),
        "overlay" => Check::warn(
            "filesystem",
            format!("{detail}: a container's own layer, gone with the container"),
            "mount a volume for the data",
        ),
        kind if kind.starts_with("nfs") || kind.starts_with("fuse") || kind == "cifs" || kind == "9p" => {
            Check::warn(
                "filesystem",
                format!("{detail}: whether a flush reaches the disk is up to somebody else"),
                format!("use a local disk; {advice}"),
            )
        }
        _ => Check::warn("filesystem", detail, advice),
    }
}

fn space(directory: &Path) -> Check {
    match rustix::fs::statvfs(directory) {
        Ok(stat) => {
            let free = stat.f_bavail * stat.f_frsize;
            let detail = format!("{} free of {}", Size(free), Size(stat.f_blocks * stat.f_frsize));
            if free < SPACE_MIN {
                Check::fail("space", detail, format!("free at least {}", Size(SPACE_MIN)))
            } else if free < SPACE_GOOD {
                Check::warn("space", detail, "free some, or set --disk-limit and --retain-size")
            } else {
                Check::ok("space", detail)
            }
        }
        Err(error) => Check::warn("space", format!("unknown: {error}"), "look at `df`"),
    }
}
