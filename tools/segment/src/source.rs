//! Bytes of files, for reading only: many and deep through `tokio-uring`, or by a few threads where io_uring is
//! refused, or out of memory in tests. With O_DIRECT, so that a live server's page cache, and what else runs on the
//! machine, does not notice.
//!
//! Invariants  O1  Only regular files are read: a FIFO or a device never makes a caller wait.
//!             O2  Buffers are bounded: [`DEPTH`] reads of [`CHUNK`] and a few more, whatever a file's length.
//! A sector that cannot be read is zeros and a range in `unreadable`, not an error: the rest of the file counts.

use ringmq_format::limits::{BLOCK_SIZE, GROUP_SIZE_MAX};
use rustix::fs::{Advice, FileType, Mode, OFlags, fadvise, fcntl_getfl, fcntl_setfl, fstat};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
use tokio_uring::buf::BoundedBuf;

/// Bytes of one read.
pub const CHUNK: usize = 1 << 20;
/// Reads in flight.
pub const DEPTH: usize = 8;
/// Threads where io_uring is refused.
const THREADS: usize = 4;

/// How files are read.
#[derive(Clone, Debug)]
pub enum Source {
    /// Through tokio-uring.
    Uring,
    /// `pread` on a small thread pool.
    Threads,
    /// Files by name, out of memory.
    Memory(Arc<BTreeMap<PathBuf, Vec<u8>>>),
}

impl Source {
    /// tokio-uring if the kernel allows it; the error says why not.
    pub fn probe() -> Result<Self, io::Error> {
        // Ahead of `start`, which panics where io_uring is refused.
        tokio_uring::Runtime::new(&tokio_uring::builder()).map(|_| Self::Uring)
    }

    /// Opens a regular file.
    pub fn open(&self, path: &Path) -> io::Result<SourceFile> {
        if let Self::Memory(files) = self {
            let bytes = files.get(path).ok_or(io::ErrorKind::NotFound)?;
            let kind = Kind::Memory(Arc::clone(files), path.to_owned());
            return Ok(SourceFile { kind, len: bytes.len() as u64, source: self.clone() });
        }
        // Without O_NONBLOCK a FIFO would wait here for its writer (O1).
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let (fd, direct) = match rustix::fs::open(path, flags | OFlags::DIRECT, Mode::empty()) {
            Ok(fd) => (fd, true),
            Err(rustix::io::Errno::INVAL) => (rustix::fs::open(path, flags, Mode::empty())?, false),
            Err(error) => return Err(error.into()),
        };
        let stat = fstat(&fd)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {}
            FileType::Directory => return Err(other("it is a directory")),
            FileType::Fifo => return Err(other("it is a FIFO, not a file")),
            _ => return Err(other("it is not a regular file")),
        }
        // A file that is O_NONBLOCK makes io_uring answer EAGAIN instead of waiting for the disk. Access times stay as
        // they are where the kernel lets us.
        let flags = fcntl_getfl(&fd)? - OFlags::NONBLOCK;
        if fcntl_setfl(&fd, flags | OFlags::NOATIME).is_err() {
            fcntl_setfl(&fd, flags)?;
        }
        let file = Arc::new(std::fs::File::from(fd));
        Ok(SourceFile { kind: Kind::Disk(file, direct), len: stat.st_size as u64, source: self.clone() })
    }

    /// Names of files in a directory, sorted, and whether each is a directory.
    pub fn list(&self, path: &Path) -> io::Result<Vec<(String, bool)>> {
        let mut names: Vec<(String, bool)> = match self {
            Self::Memory(files) => {
                let below = files.keys().filter_map(|file| file.strip_prefix(path).ok());
                let mut parts = below.filter_map(|rest| {
                    let name = rest.iter().next()?.to_str()?.to_owned();
                    Some((name, rest.iter().count() > 1))
                });
                let all: std::collections::BTreeSet<_> = parts.by_ref().collect();
                all.into_iter().collect()
            }
            _ => std::fs::read_dir(path)?
                .flatten()
                .map(|entry| {
                    let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
                    (entry.file_name().to_string_lossy().into_owned(), is_dir)
                })
                .collect(),
        };
        names.sort();
        Ok(names)
    }
}

fn other(text: &str) -> io::Error {
    io::Error::other(text.to_owned())
}

#[derive(Clone, Debug)]
enum Kind {
    Disk(Arc<std::fs::File>, bool),
    Memory(Arc<BTreeMap<PathBuf, Vec<u8>>>, PathBuf),
}

/// A file that is open.
#[derive(Clone, Debug)]
pub struct SourceFile {
    kind: Kind,
    len: u64,
    source: Source,
}

impl SourceFile {
    /// Its bytes when it was opened.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// No byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The file system does not do O_DIRECT.
    pub fn is_buffered(&self) -> bool {
        matches!(self.kind, Kind::Disk(_, false))
    }

    /// Up to `len` bytes at `position`, as one read; fewer at the end.
    pub fn read(&self, position: u64, len: usize) -> io::Result<Vec<u8>> {
        if let Kind::Memory(files, path) = &self.kind {
            let bytes = files.get(path).map(Vec::as_slice).unwrap_or_default();
            let from = (position as usize).min(bytes.len());
            return Ok(bytes[from..(from + len).min(bytes.len())].to_vec());
        }
        let first = position / BLOCK_SIZE as u64 * BLOCK_SIZE as u64;
        let skip = (position - first) as usize;
        let chunk = self.read_chunk(Buffer::new((skip + len).next_multiple_of(BLOCK_SIZE)), first);
        match (chunk.error, chunk.unreadable.is_empty()) {
            (Some(error), _) => Err(error),
            (None, false) => Err(io::Error::from_raw_os_error(libc::EIO)),
            (None, true) => {
                let bytes = chunk.buffer.bytes(chunk.len);
                Ok(bytes[skip.min(bytes.len())..(skip + len).min(bytes.len())].to_vec())
            }
        }
    }

    /// Reads the file from `start` to `end`, in order and ahead.
    pub fn stream(&self, start: u64, end: u64) -> Stream {
        assert!(start.is_multiple_of(BLOCK_SIZE as u64), "a stream starts at a block, not at {start}");
        let end = end.min(self.len);
        match (&self.source, &self.kind) {
            (Source::Uring, Kind::Disk(..)) => Stream::uring(self.clone(), start, end),
            (_, Kind::Disk(..)) => Stream::threads(self, start, end),
            (_, Kind::Memory(..)) => Stream {
                lanes: Vec::new(),
                turn: 0,
                free: None,
                memory: Some((self.clone(), start, end)),
                threads: Vec::new(),
            },
        }
    }

    fn pread(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        let Kind::Disk(file, _) = &self.kind else { return Ok(0) };
        loop {
            match file.read_at(buffer, position) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => return read,
            }
        }
    }

    fn read_chunk(&self, mut buffer: Buffer, position: u64) -> Chunk {
        let (mut done, mut error) = (0, None);
        let all = buffer.bytes_mut();
        while done < all.len() && error.is_none() {
            match self.pread(&mut all[done..], position + done as u64) {
                Ok(0) => break,
                // The end of the file may lie inside a block, and a direct read goes on at blocks only.
                Ok(read) if !(done + read).is_multiple_of(BLOCK_SIZE) => {
                    done += read;
                    break;
                }
                Ok(read) => done += read,
                Err(failed) => error = Some(failed),
            }
        }
        self.finish(buffer, position, done, error)
    }

    /// What a read brought, or what single blocks bring if it failed.
    fn finish(&self, mut buffer: Buffer, position: u64, len: usize, error: Option<io::Error>) -> Chunk {
        let mut chunk = Chunk { position, len, unreadable: Vec::new(), error: None, buffer: Buffer::none() };
        match error {
            Some(error) if error.raw_os_error() == Some(libc::EIO) => {
                self.read_blocks(&mut buffer, &mut chunk)
            }
            error => chunk.error = error,
        }
        if let Kind::Disk(file, false) = &self.kind {
            let _ = fadvise(file, position, std::num::NonZeroU64::new(len as u64), Advice::DontNeed);
        }
        chunk.buffer = buffer;
        chunk
    }

    /// Block by block, so that one bad sector does not hide its neighbours.
    fn read_blocks(&self, buffer: &mut Buffer, chunk: &mut Chunk) {
        chunk.len = 0;
        for block in buffer.bytes_mut().chunks_mut(BLOCK_SIZE) {
            let at = chunk.position + chunk.len as u64;
            match self.pread(block, at) {
                Ok(0) => return,
                Ok(read) => {
                    chunk.len += read;
                    if read < block.len() {
                        return;
                    }
                }
                Err(error) if error.raw_os_error() == Some(libc::EIO) => {
                    block.fill(0);
                    chunk.unreadable.push(at..at + block.len() as u64);
                    chunk.len += block.len();
                }
                Err(error) => {
                    chunk.error = Some(error);
                    return;
                }
            }
        }
    }
}

/// Memory that begins at a multiple of a block, as direct reads ask for.
#[derive(Debug)]
struct Buffer {
    bytes: Vec<u8>,
    offset: usize,
    len: usize,
}

impl Buffer {
    fn none() -> Self {
        Self { bytes: Vec::new(), offset: 0, len: 0 }
    }

    fn new(len: usize) -> Self {
        let bytes = vec![0; len + BLOCK_SIZE];
        let offset = bytes.as_ptr().align_offset(BLOCK_SIZE);
        Self { bytes, offset, len }
    }

    fn bytes(&self, len: usize) -> &[u8] {
        &self.bytes[self.offset..self.offset + len.min(self.len)]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.offset..self.offset + self.len]
    }
}

/// What one read brought.
#[derive(Debug)]
struct Chunk {
    position: u64,
    len: usize,
    unreadable: Vec<Range<u64>>,
    error: Option<io::Error>,
    buffer: Buffer,
}

/// Position and length of bytes that came, and which blocks of them are missing.
type Next = (u64, usize, Vec<Range<u64>>);

/// A file that is being read, in order and ahead.
#[derive(Debug)]
pub struct Stream {
    /// Chunks come from each in turn.
    lanes: Vec<Receiver<Chunk>>,
    turn: usize,
    free: Option<Sender<Buffer>>,
    memory: Option<(SourceFile, u64, u64)>,
    threads: Vec<JoinHandle<()>>,
}

impl Stream {
    fn uring(file: SourceFile, start: u64, end: u64) -> Self {
        let (chunks, lane) = sync_channel(2);
        let (free, freed) = channel();
        let thread = std::thread::spawn(move || match tokio_uring::Runtime::new(&tokio_uring::builder()) {
            Ok(runtime) => runtime.block_on(read_ahead(&file, start, end, &chunks, &freed)),
            Err(error) => {
                let failed = file.finish(Buffer::none(), start, 0, Some(error));
                let _ = chunks.send(failed);
            }
        });
        Self { lanes: vec![lane], turn: 0, free: Some(free), memory: None, threads: vec![thread] }
    }

    fn threads(file: &SourceFile, start: u64, end: u64) -> Self {
        let mut lanes = Vec::new();
        let mut threads = Vec::new();
        for number in 0..THREADS {
            let (chunks, lane) = sync_channel(1);
            let file = file.clone();
            lanes.push(lane);
            threads.push(std::thread::spawn(move || {
                let mut position = start + (number * CHUNK) as u64;
                while position < end {
                    let len = CHUNK.min((end - position) as usize).next_multiple_of(BLOCK_SIZE);
                    if chunks.send(file.read_chunk(Buffer::new(len), position)).is_err() {
                        return;
                    }
                    position += (THREADS * CHUNK) as u64;
                }
            }));
        }
        Self { lanes, turn: 0, free: None, memory: None, threads }
    }

    /// The next bytes, appended to `into`, with where blocks are missing; none at the end.
    fn next(&mut self, into: &mut Vec<u8>) -> io::Result<Option<Next>> {
        if let Some((file, position, end)) = &mut self.memory {
            let bytes = file.read(*position, CHUNK.min((*end - *position) as usize))?;
            into.extend_from_slice(&bytes);
            let at = *position;
            *position += bytes.len() as u64;
            return Ok((!bytes.is_empty()).then(|| (at, bytes.len(), Vec::new())));
        }
        let Some(lane) = self.lanes.get(self.turn) else { return Ok(None) };
        let Ok(chunk) = lane.recv() else { return Ok(None) };
        self.turn = (self.turn + 1) % self.lanes.len();
        into.extend_from_slice(chunk.buffer.bytes(chunk.len));
        if let Some(free) = &self.free {
            let _ = free.send(chunk.buffer);
        }
        match chunk.error {
            Some(error) => Err(error),
            None if chunk.len == 0 => Ok(None),
            None => Ok(Some((chunk.position, chunk.len, chunk.unreadable))),
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.lanes.clear(); // what is being sent fails now
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

async fn read_ahead(
    file: &SourceFile,
    start: u64,
    end: u64,
    chunks: &SyncSender<Chunk>,
    freed: &Receiver<Buffer>,
) {
    let Kind::Disk(disk, _) = &file.kind else { return };
    let own = match disk.try_clone() {
        Ok(own) => Rc::new(tokio_uring::fs::File::from_std(own)),
        Err(error) => {
            let _ = chunks.send(file.finish(Buffer::none(), start, 0, Some(error)));
            return;
        }
    };
    let mut flying = VecDeque::new();
    let mut next = start;
    loop {
        while flying.len() < DEPTH && next < end {
            let len = CHUNK.min((end - next) as usize).next_multiple_of(BLOCK_SIZE);
            let buffer = freed.try_recv().ok().filter(|buffer| buffer.len == len);
            let buffer = buffer.unwrap_or_else(|| Buffer::new(len));
            let (own, position) = (Rc::clone(&own), next);
            flying.push_back((position, tokio_uring::spawn(read_one(own, buffer, position))));
            next += len as u64;
        }
        let Some((position, task)) = flying.pop_front() else { return };
        let (buffer, read) = match task.await {
            Ok(done) => done,
            Err(_) => (Buffer::none(), Err(other("a read was abandoned"))),
        };
        let chunk = match read {
            // Cut short: what is missing is read in the ordinary way, or is not there.
            Ok(len) if len < buffer.len => file.read_chunk(buffer, position),
            Ok(len) => file.finish(buffer, position, len, None),
            Err(error) => file.finish(buffer, position, 0, Some(error)),
        };
        if chunks.send(chunk).is_err() {
            break; // nobody listens any more
        }
    }
    for (_, task) in flying {
        let _ = task.await;
    }
}

async fn read_one(
    file: Rc<tokio_uring::fs::File>,
    buffer: Buffer,
    position: u64,
) -> (Buffer, io::Result<usize>) {
    let Buffer { bytes, offset, len } = buffer;
    let (read, slice) = file.read_at(bytes.slice(offset..offset + len), position).await;
    (Buffer { bytes: slice.into_inner(), offset, len }, read)
}

/// A window that moves forward over a file. Memory: twice the largest group and a chunk.
#[derive(Debug)]
pub struct Window {
    file: SourceFile,
    stream: Option<Stream>,
    end: u64,
    /// Bytes from `start` on, behind `head` of them.
    bytes: Vec<u8>,
    head: usize,
    start: u64,
    unreadable: Vec<Range<u64>>,
    read: u64,
}

impl Window {
    /// Over the file up to `end`.
    pub fn new(file: SourceFile, end: u64) -> Self {
        Self {
            file,
            stream: None,
            end,
            bytes: Vec::new(),
            head: 0,
            start: 0,
            unreadable: Vec::new(),
            read: 0,
        }
    }

    /// The file.
    pub fn file(&self) -> &SourceFile {
        &self.file
    }

    /// Bytes read so far.
    pub fn read(&self) -> u64 {
        self.read
    }

    /// Reads anew from here on, what is known already too.
    pub fn restart(&mut self, position: u64) {
        let position = position / BLOCK_SIZE as u64 * BLOCK_SIZE as u64;
        self.bytes.clear();
        (self.head, self.start) = (0, position);
        self.unreadable.clear();
        self.stream = Some(self.file.stream(position, self.end));
    }

    /// Makes `[position, position + len)` part of the window, as far as the file has it; what lies before is dropped.
    pub fn load(&mut self, position: u64, len: usize) -> io::Result<&[u8]> {
        if self.stream.is_none() || position < self.start || position > self.start + self.len() + (64 << 20) {
            self.restart(position);
        }
        self.drop_until(position);
        while self.start + self.len() < position + len as u64 {
            let before = self.bytes.len();
            let Some(stream) = &mut self.stream else { break };
            match stream.next(&mut self.bytes) {
                Ok(Some((at, read, unreadable))) => {
                    assert!(at == self.start + (before - self.head) as u64, "a stream comes in order");
                    self.read += read as u64;
                    self.unreadable.extend(unreadable);
                    self.drop_until(position);
                }
                Ok(None) => break,
                Err(error) => {
                    self.bytes.truncate(before);
                    return Err(error);
                }
            }
        }
        let from = (self.head + position.saturating_sub(self.start) as usize).min(self.bytes.len());
        let to = (from + len).min(self.bytes.len());
        Ok(&self.bytes[from..to])
    }

    /// The bytes of the last `load` again.
    pub fn bytes(&self, position: u64, len: usize) -> &[u8] {
        let from = (self.head + position.saturating_sub(self.start) as usize).min(self.bytes.len());
        &self.bytes[from..(from + len).min(self.bytes.len())]
    }

    /// A block in the range could not be read.
    pub fn unreadable(&self, position: u64, len: usize) -> Option<u64> {
        let end = position + len as u64;
        let mut bad = self.unreadable.iter().filter(|bad| bad.start < end && bad.end > position);
        bad.next().map(|bad| bad.start.max(position))
    }

    fn len(&self) -> u64 {
        (self.bytes.len() - self.head) as u64
    }

    fn drop_until(&mut self, position: u64) {
        let position = position / BLOCK_SIZE as u64 * BLOCK_SIZE as u64;
        let drop = position.saturating_sub(self.start).min(self.len());
        self.head += drop as usize;
        self.start += drop;
        if self.head > GROUP_SIZE_MAX {
            self.bytes.drain(..self.head);
            self.head = 0;
            let start = self.start;
            self.unreadable.retain(|bad| bad.end > start);
        }
    }
}
