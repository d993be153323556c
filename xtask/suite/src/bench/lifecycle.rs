//! Runs from creation to end.

use std::sync::Arc;

use super::figures::{Outcome, Point, Series, Spread, Verdict, Wanted};
use super::queue::{Contract, Queue, work_off};
use super::store::{self, Bench};
use super::{AnyError, floor, ratio};

const TASKS: usize = 100;
const CHAIN: usize = 10;
const CALLERS: usize = 4;
const BATCH: usize = 100;

pub(super) async fn measure(bench: &Bench) -> Result<Outcome, AnyError> {
    let runs = bench.size(1000, 20);
    let tasks = runs * TASKS;
    let (mut ours, mut starting, mut working, mut floors) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let per_second = |seconds: f64| tasks as f64 / seconds;
    for _ in 0..bench.repetitions {
        let store = bench.store().await?;
        let workflow = store::workflow(&*store.db, "lifecycle", TASKS, CHAIN).await?;
        let queue: Arc<dyn Queue> = Arc::new(Contract { db: store.db.clone(), workflow });
        let written = floor::bytes_written();
        let took = work_off(&queue, runs, tasks, CALLERS, BATCH).await?;
        let written = floor::bytes_written() - written;
        ours.push(per_second(took.all().as_secs_f64()));
        starting.push(per_second(took.starting.as_secs_f64()));
        working.push(per_second(took.working.as_secs_f64()));
        drop(store);
        let floor_store = bench.store().await?;
        match floor::of(bench, &floor_store, store::chains(TASKS, CHAIN)?).await? {
            Some(queue) => {
                let took = work_off(&queue, runs, tasks, CALLERS, BATCH).await?;
                floors.push(per_second(took.all().as_secs_f64()));
            }
            None if bench.backend() == "file" => {
                let took = floor::append_all(written, 2 * runs + took.calls)?;
                floors.push(per_second(took.as_secs_f64()));
            }
            None => {}
        }
    }
    let point = |samples| vec![Point { at: tasks as f64, spread: Spread::of(samples) }];
    let line = |name: &str, samples| Series {
        name: name.to_owned(),
        unit: "tasks/s",
        over: "tasks",
        points: point(samples),
    };
    let mut verdicts = Vec::new();
    let (all, least) = (Spread::of(ours.clone()), Spread::of(floors.clone()));
    let mut series = vec![
        line("whole life", ours),
        line("create and start", starting),
        line("claim and complete", working),
    ];
    if least.samples > 0 {
        series.push(line("floor", floors));
        let wanted = match bench.backend() {
            "postgres" => 0.7,
            "sqlite" => 0.6,
            _ => 0.5,
        };
        verdicts.push(Verdict::new(
            "whole life against the floor",
            ratio(&all, &least),
            "×",
            Wanted::AtLeast(wanted),
        ));
    }
    Ok(Outcome {
        target: "P2",
        scenario: String::new(),
        title: "Runs are created and started, their tasks claimed and completed, in chains",
        backend: bench.backend().to_owned(),
        parameters: vec![
            ("runs", runs.to_string()),
            ("tasks a run", TASKS.to_string()),
            ("tasks a chain", CHAIN.to_string()),
            ("callers", CALLERS.to_string()),
            ("batch", BATCH.to_string()),
        ],
        series,
        verdicts,
        seconds: 0.0,
    })
}
