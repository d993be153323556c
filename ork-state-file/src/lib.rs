#![doc = include_str!("../README.md")]

mod change;
mod database;
mod deferred_jobs;
mod disk;
mod engine;
mod error;
#[cfg(fuzzing)]
pub mod fuzz;
mod import;
mod journal;
mod lock;
mod log_files;
mod logs;
mod maintenance;
mod options;
#[cfg(feature = "ork")]
mod ork;
mod runs;
mod schedules;
mod state;
mod tasks;
mod transaction;
mod transfer;
mod updates;
mod watch;
mod workflows;

use std::sync::Arc;

use ork_state_api::backend::{Backend, Capabilities, Connecting};
use ork_state_api::{Capability, ConnectOptions, Database};

pub use database::FileDatabase;
pub use journal::Sync;
pub use options::FileOptions;
#[cfg(feature = "ork")]
pub use ork::{FileStateStore, InMemoryStateStore, ObjectStoreFiles};

/// The backend `file`: a directory.
pub static BACKEND: Backend = Backend {
    name: "file",
    package: "ork_state_file",
    schemes: &["file"],
    example: "file:./directory",
    capabilities: Capabilities::all(),
    options: options::FILE_OPTIONS,
    connect,
};
ork_state_api::register_backend!(BACKEND);

/// The backend `memory`: the same without files. Every connection opens a new store.
pub static MEMORY_BACKEND: Backend = Backend {
    name: "memory",
    package: "ork_state_file",
    schemes: &["memory"],
    example: "memory:",
    capabilities: Capabilities::all().without(Capability::Durable).without(Capability::MultiProcess),
    options: options::MEMORY_OPTIONS,
    connect,
};
ork_state_api::register_backend!(MEMORY_BACKEND);

fn connect(options: ConnectOptions) -> Connecting {
    Box::pin(
        async move { Ok(Arc::new(FileOptions::from_url(&options)?.connect().await?) as Arc<dyn Database>) },
    )
}
