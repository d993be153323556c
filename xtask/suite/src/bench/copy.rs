//! Copies a store through all backends.

use std::time::Instant;

use ork_state_api::copy::{compare, copy};
use ork_state_api::{
    Dag, Database, Json, LogChunk, NewWorkflow, TaskName, TaskSpec, TaskUpdate, TaskUpdates,
};

use super::figures::{Outcome, Point, Series, Spread};
use super::store::{self, Bench, claim};
use super::{AnyError, number};

/// Tasks per run.
const RUN: usize = 1000;
const LOG_BYTES: usize = 500;

pub(super) async fn measure(benches: &[Bench]) -> Result<Outcome, AnyError> {
    // A store in memory cannot be opened again.
    let mut way: Vec<&Bench> = benches.iter().filter(|bench| bench.backend() != "memory").collect();
    way.sort_by_key(|bench| bench.backend() != "postgres");
    let first = *way.first().ok_or("there is nowhere to go")?;
    way.push(first);
    let tasks = first.size(100_000, 3000);
    let mut stops = vec![first.store().await?];
    fill(&*stops[0].db, tasks).await?;
    let mut series = Vec::new();
    for bench in &way[1..] {
        let (from, to) = (&stops[stops.len() - 1], bench.store().await?);
        let begun = Instant::now();
        let copied = copy(&*from.db, &*to.db, |_| ()).await?;
        let rate = copied.tasks as f64 / begun.elapsed().as_secs_f64();
        series.push(Series {
            name: format!("{} to {}", from.db.backend().name, to.db.backend().name),
            unit: "tasks/s",
            over: "tasks",
            points: vec![Point { at: tasks as f64, spread: Spread::of(vec![rate]) }],
        });
        stops.push(to);
    }
    if let [first, .., last] = stops.as_slice()
        && let Some(difference) = compare(&*first.db, &*last.db).await?
    {
        return Err(format!("the first and the last DIFFER: {difference}").into());
    }
    Ok(Outcome {
        target: "M6",
        scenario: String::new(),
        title: "A store with outputs and logs is copied from one backend to the next; the first and the last are compared, and are equal",
        backend: way.iter().map(|bench| bench.backend()).collect::<Vec<_>>().join(" → "),
        parameters: vec![("tasks", number(tasks as f64)), ("bytes of log a task", LOG_BYTES.to_string())],
        series,
        verdicts: vec![],
        seconds: 0.0,
    })
}

/// Half of the tasks have succeeded, some are claimed, the rest wait.
async fn fill(db: &dyn Database, tasks: usize) -> Result<(), AnyError> {
    let params = Json::parse(r#"{"table": "orders", "since": 1e3, "columns": ["id", "total"]}"#)?;
    let names: Vec<TaskName> =
        (0..RUN).map(|number| format!("t{number:04}").parse()).collect::<Result<_, _>>()?;
    let mut specs = Vec::new();
    for (number, name) in names.iter().enumerate() {
        let spec = TaskSpec::new(name.clone(), "process".parse()?).with_params(params.clone());
        // Pairs: the second waits for the first.
        specs.push(if number % 2 == 1 { spec.after([names[number - 1].clone()]) } else { spec });
    }
    let workflow = db.create_workflow(NewWorkflow::new("copied".parse()?, Dag::new(specs)?)).await?.id;
    let log = vec![b'.'; LOG_BYTES];
    for _ in 0..tasks.div_ceil(RUN) {
        store::start(db, workflow).await?;
        let claimed = db.claim_tasks(claim("bench", RUN / 2)?).await?;
        for task in &claimed {
            db.append_log(task.id, LogChunk::new(&log)?).await?;
        }
        let output = Json::parse(r#"{"rows": 123456, "checksum": "9f86d081884c7d659a2feaa0c55ad015"}"#)?;
        let done =
            claimed.iter().map(|task| TaskUpdate::succeeded(task.claim, Some(output.clone()))).collect();
        db.update_tasks(TaskUpdates::new(done)?).await?;
        // Some of the waiting tasks are claimed.
        db.claim_tasks(claim("bench", RUN / 10)?).await?;
    }
    Ok(())
}
