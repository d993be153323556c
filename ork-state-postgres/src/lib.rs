#![doc = include_str!("../README.md")]

mod claims;
mod database;
mod error;
mod logs;
mod maintenance;
mod options;
mod rows;
mod runs;
mod schema;
mod tasks;
mod updates;
mod workflows;

pub use database::PostgresDatabase;
pub use options::{BACKEND, PostgresOptions};

ork_state_api::register_backend!(BACKEND);
