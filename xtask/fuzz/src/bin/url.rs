#![cfg_attr(fuzzing, no_main)]
//! `cargo xtask fuzz url`: see [`xtask_fuzz::url`].

xtask_fuzz::target!(xtask_fuzz::url);
