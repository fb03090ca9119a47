//! What is on the disk, read from outside: without the engine, past damage, and beside a running server.
//!
//! ```text
//!  crc        checksums that share nothing with the engine's
//!  source     bytes of files: tokio-uring, threads or memory; O_DIRECT, never the page cache
//!  layout     the format's tables as data; `spans` gives each byte its field
//!  fault      what is wrong, and where
//!  group      groups and frames out of bytes, whatever they are
//!  scan       a segment, past damage; `log`: a shard; `directory`: what lies where
//!  state      tables that recovery would rebuild; `late`: what waits; `groups`: consumer groups; `bodies`, `records`
//!  verdict    what recovery would decide; `sidecar`: indexes against segments
//!  rescue     everything undamaged; `build`: into a fresh directory; `container`: into a portable file
//! ```

pub mod bodies;
pub mod build;
pub mod container;
pub mod crc;
pub mod directory;
pub mod fault;
pub mod group;
pub mod groups;
pub mod late;
pub mod layout;
pub mod log;
pub mod records;
pub mod rescue;
pub mod scan;
pub mod sidecar;
pub mod source;
pub mod spans;
pub mod state;
pub mod verdict;
