//! A log of very many chunks, in the databases that store each chunk as a row.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ork_state_api::{Database, Limit, LogChunk, Prune, TaskId, TaskUpdate, TaskUpdates};
use tokio::task::JoinSet;

use super::figures::{Outcome, Point, Series, Spread, Verdict};
use super::logs::{self, Looks};
use super::queue::applied;
use super::store::{self, Bench, claim};
use super::{AnyError, timed};

const CALLERS: usize = 64;

pub(super) async fn measure(bench: &Bench) -> Result<Option<Outcome>, AnyError> {
    // The file backend stores a log as one file, however it was written.
    if !matches!(bench.backend(), "postgres" | "sqlite") {
        return Ok(None);
    }
    let store = bench.store().await?;
    let db = &*store.db;
    let workflow = store::workflow(db, "chunks", 1, 1).await?;
    let logged = logs::claimed(db, workflow).await?;
    let task = logged.claim.task;
    let short = logs::claimed(db, workflow).await?.claim.task;
    let filler = store::connect(&filler_url(&store.url())).await?;
    let (mut looks, mut fills) = (Looks::default(), Vec::new());
    let mut length = 0;
    for chunks in [1000, 10_000, bench.size(100_000, 12_000), bench.size(1_000_000, 15_000)] {
        let missing = chunks - usize::try_from(length)? / logs::CHUNK;
        let begun = Instant::now();
        fill(&filler, task, missing).await?;
        let at = chunks as f64;
        let rate = missing as f64 / begun.elapsed().as_secs_f64();
        fills.push(Point { at, spread: Spread::of(vec![rate]) });
        length = looks.look(db, task, short, at).await?;
    }

    let done = TaskUpdates::new(vec![TaskUpdate::succeeded(logged.claim, None)])?;
    applied(&db.update_tasks(done).await?)?;
    store::start(db, workflow).await?;
    let (stall, prune) = prune(&store.db).await?;

    let mut verdicts = looks.verdicts();
    verdicts.push(Verdict::new("deleting its run", prune, "ms", None));
    verdicts.push(Verdict::new("the longest update of another run meanwhile", stall, "ms", None));
    let mut series = looks.series("chunks");
    series.push(Series {
        name: "written by all callers".to_owned(),
        unit: "chunks/s",
        over: "chunks",
        points: fills,
    });
    Ok(Some(Outcome {
        target: "P6b",
        scenario: String::new(),
        title: "A log is written in chunks of 1 KiB by many callers, and its run deleted in the end",
        backend: bench.backend().to_owned(),
        parameters: vec![("callers", CALLERS.to_string())],
        series,
        verdicts,
        seconds: 0.0,
    }))
}

/// Filler data need not be durable. On PostgreSQL, appends to one log wait for each other's
/// commits.
fn filler_url(url: &str) -> String {
    if !url.starts_with("postgres") {
        return url.to_owned();
    }
    let and = if url.contains('?') { '&' } else { '?' };
    format!("{url}{and}options=-csynchronous_commit%3Doff")
}

async fn fill(db: &Arc<dyn Database>, task: TaskId, chunks: usize) -> Result<(), AnyError> {
    let left = Arc::new(AtomicUsize::new(chunks));
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let (db, left) = (Arc::clone(db), Arc::clone(&left));
        callers.spawn(async move {
            let chunk = [b'.'; logs::CHUNK];
            while left.try_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                db.append_log(task, LogChunk::new(&chunk)?).await?;
            }
            Ok::<_, AnyError>(())
        });
    }
    while let Some(caller) = callers.join_next().await {
        caller??;
    }
    Ok(())
}

/// The longest update of a concurrent caller, and the duration of the prune, in milliseconds.
async fn prune(db: &Arc<dyn Database>) -> Result<(f64, f64), AnyError> {
    let other = db.claim_tasks(claim("bench", 1)?).await?.pop().ok_or("no other task")?.claim;
    let pruning = tokio::spawn({
        let db = Arc::clone(db);
        async move {
            let mut all = Prune::older_than(Duration::ZERO);
            all.limit = Limit::new(1)?;
            let (pruned, millis) = timed(db.prune(all)).await?;
            if pruned.runs != 1 {
                return Err(AnyError::from("its run was not deleted"));
            }
            Ok(millis)
        }
    });
    let mut longest: f64 = 0.0;
    while !pruning.is_finished() {
        let update = TaskUpdates::new(vec![TaskUpdate::dispatched(other, None)])?;
        let (outcomes, millis) = timed(db.update_tasks(update)).await?;
        applied(&outcomes)?;
        longest = longest.max(millis);
    }
    Ok((longest, pruning.await??))
}
