//! Long logs: an append and a look at the end must not depend on what was logged before.

use ork_state_api::limits::MAX_LOG_CHUNK_BYTES;
use ork_state_api::{Capability, Database, LogChunk, LogPosition, LogRange, TaskId};

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
    store::start(db, workflow).await?;
    let task = db.claim_tasks(claim("bench", 1)?).await?.pop().ok_or("no task")?.task.id;
    let (mut appends, mut reads) = (Vec::new(), Vec::new());
    let filler = vec![b'.'; MAX_LOG_CHUNK_BYTES];
    let mut length = db.append_log(task, LogChunk::new(&filler[..CHUNK])?).await?.length;
    for size in [1 << 10, 1 << 20, 32 << 20, bench.size(1 << 30, 64 << 20) as u64] {
        while length < size {
            let part = usize::try_from(size - length).unwrap_or(usize::MAX).min(filler.len());
            length = db.append_log(task, LogChunk::new(&filler[..part])?).await?.length;
        }
        let (append, read);
        (length, append, read) = look(db, task).await?;
        appends.push(Point { at: size as f64 / 1024.0, spread: append });
        reads.push(Point { at: size as f64 / 1024.0, spread: read });
    }
    let verdicts = verdicts(&appends, &reads);
    let line = |name: &str, points| Series { name: name.to_owned(), unit: "ms", over: "KiB of log", points };
    Ok(Some(Outcome {
        target: "P6",
        scenario: String::new(),
        title: "1 KiB is appended to a log, and its last 64 KiB are read",
        backend: bench.backend().to_owned(),
        parameters: vec![("rounds", ROUNDS.to_string())],
        series: vec![line("append 1 KiB", appends), line("read the last 64 KiB", reads)],
        verdicts,
        seconds: 0.0,
    }))
}

/// How long an append and a look at the end take now; the first is how long the log is afterwards.
pub(super) async fn look(db: &dyn Database, task: TaskId) -> Result<(u64, Spread, Spread), AnyError> {
    let (mut length, mut append, mut read) = (0, Vec::new(), Vec::new());
    let chunk = vec![b'x'; CHUNK];
    for round in 0..WARM_UP + ROUNDS {
        let (appended, millis) = timed(db.append_log(task, LogChunk::new(&chunk)?)).await?;
        length = appended.length;
        if round >= WARM_UP {
            append.push(millis);
        }
    }
    let end = LogRange::new(LogPosition::BeforeEnd(END as u64), END)?;
    for round in 0..WARM_UP + ROUNDS {
        let (slice, millis) = timed(db.read_log(task, end)).await?;
        if slice.bytes.len() != END {
            return Err(format!("the end of the log has {} bytes", slice.bytes.len()).into());
        }
        if round >= WARM_UP {
            read.push(millis);
        }
    }
    Ok((length, Spread::of(append), Spread::of(read)))
}

pub(super) fn verdicts(appends: &[Point], reads: &[Point]) -> Vec<Verdict> {
    let against = |points: &[Point]| match points {
        [first, .., last] => ratio(&last.spread, &first.spread),
        _ => f64::NAN,
    };
    vec![
        Verdict::new(
            "p50 of an append to the longest against the shortest",
            against(appends),
            "×",
            Wanted::AtMost(1.2),
        ),
        Verdict::new(
            "p50 of reading the end of the longest against the shortest",
            against(reads),
            "×",
            Wanted::AtMost(1.2),
        ),
    ]
}
