//! A server fails under load. How long does it take until all callers have continued, and is
//! anything acknowledged lost?

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ork_state_api::{
    Database, ErrorKind, NewRun, RunId, StartRun, TaskId, TaskStatus, TaskUpdate, TaskUpdates, UpdateOutcome,
    WorkflowId,
};
use ork_state_conformance::ServerFailure;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use super::figures::{Outcome, Point, Series, Spread, Verdict, Wanted};
use super::store::{self, Bench, claim};
use super::{AnyError, number};

const CALLERS: usize = 16;
const RUN: usize = 10;
/// How many answers each caller gets before and after a failure.
const ANSWERS: u64 = 20;
/// The pause before a call is retried that was answered `Unavailable`.
const PAUSE: Duration = Duration::from_millis(20);
/// How long to wait for callers to continue.
const PATIENCE: Duration = Duration::from_secs(60);

/// The state that all callers share.
#[derive(Default)]
struct Load {
    over: AtomicBool,
    /// The number of answers of each caller.
    answers: [AtomicU64; CALLERS],
    /// The number of calls that were answered `Unavailable`.
    unavailable: AtomicU64,
    /// The acknowledged runs that started, and tasks that succeeded.
    acknowledged: Mutex<(Vec<RunId>, Vec<TaskId>)>,
}

pub(super) async fn measure(bench: &Bench) -> Result<Option<Outcome>, AnyError> {
    // The other backends have no server.
    if bench.backend() != "postgres" {
        return Ok(None);
    }
    let store = bench.store().await?;
    let workflow = store::workflow(&*store.db, "failures", RUN, 1).await?;
    let load = Arc::new(Load::default());
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        callers.spawn(call(store.db.clone(), workflow, caller, load.clone()));
    }
    let mut series = Vec::new();
    for (name, failure) in [
        ("after a restart", ServerFailure::Crash),
        ("after connections were cut", ServerFailure::ConnectionsCut),
        ("after a failover", ServerFailure::Failover),
    ] {
        let mut samples = Vec::new();
        for _ in 0..bench.repetitions {
            all_have(&load, ANSWERS, &mut callers).await?;
            if !bench.fixture.fail_server(failure).await? {
                return Ok(None);
            }
            let back = Instant::now();
            // The first answer after the failure may have come from before it.
            all_have(&load, 2, &mut callers).await?;
            samples.push(back.elapsed().as_secs_f64());
        }
        series.push(Series {
            name: format!("all callers go on {name}"),
            unit: "s",
            over: "callers",
            points: vec![Point { at: CALLERS as f64, spread: Spread::of(samples) }],
        });
    }
    load.over.store(true, Ordering::Relaxed);
    while let Some(ended) = callers.join_next().await {
        ended??;
    }
    let (runs, tasks) = &*load.acknowledged.lock().await;
    let lost = lost(&*store.db, runs, tasks).await?;
    let longest =
        series.iter().flat_map(|series| &series.points).map(|point| point.spread.high).fold(0.0, f64::max);
    if lost > 0 {
        return Err(format!("{lost} of what was acknowledged is GONE").into());
    }
    Ok(Some(Outcome {
        target: "F5",
        scenario: String::new(),
        title: "The server is stopped at once and started again, all connections are ended, and a synchronous standby takes over, under callers that start runs, claim and complete, and repeat what is answered `Unavailable`; any other error would end this",
        backend: bench.backend().to_owned(),
        parameters: vec![
            ("failures", (series.len() * bench.repetitions).to_string()),
            ("answered `Unavailable`", number(load.unavailable.load(Ordering::Relaxed) as f64)),
            ("runs and tasks acknowledged", number((runs.len() + tasks.len()) as f64)),
        ],
        series,
        verdicts: vec![
            Verdict::new("all callers go on, at the latest", longest, "s", Wanted::AtMost(5.0)),
            Verdict::new("acknowledged and lost", lost as f64, "", Wanted::AtMost(0.0)),
        ],
        seconds: 0.0,
    }))
}

/// Waits until each caller has got this many more answers.
async fn all_have(
    load: &Load,
    more: u64,
    callers: &mut JoinSet<Result<(), AnyError>>,
) -> Result<(), AnyError> {
    let now = |caller: &AtomicU64| caller.load(Ordering::Relaxed);
    let wanted: Vec<u64> = load.answers.iter().map(|caller| now(caller) + more).collect();
    let begun = Instant::now();
    while load.answers.iter().zip(&wanted).any(|(caller, wanted)| now(caller) < *wanted) {
        // They call for ever, so the first that ends has failed.
        if let Some(ended) = callers.try_join_next() {
            ended??;
        }
        if begun.elapsed() > PATIENCE {
            return Err(format!("some of {CALLERS} callers have not gone on after {PATIENCE:?}").into());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

/// Starts runs and works tasks off, for ever.
async fn call(
    db: Arc<dyn Database>,
    workflow: WorkflowId,
    caller: usize,
    load: Arc<Load>,
) -> Result<(), AnyError> {
    while !load.over.load(Ordering::Relaxed) {
        let run = answer(&load, caller, || db.create_run(NewRun::new(workflow))).await?.into_run().id;
        answer(&load, caller, || db.start_run(StartRun::pinned(run))).await?;
        load.acknowledged.lock().await.0.push(run);
        let request = claim("bench", RUN)?;
        let claimed = answer(&load, caller, || db.claim_tasks(request.clone())).await?;
        let updates =
            TaskUpdates::new(claimed.iter().map(|task| TaskUpdate::succeeded(task.claim, None)).collect())?;
        let report = answer(&load, caller, || db.update_tasks(updates.clone())).await?;
        // The answer to a repeated update that was applied although its answer was lost (rule T7).
        let done = UpdateOutcome::AlreadyTerminal { status: TaskStatus::Success };
        let is_done =
            |outcome: &UpdateOutcome| matches!(outcome, UpdateOutcome::Applied { .. }) || *outcome == done;
        if let Some(outcome) = report.outcomes.iter().find(|outcome| !is_done(outcome)) {
            return Err(format!("an update was answered {outcome:?}").into());
        }
        load.acknowledged.lock().await.1.extend(claimed.iter().map(|task| task.claim.task));
    }
    Ok(())
}

/// Repeats a call until it is answered.
async fn answer<T, F>(load: &Load, caller: usize, call: impl Fn() -> F) -> Result<T, AnyError>
where
    F: Future<Output = ork_state_api::Result<T>>,
{
    loop {
        match call().await {
            Ok(answer) => {
                load.answers[caller].fetch_add(1, Ordering::Relaxed);
                return Ok(answer);
            }
            Err(error) if matches!(error.kind(), ErrorKind::Unavailable { .. }) && error.is_retryable() => {
                load.unavailable.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// How many acknowledged items are missing.
async fn lost(db: &dyn Database, runs: &[RunId], tasks: &[TaskId]) -> Result<usize, AnyError> {
    let mut lost = 0;
    for run in runs {
        lost += usize::from(db.get_run(*run).await.is_err());
    }
    for task in tasks {
        lost += usize::from(db.get_task(*task).await?.task.status != TaskStatus::Success);
    }
    if tasks.iter().collect::<BTreeSet<_>>().len() != tasks.len() {
        return Err("a task was completed twice".into());
    }
    let findings = db.verify().await?;
    if !findings.is_empty() {
        return Err(format!("the store is not sound: {findings:?}").into());
    }
    Ok(lost)
}
