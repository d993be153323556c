//! What `cargo xtask fuzz` reaches of this crate. No other build has it.

pub use crate::journal::fuzz as journal;
