//! The suite, over SQLite.

mod fixture;

ork_state_conformance::main!(ork_state_sqlite, fixture::sqlite());
