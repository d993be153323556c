//! The tasks of `cargo xtask` that need the conformance suite.

mod backends;
mod bench;
mod conformance;
mod deep;
mod progress;
mod schema;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Tests and measures backends.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask", version)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    Conformance(conformance::Arguments),
    Bench(bench::Arguments),
    Schema(schema::Arguments),
    /// Writes a crate for a new backend, to be completed step by step.
    NewBackend {
        /// The name of the backend, such as `redb`: its crate is `ork-state-redb`.
        name: String,
        /// The directory of the crate. By default, a directory with the crate's name.
        directory: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    ork_state_conformance::run_if_child();
    xtask::told(match Arguments::parse().task {
        Task::Conformance(arguments) => conformance::run(&arguments),
        Task::Bench(arguments) => bench::run(&arguments),
        Task::Schema(arguments) => schema::run(&arguments),
        Task::NewBackend { name, directory } => {
            let written = ork_state_conformance::new_backend::run(&name, directory.as_deref());
            written.map_err(Into::into).map(|said| {
                println!("{said}");
                ExitCode::SUCCESS
            })
        }
    })
}
