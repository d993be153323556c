#![doc = include_str!("../README.md")]

mod claims;
mod connections;
mod core;
mod database;
mod deferred_jobs;
mod error;
mod gather;
mod logs;
mod maintenance;
mod options;
mod queue;
mod rows;
mod runs;
mod schedules;
mod schema;
mod site;
mod statement;
mod steps;
mod takeover;
mod tasks;
mod transfer;
mod updates;
mod watch;
mod workflows;

pub use database::PostgresDatabase;
pub use options::{BACKEND, PostgresOptions};
pub use steps::MIGRATOR;

ork_state_api::register_backend!(BACKEND);
