//! Replays the corpus of a target.

use std::path::{Path, PathBuf};

/// Where the corpus of a target is.
pub(crate) fn folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target)
}

/// Each input, and nearly the same: every `stride`-th byte changed in turn, and every such front.
pub(crate) fn replay(target: &str, stride: usize, body: impl Fn(&[u8])) {
    let mut inputs = 0;
    for file in std::fs::read_dir(folder(target)).unwrap() {
        let path = file.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        let work = || {
            body(&bytes);
            for at in (0..bytes.len()).step_by(stride) {
                let mut bad = bytes.clone();
                bad[at] ^= 0x81;
                body(&bad);
                body(&bytes[..at]);
            }
        };
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err() {
            panic!("{} fails, or something near it", path.display());
        }
        inputs += 1;
    }
    assert!(inputs >= 10, "{inputs} inputs for {target}");
}
