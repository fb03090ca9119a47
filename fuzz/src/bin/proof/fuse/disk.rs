//! What a disk behind a file system keeps and forgets, in memory.
//!
//! A write is read back at once and is durable when a flush of its file came after it. A name is durable when its
//! directory was flushed. A power loss keeps, of everything else, what chance says, sector by sector.

use fuser::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::sync::Arc;

pub(super) const PAGE: usize = 4096;
const SECTOR: usize = 512;
pub(super) const ROOT: u64 = 1;

type Page = [u8; PAGE];

/// A stream of numbers.
#[derive(Clone, Debug)]
pub(crate) struct Chance(pub(crate) u64);

impl Chance {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// Bytes of a file; pages that were never written are zeros and cost nothing.
#[derive(Clone, Default)]
pub(crate) struct Content {
    pub(super) pages: BTreeMap<u64, Arc<Page>>,
    pub(super) size: u64,
}

impl Content {
    pub(super) fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let end = self.size.min(offset.saturating_add(len as u64));
        let mut bytes = vec![0; end.saturating_sub(offset) as usize];
        let mut at = offset;
        while at < end {
            let (page, inside) = (at / PAGE as u64, at as usize % PAGE);
            let len = (PAGE - inside).min((end - at) as usize);
            if let Some(content) = self.pages.get(&page) {
                bytes[(at - offset) as usize..][..len].copy_from_slice(&content[inside..inside + len]);
            }
            at += len as u64;
        }
        bytes
    }

    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let (page, inside) = (at / PAGE as u64, at as usize % PAGE);
            let len = (PAGE - inside).min(bytes.len() - done);
            let content = self.pages.entry(page).or_insert_with(|| Arc::new([0; PAGE]));
            Arc::make_mut(content)[inside..inside + len].copy_from_slice(&bytes[done..done + len]);
            done += len;
        }
        self.size = self.size.max(offset + bytes.len() as u64);
    }

    fn resize(&mut self, size: u64) {
        if size < self.size {
            self.pages.retain(|page, _| page * (PAGE as u64) < size);
            let inside = size as usize % PAGE;
            if let Some(last) = self.pages.get_mut(&(size / PAGE as u64)).filter(|_| inside > 0) {
                Arc::make_mut(last)[inside..].fill(0);
            }
        }
        self.size = size;
    }

    fn copy_sector(&mut self, from: &Self, sector: u64) {
        let at = sector * SECTOR as u64;
        let bytes = from.read(at, SECTOR);
        let size = self.size;
        self.write(at, &bytes);
        self.size = size;
    }
}

#[derive(Default)]
pub(super) struct FileNode {
    pub(super) now: Content,
    durable: Content,
    /// Sectors whose durable bytes may differ.
    dirty: BTreeSet<u64>,
}

impl FileNode {
    fn sync(&mut self) {
        for sector in std::mem::take(&mut self.dirty) {
            let page = sector / (PAGE / SECTOR) as u64;
            match self.now.pages.get(&page) {
                Some(content) => drop(self.durable.pages.insert(page, Arc::clone(content))),
                None => drop(self.durable.pages.remove(&page)),
            }
        }
        self.durable.resize(self.now.size);
    }

    fn power_fails(&mut self, chance: &mut Chance, kept_of_ten: u64) {
        let now = std::mem::take(&mut self.now);
        if now.size != self.durable.size && chance.below(10) < kept_of_ten {
            self.durable.resize(now.size);
        }
        for sector in std::mem::take(&mut self.dirty) {
            if chance.below(10) < kept_of_ten {
                self.durable.copy_sector(&now, sector);
            }
        }
        self.now = self.durable.clone();
    }
}

pub(super) enum Node {
    Dir { names: BTreeMap<OsString, u64>, durable: BTreeMap<OsString, u64> },
    File(FileNode),
}

/// What a test wants to go wrong: each counts the operations that it is about.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    /// This flush of a file fails, once; what it should have covered is never durable.
    pub(crate) flush_error: Option<u64>,
    /// This write fails, once.
    pub(crate) write_error: Option<u64>,
    /// Each write whose number is a multiple takes only its first half.
    pub(crate) short_every: Option<u64>,
    /// Bytes that all files may take.
    pub(crate) budget: Option<u64>,
    /// Flushes are answered and not done.
    pub(crate) lies: bool,
}

/// A step of the one file whose history is kept.
pub(crate) enum Step {
    Write(u64, Vec<u8>),
    Flush,
}

pub(crate) struct Disk {
    pub(super) nodes: BTreeMap<u64, Node>,
    next: u64,
    pub(crate) faults: Faults,
    writes: u64,
    flushes: u64,
    /// The power is off: nothing is answered well any more.
    pub(crate) off: bool,
    /// What happened to all files together, if that is wanted.
    pub(crate) history: Option<Vec<Step>>,
}

impl Disk {
    pub(crate) fn new() -> Self {
        let root = Node::Dir { names: BTreeMap::new(), durable: BTreeMap::new() };
        Self {
            nodes: BTreeMap::from([(ROOT, root)]),
            next: ROOT + 1,
            faults: Faults::default(),
            writes: 0,
            flushes: 0,
            off: false,
            history: None,
        }
    }

    pub(super) fn file(&mut self, ino: u64) -> Result<&mut FileNode, Errno> {
        if self.off {
            return Err(Errno::EIO);
        }
        match self.nodes.get_mut(&ino) {
            Some(Node::File(file)) => Ok(file),
            Some(Node::Dir { .. }) => Err(Errno::EISDIR),
            None => Err(Errno::ENOENT),
        }
    }

    pub(super) fn names(&mut self, ino: u64) -> Result<&mut BTreeMap<OsString, u64>, Errno> {
        if self.off {
            return Err(Errno::EIO);
        }
        match self.nodes.get_mut(&ino) {
            Some(Node::Dir { names, .. }) => Ok(names),
            Some(Node::File(_)) => Err(Errno::ENOTDIR),
            None => Err(Errno::ENOENT),
        }
    }

    pub(super) fn make(&mut self, parent: u64, name: &OsStr, is_dir: bool) -> Result<u64, Errno> {
        let ino = self.next;
        let names = self.names(parent)?;
        if names.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        names.insert(name.to_owned(), ino);
        self.next += 1;
        let dir = Node::Dir { names: BTreeMap::new(), durable: BTreeMap::new() };
        self.nodes.insert(ino, if is_dir { dir } else { Node::File(FileNode::default()) });
        Ok(ino)
    }

    fn taken(&self) -> u64 {
        let size = |node: &Node| match node {
            Node::File(file) => file.now.size,
            Node::Dir { .. } => 0,
        };
        self.nodes.values().map(size).sum()
    }

    fn check_room(&mut self, ino: u64, end: u64) -> Result<(), Errno> {
        let Some(budget) = self.faults.budget else { return Ok(()) };
        let size = self.file(ino)?.now.size;
        if end > size && self.taken() + (end - size) > budget { Err(Errno::ENOSPC) } else { Ok(()) }
    }

    /// Writes; answers how much. `durable`: it is flushed before it is answered.
    pub(super) fn write(
        &mut self,
        ino: u64,
        offset: u64,
        mut bytes: &[u8],
        durable: bool,
    ) -> Result<usize, Errno> {
        self.file(ino)?;
        self.check_room(ino, offset + bytes.len() as u64)?;
        self.writes += 1;
        if self.faults.write_error == Some(self.writes) {
            return Err(Errno::EIO);
        }
        let halves = self.faults.short_every.is_some_and(|every| self.writes.is_multiple_of(every));
        if halves && bytes.len() > SECTOR {
            bytes = &bytes[..bytes.len() / 2 / SECTOR * SECTOR];
        }
        let file = self.file(ino)?;
        file.now.write(offset, bytes);
        let end = (offset + bytes.len() as u64).div_ceil(SECTOR as u64);
        file.dirty.extend(offset / SECTOR as u64..end);
        if let Some(history) = &mut self.history {
            history.push(Step::Write(offset, bytes.to_vec()));
        }
        if durable {
            self.sync(ino)?;
        }
        Ok(bytes.len())
    }

    pub(super) fn sync(&mut self, ino: u64) -> Result<(), Errno> {
        self.file(ino)?;
        self.flushes += 1;
        let (fails, lies) = (self.faults.flush_error == Some(self.flushes), self.faults.lies);
        let file = self.file(ino)?;
        if fails {
            file.dirty.clear();
            return Err(Errno::EIO);
        }
        if !lies {
            file.sync();
        }
        if let Some(history) = &mut self.history {
            history.push(Step::Flush);
        }
        Ok(())
    }

    pub(super) fn sync_dir(&mut self, ino: u64) -> Result<(), Errno> {
        self.names(ino)?;
        if let Some(Node::Dir { names, durable }) = self.nodes.get_mut(&ino) {
            durable.clone_from(names);
        }
        Ok(())
    }

    pub(super) fn resize(&mut self, ino: u64, size: u64) -> Result<(), Errno> {
        self.check_room(ino, size)?;
        let file = self.file(ino)?;
        if size < file.now.size {
            let cut = size / SECTOR as u64..file.now.size.div_ceil(SECTOR as u64);
            file.dirty.extend(cut);
        }
        file.now.resize(size);
        Ok(())
    }

    /// From now on nothing is taken: what was acknowledged so far has to be there after `power_returns`.
    pub(crate) fn power_fails(&mut self) {
        self.off = true;
    }

    /// What is not durable has a fate.
    pub(crate) fn power_returns(&mut self, chance: &mut Chance) {
        let kept_of_ten = [0, 1, 5, 9][chance.below(4) as usize];
        for node in self.nodes.values_mut() {
            match node {
                Node::File(file) => file.power_fails(chance, kept_of_ten),
                Node::Dir { names, durable } => {
                    names
                        .retain(|name, ino| durable.get(name) == Some(ino) || chance.below(10) < kept_of_ten);
                    durable.clone_from(names);
                }
            }
        }
        self.off = false;
    }
}
