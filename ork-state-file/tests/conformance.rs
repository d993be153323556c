//! The suite, over both plugins of this crate.

mod fixture;

ork_state_conformance::main!(ork_state_file, fixture::file(), fixture::memory());
