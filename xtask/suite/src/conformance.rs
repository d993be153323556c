//! `cargo xtask conformance`: runs the suite over every linked backend, with a progress bar, a
//! table and a report. `verify` runs a report again.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use comfy_table::{Cell, CellAlignment, Color, ContentArrangement, Table, presets};
use ork_state_conformance::deep::DeepKind;
use ork_state_conformance::facts::Facts;
use ork_state_conformance::harness::chosen_seed;
use ork_state_conformance::kill_matrix::KillMatrix;
use ork_state_conformance::model::Fault;
use ork_state_conformance::repeat::{Repeated, repeat};
use ork_state_conformance::report::{Level, Report};
use ork_state_conformance::run::TIME_LIMIT;
use ork_state_conformance::suite::{Event, Suite};

use xtask::TaskResult;

use crate::backends::fixtures;
use crate::deep;
use crate::progress::Progress;

/// Runs the conformance suite over every linked backend.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    task: Option<Task>,
    /// Only this backend; may be given several times.
    #[arg(long)]
    backend: Vec<String>,
    /// Only cases whose names contain this; the result then says nothing about conformance.
    #[arg(long)]
    filter: Option<String>,
    /// Fail if this backend is unavailable, such as `postgres` without a server; may be given
    /// several times.
    #[arg(long)]
    require: Vec<String>,
    /// Write `report.html`, `report.json`, `report.md` and `junit.xml` into this directory.
    #[arg(long)]
    report: Option<PathBuf>,
    /// How many cases run at the same time; as many as there are cores by default.
    #[arg(long)]
    threads: Option<usize>,
    /// How many seconds a case may take. A case that is still running then is timed out. Raise it
    /// on a slow or busy machine.
    #[arg(long, value_name = "SECONDS", default_value_t = TIME_LIMIT.as_secs(), value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    /// The seed of the random choices; a new one by default.
    #[arg(long)]
    seed: Option<u64>,
    /// Test the suite itself as well: break a store in every known way, and fail if no case
    /// notices. With a text: only in the ways whose names contain it.
    #[arg(long, num_args = 0..=1, default_missing_value = "", value_name = "NAME")]
    faults: Option<String>,
    /// Instead of the cases, run random traces over all backends at once, histories of concurrent
    /// calls, and processes that are killed while they write. `--minutes` says for how long.
    #[arg(long, conflicts_with_all = ["filter", "faults"])]
    deep: bool,
    /// How many minutes a deep run takes. There is at least one piece of each kind and backend.
    #[arg(long, default_value_t = 5, requires = "deep", value_name = "N")]
    minutes: u64,
    /// Only this kind of a deep run: `traces`, `histories` or `crashes`; may be given several
    /// times.
    #[arg(long, requires = "deep", value_name = "KIND", value_parser = kind)]
    only: Vec<DeepKind>,
}

#[derive(Debug, clap::Subcommand)]
enum Task {
    /// Runs the cases of a report again, with its seed, and shows whether the results are the same.
    Verify {
        /// The `report.json`.
        report: PathBuf,
    },
}

fn kind(word: &str) -> Result<DeepKind, String> {
    let known = DeepKind::ALL.into_iter().find(|kind| kind.word() == word);
    known.ok_or_else(|| format!("it is one of {}", DeepKind::ALL.map(DeepKind::word).join(", ")))
}

pub(crate) fn run(arguments: &Arguments) -> TaskResult {
    match &arguments.task {
        Some(Task::Verify { report }) => verify(report),
        None => run_suite(arguments),
    }
}

fn run_suite(arguments: &Arguments) -> TaskResult {
    let mut chosen = fixtures();
    let linked: Vec<&str> = chosen.iter().map(|fixture| fixture.backend()).collect();
    if let Some(unknown) =
        arguments.backend.iter().chain(&arguments.require).find(|name| !linked.contains(&name.as_str()))
    {
        return Err(format!("no backend `{unknown}` is linked, only: {}", linked.join(", ")).into());
    }
    chosen.retain(|fixture| {
        arguments.backend.is_empty() || arguments.backend.iter().any(|name| name == fixture.backend())
    });
    let seed = match arguments.seed {
        Some(seed) => seed,
        None => chosen_seed()?,
    };
    let threads = arguments.threads.unwrap_or_else(cores);
    let limit = Duration::from_secs(arguments.limit);
    let suite = Suite { filter: arguments.filter.clone(), threads, limit, seed, replay };
    if arguments.deep {
        let kinds = if arguments.only.is_empty() { DeepKind::ALL.to_vec() } else { arguments.only.clone() };
        let facts = Facts::gather();
        let deep = deep::run(&chosen, seed, arguments.minutes, threads, kinds)?;
        deep::print(&deep);
        return finish(&Report::of_deep_run(facts, deep), arguments);
    }

    let begun = Instant::now();
    let progress = Progress::new()?;
    let mut report = suite.run(&chosen, &|event| show(&progress, &event));
    if let Some(name) = &arguments.faults {
        report.kill_matrix = Some(hunt(name, &progress, &suite)?);
    }
    progress.finish();

    println!("{}", table(&report));
    print_details(&report);
    if let Some(matrix) = &report.kill_matrix {
        println!("{}", matrix.summary());
    }
    println!("{:.1} s, seed {}", begun.elapsed().as_secs_f64(), report.seed);
    finish(&report, arguments)
}

/// Writes the report to the wanted directory.
fn finish(report: &Report, arguments: &Arguments) -> TaskResult {
    if let Some(directory) = &arguments.report {
        report.write(directory)?;
        println!("report: {}", directory.join("report.html").display());
    }
    Ok(verdict(report, arguments))
}

/// Checks whether a report holds.
fn verify(path: &Path) -> TaskResult {
    let json = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let then =
        Report::from_json(&json).map_err(|error| format!("{} is no report: {error}", path.display()))?;
    if then.backends.iter().all(|backend| backend.cases.is_empty()) {
        return Err(format!("{} has no case in it: there is nothing to verify", path.display()).into());
    }
    let suite = Suite { filter: None, threads: cores(), limit: TIME_LIMIT, seed: then.seed, replay };
    let progress = Progress::new()?;
    let Repeated { report: now, differences } =
        repeat(&then, &fixtures(), &suite, &|event| show(&progress, &event));
    progress.finish();
    println!("{}", table(&now));
    let by = |report: &Report| format!("suite {}, {}", report.facts.suite, report.facts.rustc);
    println!("then: {}, by {}\nnow: by {}", then.facts.started, by(&then), by(&now));
    for difference in &differences {
        println!("{difference}");
    }
    if differences.is_empty() {
        println!(
            "the report holds: the same cases, the same verdicts, the same levels from seed {}",
            then.seed
        );
        return Ok(ExitCode::SUCCESS);
    }
    println!("the report does NOT hold: {} differences", differences.len());
    Ok(ExitCode::FAILURE)
}

/// Runs every case against every fault whose name contains this.
fn hunt(name: &str, progress: &Progress, suite: &Suite) -> Result<KillMatrix, Box<dyn std::error::Error>> {
    let mut faults = Fault::all();
    faults.retain(|fault| fault.name.contains(name));
    progress.begin("faults", faults.len(), &format!("{} ways to break a store", faults.len()));
    let matrix = KillMatrix::of(&faults, suite.seed, suite.threads, &|fault| {
        progress.step(&fault.name);
        if fault.survived {
            progress.say(&format!(
                "{} {} SURVIVED: no case notices a store that {}",
                fault.rule, fault.name, fault.description
            ));
        }
    })?;
    Ok(matrix)
}

/// The number of cores.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The command that runs a case again.
fn replay(backend: &str, case: &str, seed: u64) -> String {
    format!("cargo xtask conformance --backend {backend} --filter {case} --seed {seed}")
}

fn show(progress: &Progress, event: &Event<'_>) {
    match event {
        Event::Begins { backend, origin, cases } => {
            let cases_text = if *cases == 1 { "1 case".to_owned() } else { format!("{cases} cases") };
            let origin = origin.map(|origin| format!(", {origin}")).unwrap_or_default();
            progress.begin(backend, *cases, &format!("{cases_text}{origin}"));
        }
        Event::Ended { backend, case } => {
            progress.step(&case.name);
            if let Some(problem) = case.verdict.problem() {
                let (word, again) = (case.verdict.word().to_uppercase(), case.replay.as_deref());
                progress.say(&format!(
                    "{backend}: {} {word}\n  {}\n  again: {}",
                    case.name,
                    problem.replace('\n', "\n  "),
                    again.unwrap_or_default()
                ));
            }
        }
    }
}

/// The width of a terminal with the default size.
const COLUMNS: u16 = 80;

fn table(report: &Report) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_content_arrangement(ContentArrangement::Dynamic).set_width(COLUMNS);
    let any_late = report.backends.iter().any(|backend| backend.timed_out > 0);
    let late = |cell: Cell| any_late.then_some(cell);
    let header = ["backend", "level", "passed", "failed"].map(Cell::new);
    let rest = ["n/a", "time"].map(Cell::new);
    table.set_header(header.into_iter().chain(late(Cell::new("timed out"))).chain(rest));
    for backend in &report.backends {
        let color = match backend.level {
            Level::Full | Level::Core => Color::Green,
            Level::NotConformant => Color::Red,
            Level::TimedOut => Color::Magenta,
            Level::Incomplete | Level::Unavailable => Color::Yellow,
        };
        let number = |count: usize| Cell::new(count).set_alignment(CellAlignment::Right);
        let took = format!("{:.1} s", backend.millis as f64 / 1000.0);
        let row = [
            Cell::new(&backend.name),
            Cell::new(backend.summary()).fg(color),
            number(backend.passed),
            number(backend.failed),
        ];
        let rest = [number(backend.not_applicable), Cell::new(took).set_alignment(CellAlignment::Right)];
        table.add_row(row.into_iter().chain(late(number(backend.timed_out))).chain(rest));
    }
    table
}

/// Prints the cases' notes, and why a backend is unavailable.
fn print_details(report: &Report) {
    for backend in &report.backends {
        if let Some(reason) = &backend.unavailable {
            println!("{} is UNAVAILABLE: {reason}", backend.name);
        }
        for case in &backend.cases {
            for note in &case.notes {
                println!("{}, {}: {note}", backend.name, case.name);
            }
        }
    }
}

fn verdict(report: &Report, arguments: &Arguments) -> ExitCode {
    let missing = |name: &str| {
        report.backends.iter().any(|backend| backend.name == name && backend.unavailable.is_some())
            || report
                .deep
                .iter()
                .flat_map(|deep| &deep.backends)
                .any(|it| it.backend == name && it.unavailable.is_some())
    };
    if let Some(name) = arguments.require.iter().find(|name| missing(name)) {
        println!("{name} is required and unavailable");
        return ExitCode::FAILURE;
    }
    if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
