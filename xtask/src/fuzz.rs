//! `cargo xtask fuzz`: runs the fuzz targets of `xtask/fuzz` on libFuzzer, with a stable compiler.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use clap::ValueEnum;
use xtask::TaskResult;

use crate::package::{must_succeed, target_directory};

/// The compiler flags that let libFuzzer see which inputs reach new code. They are the counters and
/// tables that `cargo fuzz` uses too. There is no sanitizer, because only a nightly compiler has
/// one. Without `unsafe` of ours, it would find little.
const FLAGS: &[&str] = &[
    "--cfg fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
    "-Cdebug-assertions",
];

/// Feeds random bytes to the code that reads foreign bytes. Needs a C++ compiler. First it builds
/// for some minutes, separately from the other builds.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// How long each target runs.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Only this one.
    #[arg(value_enum)]
    target: Option<Target>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Target {
    /// The file backend's journal.
    Journal,
    /// DAGs, as backends store them.
    Dag,
    /// Rows of Ork's, on their way to a takeover.
    Takeover,
    /// The URLs of all backends, up to where a store would be opened.
    Url,
}

pub(crate) fn run(arguments: &Arguments) -> TaskResult {
    let directory = target_directory()?.join("fuzz");
    let host = Command::new("rustc").args(["--print", "host-tuple"]).output()?;
    let host = String::from_utf8(host.stdout)?.trim().to_owned();
    let mut build = Command::new(env!("CARGO"));
    // With an explicit target, the flags apply to it alone: build scripts go without.
    build.args(["build", "--package", "xtask-fuzz", "--bins", "--profile", "fuzz", "--target", &host]);
    build.arg("--target-dir").arg(&directory);
    build.env("RUSTFLAGS", FLAGS.join(" ")).env_remove("CARGO_ENCODED_RUSTFLAGS");
    must_succeed(&mut build)?;

    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let targets = arguments.target.as_ref().map_or(Target::value_variants(), std::slice::from_ref);
    for target in targets {
        let name = target.to_possible_value().ok_or("the target has no name")?.get_name().to_owned();
        println!("\n{name}, for {} s", arguments.seconds);
        // New inputs stay for the next run. Failing inputs are stored beside them.
        let found = directory.join("corpus").join(&name);
        fs::create_dir_all(&found)?;
        let program = directory.join(&host).join("fuzz").join(&name);
        let mut fuzz = Command::new(&program);
        fuzz.arg(format!("-max_total_time={}", arguments.seconds));
        fuzz.arg(format!("-artifact_prefix={}/{name}-", directory.display()));
        fuzz.args(["-max_len=16384", "-rss_limit_mb=1024", "-timeout=10", "-verbosity=0"]);
        fuzz.args(["-print_final_stats=1"]).arg(&found).arg(seeds.join(&name));
        must_succeed(&mut fuzz)
            .map_err(|error| format!("{error}; once more with that input: {} FILE", program.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}
