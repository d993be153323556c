//! Claims while many tasks are pending. Their cost must not depend on the number.

use std::sync::Arc;
use std::time::Instant;

use ork_state_api::{Database, Result, TaskUpdate, TaskUpdates, WorkflowId};

use super::figures::{Outcome, Point, Series, Spread, Verdict, Wanted};
use super::queue::{Contract, Queue, work_off};
use super::store::{self, Bench, Store, claim, start};
use super::{AnyError, ratio, timed};

const RUN: usize = 1000;
const CLAIM: usize = 100;
const WARM_UP: usize = 10;
const ROUNDS: usize = 100;

pub(super) async fn measure(bench: &Bench) -> std::result::Result<Outcome, AnyError> {
    let largest = bench.size(1_000_000, 10_000);
    let (small, workflow) = open(bench).await?;
    start(&*small.db, workflow).await?;
    let (store, workflow) = open(bench).await?;
    let (mut pending, mut claims, mut beside, mut lives) = (0, Vec::new(), Vec::new(), Vec::new());
    let mut size = RUN;
    while size <= largest {
        while pending < size {
            start(&*store.db, workflow).await?;
            pending += RUN;
        }
        let turns = in_turns(&*store.db, &*small.db).await?;
        claims.push(Point { at: size as f64, spread: turns.claims });
        beside.push(Point { at: size as f64, spread: turns.small });
        if size <= 100_000 {
            lives.push(Point { at: size as f64, spread: lifecycles(bench, &store, workflow).await? });
        }
        size *= 10;
    }
    drop(store);

    let (store, workflow) = open(bench).await?;
    for _ in 0..bench.size(100, 10) {
        let run = start(&*store.db, workflow).await?;
        store.db.pause_run(run).await?;
    }
    start(&*store.db, workflow).await?;
    let paused = in_turns(&*store.db, &*small.db).await?;

    let mut verdicts = Vec::new();
    if let Some((last, small)) = claims.last().zip(beside.last()) {
        let figure = format!("p50 of a claim at {} pending against that at 1,000", super::number(last.at));
        let against = ratio(&last.spread, &small.spread);
        verdicts.push(Verdict::new(figure, against, "×", Wanted::AtMost(1.3)));
        let figure = "p50 of a claim beside 100,000 in paused runs against that at 1,000 pending";
        let against = ratio(&paused.claims, &paused.small);
        verdicts.push(Verdict::new(figure, against, "×", Wanted::AtMost(1.3)));
    }
    for &(pending, before, wanted) in present_design(bench.backend()) {
        if let Some(life) = lives.iter().find(|point| point.at == pending) {
            let figure = format!(
                "P3: lifecycle at {} pending against Ork's {} tasks/s",
                super::number(pending),
                super::number(before)
            );
            verdicts.push(Verdict::new(figure, life.spread.median / before, "×", Wanted::AtLeast(wanted)));
        }
    }
    let line = |name: &str, unit, points| Series { name: name.to_owned(), unit, over: "pending", points };
    let paused = vec![Point { at: bench.size(100, 10) as f64 * RUN as f64, spread: paused.claims }];
    Ok(Outcome {
        target: "P1",
        scenario: String::new(),
        title: "100 tasks are claimed, and given back, in turns with a store where 1,000 are pending; between that, whole lives of 10,000 tasks beside the same backlog",
        backend: bench.backend().to_owned(),
        parameters: vec![("tasks a claim", CLAIM.to_string()), ("rounds", ROUNDS.to_string())],
        series: vec![
            line("claim", "ms", claims),
            line("claim at 1,000 pending, in turns with it", "ms", beside),
            line("claim, all others in paused runs", "ms", paused),
            line("whole lives", "tasks/s", lives),
        ],
        verdicts,
        seconds: 0.0,
    })
}

/// The figures of Ork before ork-state, in tasks per second, on a machine like this (TARGETS.md).
/// With each, how many times that is wanted.
fn present_design(backend: &str) -> &'static [(f64, f64, f64)] {
    match backend {
        "postgres" => &[(1000.0, 2000.0, 8.0), (100_000.0, 53.0, 150.0)],
        "sqlite" => &[(1000.0, 7000.0, 4.0), (100_000.0, 470.0, 40.0)],
        _ => &[],
    }
}

async fn open(bench: &Bench) -> std::result::Result<(Store, WorkflowId), AnyError> {
    let store = bench.store().await?;
    let workflow = store::workflow(&*store.db, "backlog", RUN, 1).await?;
    Ok((store, workflow))
}

/// Milliseconds of a claim in a large store and in a small one, taken in turns. So other load
/// affects both.
struct Turns {
    claims: Spread,
    small: Spread,
}

async fn in_turns(store: &dyn Database, small: &dyn Database) -> Result<Turns> {
    let (mut claims, mut others) = (Vec::with_capacity(ROUNDS), Vec::with_capacity(ROUNDS));
    for round in 0..WARM_UP + ROUNDS {
        let pair = [claim_and_release(small).await?, claim_and_release(store).await?];
        if round >= WARM_UP {
            others.push(pair[0]);
            claims.push(pair[1]);
        }
    }
    Ok(Turns { claims: Spread::of(claims), small: Spread::of(others) })
}

/// Milliseconds of the claim.
async fn claim_and_release(db: &dyn Database) -> Result<f64> {
    let (claimed, millis) = timed(db.claim_tasks(claim("bench", CLAIM)?)).await?;
    let released = claimed.iter().map(|task| TaskUpdate::released(task.claim)).collect();
    db.update_tasks(TaskUpdates::new(released)?).await?;
    Ok(millis)
}

/// Tasks per second from the creation of runs to their end, with four concurrent callers.
/// Afterwards as many tasks are pending as before.
async fn lifecycles(
    bench: &Bench,
    store: &Store,
    workflow: WorkflowId,
) -> std::result::Result<Spread, AnyError> {
    let queue: Arc<dyn Queue> = Arc::new(Contract { db: store.db.clone(), workflow });
    let runs = bench.size(10, 1);
    let mut samples = Vec::new();
    for _ in 0..bench.repetitions {
        let begun = Instant::now();
        work_off(&queue, runs, runs * RUN, 4, CLAIM).await?;
        samples.push((runs * RUN) as f64 / begun.elapsed().as_secs_f64());
    }
    Ok(Spread::of(samples))
}
