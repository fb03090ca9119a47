//! All that a power loss at one moment can leave, one by one: where `crash` draws, this counts.
//!
//! A *choice* is one thing that is not durable and whose loss can be seen: what a sector holds, how long a file is,
//! whether a name is there. Sectors that hold the same whatever is lost are no choice, so that padding over zeros
//! costs nothing.

use super::{Disk, InFlight, Name, NameKind, PAGE, Page, SECTOR, SECTORS};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::rc::Rc;

/// One thing that a power loss decides. Outcome 0 is: lost.
#[derive(Clone, Debug)]
enum Choice {
    /// What a sector holds: as it was, or one of these, oldest first.
    Sector { ino: u64, page: u64, sector: usize, contents: Vec<Rc<Page>> },
    /// How long a file is: as it was, or one of these.
    Size { ino: u64, sizes: Vec<u64> },
    /// Whether a name is there.
    Name { path: PathBuf },
    /// Whether a file that was being made is there.
    Create { path: PathBuf },
}

impl Choice {
    fn outcomes(&self) -> usize {
        match self {
            Self::Sector { contents, .. } => contents.len() + 1,
            Self::Size { sizes, .. } => sizes.len() + 1,
            Self::Name { .. } | Self::Create { .. } => 2,
        }
    }
}

/// A disk at the moment of a power loss, with everything that the loss may decide.
#[derive(Clone, Debug)]
pub struct CrashPoint {
    /// What is durable.
    base: Disk,
    choices: Vec<Choice>,
}

fn sector_range(sector: usize) -> Range<usize> {
    sector * SECTOR..(sector + 1) * SECTOR
}

impl CrashPoint {
    pub(in crate::ring::sim) fn new(disk: &Disk, in_flight: &[InFlight]) -> Self {
        let mut base = disk.clone();
        let mut writes: BTreeMap<(u64, u64), Vec<Rc<Page>>> = BTreeMap::new();
        let mut sizes: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for (&ino, file) in &mut base.files {
            for (number, versions) in std::mem::take(&mut file.dirty) {
                writes.insert((ino, number), versions.into_iter().map(|version| version.page).collect());
            }
            let pending = std::mem::take(&mut file.sizes);
            sizes.insert(ino, pending.into_iter().map(|(_, size)| size).collect());
            file.size = file.size_durable;
        }
        let mut choices = Vec::new();
        for op in in_flight {
            match op {
                InFlight::Write { ino, position, pages } => {
                    for (index, page) in pages.iter().enumerate() {
                        let number = position / PAGE as u64 + index as u64;
                        writes.entry((*ino, number)).or_default().push(Rc::clone(page));
                    }
                    sizes.entry(*ino).or_default().push(position + (pages.len() * PAGE) as u64);
                }
                InFlight::Allocate { ino, len } => sizes.entry(*ino).or_default().push(*len),
                InFlight::Create { path } if !base.names.contains_key(path) => {
                    choices.push(Choice::Create { path: path.clone() });
                }
                _ => {}
            }
        }
        for (path, name) in &mut base.names {
            if !std::mem::replace(&mut name.durable, true) {
                choices.push(Choice::Name { path: path.clone() });
            }
        }
        for (ino, mut sizes) in sizes {
            let Some(file) = base.files.get(&ino) else { continue };
            sizes.retain(|&size| size > file.size_durable);
            sizes.sort_unstable();
            sizes.dedup();
            if !sizes.is_empty() {
                choices.push(Choice::Size { ino, sizes });
            }
        }
        for ((ino, number), versions) in writes {
            let Some(file) = base.files.get(&ino) else { continue };
            let old = base.durable_page(file, number);
            for sector in 0..SECTORS {
                let range = sector_range(sector);
                let mut contents: Vec<Rc<Page>> = Vec::new();
                for version in &versions {
                    let known = |page: &Rc<Page>| page[range.clone()] == version[range.clone()];
                    if !known(&old) && !contents.iter().any(known) {
                        contents.push(Rc::clone(version));
                    }
                }
                if !contents.is_empty() {
                    choices.push(Choice::Sector { ino, page: number, sector, contents });
                }
            }
        }
        Self { base, choices }
    }

    /// Things that the loss decides.
    pub fn choices(&self) -> usize {
        self.choices.len()
    }

    /// Outcomes of each of them; outcome 0 is "lost", the last one "all of it has arrived".
    pub fn outcomes(&self) -> Vec<usize> {
        self.choices.iter().map(Choice::outcomes).collect()
    }

    /// The disk after a loss that decides so: one outcome for each choice.
    pub fn image(&self, outcomes: &[usize]) -> super::DiskImage {
        assert_eq!(outcomes.len(), self.choices.len(), "one outcome for each choice");
        let mut disk = self.base.clone();
        let mut lost: Vec<&PathBuf> = Vec::new();
        for (choice, &outcome) in self.choices.iter().zip(outcomes) {
            match (choice, outcome.checked_sub(1)) {
                (Choice::Name { path }, None) => lost.push(path),
                (Choice::Create { path }, Some(_)) => {
                    // The directory above may be lost too: then so is the file.
                    let _ = disk.open(path, true);
                    disk.names.entry(path.clone()).and_modify(|name| name.durable = true);
                }
                (Choice::Size { ino, sizes }, Some(which)) => {
                    if let Some(file) = disk.files.get_mut(ino) {
                        (file.size, file.size_durable) = (sizes[which], sizes[which]);
                    }
                }
                (Choice::Sector { ino, page, sector, contents }, Some(which)) => {
                    let Some(file) = disk.files.get(ino) else { continue };
                    let mut mixed = disk.durable_page(file, *page);
                    let range = sector_range(*sector);
                    Rc::make_mut(&mut mixed)[range.clone()].copy_from_slice(&contents[which][range]);
                    if let Some(file) = disk.files.get_mut(ino) {
                        file.durable.set(*page, mixed);
                    }
                }
                (Choice::Create { .. } | Choice::Size { .. } | Choice::Sector { .. }, None)
                | (Choice::Name { .. }, Some(_)) => {}
            }
        }
        for file in disk.files.values_mut() {
            let end = file.size.next_multiple_of(PAGE as u64);
            file.reserved = file.reserved.min(end);
            file.extra.retain(|&page| page * (PAGE as u64) < end);
            file.errors = 0;
        }
        for path in lost {
            disk.forget(path);
        }
        super::DiskImage(disk)
    }
}

impl Disk {
    /// A name is gone, and all below it.
    fn forget(&mut self, path: &PathBuf) {
        let gone: Vec<PathBuf> = self.names.keys().filter(|name| name.starts_with(path)).cloned().collect();
        for path in gone {
            if let Some(Name { kind: NameKind::File(ino), .. }) = self.names.remove(&path) {
                self.files.remove(&ino);
            }
        }
    }
}

impl super::DiskImage {
    /// A hash over names, sizes and bytes, by which images of one run are told apart. Pages that `base` has too are
    /// not looked at.
    pub fn digest_since(&self, base: &Self) -> u64 {
        let mut hash = 0x9e37_79b9_7f4a_7c15u64;
        let mut mix = |word: u64| hash = (hash.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
        for (path, name) in &self.0.names {
            path.as_os_str().as_encoded_bytes().iter().for_each(|&byte| mix(u64::from(byte)));
            let NameKind::File(ino) = name.kind else { continue };
            let Some(file) = self.0.files.get(&ino) else { continue };
            mix(file.size);
            let before = base.0.files.get(&ino);
            for page in 0..file.size.div_ceil(PAGE as u64) {
                let Some(content) = file.durable.get(page) else { continue };
                let same = before.and_then(|before| before.durable.get(page));
                if same.is_some_and(|same| Rc::ptr_eq(same, content)) {
                    continue;
                }
                mix(page);
                for word in content.chunks_exact(8) {
                    mix(word.iter().fold(0, |word, &byte| word << 8 | u64::from(byte)));
                }
            }
        }
        hash
    }
}
