//! `cargo xtask bench`: figures, each beside its floor, measured in one run. They are read, never
//! tested.

mod backlog;
mod child;
mod chunks;
mod claims;
mod compaction;
mod copy;
mod dag;
mod failures;
mod figures;
mod floor;
mod handouts;
mod html;
mod lifecycle;
mod logs;
mod memory;
mod old_transaction;
mod open;
mod processes;
mod queue;
mod soak;
mod store;
mod updates;
mod wakeup;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use clap::ValueEnum;

use self::figures::{Facts, Outcome, Results, Spread, Verdict, number};
use self::store::Bench;
use xtask::TaskResult;

use crate::backends::fixtures;

/// Measures, in a release build, which it makes first.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Only these scenarios; may be given several times. All of them by default.
    #[arg(long, value_enum, value_delimiter = ',')]
    scenario: Vec<Scenario>,
    /// Only these backends; may be given several times.
    #[arg(long, value_delimiter = ',')]
    backend: Vec<String>,
    /// How often figures other than latencies are measured; the median counts.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=100))]
    repetitions: u8,
    /// How long the soak takes.
    #[arg(long, value_name = "MINUTES", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    soak_minutes: u64,
    /// Small sizes and one repetition, to check that everything works, not how fast.
    #[arg(long)]
    quick: bool,
    /// Write the results as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the results as one HTML page with plots.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write the results as Markdown, one page per scenario.
    #[arg(long, value_name = "DIRECTORY")]
    markdown: Option<PathBuf>,
    /// Measure in any build.
    #[arg(long)]
    any_build: bool,
    /// Be another process of a scenario.
    #[arg(long, hide = true)]
    child: Option<String>,
}

/// The scenarios. The numbers are those of the targets (BENCHMARKS.md).
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// P1, P3: claims while many tasks are pending.
    Backlog,
    /// P2: runs from creation to end.
    Lifecycle,
    /// P2b: claims and completions only.
    Claims,
    /// P4: a run of ten thousand tasks.
    Dag,
    /// P5: many callers with one update each.
    Updates,
    /// P6: long logs.
    Logs,
    /// P6b: a log of a million chunks.
    Chunks,
    /// P7: from the completion of a dependency to the claim in another process.
    Wakeup,
    /// P8: memory while a million tasks are listed, exported and pruned.
    Memory,
    /// P9: one to eight claiming processes.
    Processes,
    /// P10: opening a store.
    Open,
    /// P11: the file backend's journal.
    Compaction,
    /// P13: an old transaction that blocks all vacuuming, or keeps SQLite's WAL from restarting.
    OldTransaction,
    /// M6: a store that is copied through all backends.
    Copy,
    /// F4: processes that are killed, and leases that lapse.
    Handouts,
    /// F5: a server that fails.
    Failures,
    /// F8: a steady load for a long time.
    Soak,
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

pub(crate) fn run(arguments: &Arguments) -> TaskResult {
    let build = if cfg!(debug_assertions) { "debug" } else { "release" };
    if build == "debug" && !arguments.any_build && arguments.child.is_none() {
        return Err(
            "this is a debug build, whose figures say nothing: call `cargo xtask bench`, or add --any-build"
                .into(),
        );
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let measured = runtime.block_on(async {
        match &arguments.child {
            Some(role) => child::run(role).await.map(|()| ExitCode::SUCCESS),
            None => measure(arguments, build).await,
        }
    });
    measured.map_err(|error| error as Box<dyn std::error::Error>)
}

async fn measure(arguments: &Arguments, build: &'static str) -> Result<ExitCode, AnyError> {
    // As a server in production does.
    ork_state_conformance::server::sync_to_disk();
    let wanted =
        |name: &str| arguments.backend.is_empty() || arguments.backend.iter().any(|backend| backend == name);
    let mut benches = Vec::new();
    for fixture in fixtures() {
        if !wanted(fixture.backend()) {
            continue;
        }
        if let Some(reason) = fixture.unavailable().await {
            println!("{} is UNAVAILABLE: {reason}", fixture.backend());
            continue;
        }
        let repetitions = if arguments.quick { 1 } else { arguments.repetitions };
        benches.push(Bench::new(fixture, arguments.quick, repetitions.into()));
    }
    if benches.is_empty() {
        return Err("there is no backend to measure".into());
    }
    let mut results = Results { facts: facts(arguments, build, &benches).await?, outcomes: Vec::new() };
    let scenarios =
        if arguments.scenario.is_empty() { Scenario::value_variants() } else { &arguments.scenario };
    let mut failed = false;
    for &scenario in scenarios {
        let name = scenario.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
        if scenario == Scenario::Copy {
            let begun = Instant::now();
            match copy::measure(&benches).await {
                Ok(outcome) => keep(&mut results, outcome, &name, begun),
                Err(error) => failed |= tell(&name, "all", &error),
            }
            continue;
        }
        if scenario == Scenario::Soak {
            let begun = Instant::now();
            let time = Duration::from_secs(if arguments.quick { 5 } else { arguments.soak_minutes * 60 });
            for (backend, soaked) in soak::measure(&benches, time).await {
                match soaked {
                    Ok(outcome) => keep(&mut results, outcome, &name, begun),
                    Err(error) => failed |= tell(&name, backend, &error),
                }
            }
            continue;
        }
        for bench in &benches {
            let begun = Instant::now();
            match one(scenario, bench).await {
                Ok(Some(outcome)) => keep(&mut results, outcome, &name, begun),
                Ok(None) => {}
                Err(error) => failed |= tell(&name, bench.backend(), &error),
            }
        }
    }
    for bench in &benches {
        bench.fixture.finish().await;
    }
    write(arguments.json.as_deref(), || Ok(serde_json::to_string_pretty(&results)?))?;
    write(arguments.html.as_deref(), || Ok(results.html()))?;
    if let Some(directory) = &arguments.markdown {
        std::fs::create_dir_all(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
        for (name, text) in results.pages() {
            write(Some(&directory.join(name)), || Ok(text))?;
        }
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// `None` where a scenario says nothing about a backend.
async fn one(scenario: Scenario, bench: &Bench) -> Result<Option<Outcome>, AnyError> {
    match scenario {
        Scenario::Backlog => backlog::measure(bench).await.map(Some),
        Scenario::Lifecycle => lifecycle::measure(bench).await.map(Some),
        Scenario::Claims => claims::measure(bench).await.map(Some),
        Scenario::Dag => dag::measure(bench).await.map(Some),
        Scenario::Updates => updates::measure(bench).await,
        Scenario::Logs => logs::measure(bench).await,
        Scenario::Chunks => chunks::measure(bench).await,
        Scenario::Wakeup => wakeup::measure(bench).await,
        Scenario::Memory => memory::measure(bench).await,
        Scenario::Processes => processes::measure(bench).await,
        Scenario::Open => open::measure(bench).await,
        Scenario::Compaction => compaction::measure(bench).await,
        Scenario::OldTransaction => old_transaction::measure(bench).await,
        Scenario::Handouts => handouts::measure(bench).await,
        Scenario::Failures => failures::measure(bench).await,
        Scenario::Copy | Scenario::Soak => Ok(None),
    }
}

fn tell(scenario: &str, backend: &str, error: &AnyError) -> bool {
    println!("{scenario} on {backend} FAILED: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        println!("  because: {error}");
        cause = error.source();
    }
    true
}

fn keep(results: &mut Results, mut outcome: Outcome, scenario: &str, begun: Instant) {
    scenario.clone_into(&mut outcome.scenario);
    outcome.seconds = begun.elapsed().as_secs_f64();
    print(&outcome);
    results.outcomes.push(outcome);
}

fn print(outcome: &Outcome) {
    println!("\n{} {} on {}: {}", outcome.target, outcome.scenario, outcome.backend, outcome.title);
    let parameters: Vec<String> =
        outcome.parameters.iter().map(|(name, value)| format!("{name} {value}")).collect();
    println!("  ({}; {:.0} s)", parameters.join(", "), outcome.seconds);
    for series in &outcome.series {
        for point in &series.points {
            println!(
                "  {:<34} {:>22} {:>12} {:<10} {} … {}",
                series.name,
                format!("{} {}", number(point.at), series.over),
                number(point.spread.median),
                series.unit,
                number(point.spread.low),
                number(point.spread.high),
            );
        }
    }
    for verdict in &outcome.verdicts {
        println!(
            "  => {}: {} {} {} {}",
            verdict.figure,
            number(verdict.value),
            verdict.unit,
            verdict.wanted_text(),
            Verdict::mark(verdict.is_met()),
        );
    }
}

async fn facts(arguments: &Arguments, build: &'static str, benches: &[Bench]) -> Result<Facts, AnyError> {
    let commit = Command::new("git").args(["describe", "--always", "--dirty"]).output();
    let commit = commit.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    let mut origins = Vec::new();
    for bench in benches {
        if let Some(origin) = bench.fixture.origin().await {
            origins.push((bench.backend().to_owned(), origin));
        }
    }
    let fdatasync = floor::appends(4096, 500)?;
    println!(
        "an append of 4 KiB with fdatasync: {} ms ({} … {})",
        number(fdatasync.median),
        number(fdatasync.low),
        number(fdatasync.high)
    );
    Ok(Facts {
        version: ork_state_api::VERSION,
        commit: commit.unwrap_or_default(),
        build,
        os: std::env::consts::OS,
        cores: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        fdatasync,
        quick: arguments.quick,
        origins,
        started: std::time::UNIX_EPOCH.elapsed().map_or(0, |elapsed| elapsed.as_secs()),
    })
}

fn write(path: Option<&Path>, text: impl FnOnce() -> Result<String, AnyError>) -> Result<(), AnyError> {
    let Some(path) = path else { return Ok(()) };
    std::fs::write(path, text()?).map_err(|error| format!("{}: {error}", path.display()))?;
    println!("\n{}", path.display());
    Ok(())
}

/// Milliseconds that a future takes, with its result.
async fn timed<T, E>(call: impl Future<Output = Result<T, E>>) -> Result<(T, f64), E> {
    let begun = Instant::now();
    let given = call.await?;
    Ok((given, begun.elapsed().as_secs_f64() * 1000.0))
}

/// The ratio of two medians.
fn ratio(of: &Spread, to: &Spread) -> f64 {
    of.median / to.median
}
