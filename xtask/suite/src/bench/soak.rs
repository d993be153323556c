//! A steady load for a long time. Does a process that works on a store grow, and does the store?

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use ork_state_api::{
    ClaimJobs, ClaimTasks, ClaimedTask, Database, DeferTask, Delay, ErrorKind, Heartbeat, JobUpdate,
    JobUpdates, Json, LeaseTime, Limit, ListRuns, ListTasks, LogChunk, LogPosition, LogRange, NewDeferredJob,
    NewWorkflow, PageRequest, Prune, TaskUpdate, TaskUpdates, Text, Topic, WorkflowId,
};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::child::{Other, Role, say};
use super::figures::{Outcome, Point, Series, Spread, Verdict, Wanted};
use super::memory::status;
use super::store::{self, Bench, connect};
use super::{AnyError, number, ratio};

/// Runs that are started per second, if the store is fast enough.
const RUNS: u32 = 20;
/// Tasks per run, in chains of five.
const RUN: usize = 20;
const WORKERS: usize = 4;
const BATCH: usize = 20;
const LEASE: Duration = Duration::from_secs(30);
/// How often the dashboard reads, jobs are polled and old runs are pruned.
const LOOK: Duration = Duration::from_millis(500);
/// How long a run is kept after its end. So the store holds as much after a minute as after an
/// hour.
const KEPT: Duration = Duration::from_secs(10);
/// The number of points of a curve.
const POINTS: usize = 12;
/// The unit of the store's size on disk.
const STORED: &str = "MiB stored";
/// From this duration on, growth is judged.
const LONG: Duration = Duration::from_secs(10 * 60);
/// Growth by up to this factor counts as flat.
const FLAT: f64 = 1.1;

/// The state of the working process, each second.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Sample {
    kib: u64,
    threads: u64,
    files: u64,
    /// Tasks that it has completed so far.
    tasks: u64,
}

/// One process per backend, all at the same time.
pub(super) async fn measure(
    benches: &[Bench],
    time: Duration,
) -> Vec<(&'static str, Result<Outcome, AnyError>)> {
    // A store in memory has no other processes.
    let several = benches.iter().filter(|bench| bench.backend() != "memory");
    join_all(several.map(async |bench| (bench.backend(), soak(bench, time).await))).await
}

async fn soak(bench: &Bench, time: Duration) -> Result<Outcome, AnyError> {
    let store = bench.store().await?;
    let dag = store::retried_chains(RUN, 5, 3)?;
    let workflow = store.db.create_workflow(NewWorkflow::new("soak".parse()?, dag)).await?.id;
    let mut other = Other::start(&Role::Soak { url: store.url(), workflow, seconds: time.as_secs() })?;
    let begun = Instant::now();
    let mut samples: Vec<(f64, Sample, f64)> = Vec::new();
    loop {
        let line = other.line().await?;
        if line == "over" {
            break;
        }
        let stored = stored_kib(&store.url()).await?;
        samples.push((begun.elapsed().as_secs_f64() / 60.0, serde_json::from_str(&line)?, stored));
    }
    let minutes = samples.last().map_or(0.0, |(minutes, ..)| *minutes);
    let tasks = samples.last().map_or(0, |(_, sample, _)| sample.tasks);
    let line = |name: &str, unit, of: &dyn Fn(&(f64, Sample, f64)) -> f64| Series {
        name: name.to_owned(),
        unit,
        over: "minutes",
        points: points(&samples, of),
    };
    let series = vec![
        line("memory", "MiB", &|(_, sample, _)| sample.kib as f64 / 1024.0),
        line("threads", "threads", &|(_, sample, _)| sample.threads as f64),
        line("open files", "files", &|(_, sample, _)| sample.files as f64),
        line("store", STORED, &|(.., kib)| kib / 1024.0),
    ];
    let flat = |series: &Series| {
        let name = format!("{} in the last twelfth of the time against the third", series.name);
        // The stored size goes up and down between folds, vacuums or checkpoints, so it is only
        // shown. So is everything from a short run.
        let judged = series.unit != STORED && time >= LONG;
        let wanted = judged.then_some(Wanted::AtMost(FLAT));
        Verdict::new(name, growth(series), "×", wanted)
    };
    Ok(Outcome {
        target: "F8",
        scenario: String::new(),
        title: "Runs are started at a steady pace, worked off with failures, jobs, heartbeats, logs and outputs, looked at, and pruned ten seconds after their end; every five seconds one more handle is opened and closed; all backends at the same time",
        backend: bench.backend().to_owned(),
        parameters: vec![
            ("minutes", number((minutes * 10.0).round() / 10.0)),
            ("tasks completed", number(tasks as f64)),
            ("tasks a second", number(tasks as f64 / (minutes * 60.0))),
        ],
        verdicts: series.iter().map(flat).collect(),
        series,
        seconds: 0.0,
    })
}

/// The samples in this many equal parts of the time.
fn points(samples: &[(f64, Sample, f64)], of: &dyn Fn(&(f64, Sample, f64)) -> f64) -> Vec<Point> {
    let part = samples.len().div_ceil(POINTS).max(1);
    let point = |part: &[(f64, Sample, f64)]| {
        let at = part.last().map_or(f64::NAN, |(minutes, ..)| *minutes);
        Point { at, spread: Spread::of(part.iter().map(of).collect()) }
    };
    samples.chunks(part).map(point).collect()
}

/// From the third part on. By then all connections are open and all caches full.
fn growth(series: &Series) -> f64 {
    match series.points.as_slice() {
        [_, _, early, .., last] => ratio(&last.spread, &early.spread),
        _ => f64::NAN,
    }
}

/// The store's size on disk.
async fn stored_kib(url: &str) -> Result<f64, AnyError> {
    if url.starts_with("postgres") {
        use std::str::FromStr as _;

        use sqlx::{ConnectOptions as _, Connection as _};

        let mut connection = sqlx::postgres::PgConnectOptions::from_str(url)?.connect().await?;
        let size = sqlx::query_scalar("SELECT pg_database_size(current_database())");
        let bytes: i64 = size.fetch_one(&mut connection).await?;
        connection.close().await?;
        return Ok(bytes as f64 / 1024.0);
    }
    let path = url.split_once(':').map_or(url, |(_, path)| path);
    let path = Path::new(path.strip_prefix("//").unwrap_or(path));
    let files = if path.is_dir() {
        std::fs::read_dir(path)?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<Vec<_>, _>>()?
    } else {
        vec![path.to_owned(), PathBuf::from(format!("{}-wal", path.display()))]
    };
    // A file that is gone by now takes no space.
    let lengths = files.iter().filter_map(|file| std::fs::metadata(file).ok()).map(|file| file.len());
    Ok(lengths.sum::<u64>() as f64 / 1024.0)
}

/// What the workers have done so far.
#[derive(Debug, Default)]
struct Done {
    claimed: AtomicU64,
    succeeded: AtomicU64,
}

/// The working process. It prints a [`Sample`] each second and `over` at the end.
pub(super) async fn work(url: &str, workflow: WorkflowId, time: Duration) -> Result<(), AnyError> {
    let db = connect(url).await?;
    let done = Arc::new(Done::default());
    let mut working = JoinSet::new();
    working.spawn(start_runs(db.clone(), workflow));
    for _ in 0..WORKERS {
        working.spawn(work_off(db.clone(), done.clone()));
    }
    working.spawn(look(db.clone()));
    working.spawn(keep_house(db.clone()));
    working.spawn(open_and_close(url.to_owned()));
    let over = Instant::now() + time;
    let mut each = tokio::time::interval(Duration::from_secs(1));
    while Instant::now() < over {
        tokio::select! {
            _ = each.tick() => {
                let sample = Sample {
                    kib: status("VmRSS:")?,
                    threads: status("Threads:")?,
                    files: std::fs::read_dir("/proc/self/fd")?.count() as u64,
                    tasks: done.succeeded.load(Ordering::Relaxed),
                };
                say(&serde_json::to_string(&sample)?).await?;
            }
            // They work for ever, so the first that ends has failed.
            Some(ended) = working.join_next() => ended??,
        }
    }
    say("over").await
}

async fn start_runs(db: Arc<dyn Database>, workflow: WorkflowId) -> Result<(), AnyError> {
    let mut each = tokio::time::interval(Duration::from_secs(1) / RUNS);
    each.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        each.tick().await;
        store::start(&*db, workflow).await?;
    }
}

async fn work_off(db: Arc<dyn Database>, done: Arc<Done>) -> Result<(), AnyError> {
    let claim = ClaimTasks::new("soak".parse()?, LeaseTime::new(LEASE)?)
        .with_limit(Limit::new(BATCH)?)
        .with_dependency_outputs();
    let mut ready = db.watch(Topic::Ready).await?;
    loop {
        let claimed = db.claim_tasks(claim.clone()).await?;
        if claimed.is_empty() {
            // Retries become ready without a hint.
            let _ = tokio::time::timeout(Duration::from_secs(1), ready.changed()).await;
            continue;
        }
        bring_on(&*db, claimed, &done).await?;
    }
}

/// Most tasks succeed, some fail once, some wait for a job elsewhere, and some have a log.
async fn bring_on(db: &dyn Database, claimed: Vec<ClaimedTask>, done: &Done) -> Result<(), AnyError> {
    let claims: Vec<_> = claimed.iter().map(|task| task.claim).collect();
    db.update_tasks(TaskUpdates::new(claims.iter().copied().map(TaskUpdate::running).collect())?).await?;
    db.heartbeat(Heartbeat::new(claims, LeaseTime::new(LEASE)?)?).await?;
    let output = Json::parse(r#"{"rows": 123456, "checksum": "9f86d081884c7d659a2feaa0c55ad015"}"#)?;
    let mut ends = Vec::new();
    for ClaimedTask { claim, task, .. } in claimed {
        // One task in ten has a log. One in twenty waits for a job, and one in twenty fails once.
        let kind = done.claimed.fetch_add(1, Ordering::Relaxed) % 20;
        if kind.is_multiple_of(10) {
            db.append_log(task.id, LogChunk::new(&[b'.'; 200])?).await?;
        }
        if kind == 1 {
            let job = NewDeferredJob::new("batch".parse()?, Text::new("a job")?, output.clone());
            db.defer_task(DeferTask::new(claim, [job])?).await?;
        } else if kind == 2 {
            ends.push(TaskUpdate::failed(claim, Text::lossy("once more"), Delay::new(LOOK)?));
        } else {
            done.succeeded.fetch_add(1, Ordering::Relaxed);
            ends.push(TaskUpdate::succeeded(claim, Some(output.clone())));
        }
    }
    if !ends.is_empty() {
        db.update_tasks(TaskUpdates::new(ends)?).await?;
    }
    Ok(())
}

/// The queries of a dashboard.
async fn look(db: Arc<dyn Database>) -> Result<(), AnyError> {
    let mut each = tokio::time::interval(LOOK);
    loop {
        each.tick().await;
        db.stats().await?;
        for run in db.list_runs(ListRuns::default()).await?.items {
            let tasks = there(db.list_tasks(ListTasks::of(run.id, PageRequest::default())).await)?;
            if let Some(task) = tasks.as_ref().and_then(|tasks| tasks.items.first()) {
                there(db.read_log(task.id, LogRange::new(LogPosition::Offset(0), 1024)?).await)?;
            }
        }
    }
}

/// A listed run may have been pruned by now.
fn there<T>(answer: ork_state_api::Result<T>) -> Result<Option<T>, AnyError> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Polls jobs, takes back lapsed leases, and prunes.
async fn keep_house(db: Arc<dyn Database>) -> Result<(), AnyError> {
    let claim = ClaimJobs::new("soak".parse()?, LeaseTime::new(LEASE)?);
    let mut each = tokio::time::interval(LOOK);
    loop {
        each.tick().await;
        let jobs = db.claim_jobs(claim.clone()).await?;
        let ends = jobs.iter().map(|job| JobUpdate::completed(job.claim, None)).collect();
        db.update_jobs(JobUpdates::new(ends)?).await?;
        db.expire_leases(Limit::default()).await?;
        db.expire_timeouts(Limit::default()).await?;
        db.prune({
            let mut prune = Prune::older_than(KEPT);
            prune.limit = Limit::default();
            prune
        })
        .await?;
    }
}

async fn open_and_close(url: String) -> Result<(), AnyError> {
    let mut each = tokio::time::interval(Duration::from_secs(5));
    loop {
        each.tick().await;
        connect(&url).await?.stats().await?;
    }
}
