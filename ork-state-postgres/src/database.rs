//! The store: its parts, and how a call runs.

use std::fmt;
use std::sync::Arc;

use ork_state_api::backend::{Backend, Plugin};
use ork_state_api::{Error, Result};
use tokio::runtime::Handle;

use crate::core::Core;
use crate::gather::Gather;
use crate::options::{BACKEND, PostgresOptions};
use crate::queue::Queue;
use crate::watch::Listeners;

/// A store in a PostgreSQL database. Cheap to clone; clones share its connections.
///
/// Each call runs to its end in its own task, on the tokio runtime that it was made on. Dropping
/// the future of a call interrupts nothing (rule G9).
#[derive(Clone)]
pub struct PostgresDatabase {
    core: Arc<Core>,
    /// Where the queue of ready tasks begins.
    pub(crate) queue: Arc<Queue>,
    /// Updates that wait to be sent together.
    pub(crate) gather: Arc<Gather>,
    /// The listeners for hints.
    pub(crate) listeners: Arc<Listeners>,
}

impl fmt::Debug for PostgresDatabase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresDatabase")
            .field("server", &self.core.site.place)
            .field("schema", &self.core.site.schema.name())
            .field("connections", &self.core.connections())
            .finish_non_exhaustive()
    }
}

impl Plugin for PostgresDatabase {
    fn backend(&self) -> &'static Backend {
        &BACKEND
    }
}

impl PostgresOptions {
    /// Opens the store. It does not migrate.
    ///
    /// # Errors
    /// `Unavailable` when the server does not answer. `Conflict` when it refuses the user or the
    /// database, or is of an unsupported version. `SchemaMismatch` when the store is newer than
    /// this code.
    pub async fn connect(self) -> Result<PostgresDatabase> {
        let timeout = self.connect_timeout;
        let core = Arc::new(Core::new(self)?);
        let looking = core.clone();
        run(async move { looking.look(timeout).await }).await?;
        Ok(PostgresDatabase {
            core,
            queue: Arc::default(),
            gather: Arc::default(),
            listeners: Arc::default(),
        })
    }
}

impl PostgresDatabase {
    /// Runs a call on a migrated store. It runs to its end whether or not the caller waits for it.
    pub(crate) async fn call<T, F>(&self, body: impl FnOnce(Arc<Core>) -> F + Send) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let core = self.core.clone();
        let body = body(core.clone());
        run(async move {
            core.require_current().await?;
            body.await
        })
        .await
    }

    /// Runs a call that works on a store that is not migrated, too.
    pub(crate) async fn call_unmigrated<T, F>(&self, body: impl FnOnce(Arc<Core>) -> F + Send) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        run(body(self.core.clone())).await
    }
}

/// Runs a future in its own task.
async fn run<T: Send + 'static>(body: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    let runtime = Handle::try_current().map_err(|source| {
        Error::internal("a call was made outside of a tokio runtime").with_source(source)
    })?;
    match runtime.spawn(body).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => Err(Error::internal("a call panicked").with_source(error)),
        Err(error) => Err(Error::unknown_effect("the runtime is shutting down").with_source(error)),
    }
}
