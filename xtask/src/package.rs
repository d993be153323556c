//! `cargo xtask package`: packs the published crates, and builds an application from the packed
//! ones, outside of the workspace.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use xtask::TaskResult;

/// Any error, to be printed.
type AnyError = Box<dyn std::error::Error>;

/// The published crates. The suite is for authors of backends, so it is packed, but the application
/// does not use it.
const CRATES: &[&str] =
    &["ork-state-api", "ork-state-conformance", "ork-state-file", "ork-state-postgres", "ork-state-sqlite"];

/// The application: it opens one store of each backend, by URL.
const MAIN: &str = r#"use {ork_state_file as _, ork_state_postgres as _, ork_state_sqlite as _};

fn main() -> ork_state_api::Result<()> {
    let registry = ork_state_api::Registry::linked()?;
    let names: Vec<&str> = registry.backends().map(|backend| backend.name).collect();
    assert_eq!(names, ["file", "memory", "postgres", "sqlite"]);
    println!("{}", names.join(" "));
    Ok(())
}
"#;

/// The dependencies that the application uses at the lowest version that the workspace allows.
const LOWEST: &[&str] =
    &["async-trait", "chrono", "inventory", "serde", "serde_json", "thiserror", "tokio", "tracing", "uuid"];

/// Packs the published crates, and builds an application from them outside of the workspace.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Also pack uncommitted changes.
    #[arg(long)]
    allow_dirty: bool,
}

pub(crate) fn run(arguments: &Arguments) -> TaskResult {
    let target = target_directory()?;
    let mut pack = Command::new(env!("CARGO"));
    // The packed crates are built below, all together.
    pack.args(["package", "--no-verify"]);
    for name in CRATES {
        pack.args(["--package", name]);
    }
    if arguments.allow_dirty {
        pack.arg("--allow-dirty");
    }
    must_succeed(&mut pack)?;

    let place = tempfile::tempdir()?;
    let mut patches = String::new();
    for name in CRATES {
        let packed = target.join("package").join(format!("{name}-{}.crate", env!("CARGO_PKG_VERSION")));
        must_succeed(Command::new("tar").arg("-xzf").arg(&packed).arg("-C").arg(place.path()))?;
        let unpacked = place.path().join(format!("{name}-{}", env!("CARGO_PKG_VERSION")));
        for licence in ["LICENSE-MIT", "LICENSE-APACHE"] {
            if !unpacked.join(licence).is_file() {
                return Err(format!("{name} is packed without {licence}").into());
            }
        }
        patches += &format!("{name} = {{ path = {:?} }}\n", unpacked.display().to_string());
    }
    let application = place.path().join("application");
    write_application(&application, &patches)?;
    let mut build = Command::new(env!("CARGO"));
    // Built beside the workspace's own output. A new directory would be compiled from scratch each
    // time.
    build.arg("run").current_dir(&application).env("CARGO_TARGET_DIR", target.join("outside"));
    must_succeed(&mut build)?;
    println!("packed {}, and built an application from them", CRATES.join(", "));
    Ok(ExitCode::SUCCESS)
}

fn write_application(application: &Path, patches: &str) -> Result<(), AnyError> {
    let dependencies: String = CRATES
        .iter()
        .filter(|name| **name != "ork-state-conformance")
        .map(|name| format!("{name} = {:?}\n", env!("CARGO_PKG_VERSION")))
        .collect();
    let lowest = lowest()?;
    let manifest = format!(
        "[package]\nname = \"application\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n\
         [dependencies]\n{dependencies}{lowest}\n\
         [patch.crates-io]\n{patches}\n[workspace]\n"
    );
    fs::create_dir_all(application.join("src"))?;
    fs::write(application.join("Cargo.toml"), manifest)?;
    fs::write(application.join("src/main.rs"), MAIN)?;
    Ok(())
}

/// The lines that pin the [`LOWEST`] dependencies, from the workspace's manifest.
fn lowest() -> Result<String, AnyError> {
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml"))?;
    let pin = |name: &&str| {
        let line = manifest.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "))?;
        let version = line.trim_start_matches("{ version = ").split('"').nth(1)?;
        Some(format!("{name} = \"={version}\"\n"))
    };
    let pinned: Option<String> = LOWEST.iter().map(pin).collect();
    pinned.ok_or_else(|| "the workspace's manifest has no version of one of them".into())
}

/// The directory where cargo builds this workspace. This program itself lies in it.
pub(crate) fn target_directory() -> Result<PathBuf, AnyError> {
    let program = std::env::current_exe()?;
    let target = program.parent().and_then(Path::parent).ok_or("this program lies in no target directory")?;
    Ok(target.to_owned())
}

pub(crate) fn must_succeed(command: &mut Command) -> Result<(), AnyError> {
    let status = command.status().map_err(|error| format!("{command:?} does not start: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{command:?} failed: {status}").into()) }
}
