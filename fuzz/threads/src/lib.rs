//! Two threads, the queue and the bell between shards, as fast as they can: `tests/queues.rs`.
