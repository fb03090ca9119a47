//! ext4 and xfs on a loop device over the fault file system: what real file systems make of our flushes.
//!
//! Once for each file system, the server runs under load while every block that reaches the device is written down, with
//! the flushes between them. A case takes one flush, builds the image that a power loss behind it could leave (all
//! before the flush, and any part of what came before the next one), mounts it, and starts the server on it.

use super::disk::{Chance, Content, Step};
use super::{Shared, missing};
use crate::server::{Published, Publisher, command, have, must_start, read_acks, text, verify};
use crate::sweep::{Swept, sweep};
use crate::{Options, Ran};
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const CASES: u64 = 1 << 20;
/// xfs takes nothing smaller.
const IMAGE_SIZE: u64 = 320 << 20;
const LOAD: Duration = Duration::from_millis(2_500);
const FILE_SYSTEMS: [&str; 2] = ["ext4", "xfs"];

/// A loop device over a file, detached when it is dropped.
struct Loop(String);

impl Loop {
    fn attach(file: &Path) -> Result<Self, String> {
        let file = file.to_string_lossy();
        command(&["losetup", "--find", "--show", &file]).map(Self)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = command(&["losetup", "--detach", &self.0]);
    }
}

/// A mounted device, unmounted when it is dropped.
struct Mount(String);

impl Mount {
    fn new(device: &str, at: &Path) -> Result<Self, String> {
        let at = at.to_string_lossy().into_owned();
        command(&["mount", device, &at])?;
        Ok(Self(at))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        for _ in 0..100 {
            if command(&["umount", &self.0]).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// What reached the device, and what had been acknowledged when.
struct Recording {
    steps: Vec<Step>,
    /// Indices in `steps` behind the flushes at which the server could have been.
    flushes: Vec<usize>,
    /// So many acknowledgements were known when so many steps had been taken.
    acked: Vec<(usize, usize)>,
    published: Published,
}

fn make_file_system(kind: &str, device: &str) -> Result<(), String> {
    match kind {
        "ext4" => command(&["mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=0", device]),
        _ => command(&["mkfs.xfs", "-q", "-f", "-K", device]),
    }
    .map(drop)
}

fn record(options: &Options, kind: &str) -> Result<Recording, String> {
    let scratch = tempfile::tempdir().map_err(text)?;
    let [fuse_at, mount_at] = ["fuse", "mnt"].map(|name| scratch.path().join(name));
    for at in [&fuse_at, &mount_at] {
        std::fs::create_dir(at).map_err(text)?;
    }
    let shared = Shared::new();
    shared.lock().history = Some(Vec::new());
    let _fuse = shared.mount(&fuse_at)?;
    let image = fuse_at.join("image");
    std::fs::File::create(&image).and_then(|file| file.set_len(IMAGE_SIZE)).map_err(text)?;
    let device = Loop::attach(&image)?;
    make_file_system(kind, &device.0)?;
    let mount = Mount::new(&device.0, &mount_at)?;
    let data = mount_at.join("data");
    let mut server =
        must_start(&options.binary, &data, scratch.path(), &[]).map_err(Option::unwrap_or_default)?;
    server.make_topic()?;
    let steps = || shared.lock().history.as_ref().map_or(0, Vec::len);
    let from = steps();
    let publisher = Publisher::start(&server, scratch.path(), "a")?;
    let deadline = Instant::now() + LOAD;
    let mut acked = Vec::new();
    while Instant::now() < deadline {
        let count = read_acks(&publisher.acks)?.len();
        acked.push((steps(), count));
        std::thread::sleep(Duration::from_millis(3));
    }
    server.kill();
    let published = publisher.end()?;
    let to = steps();
    drop(mount);
    let steps = shared.lock().history.take().unwrap_or_default();
    let is_flush = |index: &usize| matches!(steps[*index - 1], Step::Flush);
    let flushes: Vec<usize> = (from.max(1)..=to).filter(is_flush).collect();
    if flushes.is_empty() || published.acks.is_empty() {
        return Err(format!("{kind}: {} flushes, {} acknowledged", flushes.len(), published.acks.len()));
    }
    Ok(Recording { steps, flushes, acked, published })
}

/// One recording for each file system, made when it is first needed.
#[derive(Default)]
struct Recordings([Option<Recording>; 2]);

/// Writes the image that a power loss behind the flush leaves.
fn build(recording: &Recording, flush: usize, chance: &mut Chance, file: &Path) -> Result<(), String> {
    let mut content = Content { size: IMAGE_SIZE, ..Content::default() };
    let kept_of_ten = [0, 2, 5, 8, 10][chance.below(5) as usize];
    for (index, step) in recording.steps.iter().enumerate() {
        match step {
            Step::Flush if index >= flush => break,
            Step::Flush => {}
            Step::Write(offset, bytes) if index < flush => content.write(*offset, bytes),
            Step::Write(offset, bytes) => {
                for (at, sector) in bytes.chunks(512).enumerate() {
                    if chance.below(10) < kept_of_ten {
                        content.write(offset + at as u64 * 512, sector);
                    }
                }
            }
        }
    }
    let file = OpenOptions::new().create(true).truncate(true).write(true).open(file).map_err(text)?;
    file.set_len(IMAGE_SIZE).map_err(text)?;
    for (page, bytes) in &content.pages {
        if bytes.iter().any(|byte| *byte != 0) {
            file.write_all_at(&bytes[..], page * bytes.len() as u64).map_err(text)?;
        }
    }
    Ok(())
}

fn replay(options: &Options, recording: &Recording, number: u64) -> Result<(), String> {
    let mut chance = Chance(number);
    // One after the other, so that enough cases take every flush.
    let flush = recording.flushes[(number / 2) as usize % recording.flushes.len()];
    let known = recording.acked.iter().rfind(|(steps, _)| *steps <= flush).map_or(0, |(_, count)| *count);
    let scratch: TempDir = tempfile::tempdir().map_err(text)?;
    let (image, mount_at) = (scratch.path().join("image"), scratch.path().join("mnt"));
    std::fs::create_dir(&mount_at).map_err(text)?;
    build(recording, flush, &mut chance, &image)?;
    let device = Loop::attach(&image)?;
    let mount = Mount::new(&device.0, &mount_at)?;
    let data = mount_at.join("data");
    let server =
        must_start(&options.binary, &data, scratch.path(), &[]).map_err(Option::unwrap_or_default)?;
    server.make_topic()?;
    let mut published = recording.published.clone();
    published.acks.truncate(known);
    let found = server.read()?;
    verify(&found, &[published])
        .map_err(|error| format!("behind step {flush}, {known} acknowledged: {error}"))?;
    server.stop()?;
    drop(mount);
    Ok(())
}

fn lacks() -> Option<String> {
    if let Some(why) = missing() {
        return Some(format!("FUSE: {why}"));
    }
    for tool in ["losetup", "mount", "mkfs.ext4", "mkfs.xfs"] {
        if !have(tool) {
            return Some(format!("no {tool}"));
        }
    }
    let scratch = tempfile::NamedTempFile::new().ok()?;
    scratch.as_file().set_len(1 << 20).ok()?;
    Loop::attach(scratch.path()).err()
}

/// A case with an even number is ext4, the others are xfs.
pub(crate) fn run(options: &Options) -> Ran {
    if let Some(why) = lacks() {
        return Ran::Skipped(why);
    }
    if !options.binary.exists() {
        return Ran::Skipped(format!("no server at {}", options.binary.display()));
    }
    let swept: Swept = sweep(options, CASES, "replayed images", Recordings::default, |recordings, number| {
        let which = (number % 2) as usize;
        if recordings.0[which].is_none() {
            recordings.0[which] = Some(record(options, FILE_SYSTEMS[which])?);
        }
        let Some(recording) = &recordings.0[which] else { return Ok(0) };
        replay(options, recording, number).map_err(|found| format!("{}: {found}", FILE_SYSTEMS[which]))?;
        Ok(1)
    });
    Ran::Done(swept)
}
