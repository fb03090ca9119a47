//! The RingMQ server: shards on io_uring, and one ordinary thread that controls them.
//!
//! The control plane: [`run`] takes a checked [`config`] to an exit code ([`exit_code`]); [`control`] hears signals,
//! drains and reloads; [`admin`] and [`metrics`] show what goes on; [`banner`] and [`logging`] say it; [`notify`]
//! tells systemd. It sees the shards only through [`node`]. [`planted`] names bugs on purpose, for tests.

pub mod admin;
pub mod banner;
pub mod config;
pub mod control;
pub mod descriptors;
pub mod exit_code;
pub mod filter;
pub mod limits;
pub mod logging;
pub mod metrics;
pub mod node;
pub mod notify;
pub mod planted;
pub mod process;
pub mod run;
pub mod shard;
pub mod units;
