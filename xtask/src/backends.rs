//! Which backends are linked, and where the suite gets their stores from.

use std::sync::Arc;

use ork_state_conformance::Fixture;
#[cfg(feature = "file")]
use ork_state_file as _;
#[cfg(feature = "postgres")]
use ork_state_postgres as _;
#[cfg(feature = "sqlite")]
use ork_state_sqlite as _;

// Each crate's own tests use the same fixture.
#[cfg(feature = "file")]
#[path = "../../ork-state-file/tests/fixture/mod.rs"]
mod file;
#[cfg(feature = "postgres")]
#[path = "../../ork-state-postgres/tests/fixture/mod.rs"]
mod postgres;
#[cfg(feature = "sqlite")]
#[path = "../../ork-state-sqlite/tests/fixture/mod.rs"]
mod sqlite;

/// A fixture a linked backend.
pub(crate) fn fixtures() -> Vec<Arc<dyn Fixture>> {
    vec![
        #[cfg(feature = "file")]
        file::file(),
        #[cfg(feature = "file")]
        file::memory(),
        #[cfg(feature = "postgres")]
        postgres::postgres(),
        #[cfg(feature = "sqlite")]
        sqlite::sqlite(),
    ]
}
