//! What a crash makes of what is not durable. Every answer is drawn, one seed after another, so that a sweep over
//! seeds is a sweep over what disks do.

use super::{Disk, File, InFlight, Name, NameKind, Numbered, PAGE, Page, SECTOR, SECTORS};
use crate::ring::sim::config::CrashModel;
use crate::ring::sim::rng::Rng;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;

/// Fate of one sector of one write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Old,
    New,
    /// The first so many bytes new, the others old; or the other way round.
    Shorn(u16, bool),
    Zeros,
    Garbage,
    Unreadable,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Style {
    KeepAll,
    LoseAll,
    WholeWrites,
    Prefix,
    Suffix,
    Runs,
    Sectors,
}

/// One crash: a style, and how likely what is in it.
struct Crash<'a> {
    model: &'a CrashModel,
    style: Style,
    /// Old, new, damaged: in parts of 100.
    old: u64,
    new: u64,
}

impl<'a> Crash<'a> {
    fn draw(rng: &mut Rng, model: &'a CrashModel) -> Self {
        let styles = [
            (model.keep_all, Style::KeepAll),
            (model.lose_all, Style::LoseAll),
            (model.whole_writes, Style::WholeWrites),
            (model.prefix, Style::Prefix),
            (model.suffix, Style::Suffix),
            (model.runs, Style::Runs),
            (model.sectors, Style::Sectors),
        ];
        let total = styles.iter().map(|&(weight, _)| u64::from(weight)).sum();
        let mut ticket = rng.below(total);
        let mut style = Style::Sectors;
        for (weight, candidate) in styles {
            if ticket < u64::from(weight) {
                style = candidate;
                break;
            }
            ticket -= u64::from(weight);
        }
        // One crash in two leaves few damaged sectors: too much damage hides what a little would show.
        let damaged = if rng.coin() { rng.below(5) } else { rng.below(60) };
        let new = rng.below(101 - damaged);
        Self { model, style, old: 100 - damaged - new, new }
    }

    fn damage(&self, rng: &mut Rng) -> Fate {
        if rng.chance(self.model.unreadable_ppm) {
            return Fate::Unreadable;
        }
        match rng.below(4) {
            0 | 1 if self.model.shorn => Fate::Shorn(rng.within(1, SECTOR as u64 - 1) as u16, rng.coin()),
            2 if self.model.zeros => Fate::Zeros,
            3 if self.model.garbage => Fate::Garbage,
            _ if rng.coin() => Fate::New,
            _ => Fate::Old,
        }
    }

    fn sector(&self, rng: &mut Rng) -> Fate {
        let ticket = rng.below(100);
        if ticket < self.old {
            Fate::Old
        } else if ticket < self.old + self.new {
            Fate::New
        } else {
            self.damage(rng)
        }
    }

    /// One fate for each of the `sectors` of a write.
    fn write(&self, rng: &mut Rng, sectors: usize) -> Vec<Fate> {
        let one_cut = |rng: &mut Rng, before: Fate, after: Fate| {
            let cut = rng.below(sectors as u64 + 1) as usize;
            let mut fates = vec![before; cut];
            fates.resize(sectors, after);
            if cut < sectors && rng.coin() {
                fates[cut] = self.damage(rng);
            }
            fates
        };
        match self.style {
            Style::KeepAll => vec![Fate::New; sectors],
            Style::LoseAll => vec![Fate::Old; sectors],
            Style::WholeWrites => vec![if rng.coin() { Fate::New } else { Fate::Old }; sectors],
            Style::Prefix => one_cut(rng, Fate::New, Fate::Old),
            Style::Suffix => one_cut(rng, Fate::Old, Fate::New),
            Style::Runs => {
                let mut fates = Vec::with_capacity(sectors);
                while fates.len() < sectors {
                    let run = 1 << rng.below(7);
                    let fate = self.sector(rng);
                    fates.resize((fates.len() + run).min(sectors), fate);
                }
                fates
            }
            Style::Sectors => (0..sectors).map(|_| self.sector(rng)).collect(),
        }
    }

    /// A name, a size, a directory.
    fn keeps(&self, rng: &mut Rng) -> bool {
        match self.style {
            Style::KeepAll => true,
            Style::LoseAll => false,
            _ => rng.coin(),
        }
    }
}

impl Disk {
    /// The process dies; what it had submitted happens or does not. Everything completed stays as it is.
    pub(in crate::ring::sim) fn process_dies(&mut self, rng: &mut Rng, in_flight: &[InFlight]) {
        for op in in_flight {
            let fully = rng.coin();
            // An op whose file is gone has nothing left to do.
            let _ = match op {
                InFlight::Write { ino, position, pages } => {
                    let sectors = pages.len() * SECTORS;
                    let cut = rng.below(sectors as u64 + 1) as usize;
                    let scattered = rng.coin();
                    match (fully, rng.below(3)) {
                        (true, _) => {
                            self.write(*ino, *position, pages, pages.len() * PAGE, false, &mut |_| false)
                        }
                        (false, 0) => Ok(()),
                        (false, _) if scattered => {
                            let mut keep = |_| rng.coin();
                            self.write(*ino, *position, pages, pages.len() * PAGE, false, &mut keep)
                        }
                        _ => self.write(*ino, *position, pages, cut * SECTOR, false, &mut |_| false),
                    }
                }
                InFlight::Sync { ino, covers } if fully => self.sync(*ino, *covers),
                InFlight::SyncDir { path, covers } if fully => self.sync_dir(path, *covers),
                InFlight::Create { path } if fully => self.open(path, true).map(|_| ()),
                InFlight::Allocate { ino, len } if fully => self.allocate(*ino, *len, rng),
                _ => Ok(()),
            };
        }
    }

    /// The power goes: what is not durable is gone, or not, or damaged (D3).
    pub(in crate::ring::sim) fn power_fails(
        &mut self,
        rng: &mut Rng,
        in_flight: &[InFlight],
        model: &CrashModel,
    ) {
        let crash = Crash::draw(rng, model);
        // A sync may have done its work just before.
        for op in in_flight {
            if crash.style == Style::LoseAll || rng.below(4) > 0 {
                continue;
            }
            let _ = match op {
                InFlight::Sync { ino, covers } => self.sync(*ino, *covers),
                InFlight::SyncDir { path, covers } => self.sync_dir(path, *covers),
                _ => Ok(()),
            };
        }
        // Writes of each file by age; those in flight are the youngest.
        let mut writes: BTreeMap<(u64, u64), Numbered> = BTreeMap::new();
        for (&ino, file) in &mut self.files {
            for (number, versions) in std::mem::take(&mut file.dirty) {
                for version in versions {
                    writes.entry((ino, version.seq)).or_default().push((number, version.page));
                }
            }
        }
        for op in in_flight {
            self.seq += 1;
            match op {
                InFlight::Write { ino, position, pages } => {
                    let first = position / PAGE as u64;
                    let pages = pages.iter().enumerate();
                    let pages = pages.map(|(index, page)| (first + index as u64, Rc::clone(page))).collect();
                    writes.insert((*ino, self.seq), pages);
                    let end = position + (writes[&(*ino, self.seq)].len() * PAGE) as u64;
                    let seq = self.seq;
                    if let Some(file) = self.files.get_mut(ino) {
                        file.grow(end, seq);
                    }
                }
                InFlight::Allocate { ino, len } => {
                    let seq = self.seq;
                    if let Some(file) = self.files.get_mut(ino) {
                        file.grow(*len, seq);
                    }
                }
                InFlight::Create { path } if crash.keeps(rng) => {
                    let _ = self.open(path, true);
                }
                _ => {}
            }
        }
        for ((ino, _), pages) in writes {
            let fates = crash.write(rng, pages.len() * SECTORS);
            for (index, (number, content)) in pages.into_iter().enumerate() {
                let fates = &fates[index * SECTORS..(index + 1) * SECTORS];
                self.survive(rng, ino, number, content, fates);
            }
        }
        for file in self.files.values_mut() {
            file.size_after_crash(rng, &crash);
        }
        self.names_after_crash(rng, &crash);
    }

    fn survive(&mut self, rng: &mut Rng, ino: u64, number: u64, content: Rc<Page>, fates: &[Fate]) {
        let Some(file) = self.files.get(&ino) else { return };
        if fates.iter().all(|&fate| fate == Fate::Old) {
            return;
        }
        let mut result = content;
        if fates.iter().any(|&fate| fate != Fate::New) {
            let old = self.durable_page(file, number);
            let page = Rc::make_mut(&mut result);
            for (sector, &fate) in fates.iter().enumerate() {
                let range = sector * SECTOR..(sector + 1) * SECTOR;
                match fate {
                    Fate::New => {}
                    Fate::Old => page[range.clone()].copy_from_slice(&old[range]),
                    Fate::Zeros => page[range].fill(0),
                    Fate::Garbage | Fate::Unreadable => rng.fill(&mut page[range]),
                    Fate::Shorn(cut, new_first) => {
                        let cut = range.start + usize::from(cut);
                        let stays = if new_first { cut..range.end } else { range.start..cut };
                        page[stays.clone()].copy_from_slice(&old[stays]);
                    }
                }
            }
        }
        let Some(file) = self.files.get_mut(&ino) else { return };
        for (sector, &fate) in fates.iter().enumerate() {
            let sector = number * SECTORS as u64 + sector as u64;
            match fate {
                Fate::Old => {}
                Fate::Unreadable => {
                    file.unreadable.insert(sector);
                }
                _ => {
                    file.unreadable.remove(&sector);
                }
            }
        }
        file.durable.set(number, result);
    }

    fn names_after_crash(&mut self, rng: &mut Rng, crash: &Crash<'_>) {
        let mut lost: Vec<PathBuf> = Vec::new();
        // Parents come before their children.
        for (path, name) in &mut self.names {
            let orphan = path.parent().is_some_and(|parent| lost.iter().any(|gone| gone == parent));
            if orphan || !name.durable && !crash.keeps(rng) {
                lost.push(path.clone());
            }
            name.durable = true;
        }
        for path in lost {
            if let Some(Name { kind: NameKind::File(ino), .. }) = self.names.remove(&path) {
                self.files.remove(&ino);
            }
        }
    }
}

impl File {
    fn size_after_crash(&mut self, rng: &mut Rng, crash: &Crash<'_>) {
        let sizes = std::mem::take(&mut self.sizes);
        if !sizes.is_empty() {
            let survivors = sizes.len() as u64;
            let survivor = match crash.style {
                Style::KeepAll => survivors,
                Style::LoseAll => 0,
                _ => rng.below(survivors + 1),
            };
            if survivor > 0 {
                self.size_durable = self.size_durable.max(sizes[survivor as usize - 1].1);
            }
        }
        if self.size_durable < self.size {
            let end = self.size_durable.next_multiple_of(PAGE as u64);
            self.reserved = self.reserved.min(end);
            self.extra.retain(|&page| page * (PAGE as u64) < end);
            // Bytes behind the end may come back when the file grows again.
            if rng.coin() {
                self.durable.forget_from(end / PAGE as u64);
            }
        }
        self.size = self.size_durable;
        self.errors = 0;
    }
}
