//! `cargo xtask conformance --deep`: traces, histories and crashes for as long as you like.

use std::sync::Arc;
use std::time::{Duration, Instant};

use comfy_table::{Cell, CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use ork_state_conformance::Fixture;
use ork_state_conformance::deep::{Deep, DeepEvent, DeepKind, DeepReport};

/// Runs it and prints findings as they come.
pub(crate) fn run(
    fixtures: &[Arc<dyn Fixture>],
    seed: u64,
    minutes: u64,
    threads: usize,
    kinds: Vec<DeepKind>,
) -> Result<DeepReport, Box<dyn std::error::Error>> {
    let time = Duration::from_secs(minutes * 60);
    let bar = ProgressBar::new(time.as_secs().max(1)).with_style(ProgressStyle::with_template(
        "     deep [{bar:40}] {elapsed_precise} of {duration_precise} {msg}",
    )?);
    let begun = Instant::now();
    let words: Vec<&str> = kinds.iter().map(|kind| kind.word()).collect();
    println!("{} for {minutes} min, seed {seed}", words.join(", "));
    let deep = Deep { seed, time, threads, kinds, replay };
    let report = deep.run(fixtures, &|event| match event {
        DeepEvent::Progress(counts) => {
            bar.set_position(begun.elapsed().as_secs().min(time.as_secs()));
            let sum =
                |of: fn(&ork_state_conformance::deep::DeepCounts) -> u64| counts.iter().map(of).sum::<u64>();
            bar.set_message(format!(
                "{} traces, {} histories, {} kills",
                counts.iter().map(|it| it.traces).max().unwrap_or_default(),
                sum(|it| it.histories.histories),
                sum(|it| it.crashes.kills),
            ));
        }
        DeepEvent::Found(finding) => bar.suspend(|| {
            println!(
                "{} {} FAILED\n  {}\n  again: {}",
                finding.place(),
                finding.kind.word(),
                finding.message.replace('\n', "\n  "),
                finding.replay
            );
        }),
    });
    bar.finish_and_clear();
    Ok(report)
}

/// Prints the counts, and whether all went well.
pub(crate) fn print(report: &DeepReport) {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header([
        "backend",
        "traces",
        "calls",
        "histories",
        "calls",
        "unanswered",
        "kills",
        "server failures",
        "acknowledged",
    ]);
    for it in &report.backends {
        if let Some(reason) = &it.unavailable {
            println!("{} is UNAVAILABLE: {reason}", it.backend);
            continue;
        }
        let numbers = [
            it.traces,
            it.trace_calls,
            it.histories.histories,
            it.histories.calls,
            it.histories.unknown,
            it.crashes.kills,
            it.crashes.server_failures,
            it.crashes.acknowledged,
        ];
        let numbers = numbers.map(|number| Cell::new(number).set_alignment(CellAlignment::Right));
        table.add_row([Cell::new(&it.backend)].into_iter().chain(numbers));
    }
    println!("{table}");
    match report.findings.len() {
        0 => println!("nothing went wrong"),
        1 => println!("1 thing went WRONG"),
        many => println!("{many} things went WRONG"),
    }
}

/// The command that runs a piece again. It is the first piece of the shortest run.
fn replay(kind: DeepKind, backend: Option<&str>, seed: u64) -> String {
    let backend = backend.map(|backend| format!(" --backend {backend}")).unwrap_or_default();
    format!("cargo xtask conformance --deep --minutes 0 --only {}{backend} --seed {seed}", kind.word())
}
