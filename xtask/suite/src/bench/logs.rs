//! Long logs: an append, or a read of the end, must not depend on what was logged before.

use ork_state_api::limits::MAX_LOG_CHUNK_BYTES;
use ork_state_api::{Capability, ClaimedTask, Database, LogChunk, LogPosition, LogRange, TaskId, WorkflowId};

use super::figures::{Outcome, Point, Series, Spread, Verdict, Wanted};
use super::store::{self, Bench, claim};
use super::{AnyError, ratio, timed};

pub(super) const CHUNK: usize = 1024;
const END: usize = 64 * 1024;
const WARM_UP: usize = 20;
const ROUNDS: usize = 200;

pub(super) async fn measure(bench: &Bench) -> Result<Option<Outcome>, AnyError> {
    let store = bench.store().await?;
    let db = &*store.db;
    // A gigabyte in memory shows nothing.
    if !db.backend().capabilities.has(Capability::Logs) || bench.backend() == "memory" {
        return Ok(None);
    }
    let workflow = store::workflow(db, "logs", 1, 1).await?;
    let (task, short) = (claimed(db, workflow).await?.claim.task, claimed(db, workflow).await?.claim.task);
    let mut looks = Looks::default();
    let filler = vec![b'.'; MAX_LOG_CHUNK_BYTES];
    let mut length = db.append_log(task, LogChunk::new(&filler[..CHUNK])?).await?.length;
    for size in [1 << 10, 1 << 20, 32 << 20, bench.size(1 << 30, 64 << 20) as u64] {
        while length < size {
            let part = usize::try_from(size - length).unwrap_or(usize::MAX).min(filler.len());
            length = db.append_log(task, LogChunk::new(&filler[..part])?).await?.length;
        }
        length = looks.look(db, task, short, size as f64 / 1024.0).await?;
    }
    let verdicts = looks.verdicts();
    Ok(Some(Outcome {
        target: "P6",
        scenario: String::new(),
        title: "1 KiB is appended to a log, and its last 64 KiB are read, in turns with a short log",
        backend: bench.backend().to_owned(),
        parameters: vec![("rounds", ROUNDS.to_string())],
        series: looks.series("KiB of log"),
        verdicts,
        seconds: 0.0,
    }))
}

/// A claimed task of a new run.
pub(super) async fn claimed(db: &dyn Database, workflow: WorkflowId) -> Result<ClaimedTask, AnyError> {
    store::start(db, workflow).await?;
    Ok(db.claim_tasks(claim("bench", 1)?).await?.pop().ok_or("no task")?)
}

/// How long an append and a read of the end take while a log grows, and the same with a short log.
/// They are measured in turns, so that other load affects both.
#[derive(Default)]
pub(super) struct Looks {
    appends: Vec<Point>,
    short_appends: Vec<Point>,
    reads: Vec<Point>,
    short_reads: Vec<Point>,
}

impl Looks {
    /// The length of the log afterwards.
    pub(super) async fn look(
        &mut self,
        db: &dyn Database,
        task: TaskId,
        short: TaskId,
        at: f64,
    ) -> Result<u64, AnyError> {
        let chunk = vec![b'x'; CHUNK];
        let mut length = 0;
        let (mut millis, mut short_millis) = (Vec::new(), Vec::new());
        for _ in 0..WARM_UP + ROUNDS {
            short_millis.push(timed(db.append_log(short, LogChunk::new(&chunk)?)).await?.1);
            let (appended, took) = timed(db.append_log(task, LogChunk::new(&chunk)?)).await?;
            length = appended.length;
            millis.push(took);
        }
        self.appends.push(point(at, &millis));
        self.short_appends.push(point(at, &short_millis));
        let (mut millis, mut short_millis) = (Vec::new(), Vec::new());
        for _ in 0..WARM_UP + ROUNDS {
            short_millis.push(read_end(db, short).await?);
            millis.push(read_end(db, task).await?);
        }
        self.reads.push(point(at, &millis));
        self.short_reads.push(point(at, &short_millis));
        Ok(length)
    }

    pub(super) fn verdicts(&self) -> Vec<Verdict> {
        let against = |long: &[Point], short: &[Point]| match (long.last(), short.last()) {
            (Some(long), Some(short)) => ratio(&long.spread, &short.spread),
            _ => f64::NAN,
        };
        let verdict = |figure, value| Verdict::new(figure, value, "×", Wanted::AtMost(1.2));
        vec![
            verdict(
                "p50 of an append to the longest against that to a short one",
                against(&self.appends, &self.short_appends),
            ),
            verdict(
                "p50 of reading the end of the longest against that of a short one",
                against(&self.reads, &self.short_reads),
            ),
        ]
    }

    pub(super) fn series(self, over: &'static str) -> Vec<Series> {
        let line = |name: &str, points| Series { name: name.to_owned(), unit: "ms", over, points };
        vec![
            line("append 1 KiB", self.appends),
            line("append to a short log, in turns with it", self.short_appends),
            line("read the last 64 KiB", self.reads),
            line("read a short one, in turns with it", self.short_reads),
        ]
    }
}

fn point(at: f64, millis: &[f64]) -> Point {
    Point { at, spread: Spread::of(millis[WARM_UP..].to_vec()) }
}

async fn read_end(db: &dyn Database, task: TaskId) -> Result<f64, AnyError> {
    let end = LogRange::new(LogPosition::BeforeEnd(END as u64), END)?;
    let (slice, millis) = timed(db.read_log(task, end)).await?;
    if slice.bytes.len() != END {
        return Err(format!("the end of the log has {} bytes", slice.bytes.len()).into());
    }
    Ok(millis)
}
