//! The stores that Ork kept before its database: see [`ork_state_api::ork`].
//!
//! Ork wrote its files in place. We write each one beside its place and rename it. So a file that
//! is cut short is Ork's, or damage.

mod files;
mod memory;
mod object_store;
mod objects;
mod state_store;

use ork_state_api::{Error, Result};

pub use memory::InMemoryStateStore;
pub use object_store::ObjectStoreFiles;
pub use state_store::FileStateStore;

/// Runs work that waits for the disk or for a lock where it blocks no other task. Once it runs it
/// runs to its end, even when nobody waits for it any more (rule G9).
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let Ok(runtime) = tokio::runtime::Handle::try_current() else {
        // An executor other than tokio's, which has no such place.
        return work();
    };
    runtime.spawn_blocking(work).await.unwrap_or_else(|stopped| {
        Err(if stopped.is_panic() {
            Error::internal("a call on the store's files panicked").with_source(stopped)
        } else {
            // It never began.
            Error::unavailable("the runtime is shutting down").with_source(stopped)
        })
    })
}
