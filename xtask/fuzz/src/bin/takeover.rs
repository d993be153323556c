#![cfg_attr(fuzzing, no_main)]
//! `cargo xtask fuzz takeover`: see [`xtask_fuzz::takeover`].

xtask_fuzz::target!(xtask_fuzz::takeover);
