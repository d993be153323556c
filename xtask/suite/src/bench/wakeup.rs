//! How quickly an idle scheduler gets a task that another process made ready.

use std::time::{Duration, Instant};

use ork_state_api::{Dag, NewRun, NewWorkflow, StartRun, TaskSpec, TaskUpdate, TaskUpdates};

use super::AnyError;
use super::child::{Other, Role};
use super::figures::{Outcome, Point, Series, Spread, Verdict, Wanted};
use super::store::{Bench, claim};

pub(super) async fn measure(bench: &Bench) -> Result<Option<Outcome>, AnyError> {
    // A store in memory has no other processes.
    if bench.backend() == "memory" {
        return Ok(None);
    }
    let rounds = bench.size(200, 10);
    let store = bench.store().await?;
    let db = &store.db;
    let task = |name: &str| Ok::<_, ork_state_api::Error>(TaskSpec::new(name.parse()?, "process".parse()?));
    let dag = Dag::new([task("first")?, task("second")?.after(["first".parse()?])])?;
    let workflow = db.create_workflow(NewWorkflow::new("wakeup".parse()?, dag)).await?;
    // Claimed before the other process starts, so that it gets none of them.
    let mut first = Vec::new();
    for _ in 0..rounds {
        let run = db.create_run(NewRun::new(workflow.id)).await?.into_run();
        db.start_run(StartRun::pinned(run.id)).await?;
        first.extend(db.claim_tasks(claim("bench", 1)?).await?);
    }
    let mut other = Other::start(&Role::WakeUp { url: store.url() })?;
    let mut millis = Vec::with_capacity(rounds);
    for task in first {
        other.says("waits").await?;
        // By now it has looked, found nothing, and waits.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let update = TaskUpdates::one(TaskUpdate::succeeded(task.claim, None));
        db.update_tasks(update).await?;
        let completed = Instant::now();
        other.says("has it").await?;
        millis.push(completed.elapsed().as_secs_f64() * 1000.0);
    }
    let spread = Spread::of(millis);
    Ok(Some(Outcome {
        target: "P7",
        scenario: String::new(),
        title: "A dependency is completed in one process, an idle scheduler in another takes what waited for it; nobody polls more often than once a second",
        backend: bench.backend().to_owned(),
        parameters: vec![("rounds", rounds.to_string())],
        series: vec![Series {
            name: "from the completion to the claim".into(),
            unit: "ms",
            over: "waiting",
            points: vec![Point { at: 1.0, spread }],
        }],
        verdicts: vec![Verdict::new("p50", spread.median, "ms", Wanted::AtMost(4.0))],
        seconds: 0.0,
    }))
}
