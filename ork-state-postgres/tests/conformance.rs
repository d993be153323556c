//! The conformance suite over this backend.

use std::sync::Arc;

use ork_state_conformance::server::PostgresFixture;

ork_state_conformance::main!(ork_state_postgres, Arc::new(PostgresFixture::new("postgres")));
