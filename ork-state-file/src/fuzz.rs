//! The functions of this crate that `cargo xtask fuzz` calls. No other build has this module.

pub use crate::journal::fuzz as journal;
