//! The conformance suite over stores that `MIGRATOR` made, run by sqlx alone.

use std::sync::Arc;

use async_trait::async_trait;
use ork_state_api::{Error, Result};
use ork_state_conformance::server::PostgresFixture;
use ork_state_conformance::{Fixture, ServerFailure, TestStore};
use ork_state_postgres::MIGRATOR;
use sqlx::postgres::PgPoolOptions;

struct ByMigrator(PostgresFixture);

#[async_trait]
impl Fixture for ByMigrator {
    fn backend(&self) -> &'static str {
        self.0.backend()
    }

    async fn empty(&self) -> Result<Arc<dyn TestStore>> {
        self.0.empty().await
    }

    async fn migrated(&self) -> Result<Arc<dyn TestStore>> {
        let store = self.empty().await?;
        let failed = |source| Error::unavailable("no connection for MIGRATOR").with_source(source);
        let pool = PgPoolOptions::new().max_connections(1).connect(&store.url()).await.map_err(failed)?;
        let made = MIGRATOR.run(&pool).await;
        made.map_err(|source| Error::internal("MIGRATOR failed").with_source(source))?;
        pool.close().await;
        Ok(store)
    }

    async fn unavailable(&self) -> Option<String> {
        self.0.unavailable().await
    }

    async fn origin(&self) -> Option<String> {
        self.0.origin().await
    }

    async fn fail_server(&self, failure: ServerFailure) -> Result<bool> {
        self.0.fail_server(failure).await
    }

    async fn finish(&self) {
        self.0.finish().await;
    }
}

ork_state_conformance::main!(ork_state_postgres, Arc::new(ByMigrator(PostgresFixture::new("postgres"))));
