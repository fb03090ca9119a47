//! The calls that block: names, locks and facts of files, at start and for metadata only.

use super::super::{DirEntry, Errno, FileFacts};
use super::errno_of;
use rustix::fs::{
    AtFlags, FlockOperation, Mode, OFlags, StatxFlags, fcntl_getfl, fcntl_setfl, flock, open, statvfs, statx,
};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

pub(super) fn list_dir(path: &Path) -> Result<Vec<DirEntry>, Errno> {
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(path).map_err(errno_of)? {
        let entry = entry.map_err(errno_of)?;
        let metadata = entry.metadata().map_err(errno_of)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        entries.push(DirEntry { name, is_dir: metadata.is_dir(), size: metadata.len() });
    }
    entries.sort();
    Ok(entries)
}

/// The lock lives as long as the descriptor, and so no longer than the process.
pub(super) fn lock_dir(path: &Path) -> Result<OwnedFd, Errno> {
    let dir =
        open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(errno_of)?;
    match flock(&dir, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(dir),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Errno::BUSY),
        Err(errno) => Err(errno_of(errno)),
    }
}

pub(super) fn disk_free(path: &Path) -> Result<u64, Errno> {
    let facts = statvfs(path).map_err(errno_of)?;
    Ok(facts.f_bavail.saturating_mul(facts.f_frsize))
}

pub(super) fn file_facts(fd: BorrowedFd<'_>) -> Result<FileFacts, Errno> {
    let facts =
        statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::SIZE | StatxFlags::DIOALIGN).map_err(errno_of)?;
    let told = facts.stx_mask & StatxFlags::DIOALIGN.bits() != 0 && facts.stx_dio_offset_align > 0;
    let dio_align = match told {
        true => facts.stx_dio_offset_align.max(facts.stx_dio_mem_align).max(512),
        false => 4096,
    };
    Ok(FileFacts { size: facts.stx_size, dio_align, extent_edges: extent_edges(fd, facts.stx_size) })
}

/// Reads of this file do not change its access time: that change is made inside the submission of the read, and waits
/// for the file system's journal. Only the owner may ask for it; for others reads are as correct, and slower at times.
pub(super) fn leave_access_time(fd: &OwnedFd) {
    if let Ok(flags) = fcntl_getfl(fd) {
        let _ = fcntl_setfl(fd, flags | OFlags::NOATIME);
    }
}

/// `struct fiemap_extent`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Extent {
    logical: u64,
    physical: u64,
    len: u64,
    reserved: [u64; 2],
    flags: u32,
    reserved2: [u32; 3],
}

const EXTENTS_AT_ONCE: usize = 128;

/// `struct fiemap` with its array.
#[repr(C)]
struct ExtentMap {
    start: u64,
    len: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
    extents: [Extent; EXTENTS_AT_ONCE],
}

const FS_IOC_FIEMAP: libc::c_ulong = 0xc020_660b;
const EXTENT_LAST: u32 = 0x1;
const EXTENT_UNWRITTEN: u32 = 0x800;

/// Where one extent ends and the next begins, holes included. Neighbours on the disk in the same state count as one.
/// Nothing where the file system does not tell.
fn extent_edges(fd: BorrowedFd<'_>, size: u64) -> Vec<u64> {
    let mut edges = Vec::new();
    let mut previous: Option<Extent> = None;
    let mut start = 0;
    while start < size {
        let mut map = ExtentMap {
            start,
            len: size - start,
            flags: 0,
            mapped: 0,
            count: EXTENTS_AT_ONCE as u32,
            reserved: 0,
            extents: [Extent::default(); EXTENTS_AT_ONCE],
        };
        // SAFETY: the kernel fills at most `count` entries of a map that lives through the call, for a descriptor
        // that is borrowed open (R2).
        if unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_FIEMAP, &raw mut map) } != 0 {
            return Vec::new();
        }
        let found = &map.extents[..(map.mapped as usize).min(EXTENTS_AT_ONCE)];
        for extent in found {
            match previous {
                Some(before) if before.logical + before.len == extent.logical => {
                    let joined = before.physical + before.len == extent.physical
                        && (before.flags ^ extent.flags) & EXTENT_UNWRITTEN == 0;
                    if !joined {
                        edges.push(extent.logical);
                    }
                }
                before => {
                    edges.extend(before.map(|before| before.logical + before.len));
                    edges.push(extent.logical);
                }
            }
            previous = Some(*extent);
        }
        match found.last() {
            Some(last) if last.flags & EXTENT_LAST == 0 => start = last.logical + last.len,
            _ => break,
        }
    }
    edges.extend(previous.map(|last| last.logical + last.len));
    edges.retain(|edge| *edge > 0 && *edge < size);
    edges.dedup();
    edges
}

/// How many kernel workers this process has now. Syncs, allocations and the creation of files need one per ring, which
/// then stays; any other means that a read or write could not be done in place.
pub fn kernel_workers() -> u64 {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return 0 };
    let is_worker = |task: &std::fs::DirEntry| {
        std::fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.starts_with("iou-wrk"))
    };
    tasks.flatten().filter(is_worker).count() as u64
}
