//! The work of a job queue: claims and completions, without dependencies, and everything is kept.

use std::sync::Arc;

use super::figures::{Outcome, Point, Series, Spread, Verdict, Wanted};
use super::queue::{Contract, Queue, work_off};
use super::store::{self, Bench};
use super::{AnyError, floor, ratio};

const RUN: usize = 1000;
const BATCH: usize = 500;
/// The best of the job queues in TARGETS.md on a machine like this, in jobs per second.
const BEST_QUEUE: f64 = 25_000.0;

pub(super) async fn measure(bench: &Bench) -> Result<Outcome, AnyError> {
    let runs = bench.size(100, 4);
    let tasks = runs * RUN;
    let (mut ours, mut floors) = (Vec::new(), Vec::new());
    let claimers: &[usize] = if bench.repetitions == 1 { &[2] } else { &[1, 2, 4, 8] };
    for &callers in claimers {
        let (mut samples, mut floor_samples) = (Vec::new(), Vec::new());
        for _ in 0..bench.repetitions {
            let store = bench.store().await?;
            let workflow = store::workflow(&*store.db, "claims", RUN, 1).await?;
            let queue: Arc<dyn Queue> = Arc::new(Contract { db: store.db.clone(), workflow });
            let written = floor::bytes_written();
            let took = work_off(&queue, runs, tasks, callers, BATCH).await?;
            let share = took.working.as_secs_f64() / took.all().as_secs_f64();
            let written = (floor::bytes_written() - written) as f64 * share;
            samples.push(tasks as f64 / took.working.as_secs_f64());
            drop(store);
            let floor_store = bench.store().await?;
            match floor::of(bench, &floor_store, store::chains(RUN, 1)?).await? {
                Some(queue) => {
                    let took = work_off(&queue, runs, tasks, callers, BATCH).await?;
                    floor_samples.push(tasks as f64 / took.working.as_secs_f64());
                }
                None if bench.backend() == "file" => {
                    let took = floor::append_all(written as u64, took.calls)?;
                    floor_samples.push(tasks as f64 / took.as_secs_f64());
                }
                None => {}
            }
        }
        ours.push(Point { at: callers as f64, spread: Spread::of(samples) });
        floors.push(Point { at: callers as f64, spread: Spread::of(floor_samples) });
    }
    let best = |points: &[Point]| {
        let best = points.iter().max_by(|a, b| a.spread.median.total_cmp(&b.spread.median));
        best.map_or_else(|| Spread::of(vec![]), |best| best.spread)
    };
    let (most, least) = (best(&ours), best(&floors));
    let mut verdicts = Vec::new();
    if bench.backend() == "postgres" {
        let against = most.median / BEST_QUEUE;
        verdicts.push(Verdict::new(
            "against the best job queue (25,000 jobs/s)",
            against,
            "×",
            Wanted::AtLeast(1.0),
        ));
    }
    let line =
        |name: &str, points| Series { name: name.to_owned(), unit: "tasks/s", over: "callers", points };
    let mut series = vec![line("claim and complete", ours)];
    if least.samples > 0 {
        verdicts.push(Verdict::new("best against the floor's best", ratio(&most, &least), "×", None));
        series.push(line("floor", floors));
    }
    Ok(Outcome {
        target: "P2b",
        scenario: String::new(),
        title: "Tasks without dependencies are claimed and completed; all of them are kept",
        backend: bench.backend().to_owned(),
        parameters: vec![("tasks", tasks.to_string()), ("batch", BATCH.to_string())],
        series,
        verdicts,
        seconds: 0.0,
    })
}
