#![doc = include_str!("../README.md")]

mod batch;
mod claims;
#[cfg(test)]
mod costs;
mod counts;
mod database;
mod deferred_jobs;
mod error;
mod gather;
mod held;
mod logs;
mod maintenance;
mod options;
#[cfg(test)]
mod plans;
mod rows;
mod runs;
mod schedules;
mod schema;
mod settle;
mod signal;
mod sql;
mod steps;
mod take_in;
mod takeover;
mod tasks;
mod transfer;
mod updates;
mod watch;
mod workflows;
mod writer;

pub use database::SqliteDatabase;
pub use options::{BACKEND, SqliteOptions, Synchronous};
pub use steps::MIGRATOR;

ork_state_api::register_backend!(BACKEND);
