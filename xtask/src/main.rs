//! `cargo xtask`: what is done with this workspace. Thin: it provisions, calls, prints.

mod backends;
mod bench;
mod ci;
mod conformance;
mod copy;
mod deep;
mod demo;
mod migrate;
#[cfg(all(feature = "postgres", feature = "sqlite"))]
mod schema;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// What a task may fail with: it is printed, with its causes, and ends the program.
type TaskResult = Result<ExitCode, Box<dyn std::error::Error>>;

/// Works on the ork-state workspace.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask", version)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Runs the conformance suite over every linked backend.
    Conformance(conformance::Arguments),
    /// Shows an ETL workflow run by two schedulers, one of which is killed.
    Demo(demo::Arguments),
    /// Migrates a store, also one that Ork made before ork-state, or says what that would do.
    Migrate(migrate::Arguments),
    /// Copies a store into an empty one, of any backend, and compares the two.
    Copy(copy::Arguments),
    /// Writes the schema of each SQL backend into its crate.
    #[cfg(all(feature = "postgres", feature = "sqlite"))]
    Schema(schema::Arguments),
    /// Writes a crate for a new backend, ready to be written step by step.
    NewBackend {
        /// What the backend is called, such as `redb`: its crate is `ork-state-redb`.
        name: String,
        /// Where the crate is to be: by default, in a directory of its name.
        directory: Option<PathBuf>,
    },
    /// Measures.
    Bench(bench::Arguments),
    /// Runs everything that CI runs.
    Ci(ci::Arguments),
}

fn main() -> ExitCode {
    ork_state_conformance::run_if_child();
    let result = match Arguments::parse().task {
        Task::Conformance(arguments) => conformance::run(&arguments),
        Task::Demo(arguments) => demo::run(arguments),
        Task::Migrate(arguments) => migrate::run(&arguments),
        Task::Copy(arguments) => copy::run(&arguments),
        #[cfg(all(feature = "postgres", feature = "sqlite"))]
        Task::Schema(arguments) => schema::run(&arguments),
        Task::NewBackend { name, directory } => {
            ork_state_conformance::new_backend::run(&name, directory.as_deref()).map_err(Into::into).map(
                |said| {
                    println!("{said}");
                    ExitCode::SUCCESS
                },
            )
        }
        Task::Bench(arguments) => bench::run(&arguments),
        Task::Ci(arguments) => ci::run(&arguments),
    };
    result.unwrap_or_else(|error| {
        let mut said = error.to_string();
        eprintln!("error: {said}");
        let mut cause = error.source();
        while let Some(error) = cause {
            // Some errors repeat their cause.
            if !said.contains(&error.to_string()) {
                said = error.to_string();
                eprintln!("  because: {said}");
            }
            cause = error.source();
        }
        ExitCode::FAILURE
    })
}
