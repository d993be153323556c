//! `cargo xtask ci`: every check, as `.ci/run` calls it.

use std::process::{Command, ExitCode};
use std::time::Instant;

use xtask::TaskResult;

/// Runs everything that CI runs.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Also run the suite against PostgreSQL in a container of this image, through testcontainers.
    #[arg(long)]
    docker_image: Option<String>,
}

/// Runs the suite as `cargo xtask` does, but optimised. Compiling takes some two minutes more. A
/// fault takes 1.6 s instead of 2.1 s on two cores.
const OPTIMISED: &[&str] = &[
    "run",
    "--config",
    "profile.dev.package.ork-state-conformance.opt-level=1",
    "--package",
    "xtask-suite",
    "--",
];

/// A step's name, and its command line with its environment variables.
struct Step {
    name: &'static str,
    command: Vec<&'static str>,
    variables: Vec<(&'static str, String)>,
}

pub(crate) fn run(arguments: &Arguments) -> TaskResult {
    let step = |name, command: &[&'static str], variables: &[(&'static str, &str)]| Step {
        name,
        command: command.to_vec(),
        variables: variables.iter().map(|(name, value)| (*name, (*value).to_owned())).collect(),
    };
    let suite = |name, arguments: &[&'static str], variables: &[(&'static str, &str)]| {
        step(name, &[OPTIMISED, arguments].concat(), variables)
    };
    let mut steps = vec![
        step("format", &["fmt", "--all", "--check"], &[]),
        step("lints", &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"], &[]),
        // Configured by deny.toml, which says why there are no advisories here.
        step(
            "dependencies",
            &["deny", "check", "--hide-inclusion-graph", "bans", "licenses", "sources"],
            &[],
        ),
        // Builds what the other steps never build.
        step(
            "without features",
            &["clippy", "-p", "ork-state-api", "-p", "ork-state-file", "--", "-D", "warnings"],
            &[],
        ),
        step(
            "without encryption",
            &["clippy", "-p", "ork-state-postgres", "--no-default-features", "--", "-D", "warnings"],
            &[],
        ),
        step(
            "object stores",
            &["clippy", "-p", "ork-state-file", "--features", "s3,gcs,azure", "--", "-D", "warnings"],
            &[],
        ),
        step("docs", &["doc", "--workspace", "--no-deps"], &[("RUSTDOCFLAGS", "-D warnings")]),
        step("tests", &["test", "--workspace", "--no-fail-fast"], &[("ORK_STATE_REQUIRE", "postgres")]),
        // The tests that `cargo test` shows as ignored. The heavy cases are in the step with the
        // faults.
        step(
            "heavy tests",
            &["test", "--workspace", "--lib", "--test", "new_backend", "--", "--ignored"],
            &[],
        ),
        // The suite on stores that `MIGRATOR` made, with sqlx alone.
        step(
            "suite on MIGRATOR",
            &["test", "-p", "ork-state-postgres", "-p", "ork-state-sqlite", "--test", "conformance_migrator"],
            &[("ORK_STATE_REQUIRE", "postgres")],
        ),
        step("packages", &["xtask", "package", "--allow-dirty"], &[]),
        step("schema", &["xtask", "schema", "--check"], &[]),
        step("demo", &["xtask", "demo"], &[]),
        // Checks that the targets build and their seeds pass. After a change of a decoder, run it
        // for longer.
        step("fuzz", &["xtask", "fuzz", "--seconds", "5"], &[]),
        suite(
            "conformance and faults",
            &["conformance", "--faults", "--require", "postgres", "--report", "report"],
            &[],
        ),
        suite(
            "deep",
            &["conformance", "--deep", "--minutes", "1", "--require", "postgres", "--report", "report/deep"],
            &[],
        ),
        // Checks that every scenario runs and that every floor does what it should. The figures of
        // such a run mean nothing.
        step("benchmarks", &["xtask", "bench", "--quick", "--any-build", "--html", "report/bench.html"], &[]),
    ];
    if let Some(image) = &arguments.docker_image {
        let command =
            &["conformance", "--backend", "postgres", "--require", "postgres", "--report", "report/docker"];
        let variables = &[("ORK_STATE_POSTGRES_VIA", "docker"), ("ORK_STATE_POSTGRES_IMAGE", image.as_str())];
        steps.push(suite("conformance in a container", command, variables));
    }
    let mut failed = Vec::new();
    for Step { name, command, variables } in steps {
        println!("\n== {name}: cargo {}", command.join(" "));
        let begun = Instant::now();
        let status = Command::new(env!("CARGO")).args(&command).envs(variables).status()?;
        println!(
            "== {name}: {} after {:.0} s",
            if status.success() { "passed" } else { "FAILED" },
            begun.elapsed().as_secs_f64()
        );
        if !status.success() {
            failed.push(name);
        }
    }
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!("\nfailed: {}", failed.join(", "));
    Ok(ExitCode::FAILURE)
}
