//! The suite, over stores that `MIGRATOR` made, run by sqlx alone.

mod fixture;

use std::sync::Arc;

use async_trait::async_trait;
use ork_state_api::{ConnectOptions, Error, Result};
use ork_state_conformance::{Fixture, TestStore};
use ork_state_sqlite::MIGRATOR;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};

struct ByMigrator(Arc<dyn Fixture>);

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
        // Opening it makes the file, and puts it into the mode that the backend wants.
        drop(self.connect(ConnectOptions::new(&store.url())?).await?);
        let failed = |source| Error::unavailable("no connection for MIGRATOR").with_source(source);
        let url = store.url();
        let path = url.trim_start_matches("sqlite://");
        let options = SqliteConnectOptions::new().filename(path);
        let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options).await.map_err(failed)?;
        let made = MIGRATOR.run(&pool).await;
        made.map_err(|source| Error::internal("MIGRATOR failed").with_source(source))?;
        pool.close().await;
        Ok(store)
    }
}

ork_state_conformance::main!(ork_state_sqlite, Arc::new(ByMigrator(fixture::sqlite())));
