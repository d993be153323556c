//! `cargo xtask migrate --url URL [--dry-run]`.

use std::error::Error;
use std::path::Path;
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

/// Connecting creates a missing file or directory, and a dry run must create nothing.
fn require_store(url: &str) -> Result<(), Box<dyn Error>> {
    let options = ork_state_api::ConnectOptions::new(url)?;
    if !matches!(options.url().scheme(), "sqlite" | "file") {
        return Ok(());
    }
    let path = options.url().path()?;
    if path != ":memory:" && !Path::new(&path).exists() {
        return Err(format!("there is no store at {path}: check the path. A dry run creates none").into());
    }
    Ok(())
}

pub(crate) fn run(arguments: &Arguments) -> TaskResult {
    if arguments.dry_run {
        require_store(&arguments.url)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let report = runtime.block_on(async {
        let db = ork_state_api::connect(&arguments.url).await?;
        if arguments.dry_run { db.plan_migration().await } else { db.migrate().await }
    })?;
    println!("{}{report}", if arguments.dry_run { "would be: " } else { "" });
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dry_run_on_a_mistyped_path_creates_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().display();
        for url in [format!("sqlite://{place}/ork.bd"), format!("file:{place}/orc")] {
            let arguments = Arguments { url, dry_run: true };
            let error = run(&arguments).unwrap_err().to_string();
            assert!(error.contains("there is no store at"), "{error}");
        }
        assert_eq!(directory.path().read_dir().unwrap().count(), 0);
        assert!(require_store("sqlite::memory:").is_ok() && require_store("postgres://h/d").is_ok());
    }
}
