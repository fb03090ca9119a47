//! Under construction.
#![allow(missing_docs)]
pub mod ring;
