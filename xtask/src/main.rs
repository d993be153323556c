//! `cargo xtask`: the tasks of this workspace. This crate is light. A task with many dependencies
//! is in a separate crate, which cargo builds when the task is called.

mod ci;
mod demo;
mod fuzz;
mod package;

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use clap::{Parser, Subcommand};
use xtask::{TaskResult, told};

/// Works on the ork-state workspace.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask", version)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Shows an ETL workflow run by two schedulers, one of which is killed.
    Demo(demo::Arguments),
    /// Packs the published crates, and builds an application from them outside of the workspace.
    Package(package::Arguments),
    /// Feeds random bytes to the code that reads foreign bytes.
    Fuzz(fuzz::Arguments),
    /// Runs everything that CI runs.
    Ci(ci::Arguments),
    /// Copies a store of any backend into an empty one, and compares the two. Builds the backends
    /// first.
    #[command(disable_help_flag = true)]
    Copy(Rest),
    /// Migrates a store, also one that Ork made before ork-state, or shows what that would do.
    /// Builds the backends first.
    #[command(disable_help_flag = true)]
    Migrate(Rest),
    /// Runs the conformance suite over every backend. Builds the suite first.
    #[command(disable_help_flag = true)]
    Conformance(Rest),
    /// Measures. Builds the suite first, for release.
    #[command(disable_help_flag = true)]
    Bench(Rest),
    /// Writes the schema of each SQL backend into its crate. Builds the suite first.
    #[command(disable_help_flag = true)]
    Schema(Rest),
    /// Writes a crate for a new backend, to be completed step by step. Builds the suite first.
    #[command(disable_help_flag = true)]
    NewBackend(Rest),
}

/// Arguments for the crate that has the task.
#[derive(Debug, clap::Args)]
struct Rest {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

impl Rest {
    fn has(&self, wanted: &[&str]) -> bool {
        self.arguments.iter().any(|argument| wanted.iter().any(|wanted| argument == wanted))
    }
}

fn main() -> ExitCode {
    told(match Arguments::parse().task {
        Task::Demo(arguments) => demo::run(arguments),
        Task::Package(arguments) => package::run(&arguments),
        Task::Fuzz(arguments) => fuzz::run(&arguments),
        Task::Ci(arguments) => ci::run(&arguments),
        Task::Copy(_) | Task::Migrate(_) => hand_over("xtask-stores", &[]),
        Task::Conformance(_) | Task::Schema(_) | Task::NewBackend(_) => hand_over("xtask-suite", &[]),
        Task::Bench(rest) if rest.has(&["--any-build", "--help", "-h"]) => hand_over("xtask-suite", &[]),
        Task::Bench(_) => hand_over("xtask-suite", &["--release"]),
    })
}

/// Replaces this process with the crate that has the task. Cargo builds it first, with these
/// options.
fn hand_over(package: &str, options: &[&str]) -> TaskResult {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["run", "--package", package]).args(options).arg("--").args(std::env::args_os().skip(1));
    // It returns only if cargo cannot be started.
    Err(format!("`cargo run --package {package}` does not start: {}", cargo.exec()).into())
}
