//! `cargo xtask migrate --url URL [--dry-run]`.

use std::process::ExitCode;

use xtask::TaskResult;

/// Migrates a store, also one that Ork made before ork-state, or shows what that would do.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The store.
    #[arg(long)]
    url: String,
    /// Only show what would be done. If the database supports it, the migration runs and is rolled
    /// back: try it on a copy.
    #[arg(long)]
    dry_run: bool,
}

pub(crate) fn run(arguments: &Arguments) -> TaskResult {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let report = runtime.block_on(async {
        let db = ork_state_api::connect(&arguments.url).await?;
        if arguments.dry_run { db.plan_migration().await } else { db.migrate().await }
    })?;
    println!("{}{report}", if arguments.dry_run { "would be: " } else { "" });
    Ok(ExitCode::SUCCESS)
}
