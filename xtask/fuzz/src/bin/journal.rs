#![cfg_attr(fuzzing, no_main)]
//! `cargo xtask fuzz journal`: see [`xtask_fuzz::journal`].

xtask_fuzz::target!(xtask_fuzz::journal);
