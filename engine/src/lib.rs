//! The storage engine of RingMQ: one log per shard, durable in groups, recovered after any crash.
//!
//! Bird's-eye view: every partition of a shard appends to the shard's one log. Frames gather in a *group*, a group
//! is one write, and when the medium has it everything in it is acknowledged. A [`shard::Shard`] is driven from
//! outside, by whoever owns the ring:
//! ```text
//!  reap -> complete (each) -> append, fetch -> turn -> submit and sleep until deadline
//! ```
//!
//! # Rooms
//!
//! ```text
//!  format      bytes at rest: a package of its own, without I/O
//!  ring        the only syscalls, descriptors, clock, randomness and unsafe code; `uring` or, for tests, `sim`
//!  planted     bugs on purpose, for tests that prove that the simulator finds them
//!  log         groups, segments, slots, superblock, arena: what is durable, in which order
//!  recovery    what a crash left -> a log that may be served, or a refusal: `decide` is the table, `scan` the bytes
//!  partition   dense offsets, places of frames, producers' windows
//!  late        what becomes visible later: halves and delays that wait, how they ended, bodies that BINDs name
//!  catalogue   topics, by id for ever and by name while they live
//!  cursors     consumer groups, their positions, what they have consumed above them
//!  reader      cold pages
//!  shard       all of the above for one core: append, fetch, sidecars, checkpoints, retention, stop
//! ```
//! A room names only rooms above it, and `shard` is the only one that sees them all.
//!
//! What is absent
//! - No room but `ring` makes a syscall, reads a clock or draws randomness.
//! - `ring` does not know `format`: it moves bytes that it cannot read.
//! - `log` does not know what a frame is for; `partition` does not know files; nobody here knows a connection.
//! - No storage logic has a type parameter for its I/O, and no operation a callback.
//! - No code path shortens or removes a file.
//! - No function is async. Only recovery blocks, and `ring`'s few calls on names and on facts of files.
//!
//! # Words
//!
//! - *record*: one message of a user. *frame*: records of one partition; the unit of append, checksum and fetch, the
//!   same bytes on the wire, in memory and on disk. *group*: the frames of one write.
//! - *shard*: a core and all it owns. *partition*: the unit of order; it belongs to one shard. *topic*: partitions with
//!   a name.
//! - *slot*: a file, for ever. *segment*: one life of a slot. *incarnation*: the random number of that life, which
//!   seeds its checksums. *epoch*: one life of a shard, from start to start.
//! - *offset*: number of a record in its partition. *LSN*: byte of a shard's log. *position*: byte of a file.
//! - Ends are exclusive and ordered: *end* (taken) >= *written* (write reaped) >= *durable* (flush reaped, no gap
//!   before it). *visible*: what consumers may read of a partition; it follows *durable*.
//! - *roll*: seal the active segment, *activate* a free slot. *retire*: give up the oldest segment. *poison*: take
//!   nothing more, after a failed write or flush. *cut*: where recovery lets the log end.
//! - *witness*: proof that a place of the log had been durable. *sidecar*: index of a sealed segment. *window*: the part
//!   of the log that is still in the *arena*. *cold*: what is not.
//! - *half*: records of a transaction that has not ended. *delay*: records that wait for their *due* time. *body*: the
//!   frame that holds them; its *identity* is the LSN at which it was stored first. *bind*: give records of a body offsets.
//!   *part*: what a shard has of a transaction. *resolution*: how a transaction ended.
//! - *tick*, *turn*: one round of a shard's loop.
//!
//! Longer: `ARCHITECTURE.md` at the root; every byte: `FORMAT.md` beside this package's `Cargo.toml`.

pub mod catalogue;
pub mod cursors;
pub mod late;
pub mod log;
pub mod partition;
pub mod planted;
pub mod reader;
pub mod recovery;
pub mod ring;
pub mod shard;

pub use ringmq_format as format;
