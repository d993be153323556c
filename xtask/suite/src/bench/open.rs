//! Opening a store that is up to date.

use std::time::Instant;

use super::AnyError;
use super::figures::{Outcome, Point, Series, Spread, Verdict, Wanted};
use super::store::{self, Bench, connect};

pub(super) async fn measure(bench: &Bench) -> Result<Option<Outcome>, AnyError> {
    if bench.backend() == "memory" {
        return Ok(None);
    }
    let store = bench.store().await?;
    let workflow = store::workflow(&*store.db, "open", 100, 10).await?;
    for _ in 0..10 {
        store::start(&*store.db, workflow).await?;
    }
    let mut samples = Vec::new();
    for _ in 0..bench.size(50, 5) {
        let begun = Instant::now();
        let db = connect(&store.url()).await?;
        let report = db.migrate().await?;
        samples.push(begun.elapsed().as_secs_f64() * 1000.0);
        if !report.applied.is_empty() {
            return Err("the store was not up to date".into());
        }
    }
    let spread = Spread::of(samples);
    let wanted = if bench.backend() == "postgres" { 100.0 } else { 30.0 };
    Ok(Some(Outcome {
        target: "P10",
        scenario: String::new(),
        title: "A store of 1,000 tasks that is up to date is opened, and migrated all the same",
        backend: bench.backend().to_owned(),
        parameters: vec![],
        series: vec![Series {
            name: "open and migrate".into(),
            unit: "ms",
            over: "tasks",
            points: vec![Point { at: 1000.0, spread }],
        }],
        verdicts: vec![Verdict::new(
            "p50 of opening and migrating",
            spread.median,
            "ms",
            Wanted::AtMost(wanted),
        )],
        seconds: 0.0,
    }))
}
