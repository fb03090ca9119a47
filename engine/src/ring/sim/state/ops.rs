//! Ops on their way: what is asked, what is done to it, when it is done, and what comes back.

use super::{Data, Delivered, Event, MIX, OpenFile, Payload, Queued, State, hash, place};
use crate::ring::sim::config::DiskFaults;
use crate::ring::sim::disk::{CrashPoint, PAGE, Page, Pages, SECTOR, normal};
use crate::ring::sim::fault::{Harm, OpKind};
use crate::ring::sim::rng::Rng;
use crate::ring::sim::{NodeId, RingId};
use crate::ring::{Errno, FileId, Op, Token};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// A few words of a page: enough to tell two traces apart.
fn digest(pages: &[Rc<Page>]) -> u64 {
    let mut hash = 0u64;
    for page in pages {
        for chunk in page.chunks_exact(64) {
            let word = chunk[..8].iter().fold(0, |word, &byte| word << 8 | u64::from(byte));
            hash = (hash.rotate_left(5) ^ word).wrapping_mul(MIX);
        }
    }
    hash
}

/// An op as the world carries it out.
pub(in crate::ring::sim) enum Work {
    Write { file: u32, ino: u64, position: u64, pages: Pages, durable: bool, contested: Vec<Range<u64>> },
    Read { file: u32, ino: u64, position: u64, len: usize },
    Sync { file: u32, ino: u64, covers: u64 },
    SyncDir { path: PathBuf, covers: u64 },
    Open { path: PathBuf, create: bool },
    Allocate { file: u32, ino: u64, len: u64 },
    Close { file: u32 },
    Accept { socket: u32 },
    Recv { socket: u32, len: usize },
    Send { socket: u32, bytes: Rc<Vec<u8>> },
    Shutdown { socket: u32 },
    CloseSocket { socket: u32 },
    Refused(Errno),
}

impl Work {
    /// Counts as a disk event.
    fn is_disk(&self) -> bool {
        matches!(
            self,
            Self::Write { .. }
                | Self::Read { .. }
                | Self::Sync { .. }
                | Self::SyncDir { .. }
                | Self::Open { .. }
                | Self::Allocate { .. }
        )
    }

    fn file(&self) -> Option<u32> {
        match *self {
            Self::Write { file, .. }
            | Self::Read { file, .. }
            | Self::Sync { file, .. }
            | Self::Allocate { file, .. } => Some(file),
            _ => None,
        }
    }

    fn kind(&self) -> Option<OpKind> {
        Some(match self {
            Self::Write { .. } => OpKind::Write,
            Self::Read { .. } => OpKind::Read,
            Self::Sync { .. } => OpKind::Sync,
            Self::SyncDir { .. } => OpKind::SyncDir,
            Self::Open { .. } => OpKind::Open,
            Self::Allocate { .. } => OpKind::Allocate,
            Self::Accept { .. } => OpKind::Accept,
            Self::Recv { .. } => OpKind::Recv,
            Self::Send { .. } => OpKind::Send,
            Self::Close { .. } | Self::Shutdown { .. } | Self::CloseSocket { .. } | Self::Refused(_) => {
                return None;
            }
        })
    }

    fn digest(&self) -> [u64; 4] {
        let of_path = |path: &Path| hash(path.as_os_str().as_encoded_bytes());
        match self {
            Self::Write { ino, position, pages, durable, .. } => {
                [1 + u64::from(*durable), *ino, *position, digest(pages) ^ pages.len() as u64]
            }
            Self::Read { ino, position, len, .. } => [3, *ino, *position, *len as u64],
            Self::Sync { ino, covers, .. } => [4, *ino, *covers, 0],
            Self::SyncDir { path, covers } => [5, *covers, of_path(path), 0],
            Self::Open { path, create } => [6, u64::from(*create), of_path(path), 0],
            Self::Allocate { ino, len, .. } => [7, *ino, *len, 0],
            Self::Close { file } => [8, u64::from(*file), 0, 0],
            Self::Accept { socket } => [9, u64::from(*socket), 0, 0],
            Self::Recv { socket, len } => [10, u64::from(*socket), *len as u64, 0],
            Self::Send { socket, bytes } => [11, u64::from(*socket), bytes.len() as u64, hash(bytes)],
            Self::CloseSocket { socket } => [12, u64::from(*socket), 0, 0],
            Self::Refused(errno) => [13, errno.0 as u64, 0, 0],
            Self::Shutdown { socket } => [14, u64::from(*socket), 0, 0],
        }
    }

    fn words(&self) -> String {
        match self {
            Self::Write { ino, position, pages, durable, .. } => {
                let durable = if *durable { "durable " } else { "" };
                format!("{durable}write of inode {ino} at {position}, {} bytes", pages.len() * PAGE)
            }
            Self::Read { ino, position, len, .. } => {
                format!("read of inode {ino} at {position}, {len} bytes")
            }
            Self::Sync { ino, covers, .. } => format!("sync of inode {ino} up to change {covers}"),
            Self::SyncDir { path, .. } => format!("sync of {}", path.display()),
            Self::Open { path, .. } => format!("open of {}", path.display()),
            Self::Allocate { ino, len, .. } => format!("allocation of inode {ino} to {len}"),
            Self::Close { file } => format!("close of file {file}"),
            Self::Accept { socket } => format!("accept on socket {socket}"),
            Self::Recv { socket, len } => format!("receive on socket {socket}, up to {len}"),
            Self::Send { socket, bytes } => format!("send on socket {socket}, {} bytes", bytes.len()),
            Self::Shutdown { socket } => format!("shutdown of socket {socket}"),
            Self::CloseSocket { socket } => format!("close of socket {socket}"),
            Self::Refused(errno) => format!("refused op: {errno}"),
        }
    }
}

pub(in crate::ring::sim) struct Flight {
    pub(in crate::ring::sim) ring: RingId,
    token: Option<Token>,
    pub(in crate::ring::sim) work: Work,
    pub(in crate::ring::sim) harm: Option<Harm>,
    /// Waits for a packet, room or a connection.
    pub(in crate::ring::sim) blocked: bool,
}

impl State {
    fn prepare(&mut self, id: RingId, op: Op, payload: Payload) -> Result<Work, Errno> {
        let node = self.ring(id).node;
        let seq = self.node(node).disk.seq;
        let ino = |state: &Self, file: FileId| Ok(state.open_file(id, file.0)?.ino);
        Ok(match (op, payload) {
            (Op::Write { file, position, durable, .. }, Payload::Pages(pages)) => {
                let ino = ino(self, file)?;
                Work::Write { file: file.0, ino, position, pages, durable, contested: Vec::new() }
            }
            (Op::Read { file, into, position }, _) => {
                let ino = ino(self, file)?;
                let aligned = position.is_multiple_of(PAGE as u64)
                    && into.len().is_multiple_of(PAGE)
                    && into.start().is_multiple_of(PAGE);
                if !aligned {
                    return Err(Errno::INVAL);
                }
                Work::Read { file: file.0, ino, position, len: into.len() }
            }
            (Op::SyncData { file } | Op::SyncAll { file }, _) => {
                self.ring_mut(id).stats.syncs += 1;
                Work::Sync { file: file.0, ino: ino(self, file)?, covers: seq }
            }
            (Op::SyncDir { path }, _) => {
                self.ring_mut(id).stats.syncs += 1;
                Work::SyncDir { path, covers: seq }
            }
            (Op::Open { path, create }, _) => Work::Open { path, create },
            (Op::Allocate { file, len }, _) => Work::Allocate { file: file.0, ino: ino(self, file)?, len },
            (Op::Close { file }, _) => {
                let in_flight = self.open_file(id, file.0)?.in_flight;
                assert_eq!(in_flight, 0, "{file:?} is closed with ops in flight"); // R2
                Work::Close { file: file.0 }
            }
            (Op::Accept { listener }, _) => Work::Accept { socket: listener.0 },
            (Op::Recv { socket, into }, _) => Work::Recv { socket: socket.0, len: into.len() },
            (Op::Send { socket, .. }, Payload::Bytes(bytes)) => Work::Send { socket: socket.0, bytes },
            (Op::Shutdown { socket }, _) => {
                // At once, as with the kernel: nothing is in flight that it could overtake.
                self.shut_down(id, socket.0)?;
                Work::Shutdown { socket: socket.0 }
            }
            (Op::CloseSocket { socket }, _) => Work::CloseSocket { socket: socket.0 },
            // A write or send whose buffer was not captured is misaligned.
            (Op::Write { .. } | Op::Send { .. }, _) => return Err(Errno::INVAL),
        })
    }

    /// What goes wrong with an op: planned faults first, then chance.
    fn choose_harm(&mut self, id: RingId, work: &Work) -> Option<Harm> {
        let kind = work.kind()?;
        let node = self.ring(id).node;
        let path = match (work, work.file()) {
            (Work::Open { path, .. } | Work::SyncDir { path, .. }, _) => path.clone(),
            (_, Some(file)) if !self.node(node).faults.is_empty() => {
                self.open_file(id, file).ok()?.path.clone()
            }
            _ => PathBuf::new(),
        };
        let path = path.to_string_lossy();
        // Each planned fault counts for itself; the first that strikes wins.
        let mut chosen = None;
        for fault in &mut self.node(node).faults {
            let harm = fault.strike(kind, &path);
            chosen = chosen.or(harm);
        }
        if chosen.is_some() {
            return chosen;
        }
        let DiskFaults {
            read_error_ppm,
            write_error_ppm,
            sync_error_ppm,
            read_short_ppm,
            write_short_ppm,
            lost_write_ppm,
            misdirected_write_ppm,
            rot_ppm,
            read_flip_ppm,
        } = self.config.disk.faults;
        let rng = &mut self.random.disk;
        let table: &[(u32, Harm)] = match kind {
            OpKind::Read => &[
                (read_error_ppm, Harm::Error(Errno::IO)),
                (read_short_ppm, Harm::Short),
                (rot_ppm, Harm::Rot),
                (read_flip_ppm, Harm::Flip),
            ],
            OpKind::Write => &[
                (write_error_ppm, Harm::Error(Errno::IO)),
                (write_short_ppm, Harm::Short),
                (lost_write_ppm, Harm::Lost),
                (misdirected_write_ppm, Harm::Misdirected),
            ],
            OpKind::Sync => &[(sync_error_ppm, Harm::Error(Errno::IO))],
            _ => &[],
        };
        table.iter().find(|&&(ppm, _)| rng.chance(ppm)).map(|&(_, harm)| harm)
    }

    pub(super) fn start(&mut self, id: RingId, queued: Queued) {
        if !self.ring(id).alive {
            return;
        }
        let Queued { id: op_id, token, op, payload } = queued;
        self.ring_mut(id).stats.submitted += 1;
        let mut work = self.prepare(id, op, payload).unwrap_or_else(Work::Refused);
        let harm = self.choose_harm(id, &work);
        if let (Some(harm), Some(kind)) = (harm, work.kind()) {
            self.faults.count(kind, harm);
        }
        if let (Some(Harm::Misdirected), Work::Write { ino, position, .. }) = (harm, &mut work) {
            let node = self.ring(id).node;
            let Self { nodes, random, .. } = self;
            let stray = nodes.get(&node).and_then(|node| node.disk.stray(&mut random.disk));
            if let Some(target) = stray {
                (*ino, *position) = target;
            }
        }
        let disk = &self.config.disk;
        let time = &mut self.random.time;
        let mut latency = match &work {
            Work::Write { durable: false, .. } => disk.write.draw(time),
            Work::Write { .. } => disk.write.draw(time) + disk.sync.draw(time),
            Work::Read { .. } => disk.read.draw(time),
            Work::Sync { .. } | Work::SyncDir { .. } => disk.sync.draw(time),
            Work::Open { .. } | Work::Allocate { .. } | Work::Close { .. } | Work::Refused(_) => {
                disk.meta.draw(time)
            }
            Work::Accept { .. }
            | Work::Recv { .. }
            | Work::Send { .. }
            | Work::Shutdown { .. }
            | Work::CloseSocket { .. } => self.config.net.op.draw(time),
        };
        if let Some(Harm::Delay(us)) = harm {
            latency += us;
        }
        let [a, b, c, d] = work.digest();
        self.trace.mix(&[self.now, u64::from(id.0), op_id, a, b, c, d]);
        self.trace.line(self.now, || match harm {
            Some(harm) => format!("{id:?} op {op_id} starts: {}, with {harm:?}", work.words()),
            None => format!("{id:?} op {op_id} starts: {}", work.words()),
        });
        if let Some(file) = work.file().and_then(|file| self.open_file_mut(id, file)) {
            file.in_flight += 1;
        }
        let is_disk = work.is_disk();
        self.occupy_socket(id, op_id, &work);
        if matches!(work, Work::Write { .. }) {
            self.writes.insert(op_id);
        }
        self.flights.insert(op_id, Flight { ring: id, token, work, harm, blocked: false });
        self.schedule(self.now + latency, Event::Execute(op_id));
        if is_disk {
            self.disk_event(self.ring(id).node);
        }
    }

    /// Counts, and pulls the plug when it was asked for at this event.
    fn disk_event(&mut self, node: NodeId) {
        if self.node(node).crash_points.is_some() {
            let in_flight = self.in_flight(node, None);
            let point = CrashPoint::new(&self.node(node).disk, &in_flight);
            self.node(node).crash_points.get_or_insert_default().push(point);
        }
        let state = self.node(node);
        state.io_events += 1;
        if let Some((at, ending)) = state.ends_at
            && state.io_events >= at
        {
            self.end_process(node, ending);
        }
    }

    pub(in crate::ring::sim) fn deliver(
        &mut self,
        op_id: u64,
        flight: Flight,
        result: Result<u32, Errno>,
        data: Data,
    ) {
        let id = flight.ring;
        let word = match result {
            Ok(value) => u64::from(value),
            Err(errno) => errno.0 as u64 | 1 << 63,
        };
        self.trace.mix(&[self.now, op_id, word]);
        self.trace
            .line(self.now, || format!("{id:?} op {op_id} is done: {result:?} of {}", flight.work.words()));
        if let Some(file) = flight.work.file().and_then(|file| self.open_file_mut(id, file)) {
            file.in_flight -= 1;
        }
        let delivered = Delivered { id: op_id, result, data };
        let ring = self.ring_mut(id);
        match flight.token {
            Some(token) => ring.done.push_back((token, delivered)),
            None => ring.run_done = Some(delivered),
        }
    }

    pub(super) fn execute(&mut self, op_id: u64) {
        let Some(mut flight) = self.flights.remove(&op_id) else { return };
        self.writes.remove(&op_id);
        let (id, node) = (flight.ring, self.ring(flight.ring).node);
        let refused = match flight.harm {
            Some(Harm::Error(errno)) => Some(errno),
            _ => None,
        };
        let mut data = Data::None;
        let result = match &mut flight.work {
            Work::Refused(errno) => Err(*errno),
            Work::Write { ino, position, pages, durable, contested, .. } => {
                let (ino, position, durable) = (*ino, *position, *durable);
                self.write(node, ino, position, pages, durable, contested, flight.harm)
            }
            Work::Read { ino, position, len, .. } => {
                let read = self.read(node, *ino, *position, *len, flight.harm);
                read.map(|(pages, bytes)| {
                    data = Data::Pages(pages, bytes);
                    bytes as u32
                })
            }
            Work::Sync { file, ino, covers } => self.sync(id, *file, *ino, *covers, flight.harm).map(|()| 0),
            Work::SyncDir { path, covers } => match (refused, flight.harm) {
                (Some(errno), _) => Err(errno),
                (None, Some(Harm::Lost)) => Ok(0),
                _ => self.node(node).disk.sync_dir(path, *covers).map(|()| 0),
            },
            Work::Open { path, create } => match refused {
                Some(errno) => Err(errno),
                None => self.open(id, path, *create),
            },
            Work::Allocate { ino, len, .. } => match refused {
                Some(errno) => Err(errno),
                None => {
                    let Self { nodes, random, .. } = self;
                    let disk = nodes.get_mut(&node).map(|node| &mut node.disk);
                    disk.map_or(Err(Errno::NOENT), |disk| disk.allocate(*ino, *len, &mut random.disk))
                        .map(|()| 0)
                }
            },
            Work::Close { file } => {
                self.ring_mut(id).files[*file as usize] = None;
                Ok(0)
            }
            Work::Accept { .. }
            | Work::Recv { .. }
            | Work::Send { .. }
            | Work::Shutdown { .. }
            | Work::CloseSocket { .. } => {
                return self.execute_net(op_id, flight);
            }
        };
        let is_disk = flight.work.is_disk();
        self.deliver(op_id, flight, result, data);
        if is_disk {
            self.disk_event(node);
        }
    }

    fn open(&mut self, id: RingId, path: &Path, create: bool) -> Result<u32, Errno> {
        let limit = self.config.descriptors_max;
        let node = self.ring(id).node;
        if self.ring(id).files.iter().flatten().count() >= limit {
            return Err(Errno::MFILE);
        }
        let disk = &mut self.node(node).disk;
        let ino = disk.open(path, create)?;
        let errors_seen = disk.file(ino)?.errors;
        let open = OpenFile { ino, path: normal(path), errors_seen, in_flight: 0 };
        Ok(place(&mut self.ring_mut(id).files, open))
    }

    #[allow(clippy::too_many_arguments)]
    fn write(
        &mut self,
        node: NodeId,
        ino: u64,
        position: u64,
        pages: &[Rc<Page>],
        durable: bool,
        contested: &[Range<u64>],
        harm: Option<Harm>,
    ) -> Result<u32, Errno> {
        if harm == Some(Harm::Lost) {
            return Ok((pages.len() * PAGE) as u32);
        }
        // Two writes of the same place at the same time: the later completion wins only here and there.
        let end = position + (pages.len() * PAGE) as u64;
        for other in &self.writes {
            let Some(other) = self.flights.get_mut(other) else { continue };
            if let Work::Write { ino: its, position: at, pages: more, contested, .. } = &mut other.work {
                let overlap = position.max(*at)..end.min(*at + (more.len() * PAGE) as u64);
                if *its == ino && self.rings[other.ring.0 as usize].node == node && !overlap.is_empty() {
                    contested.push(overlap.start / SECTOR as u64..overlap.end / SECTOR as u64);
                }
            }
        }
        let Self { nodes, random, .. } = self;
        let rng = &mut random.disk;
        let disk = match nodes.get_mut(&node) {
            Some(node) => &mut node.disk,
            None => return Err(Errno::NOENT),
        };
        if let Some(Harm::Error(errno)) = harm {
            let harmless =
                [Errno::AGAIN, Errno::INTR, Errno::CANCELED].contains(&errno) || errno.is_no_space();
            if !harmless && rng.below(4) > 0 {
                let share = rng.below(5);
                let mut keep = |_| rng.below(4) >= share;
                disk.write(ino, position, pages, pages.len() * PAGE, false, &mut keep)?;
            }
            return Err(errno);
        }
        let mut bytes = pages.len() * PAGE;
        if harm == Some(Harm::Short) {
            bytes = short_write(rng, bytes);
        }
        let room = disk.make_room(ino, position, bytes.div_ceil(PAGE))?;
        if room == 0 && bytes > 0 {
            return Err(Errno::NOSPC);
        }
        bytes = bytes.min(room * PAGE);
        if harm == Some(Harm::Misdirected) {
            // Elsewhere, but inside what is there.
            let inside = disk.file(ino)?.size.saturating_sub(position) as usize;
            disk.write(ino, position, pages, bytes.min(inside), durable, &mut |_| false)?;
            return Ok(bytes as u32);
        }
        let mut keep = |sector| contested.iter().any(|range| range.contains(&sector)) && rng.coin();
        disk.write(ino, position, pages, bytes, durable, &mut keep)?;
        Ok(bytes as u32)
    }

    fn read(
        &mut self,
        node: NodeId,
        ino: u64,
        position: u64,
        len: usize,
        harm: Option<Harm>,
    ) -> Result<(Vec<Rc<Page>>, usize), Errno> {
        let Self { nodes, random, flights, writes, rings, .. } = self;
        let rng = &mut random.disk;
        let disk = match nodes.get_mut(&node) {
            Some(node) => &mut node.disk,
            None => return Err(Errno::NOENT),
        };
        if let Some(Harm::Error(errno)) = harm {
            return Err(errno);
        }
        let size = disk.file(ino)?.size;
        let mut bytes = size.saturating_sub(position).min(len as u64) as usize;
        if harm == Some(Harm::Short) {
            bytes = short(rng, bytes);
        }
        if disk.is_unreadable(ino, position, bytes as u64) {
            return Err(Errno::IO);
        }
        if bytes == 0 {
            return Ok((Vec::new(), 0));
        }
        if harm == Some(Harm::Rot) {
            disk.rot(ino, position * 8 + rng.below(bytes as u64 * 8))?;
        }
        let file = disk.file(ino)?;
        let first = position / PAGE as u64;
        let numbers = first..first + bytes.div_ceil(PAGE) as u64;
        let mut pages: Vec<_> = numbers.map(|number| disk.page(file, number)).collect();
        // What is being written meanwhile is seen here and there.
        for other in writes.iter().filter_map(|other| flights.get(other)) {
            let Work::Write { ino: its, position: at, pages: new, .. } = &other.work else { continue };
            let writes_here = *its == ino && rings[other.ring.0 as usize].node == node;
            if !writes_here || other.harm == Some(Harm::Lost) {
                continue;
            }
            for (index, page) in pages.iter_mut().enumerate() {
                let there = (first + index as u64).checked_sub(at / PAGE as u64);
                let Some(new) = there.and_then(|there| new.get(there as usize)) else { continue };
                let draw = rng.next();
                for sector in (0..PAGE / SECTOR).filter(|sector| draw >> sector & 1 == 1) {
                    let range = sector * SECTOR..(sector + 1) * SECTOR;
                    Rc::make_mut(page)[range.clone()].copy_from_slice(&new[range]);
                }
            }
        }
        if harm == Some(Harm::Flip) {
            let bit = rng.below(bytes as u64 * 8) as usize;
            Rc::make_mut(&mut pages[bit / 8 / PAGE])[bit / 8 % PAGE] ^= 1 << (bit % 8);
        }
        Ok((pages, bytes))
    }

    fn sync(
        &mut self,
        id: RingId,
        file: u32,
        ino: u64,
        covers: u64,
        harm: Option<Harm>,
    ) -> Result<(), Errno> {
        let dropped = match harm {
            Some(Harm::Error(errno)) => Some((errno, self.random.disk.coin())),
            Some(Harm::SyncDrops(errno)) => Some((errno, true)),
            Some(Harm::SyncKeeps(errno)) => Some((errno, false)),
            _ => None,
        };
        let node = self.ring(id).node;
        let disk = &mut self.node(node).disk;
        let told = match dropped {
            Some((errno, dropped)) => {
                disk.sync_fails(ino, covers, dropped)?;
                Err(errno)
            }
            None if harm == Some(Harm::Lost) => Ok(()),
            None => disk.sync(ino, covers),
        };
        let errors = disk.file(ino)?.errors;
        let Some(open) = self.open_file_mut(id, file) else { return told };
        // Another descriptor's sync has failed since: this one hears of it, once.
        let unheard = open.errors_seen != errors;
        open.errors_seen = errors;
        if told.is_ok() && unheard { Err(Errno::IO) } else { told }
    }
}

/// Fewer bytes than asked: any number, or a number of sectors or pages; at least one byte.
fn short_write(rng: &mut Rng, bytes: usize) -> usize {
    if rng.coin() { rng.within(1, bytes as u64 - 1) as usize } else { short(rng, bytes) }
}

/// Fewer bytes than asked: sectors or whole pages, at least one sector.
fn short(rng: &mut Rng, bytes: usize) -> usize {
    let (sectors, pages) = (bytes / SECTOR, bytes / PAGE);
    if pages > 1 && rng.coin() {
        rng.within(1, pages as u64 - 1) as usize * PAGE
    } else if sectors > 1 {
        rng.within(1, sectors as u64 - 1) as usize * SECTOR
    } else {
        bytes
    }
}
