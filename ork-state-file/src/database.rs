//! The store as the contract's `Database`.

use ork_state_api::backend::{Backend, Plugin};
use ork_state_api::{Result, Timestamp};

use crate::engine::Handle;
use crate::log_files::Logs;
use crate::state::State;
use crate::transaction::Transaction;

/// A store in a directory or in memory. See [`FileOptions`](crate::FileOptions).
#[derive(Debug, Clone)]
pub struct FileDatabase {
    engine: Handle,
    backend: &'static Backend,
    max_log_bytes: Option<u64>,
}

impl FileDatabase {
    pub(crate) const fn new(engine: Handle, backend: &'static Backend, max_log_bytes: Option<u64>) -> Self {
        Self { engine, backend, max_log_bytes }
    }

    pub(crate) const fn engine(&self) -> &Handle {
        &self.engine
    }

    pub(crate) const fn max_log_bytes(&self) -> Option<u64> {
        self.max_log_bytes
    }

    pub(crate) async fn read<T: Send + 'static>(
        &self,
        action: impl FnOnce(&State, Timestamp) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.engine.read(|state, _, now| action(state, now)).await
    }

    pub(crate) async fn read_logs<T: Send + 'static>(
        &self,
        action: impl FnOnce(&State, &Logs) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.engine.read(|state, logs, _| action(state, logs)).await
    }

    pub(crate) async fn write<T: Send + 'static>(
        &self,
        action: impl FnOnce(&mut Transaction<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.engine.write(action).await
    }

    /// A write that hands out leases.
    pub(crate) async fn lease<T: Send + 'static>(
        &self,
        action: impl FnOnce(&mut Transaction<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.engine.lease(action).await
    }
}

impl Plugin for FileDatabase {
    fn backend(&self) -> &'static Backend {
        self.backend
    }
}
