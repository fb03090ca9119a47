//! One node's disk: names, sizes and sectors, what of them is durable, and what a crash makes of the rest.
//!
//! Invariants  D1  a write that completed is read back; it is durable only by its own flag or by a sync that was
//!                 submitted after it completed
//!             D2  names, sizes and bytes become durable each for itself
//!             D3  every candidate for what a sector holds after a crash was written to it, or is zeros, garbage
//!                 or a mix of two that were
//! The bytes of a file are pages behind `Rc`, so that a copy of a disk costs little and copies share what they
//! have in common.

mod crash;
mod subset;

pub use subset::CrashPoint;

use super::config::Fresh;
use super::rng::Rng;
use crate::ring::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

pub(super) const PAGE: usize = 4096;
pub(super) const SECTOR: usize = 512;
const SECTORS: usize = PAGE / SECTOR;
const CHUNK: usize = 64;

pub(super) type Page = [u8; PAGE];
pub(super) type Pages = Rc<Vec<Rc<Page>>>;
type Chunk = [Option<Rc<Page>>; CHUNK];
/// Pages with their numbers in the file.
type Numbered = Vec<(u64, Rc<Page>)>;

/// Absolute, without `.` and a slash at the end.
pub(super) fn normal(path: &Path) -> PathBuf {
    let mut result = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => result.push(name),
            Component::ParentDir => {
                result.pop();
            }
            _ => {}
        }
    }
    result
}

/// Pages by number; the copy shares them.
#[derive(Clone, Debug, Default)]
struct Store {
    chunks: Vec<Option<Rc<Chunk>>>,
}

impl Store {
    fn get(&self, page: u64) -> Option<&Rc<Page>> {
        let chunk = self.chunks.get(page as usize / CHUNK)?.as_ref()?;
        chunk[page as usize % CHUNK].as_ref()
    }

    fn set(&mut self, page: u64, content: Rc<Page>) {
        let at = page as usize / CHUNK;
        if self.chunks.len() <= at {
            self.chunks.resize(at + 1, None);
        }
        let chunk = self.chunks[at].get_or_insert_with(|| Rc::new(std::array::from_fn(|_| None)));
        Rc::make_mut(chunk)[page as usize % CHUNK] = Some(content);
    }

    fn forget_from(&mut self, page: u64) {
        let (at, inside) = (page as usize / CHUNK, page as usize % CHUNK);
        self.chunks.truncate(at + 1);
        if let Some(Some(chunk)) = self.chunks.get_mut(at) {
            Rc::make_mut(chunk)[inside..].fill(None);
        }
    }
}

/// A page as one write left it, not durable yet.
#[derive(Clone, Debug)]
struct Version {
    seq: u64,
    page: Rc<Page>,
    /// A sync that failed has dropped it: it is still read, but no later sync makes it durable.
    ghost: bool,
}

#[derive(Clone, Debug)]
pub(super) struct File {
    ino: u64,
    durable: Store,
    dirty: BTreeMap<u64, Vec<Version>>,
    pub(super) size: u64,
    size_durable: u64,
    /// Sizes since the durable one, with what made them.
    sizes: Vec<(u64, u64)>,
    /// Bytes that `Allocate` has reserved.
    reserved: u64,
    /// Pages behind `reserved` that were written.
    extra: BTreeSet<u64>,
    /// Sectors that give `EIO`; writing heals them.
    unreadable: BTreeSet<u64>,
    /// Counts failed syncs, as errseq does.
    pub(super) errors: u32,
    pub(super) extent_edges: Option<Vec<u64>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum NameKind {
    Dir,
    File(u64),
}

#[derive(Clone, Debug)]
struct Name {
    kind: NameKind,
    durable: bool,
    seq: u64,
}

/// What was submitted and had not completed when the crash came.
#[derive(Clone, Debug)]
pub(super) enum InFlight {
    Write { ino: u64, position: u64, pages: Pages },
    Sync { ino: u64, covers: u64 },
    SyncDir { path: PathBuf, covers: u64 },
    Create { path: PathBuf },
    Allocate { ino: u64, len: u64 },
}

#[derive(Clone, Debug)]
pub(super) struct Disk {
    names: BTreeMap<PathBuf, Name>,
    files: BTreeMap<u64, File>,
    ino_last: u64,
    /// Counts what completes and is not durable by itself: what a sync covers is told by it.
    pub(super) seq: u64,
    pub(super) budget: u64,
    seed: u64,
    fresh: Fresh,
    zero: Rc<Page>,
}

/// A node's disk, taken at one moment and cheap to copy.
#[derive(Clone, Debug)]
pub struct DiskImage(pub(super) Disk);

impl File {
    fn new(ino: u64) -> Self {
        Self {
            ino,
            durable: Store::default(),
            dirty: BTreeMap::new(),
            size: 0,
            size_durable: 0,
            sizes: Vec::new(),
            reserved: 0,
            extra: BTreeSet::new(),
            unreadable: BTreeSet::new(),
            errors: 0,
            extent_edges: None,
        }
    }

    fn taken(&self) -> u64 {
        self.reserved + (self.extra.len() * PAGE) as u64
    }

    fn grow(&mut self, size: u64, seq: u64) {
        if size > self.size {
            self.size = size;
            self.sizes.push((seq, size));
        }
    }

    /// Everything up to `covers` is durable.
    fn promote(&mut self, covers: u64) {
        let durable = &mut self.durable;
        self.dirty.retain(|&page, versions| {
            if let Some(last) = versions.iter().rposition(|version| version.seq <= covers && !version.ghost) {
                durable.set(page, Rc::clone(&versions[last].page));
                versions.drain(..=last);
            }
            !versions.is_empty()
        });
        if let Some(&(_, size)) = self.sizes.iter().rfind(|&&(seq, _)| seq <= covers) {
            self.size_durable = self.size_durable.max(size);
            self.sizes.retain(|&(seq, _)| seq > covers);
        }
    }

    /// A failed sync has dropped what it should have covered.
    fn drop_dirty(&mut self, covers: u64) {
        for version in self.dirty.values_mut().flatten() {
            version.ghost |= version.seq <= covers;
        }
    }

    fn heal(&mut self, position: u64, len: u64) {
        if !self.unreadable.is_empty() {
            let sectors = position / SECTOR as u64..(position + len).div_ceil(SECTOR as u64);
            self.unreadable.retain(|sector| !sectors.contains(sector));
        }
    }
}

impl Disk {
    pub(super) fn new(seed: u64, budget: u64, fresh: Fresh, roots: &[PathBuf]) -> Self {
        let zero = Rc::new([0; PAGE]);
        let (names, files) = (BTreeMap::new(), BTreeMap::new());
        let mut disk = Self { names, files, ino_last: 0, seq: 0, budget, seed, fresh, zero };
        disk.names.insert(PathBuf::from("/"), Name { kind: NameKind::Dir, durable: true, seq: 0 });
        for root in roots {
            // The roots are absolute, so that this cannot fail.
            let _ = disk.make_dirs(root);
        }
        for name in disk.names.values_mut() {
            name.durable = true;
        }
        disk
    }

    /// Bytes that all files take.
    pub(super) fn taken(&self) -> u64 {
        self.files.values().map(File::taken).sum()
    }

    pub(super) fn free(&self) -> u64 {
        self.budget.saturating_sub(self.taken())
    }

    // Names.

    pub(super) fn make_dirs(&mut self, path: &Path) -> Result<(), Errno> {
        let path = normal(path);
        let mut above: Vec<&Path> = path.ancestors().collect();
        above.reverse();
        for dir in above {
            match self.names.get(dir) {
                Some(Name { kind: NameKind::Dir, .. }) => {}
                Some(_) => return Err(Errno(libc::ENOTDIR)),
                None => {
                    self.seq += 1;
                    let name = Name { kind: NameKind::Dir, durable: false, seq: self.seq };
                    self.names.insert(dir.to_path_buf(), name);
                }
            }
        }
        Ok(())
    }

    pub(super) fn is_dir(&self, path: &Path) -> Result<(), Errno> {
        match self.names.get(path) {
            Some(Name { kind: NameKind::Dir, .. }) => Ok(()),
            Some(_) => Err(Errno(libc::ENOTDIR)),
            None => Err(Errno::NOENT),
        }
    }

    /// Name, is it a directory, size.
    pub(super) fn list(&self, path: &Path) -> Result<Vec<(String, bool, u64)>, Errno> {
        let path = normal(path);
        self.is_dir(&path)?;
        let mut found = Vec::new();
        for (child, name) in self.names.range(path.clone()..) {
            if !child.starts_with(&path) {
                break;
            }
            if child.parent() == Some(&path)
                && let Some(label) = child.file_name()
            {
                let (is_dir, size) = match name.kind {
                    NameKind::Dir => (true, 0),
                    NameKind::File(ino) => (false, self.files[&ino].size),
                };
                found.push((label.to_string_lossy().into_owned(), is_dir, size));
            }
        }
        found.sort();
        Ok(found)
    }

    pub(super) fn files(&self) -> Vec<(PathBuf, u64)> {
        let file = |(path, name): (&PathBuf, &Name)| match name.kind {
            NameKind::File(ino) => Some((path.clone(), self.files[&ino].size)),
            NameKind::Dir => None,
        };
        self.names.iter().filter_map(file).collect()
    }

    pub(super) fn lookup(&self, path: &Path) -> Result<u64, Errno> {
        match self.names.get(&normal(path)) {
            Some(Name { kind: NameKind::File(ino), .. }) => Ok(*ino),
            Some(_) => Err(Errno(libc::EISDIR)),
            None => Err(Errno::NOENT),
        }
    }

    pub(super) fn open(&mut self, path: &Path, create: bool) -> Result<u64, Errno> {
        match self.lookup(path) {
            Err(Errno::NOENT) if create => {}
            other => return other,
        }
        let path = normal(path);
        self.is_dir(path.parent().ok_or(Errno(libc::EISDIR))?)?;
        self.ino_last += 1;
        self.seq += 1;
        let ino = self.ino_last;
        self.files.insert(ino, File::new(ino));
        self.names.insert(path, Name { kind: NameKind::File(ino), durable: false, seq: self.seq });
        Ok(ino)
    }

    pub(super) fn sync_dir(&mut self, path: &Path, covers: u64) -> Result<(), Errno> {
        let path = normal(path);
        self.is_dir(&path)?;
        for (child, name) in &mut self.names {
            name.durable |= name.seq <= covers && child.parent() == Some(&path);
        }
        Ok(())
    }

    pub(super) fn remove(&mut self, path: &Path) -> Result<(), Errno> {
        let ino = self.lookup(path)?;
        self.names.remove(&normal(path));
        self.files.remove(&ino);
        Ok(())
    }

    // Sizes and bytes.

    pub(super) fn file(&self, ino: u64) -> Result<&File, Errno> {
        self.files.get(&ino).ok_or(Errno(libc::ESTALE))
    }

    pub(super) fn file_mut(&mut self, ino: u64) -> Result<&mut File, Errno> {
        self.files.get_mut(&ino).ok_or(Errno(libc::ESTALE))
    }

    pub(super) fn allocate(&mut self, ino: u64, len: u64, rng: &mut Rng) -> Result<(), Errno> {
        let free = self.free();
        let seq = self.seq + 1;
        let file = self.file_mut(ino)?;
        let wanted = len.next_multiple_of(PAGE as u64);
        let kept = file.extra.split_off(&(wanted / PAGE as u64));
        let inside = std::mem::replace(&mut file.extra, kept);
        let more = wanted.saturating_sub(file.reserved).saturating_sub((inside.len() * PAGE) as u64);
        if more > free {
            file.extra.extend(inside);
            // The kernel allocates and grows the file step by step: a part may stay.
            let part = file.reserved + rng.below(free / PAGE as u64 + 1) * PAGE as u64;
            if part > file.reserved && part < wanted && file.extra.is_empty() && rng.coin() {
                file.reserved = part;
                file.grow(part, seq);
                self.seq = seq;
            }
            return Err(Errno::NOSPC);
        }
        file.reserved = file.reserved.max(wanted);
        file.grow(len, seq);
        self.seq = seq;
        Ok(())
    }

    /// How many of `pages` from `position` there is room for, taken at once.
    pub(super) fn make_room(&mut self, ino: u64, position: u64, pages: usize) -> Result<usize, Errno> {
        let file = self.file(ino)?;
        if position + (pages * PAGE) as u64 <= file.reserved {
            return Ok(pages);
        }
        let mut free = self.free() / PAGE as u64;
        let file = self.file_mut(ino)?;
        for index in 0..pages {
            let page = position / PAGE as u64 + index as u64;
            if page * (PAGE as u64) < file.reserved || file.extra.contains(&page) {
                continue;
            }
            if free == 0 {
                return Ok(index);
            }
            free -= 1;
            file.extra.insert(page);
        }
        Ok(pages)
    }

    fn fresh_page(&self, ino: u64, page: u64) -> Rc<Page> {
        let mut rng = Rng::new(self.seed ^ ino.rotate_left(32), page);
        if self.fresh == Fresh::Zeros || rng.below(4) == 0 {
            return Rc::clone(&self.zero);
        }
        let mut bytes = [0; PAGE];
        rng.fill(&mut bytes);
        Rc::new(bytes)
    }

    fn durable_page(&self, file: &File, page: u64) -> Rc<Page> {
        file.durable.get(page).map_or_else(|| self.fresh_page(file.ino, page), Rc::clone)
    }

    /// What a read sees.
    pub(super) fn page(&self, file: &File, page: u64) -> Rc<Page> {
        match file.dirty.get(&page).and_then(|versions| versions.last()) {
            Some(version) => Rc::clone(&version.page),
            None => self.durable_page(file, page),
        }
    }

    pub(super) fn is_unreadable(&self, ino: u64, position: u64, len: u64) -> bool {
        let sectors = position / SECTOR as u64..(position + len).div_ceil(SECTOR as u64);
        self.files.get(&ino).is_some_and(|file| file.unreadable.range(sectors).next().is_some())
    }

    /// Applies the first `bytes` of a write (D1). `keep` says which sectors of the file stay as they are.
    pub(super) fn write(
        &mut self,
        ino: u64,
        position: u64,
        pages: &[Rc<Page>],
        bytes: usize,
        durable: bool,
        keep: &mut dyn FnMut(u64) -> bool,
    ) -> Result<(), Errno> {
        if bytes == 0 {
            return Ok(());
        }
        self.seq += 1;
        let seq = self.seq;
        let file = self.file(ino)?;
        let mut contents = Vec::with_capacity(pages.len());
        for (index, content) in pages.iter().enumerate().take(bytes.div_ceil(PAGE)) {
            let number = position / PAGE as u64 + index as u64;
            let here = (bytes - index * PAGE).min(PAGE);
            let sectors = here / SECTOR;
            // The last sector may be written in part.
            let part = sectors * SECTOR..here;
            let keeps: [bool; SECTORS] = std::array::from_fn(|sector| {
                sector >= sectors || keep(number * SECTORS as u64 + sector as u64)
            });
            if keeps == [false; SECTORS] {
                contents.push((number, Rc::clone(content)));
            } else if keeps != [true; SECTORS] || !part.is_empty() {
                let mut mixed = *self.page(file, number);
                mixed[part.clone()].copy_from_slice(&content[part]);
                for sector in (0..SECTORS).filter(|&sector| !keeps[sector]) {
                    let range = sector * SECTOR..(sector + 1) * SECTOR;
                    mixed[range.clone()].copy_from_slice(&content[range]);
                }
                contents.push((number, Rc::new(mixed)));
            }
        }
        let file = self.file_mut(ino)?;
        file.heal(position, bytes as u64);
        file.grow(position + bytes as u64, seq);
        for (number, page) in contents {
            if durable {
                file.dirty.remove(&number);
                file.durable.set(number, page);
            } else {
                file.dirty.entry(number).or_default().push(Version { seq, page, ghost: false });
            }
        }
        let end = position + bytes as u64;
        if durable && end > file.size_durable {
            file.size_durable = end;
            file.sizes.retain(|&(_, size)| size > end);
        }
        Ok(())
    }

    pub(super) fn sync(&mut self, ino: u64, covers: u64) -> Result<(), Errno> {
        self.file_mut(ino)?.promote(covers);
        Ok(())
    }

    /// A sync fails, and all descriptors open now will hear of it once.
    pub(super) fn sync_fails(&mut self, ino: u64, covers: u64, dropped: bool) -> Result<(), Errno> {
        let file = self.file_mut(ino)?;
        file.errors += 1;
        if dropped {
            file.drop_dirty(covers);
        }
        Ok(())
    }

    // Surgery.

    pub(super) fn peek(&self, path: &Path, position: u64, len: usize) -> Result<Vec<u8>, Errno> {
        let file = self.file(self.lookup(path)?)?;
        let end = file.size.min(position.saturating_add(len as u64));
        let mut bytes = Vec::new();
        for page in position / PAGE as u64..end.div_ceil(PAGE as u64) {
            let range = part(page, position..end);
            bytes.extend_from_slice(&self.page(file, page)[range]);
        }
        Ok(bytes)
    }

    /// Changes stored bytes, durable or not, in all their versions.
    pub(super) fn poke(&mut self, path: &Path, position: u64, bytes: &[u8]) -> Result<(), Errno> {
        let ino = self.lookup(path)?;
        let end = position + bytes.len() as u64;
        for page in position / PAGE as u64..end.div_ceil(PAGE as u64) {
            let range = part(page, position..end);
            let from = (page * PAGE as u64 + range.start as u64 - position) as usize;
            let from = &bytes[from..from + range.len()];
            let mut content = self.durable_page(self.file(ino)?, page);
            Rc::make_mut(&mut content)[range.clone()].copy_from_slice(from);
            let file = self.file_mut(ino)?;
            file.durable.set(page, content);
            for version in file.dirty.get_mut(&page).into_iter().flatten() {
                Rc::make_mut(&mut version.page)[range.clone()].copy_from_slice(from);
            }
        }
        let file = self.file_mut(ino)?;
        file.size = file.size.max(end);
        file.size_durable = file.size_durable.max(end);
        Ok(())
    }

    pub(super) fn truncate(&mut self, path: &Path, len: u64) -> Result<(), Errno> {
        let ino = self.lookup(path)?;
        if len.is_multiple_of(PAGE as u64) {
            self.file_mut(ino)?.durable.forget_from(len / PAGE as u64);
        } else {
            let tail = (len.next_multiple_of(PAGE as u64) - len) as usize;
            self.poke(path, len, &vec![0; tail])?;
            self.file_mut(ino)?.durable.forget_from(len.div_ceil(PAGE as u64));
        }
        let file = self.file_mut(ino)?;
        file.dirty.retain(|&page, _| page * (PAGE as u64) < len);
        file.sizes.clear();
        (file.size, file.size_durable) = (len, len);
        file.reserved = file.reserved.min(len.next_multiple_of(PAGE as u64));
        file.extra.retain(|&page| page * (PAGE as u64) < len);
        Ok(())
    }

    pub(super) fn make_unreadable(&mut self, path: &Path, position: u64, len: u64) -> Result<(), Errno> {
        let ino = self.lookup(path)?;
        let sectors = position / SECTOR as u64..(position + len).div_ceil(SECTOR as u64);
        self.file_mut(ino)?.unreadable.extend(sectors);
        Ok(())
    }

    /// Flips one stored bit for good.
    pub(super) fn rot(&mut self, ino: u64, bit: u64) -> Result<(), Errno> {
        let number = bit / 8 / PAGE as u64;
        let at = (bit / 8) as usize % PAGE;
        let mut content = self.durable_page(self.file(ino)?, number);
        let file = self.file_mut(ino)?;
        match file.dirty.get_mut(&number).and_then(|versions| versions.last_mut()) {
            Some(version) => Rc::make_mut(&mut version.page)[at] ^= 1 << (bit % 8),
            None => {
                Rc::make_mut(&mut content)[at] ^= 1 << (bit % 8);
                file.durable.set(number, content);
            }
        }
        Ok(())
    }

    /// A file and a page of it that exists, for a write that loses its way.
    pub(super) fn stray(&self, rng: &mut Rng) -> Option<(u64, u64)> {
        let (&ino, file) = self.files.iter().nth(rng.below(self.files.len() as u64) as usize)?;
        let pages = file.size / PAGE as u64;
        (pages > 0).then(|| (ino, rng.below(pages) * PAGE as u64))
    }
}

/// The bytes of a page that lie in `range` of the file.
fn part(page: u64, range: Range<u64>) -> Range<usize> {
    let base = page * PAGE as u64;
    let start = range.start.max(base) - base;
    let end = range.end.min(base + PAGE as u64) - base;
    start as usize..end as usize
}
