//! A file system of our own that forgets what was not flushed, and fails when it is told to.

pub(crate) mod blocks;
pub(crate) mod disk;
pub(crate) mod power;

use disk::{Disk, Node, PAGE, ROOT};
use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite,
    Request, TimeOrNow, WriteFlags,
};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Linux's `O_DSYNC`: the write is answered when it is durable.
const O_DSYNC: i32 = 0o10_000;
/// Linux's `O_DIRECT`, which differs between architectures.
const O_DIRECT: i32 = if cfg!(target_arch = "aarch64") { 0o200_000 } else { 0o40_000 };
/// `FALLOC_FL_KEEP_SIZE`.
const KEEP_SIZE: i32 = 1;
/// The kernel asks again each time, so that what a power loss changes is seen.
const TTL: Duration = Duration::ZERO;

/// The disk, shared with whoever pulls the plug.
#[derive(Clone)]
pub(crate) struct Shared(Arc<Mutex<Disk>>);

impl Shared {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Disk::new())))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Mounts it; unmounted when the session is dropped.
    pub(crate) fn mount(&self, at: &Path) -> Result<Mounted, String> {
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("ringmq-proof".to_owned()), MountOption::NoAtime];
        config.n_threads = Some(4);
        let session = fuser::spawn_mount(FaultFs(self.clone()), at, &config);
        let session = session.map_err(|error| format!("mounting {}: {error}", at.display()))?;
        Ok(Mounted { session: Some(session), at: at.to_owned() })
    }
}

/// A mounted file system.
pub(crate) struct Mounted {
    session: Option<BackgroundSession>,
    at: PathBuf,
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Whatever still holds it open is gone in a moment.
        let at = self.at.to_string_lossy().into_owned();
        for _ in 0..100 {
            if crate::server::command(&["umount", &at]).is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        if let Some(session) = self.session.take() {
            let _ = session.umount_and_join();
        }
    }
}

/// Why FUSE cannot be used here; `None` where it can.
pub(crate) fn missing() -> Option<String> {
    if !Path::new("/dev/fuse").exists() {
        return Some("no /dev/fuse".to_owned());
    }
    let at = match tempfile::tempdir() {
        Ok(at) => at,
        Err(error) => return Some(error.to_string()),
    };
    Shared::new().mount(at.path()).err()
}

struct FaultFs(Shared);

fn attr(ino: u64, node: &Node) -> FileAttr {
    let (kind, size, perm) = match node {
        Node::Dir { .. } => (FileType::Directory, 0, 0o755),
        Node::File(file) => (FileType::RegularFile, file.now.size, 0o644),
    };
    FileAttr {
        ino: INodeNo(ino),
        size,
        blocks: size.div_ceil(512),
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: PAGE as u32,
        flags: 0,
    }
}

impl FaultFs {
    fn attr(&self, ino: u64) -> Result<FileAttr, Errno> {
        let disk = self.0.lock();
        if disk.off && ino != ROOT {
            return Err(Errno::EIO);
        }
        disk.nodes.get(&ino).map(|node| attr(ino, node)).ok_or(Errno::ENOENT)
    }

    fn entry(&self, ino: Result<u64, Errno>, reply: ReplyEntry) {
        match ino.and_then(|ino| self.attr(ino)) {
            Ok(attr) => reply.entry(&TTL, &attr, Generation(0)),
            Err(error) => reply.error(error),
        }
    }
}

/// Nothing may stay in the kernel's cache: what asks for direct I/O gets it, and so does what does not ask.
fn direct(flags: i32) -> FopenFlags {
    if flags & O_DIRECT != 0 { FopenFlags::empty() } else { FopenFlags::FOPEN_DIRECT_IO }
}

fn done(result: Result<(), Errno>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

impl Filesystem for FaultFs {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // Whatever the kernel allows is as good.
        let _ = config.set_max_write(1 << 20);
        // Without it a short write is finished by the kernel itself, and at the place where it began.
        config.add_capabilities(InitFlags::FUSE_ASYNC_DIO).map_err(|_| std::io::ErrorKind::Unsupported.into())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found =
            self.0.lock().names(parent.0).and_then(|names| names.get(name).copied().ok_or(Errno::ENOENT));
        self.entry(found, reply);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attr(ino.0) {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(error) => reply.error(error),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let resized = size.map_or(Ok(()), |size| self.0.lock().resize(ino.0, size));
        match resized.and_then(|()| self.attr(ino.0)) {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(error) => reply.error(error),
        }
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        let made = self.0.lock().make(parent.0, name, true);
        self.entry(made, reply);
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        _: u32,
        _: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let made = self.0.lock().make(parent.0, name, false);
        match made.and_then(|ino| self.attr(ino)) {
            Ok(attr) => reply.created(&TTL, &attr, Generation(0), FileHandle(0), direct(flags)),
            Err(error) => reply.error(error),
        }
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let removed = self.0.lock().names(parent.0).and_then(|names| names.remove(name).ok_or(Errno::ENOENT));
        done(removed.map(drop), reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mut disk = self.0.lock();
        let moved = disk.names(parent.0).and_then(|names| names.remove(name).ok_or(Errno::ENOENT));
        let moved = moved
            .and_then(|ino| disk.names(new_parent.0).map(|names| names.insert(new_name.to_owned(), ino)));
        done(moved.map(drop), reply);
    }

    fn open(&self, _: &Request, _: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), direct(flags.0));
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let read = self.0.lock().file(ino.0).map(|file| file.now.read(offset, size as usize));
        match read {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let written = self.0.lock().write(ino.0, offset, data, flags.0 & O_DSYNC != 0);
        match written {
            Ok(len) => reply.written(len as u32),
            Err(error) => reply.error(error),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let synced = self.0.lock().sync(ino.0);
        done(synced, reply);
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let synced = self.0.lock().sync_dir(ino.0);
        done(synced, reply);
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let mut disk = self.0.lock();
        let size = disk.file(ino.0).map(|file| file.now.size);
        let grown = match (mode, size) {
            (0, Ok(size)) => disk.resize(ino.0, size.max(offset + length)),
            (KEEP_SIZE, Ok(_)) => Ok(()),
            // Holes are a matter of the loop device, which does without.
            (_, Ok(_)) => Err(Errno::EOPNOTSUPP),
            (_, Err(error)) => Err(error),
        };
        drop(disk);
        done(grown, reply);
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let disk = self.0.lock();
        let Some(Node::Dir { names, .. }) = disk.nodes.get(&ino.0) else {
            return reply.error(Errno::ENOTDIR);
        };
        let dots = [(OsStr::new("."), ino.0), (OsStr::new(".."), ROOT)];
        let names = names.iter().map(|(name, ino)| (name.as_os_str(), *ino));
        for (index, (name, ino)) in dots.into_iter().chain(names).enumerate().skip(offset as usize) {
            let kind = match disk.nodes.get(&ino) {
                Some(Node::File(_)) => FileType::RegularFile,
                _ => FileType::Directory,
            };
            if reply.add(INodeNo(ino), index as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let free = 1 << 20;
        reply.statfs(2 * free, free, free, 1 << 20, 1 << 20, PAGE as u32, 255, PAGE as u32);
    }
}
