//! The runtime for the work of fixtures.

use std::sync::OnceLock;

use tokio::runtime::{Builder, Runtime};

/// Blocks on a future that needs a runtime. All of them share one that lives as long as the
/// process, because what they start (a container's client) belongs to it.
pub(crate) fn block_on<T: Default>(future: impl Future<Output = T>) -> T {
    static RUNTIME: OnceLock<Option<Runtime>> = OnceLock::new();
    let runtime =
        RUNTIME.get_or_init(|| Builder::new_multi_thread().worker_threads(1).enable_all().build().ok());
    match runtime {
        Some(runtime) => runtime.block_on(future),
        None => T::default(),
    }
}
