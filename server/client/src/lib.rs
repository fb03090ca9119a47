//! Under construction.
pub mod core;
pub mod limits;
