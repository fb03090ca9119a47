//! Every committed input of every corpus, through the same functions that the fuzzer calls. A crash that a fuzzer
//! found is put into the corpus under a name that says what it was, and stays.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

fn folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target)
}

fn replay(target: &str, body: fn(&[u8])) {
    let mut inputs = 0;
    for file in std::fs::read_dir(folder(target)).unwrap() {
        let path = file.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        if std::panic::catch_unwind(|| body(&bytes)).is_err() {
            panic!("{} fails", path.display());
        }
        // Nearly the same: each byte changed in turn, and each front.
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 0x81;
            body(&bad);
            body(&bytes[..at]);
        }
        inputs += 1;
    }
    assert!(inputs >= 10, "{inputs} inputs for {target}");
}

#[test]
fn protocol_decode() {
    replay("protocol_decode", ringmq_fuzz::protocol_decode);
}

#[test]
fn frame_parse() {
    replay("frame_parse", ringmq_fuzz::frame_parse);
}

#[test]
fn segment_scan() {
    replay("segment_scan", ringmq_fuzz::segment_scan);
}

#[test]
fn segment_tools() {
    replay("segment_tools", ringmq_fuzz::tools::segment_tools);
}

#[test]
fn the_seeds_are_the_committed_ones() {
    for seed in ringmq_fuzz::seeds::all() {
        let path = folder(seed.target).join(&seed.name);
        let committed = std::fs::read(&path).unwrap_or_default();
        assert!(
            committed == seed.bytes,
            "{} is out of date: run `cargo run --example seeds` in fuzz/ if the format changed on purpose",
            path.display()
        );
    }
}
