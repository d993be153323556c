//! `cargo xtask conformance`: the suite over every linked backend, with a bar, a table and a report.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use comfy_table::{Cell, CellAlignment, Color, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use ork_state_conformance::{Event, Level, Report, Suite, Verdict, chosen_seed};

use crate::TaskResult;
use crate::backends::fixtures;

/// Runs the conformance suite over every linked backend.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Only this backend; may be given several times.
    #[arg(long)]
    backend: Vec<String>,
    /// Only cases whose names contain this; the result then says nothing about conformance.
    #[arg(long)]
    filter: Option<String>,
    /// Fail if this backend is unavailable, such as `postgres` without a server; may be given several times.
    #[arg(long)]
    require: Vec<String>,
    /// Write `report.json` and `report.md` into this directory.
    #[arg(long)]
    report: Option<PathBuf>,
    /// How many cases run at the same time; as many as there are cores by default.
    #[arg(long)]
    threads: Option<usize>,
    /// The seed of what is left to chance; a new one by default.
    #[arg(long)]
    seed: Option<u64>,
}

pub(crate) fn run(arguments: &Arguments) -> TaskResult {
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
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let suite = Suite {
        filter: arguments.filter.clone(),
        threads: arguments.threads.unwrap_or(cores),
        seed: arguments.seed.unwrap_or_else(chosen_seed),
    };

    let begun = Instant::now();
    let bar = ProgressBar::new(0)
        .with_style(ProgressStyle::with_template("{prefix:>9} [{bar:40}] {pos}/{len} {msg}")?);
    let report = suite.run(&chosen, &|event| show(&bar, &event));
    bar.finish_and_clear();

    println!("{}", table(&report));
    print_details(&report);
    println!("{:.1} s, seed {}", begun.elapsed().as_secs_f64(), report.seed);
    if let Some(directory) = &arguments.report {
        report.write(directory)?;
        println!("report: {}", directory.join("report.md").display());
    }
    Ok(verdict(&report, arguments))
}

fn show(bar: &ProgressBar, event: &Event<'_>) {
    match event {
        Event::Begins { backend, origin, cases } => {
            bar.reset();
            bar.set_length(*cases as u64);
            bar.set_prefix(*backend);
            // The bar shows on a terminal only; this line also in a log.
            let cases = if *cases == 1 { "1 case".to_owned() } else { format!("{cases} cases") };
            bar.suspend(|| match origin {
                Some(origin) => println!("{backend}: {cases}, {origin}"),
                None => println!("{backend}: {cases}"),
            });
        }
        Event::Ended { backend, case } => {
            bar.inc(1);
            bar.set_message(case.name);
            if let Verdict::Failed { message } = &case.verdict {
                bar.suspend(|| {
                    println!("{backend}: {} FAILED\n  {}", case.name, message.replace('\n', "\n  "));
                });
            }
        }
    }
}

fn table(report: &Report) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["backend", "result", "passed", "failed", "not applicable"]);
    for backend in &report.backends {
        let color = match backend.level {
            Level::Conformant => Color::Green,
            Level::NotConformant => Color::Red,
            Level::Incomplete | Level::Unavailable { .. } => Color::Yellow,
        };
        let number = |count: usize| Cell::new(count).set_alignment(CellAlignment::Right);
        table.add_row([
            Cell::new(backend.name),
            Cell::new(backend.level.word()).fg(color),
            number(backend.passed),
            number(backend.failed),
            number(backend.not_applicable),
        ]);
    }
    table
}

/// What cases had to say, and why a backend is unavailable.
fn print_details(report: &Report) {
    for backend in &report.backends {
        if let Level::Unavailable { reason } = &backend.level {
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
        let unavailable = |level: &Level| matches!(level, Level::Unavailable { .. });
        report.backends.iter().any(|backend| backend.name == name && unavailable(&backend.level))
    };
    if let Some(name) = arguments.require.iter().find(|name| missing(name)) {
        println!("{name} is required and unavailable");
        return ExitCode::FAILURE;
    }
    if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
