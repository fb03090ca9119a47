//! The device under a directory: which mount, which disk, and whether its write cache is safe.

use super::Check;
use std::fs::read_to_string;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// A line of /proc/self/mountinfo.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mount {
    /// Where it is mounted.
    pub(super) point: PathBuf,
    /// Name of the file system.
    pub(super) kind: String,
    /// `major:minor`.
    pub(super) device: String,
}

/// The mount that holds `directory`.
pub(super) fn mount_of(directory: &Path) -> Option<Mount> {
    let directory = directory.canonicalize().ok()?;
    innermost(&read_to_string("/proc/self/mountinfo").ok()?, &directory)
}

/// The longest mount point above `directory`; of equal ones the last, which hides the others.
fn innermost(mountinfo: &str, directory: &Path) -> Option<Mount> {
    let mounts = mountinfo.lines().filter_map(parse);
    mounts
        .filter(|mount| directory.starts_with(&mount.point))
        .max_by_key(|mount| mount.point.as_os_str().len())
}

fn parse(line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let mut fields = before.split(' ').skip(2);
    let device = fields.next()?.to_owned();
    let point = unescape(fields.nth(1)?);
    Some(Mount { point, kind: after.split(' ').next()?.to_owned(), device })
}

/// Spaces and the like are written as `\040`.
fn unescape(text: &str) -> PathBuf {
    let bytes = text.as_bytes();
    let (mut plain, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        let octal = bytes.get(at + 1..at + 4).filter(|_| bytes[at] == b'\\');
        match octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()) {
            Some(byte) => {
                plain.push(byte);
                at += 4;
            }
            None => {
                plain.push(bytes[at]);
                at += 1;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(plain))
}

pub(super) fn unknown() -> Check {
    Check::warn("device", "unknown", "look at `lsblk` for what lies under the directory")
}

/// What the block layer knows: a write-back cache is fine, because every group is flushed; FUA saves the flush.
pub(super) fn write_cache(mount: &Mount) -> Check {
    let Some((name, queue)) = queue_of(&mount.device) else {
        return Check::ok("device", format!("{}: no disk that the kernel describes", mount.device));
    };
    let read =
        |file: &str| read_to_string(queue.join(file)).map(|text| text.trim().to_owned()).unwrap_or_default();
    let cache = match read("write_cache").as_str() {
        "write back" if read("fua") == "1" => "write-back cache, FUA",
        "write back" => "write-back cache, flushed for every group",
        "write through" => "no volatile write cache",
        _ => "write cache unknown",
    };
    if read("rotational") == "1" && !name.starts_with("vd") && !name.starts_with("xvd") {
        return Check::warn(
            "device",
            format!("{name}: rotating disk, {cache}"),
            "an SSD answers hundreds of times sooner: every acknowledgement waits for the disk",
        );
    }
    Check::ok("device", format!("{name}: {cache}"))
}

/// The disk's name and its queue directory; a partition has its disk's.
fn queue_of(device: &str) -> Option<(String, PathBuf)> {
    let path = Path::new("/sys/dev/block").join(device).canonicalize().ok()?;
    let disk = path.ancestors().take(2).find(|path| path.join("queue").is_dir())?;
    Some((path.file_name()?.to_string_lossy().into_owned(), disk.join("queue")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &str = "\
27 1 253:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
40 27 0:33 / /tmp rw - tmpfs tmpfs rw
41 27 253:16 / /srv/my\\040data rw,noatime shared:9 master:1 - xfs /dev/vdb rw";

    #[test]
    fn the_innermost_mount_counts() {
        for (directory, kind, device) in [
            ("/var/lib", "ext4", "253:0"),
            ("/tmp/x", "tmpfs", "0:33"),
            ("/tmpx", "ext4", "253:0"),
            ("/srv/my data/ringmq", "xfs", "253:16"),
        ] {
            let mount = innermost(MOUNTINFO, Path::new(directory)).unwrap();
            assert_eq!((mount.kind.as_str(), mount.device.as_str()), (kind, device), "{directory}");
        }
        assert_eq!(innermost("garbage", Path::new("/")), None);
    }
}
