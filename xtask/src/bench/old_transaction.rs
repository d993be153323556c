//! What queues in PostgreSQL die of: a transaction that stays open, so that nothing that is deleted goes away.

use super::AnyError;
use super::figures::Outcome;
use super::store::Bench;

#[cfg(not(feature = "postgres"))]
pub(super) async fn measure(_: &Bench) -> Result<Option<Outcome>, AnyError> {
    Ok(None)
}

#[cfg(feature = "postgres")]
pub(super) async fn measure(bench: &Bench) -> Result<Option<Outcome>, AnyError> {
    use std::str::FromStr as _;

    use ork_state_api::{TaskUpdate, TaskUpdates};
    use sqlx::postgres::PgConnectOptions;
    use sqlx::{ConnectOptions as _, Executor as _};

    use super::figures::{Point, Series, Spread, Verdict, Wanted};
    use super::queue::applied;
    use super::store::{self, claim};
    use super::{ratio, timed};

    const RUN: usize = 1000;
    const CLAIM: usize = 100;

    if bench.backend() != "postgres" {
        return Ok(None);
    }
    let runs = bench.size(1000, 20);
    let store = bench.store().await?;
    let db = &*store.db;
    let workflow = store::workflow(db, "old", RUN, 1).await?;
    for _ in 0..2 {
        store::start(db, workflow).await?;
    }
    let mut old = PgConnectOptions::from_str(&store.url())?.connect().await?;
    // It sees what there is now, for as long as it is open.
    old.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM tasks").await?;
    let (mut tenths, mut samples) = (Vec::new(), Vec::new());
    for run in 1..=runs {
        store::start(db, workflow).await?;
        for _ in 0..RUN / CLAIM {
            let (claimed, millis) = timed(db.claim_tasks(claim("bench", CLAIM)?)).await?;
            samples.push(millis);
            let updates = claimed.iter().map(|task| TaskUpdate::succeeded(task.claim, None)).collect();
            applied(&db.update_tasks(TaskUpdates::new(updates)?).await?)?;
        }
        if run % (runs / 10) == 0 {
            let spread = Spread::of(std::mem::take(&mut samples));
            tenths.push(Point { at: (run * RUN) as f64, spread });
        }
    }
    old.execute("ROLLBACK").await?;
    let against = match tenths.as_slice() {
        [first, .., last] => ratio(&last.spread, &first.spread),
        _ => f64::NAN,
    };
    Ok(Some(Outcome {
        target: "P13",
        scenario: String::new(),
        title: "Tasks pass through, 100 a claim, while one old transaction stays open",
        backend: bench.backend().to_owned(),
        parameters: vec![("tasks", super::number((runs * RUN) as f64)), ("tasks a claim", CLAIM.to_string())],
        series: vec![Series { name: "claim".into(), unit: "ms", over: "tasks so far", points: tenths }],
        verdicts: vec![Verdict::new(
            "p50 of a claim in the last tenth against the first",
            against,
            "×",
            Wanted::AtMost(3.0),
        )],
        seconds: 0.0,
    }))
}
