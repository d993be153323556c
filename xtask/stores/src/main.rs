//! The tasks of `cargo xtask` that work on stores of any backend.

mod copy;
mod migrate;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
// Importing a backend links it.
use ork_state_file as _;
use ork_state_postgres as _;
use ork_state_sqlite as _;

/// Works on stores of any backend.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask", version)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    Copy(copy::Arguments),
    Migrate(migrate::Arguments),
}

fn main() -> ExitCode {
    xtask::told(match Arguments::parse().task {
        Task::Copy(arguments) => copy::run(&arguments),
        Task::Migrate(arguments) => migrate::run(&arguments),
    })
}
