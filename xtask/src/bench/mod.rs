//! `cargo xtask bench`: figures that are taken by hand, and never tested.

mod copy;
mod wakeup;

use std::process::ExitCode;

use crate::TaskResult;
use crate::backends::fixtures;

/// Measures.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    scenario: Scenario,
}

#[derive(Debug, clap::Subcommand)]
enum Scenario {
    /// How long it takes from the completion of a dependency in this process until an idle scheduler in another process holds the
    /// task that waited for it. Nobody polls faster than once a second.
    Wakeup(wakeup::Arguments),
    /// How long it takes to copy a store of so many tasks, with outputs and logs, from one backend to the next, and whether the last is equal to the first.
    Copy(copy::Arguments),
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

pub(crate) fn run(arguments: &Arguments) -> TaskResult {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if fixtures().is_empty() {
        return Err("no backend is linked".into());
    }
    let done = match &arguments.scenario {
        Scenario::Wakeup(arguments) => wakeup::run(&runtime, arguments),
        Scenario::Copy(arguments) => runtime.block_on(copy::run(arguments)),
    };
    done.map_err(|error| error as Box<dyn std::error::Error>)?;
    Ok(ExitCode::SUCCESS)
}
