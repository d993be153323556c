//! The usual death of queues in databases: a transaction that stays open. Then no deleted row goes
//! away (PostgreSQL), or the WAL cannot restart (SQLite).

use ork_state_api::{TaskUpdate, TaskUpdates};
use sqlx::{AnyConnection, Connection as _, Executor as _};

use super::figures::{Outcome, Point, Series, Spread, Verdict, Wanted};
use super::queue::applied;
use super::store::{self, Bench, claim};
use super::{AnyError, ratio, timed};

const RUN: usize = 1000;
const CLAIM: usize = 100;

pub(super) async fn measure(bench: &Bench) -> Result<Option<Outcome>, AnyError> {
    let (runs, wanted) = match bench.backend() {
        "postgres" => (bench.size(1000, 20), Some(Wanted::AtMost(3.0))),
        "sqlite" => (bench.size(200, 20), None),
        // The others have no transactions that stay open.
        _ => return Ok(None),
    };
    let store = bench.store().await?;
    let db = &*store.db;
    let workflow = store::workflow(db, "old", RUN, 1).await?;
    for _ in 0..2 {
        store::start(db, workflow).await?;
    }
    sqlx::any::install_default_drivers();
    let mut old = AnyConnection::connect(&store.url()).await?;
    // It sees the current state for as long as it is open.
    let begin = if bench.backend() == "postgres" { "BEGIN ISOLATION LEVEL REPEATABLE READ" } else { "BEGIN" };
    old.execute(begin).await?;
    old.execute("SELECT count(*) FROM tasks").await?;
    let (mut tenths, mut wal, mut samples) = (Vec::new(), Vec::new(), Vec::new());
    for run in 1..=runs {
        store::start(db, workflow).await?;
        for _ in 0..RUN / CLAIM {
            let (claimed, millis) = timed(db.claim_tasks(claim("bench", CLAIM)?)).await?;
            samples.push(millis);
            let updates = claimed.iter().map(|task| TaskUpdate::succeeded(task.claim, None)).collect();
            applied(&db.update_tasks(TaskUpdates::new(updates)?).await?)?;
        }
        if run % (runs / 10) == 0 {
            let at = (run * RUN) as f64;
            tenths.push(Point { at, spread: Spread::of(std::mem::take(&mut samples)) });
            wal.extend(wal_mib(&store.url()).map(|mib| Point { at, spread: Spread::of(vec![mib]) }));
        }
    }
    old.execute("ROLLBACK").await?;
    let against = match tenths.as_slice() {
        [first, .., last] => ratio(&last.spread, &first.spread),
        _ => f64::NAN,
    };
    let figure = "p50 of a claim in the last tenth against the first";
    let mut verdicts = vec![Verdict::new(figure, against, "×", wanted)];
    if !wal.is_empty() {
        // The next write finds that nobody reads the old contents any more.
        for _ in 0..2 {
            store::start(db, workflow).await?;
        }
        let mib = wal_mib(&store.url()).unwrap_or(f64::NAN);
        verdicts.push(Verdict::new("the WAL, two runs after the old transaction's end", mib, "MiB", None));
    }
    let line =
        |name: &str, unit, points| Series { name: name.to_owned(), unit, over: "tasks so far", points };
    let mut series = vec![line("claim", "ms", tenths), line("WAL", "MiB", wal)];
    series.retain(|series| !series.points.is_empty());
    Ok(Some(Outcome {
        target: "P13",
        scenario: String::new(),
        title: "Tasks pass through, 100 a claim, while one old transaction stays open",
        backend: bench.backend().to_owned(),
        parameters: vec![("tasks", super::number((runs * RUN) as f64)), ("tasks a claim", CLAIM.to_string())],
        series,
        verdicts,
        seconds: 0.0,
    }))
}

/// The size of a SQLite file's WAL.
fn wal_mib(url: &str) -> Option<f64> {
    let path = url.strip_prefix("sqlite://")?;
    let bytes = std::fs::metadata(format!("{path}-wal")).map_or(0, |file| file.len());
    Some(bytes as f64 / 1024.0 / 1024.0)
}
