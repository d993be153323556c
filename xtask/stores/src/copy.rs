//! `cargo xtask copy --from URL --to URL`.

use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressStyle};
use ork_state_api::RunFilter;
use ork_state_api::copy::{compare, copy};

use xtask::TaskResult;

/// Copies a store of any backend into an empty one, and compares the two.
///
/// Nobody may work on either meanwhile: stop the schedulers first. A copy that does not finish
/// leaves `--to` empty for everybody else. The same command again continues where it stopped.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The store to copy. It must be migrated.
    #[arg(long)]
    from: String,
    /// The store to copy it into. It is created and migrated if it does not exist, and must be
    /// empty.
    #[arg(long)]
    to: String,
    /// Drop what an earlier, unfinished copy had brought over.
    #[arg(long)]
    restart: bool,
    /// Do not compare the two at the end.
    #[arg(long)]
    no_compare: bool,
}

pub(crate) fn run(arguments: &Arguments) -> TaskResult {
    let Arguments { from, to, restart, no_compare } = arguments;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let from = ork_state_api::connect(from).await?;
        // If it cannot be read, the other store is not created.
        from.count_runs(RunFilter::all()).await?;
        let to = ork_state_api::connect(to).await?;
        to.migrate().await?;
        if *restart {
            to.abandon_import().await?;
        }
        let bar =
            ProgressBar::new_spinner().with_style(ProgressStyle::with_template("{elapsed_precise} {msg}")?);
        let copied = copy(&*from, &*to, |so_far| {
            bar.set_message(so_far.to_string());
            bar.tick();
        })
        .await?;
        bar.finish_and_clear();
        println!("copied {copied}");
        if *no_compare {
            return Ok(ExitCode::SUCCESS);
        }
        match compare(&*from, &*to).await? {
            None => {
                println!("compared: the two are equal");
                Ok(ExitCode::SUCCESS)
            }
            Some(difference) => {
                println!("compared: they DIFFER, {difference}. Was somebody at work on one of them?");
                Ok(ExitCode::FAILURE)
            }
        }
    })
}
