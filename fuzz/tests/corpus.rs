//! Every committed input of every corpus, through the same functions that the fuzzer calls. A crash that a fuzzer
//! found is put into the corpus under a name that says what it was, and stays.

#![allow(clippy::unwrap_used)]

mod replay;

use replay::{folder, replay};

/// Changes of an input of which every how-manieth is tried, where a try runs a whole shard or server.
const SPARSE: usize = 61;

#[test]
fn protocol_decode() {
    replay("protocol_decode", 1, ringmq_fuzz::protocol_decode);
}

#[test]
fn frame_parse() {
    replay("frame_parse", 1, ringmq_fuzz::frame_parse);
}

#[test]
fn segment_scan() {
    replay("segment_scan", 1, ringmq_fuzz::segment_scan);
}

#[test]
fn segment_tools() {
    replay("segment_tools", 1, ringmq_fuzz::tools::segment_tools);
}

#[test]
fn checkpoint_sidecar() {
    replay("checkpoint_sidecar", 1, ringmq_fuzz::files::checkpoint_sidecar);
}

#[test]
fn superblock_identity() {
    replay("superblock_identity", 1, ringmq_fuzz::files::superblock_identity);
}

#[test]
fn shard_open() {
    replay("shard_open", SPARSE, ringmq_fuzz::open::shard_open);
}

#[test]
fn server_session() {
    replay("server_session", SPARSE, ringmq_fuzz::session::server_session);
}

#[test]
fn client_session() {
    replay("client_session", 1, ringmq_fuzz::client::client_session);
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
