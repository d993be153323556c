//! Which backends are linked, and where the suite gets their stores from.

use std::sync::Arc;

use ork_state_conformance::Fixture;
use ork_state_file as _;
use ork_state_postgres as _;
use ork_state_sqlite as _;

// Each crate's own tests use the same fixture.
#[path = "../../../ork-state-file/tests/fixture/mod.rs"]
mod file;
#[path = "../../../ork-state-postgres/tests/fixture/mod.rs"]
mod postgres;
#[path = "../../../ork-state-sqlite/tests/fixture/mod.rs"]
mod sqlite;

/// One fixture per linked backend.
pub(crate) fn fixtures() -> Vec<Arc<dyn Fixture>> {
    vec![file::file(), file::memory(), postgres::postgres(), sqlite::sqlite()]
}
