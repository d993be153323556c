//! A large store of the file backend: the longest wait of a writer while the journal is folded, and
//! the time to open the store.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use ork_state_api::{TaskUpdate, TaskUpdates};

use super::figures::{Outcome, Point, Series, Spread, Verdict, Wanted};
use super::queue::applied;
use super::store::{self, Bench, claim, connect};
use super::{AnyError, timed};

/// Few, so that no call of the load takes long by itself.
const RUN: usize = 100;

pub(super) async fn measure(bench: &Bench) -> Result<Option<Outcome>, AnyError> {
    if bench.backend() != "file" {
        return Ok(None);
    }
    let runs = bench.size(10_000, 50);
    let (mut stalls, mut opened, mut rates, mut updates) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bench.repetitions {
        let once = once(bench, runs).await?;
        stalls.push(once.longest);
        opened.push(once.opened);
        rates.push(once.rate);
        updates.push(once.updates);
    }
    let (stall, opened) = (Spread::of(stalls), Spread::of(opened));
    let tasks = (runs * RUN) as f64;
    let line = |name: &str, unit, spread| Series {
        name: name.to_owned(),
        unit,
        over: "tasks",
        points: vec![Point { at: tasks, spread }],
    };
    Ok(Some(Outcome {
        target: "P11",
        scenario: String::new(),
        title: "Runs are created and started while another caller makes one update after the other; then the store is opened",
        backend: bench.backend().to_owned(),
        parameters: vec![
            ("tasks", super::number(tasks)),
            ("updates", super::number(Spread::of(updates).median)),
            ("runs started a second", super::number(Spread::of(rates).median)),
        ],
        series: vec![line("longest update", "ms", stall), line("open", "s", opened)],
        verdicts: vec![
            Verdict::new("opening", opened.median, "s", Wanted::AtMost(3.0)),
            Verdict::new("longest stall of a writer", stall.median, "ms", Wanted::AtMost(50.0)),
        ],
        seconds: 0.0,
    }))
}

struct Once {
    /// Milliseconds of the longest update.
    longest: f64,
    /// The number of updates.
    updates: f64,
    /// Runs per second.
    rate: f64,
    /// Seconds.
    opened: f64,
}

async fn once(bench: &Bench, runs: usize) -> Result<Once, AnyError> {
    let store = bench.store().await?;
    let workflow = store::workflow(&*store.db, "compaction", RUN, 10).await?;
    store::start(&*store.db, workflow).await?;
    let held = store.db.claim_tasks(claim("bench", 1)?).await?.pop().ok_or("no task")?.claim;
    let loaded = Arc::new(AtomicBool::new(false));
    let (db, over) = (store.db.clone(), loaded.clone());
    let writer = tokio::spawn(async move {
        let (mut longest, mut number) = (0.0_f64, 0);
        while !over.load(Ordering::Relaxed) {
            let name = format!("execution-{number}").parse()?;
            let update = TaskUpdate::dispatched(held, Some(name));
            let (report, millis) = timed(db.update_tasks(TaskUpdates::one(update))).await?;
            applied(&report)?;
            longest = longest.max(millis);
            number += 1;
        }
        Ok::<_, AnyError>((longest, f64::from(number)))
    });
    let begun = Instant::now();
    for _ in 1..runs {
        store::start(&*store.db, workflow).await?;
    }
    let rate = runs as f64 / begun.elapsed().as_secs_f64();
    loaded.store(true, Ordering::Relaxed);
    let (longest, updates) = writer.await??;
    let begun = Instant::now();
    connect(&store.url()).await?.stats().await?;
    Ok(Once { longest, updates, rate, opened: begun.elapsed().as_secs_f64() })
}
