#![cfg_attr(fuzzing, no_main)]
//! `cargo xtask fuzz dag`: see [`xtask_fuzz::dag`].

xtask_fuzz::target!(xtask_fuzz::dag);
