//! A store on its way through all backends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ork_state_api::copy::{compare, copy};
use ork_state_api::{
    ClaimTasks, ConnectOptions, Dag, Database, Json, LeaseTime, Limit, LogChunk, NewRun, NewWorkflow,
    Registry, StartRun, TaskSpec, TaskUpdate, TaskUpdates,
};
use ork_state_conformance::{Fixture, TestStore};

use super::AnyError;
use crate::backends::fixtures;

/// So many tasks a run.
const RUN: usize = 1000;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// How many tasks.
    #[arg(long, default_value_t = 100_000)]
    tasks: usize,
    /// The backends, in the order of the way.
    #[arg(long, value_delimiter = ',', default_value = "postgres,file,sqlite,postgres")]
    along: Vec<String>,
    /// How many bytes of log each task has.
    #[arg(long, default_value_t = 500)]
    log_bytes: usize,
}

/// A store, which lives as long as this.
struct Stop {
    _store: Arc<dyn TestStore>,
    db: Arc<dyn Database>,
}

pub(super) async fn run(arguments: &Arguments) -> Result<(), AnyError> {
    let fixtures = fixtures();
    let mut way = Vec::new();
    for name in &arguments.along {
        let fixture = fixtures.iter().find(|fixture| fixture.backend() == name);
        way.push(fixture.ok_or_else(|| format!("no backend `{name}` is linked"))?);
    }
    let [first, rest @ ..] = way.as_slice() else { return Err("there is nowhere to go".into()) };
    let start = open(&***first).await?;
    let begun = Instant::now();
    fill(&*start.db, arguments).await?;
    println!(
        "{} tasks made in {} in {:.1} s",
        arguments.tasks,
        first.backend(),
        begun.elapsed().as_secs_f64()
    );
    let mut stops = vec![start];
    for fixture in rest {
        let (from, to) = (&stops[stops.len() - 1], open(&***fixture).await?);
        let begun = Instant::now();
        let copied = copy(&*from.db, &*to.db, |_| ()).await?;
        let seconds = begun.elapsed().as_secs_f64();
        println!(
            "{:>9} -> {:<9} {seconds:>6.1} s, {:>6.0} tasks/s, {} so far in memory at most: {copied}",
            from.db.backend().name,
            to.db.backend().name,
            copied.tasks as f64 / seconds,
            peak_memory(),
        );
        stops.push(to);
    }
    let begun = Instant::now();
    let difference = match stops.as_slice() {
        [first, .., last] => compare(&*first.db, &*last.db).await?,
        _ => None,
    };
    // They are removed before the server ends that has them.
    drop(stops);
    for fixture in fixtures {
        fixture.finish().await;
    }
    if let Some(difference) = difference {
        return Err(format!("the first and the last DIFFER: {difference}").into());
    }
    println!("the first and the last are equal (compared in {:.1} s)", begun.elapsed().as_secs_f64());
    Ok(())
}

async fn open(fixture: &dyn Fixture) -> Result<Stop, AnyError> {
    let store = fixture.migrated().await?;
    let db = Registry::linked()?.connect(ConnectOptions::new(&store.url())?).await?;
    db.migrate().await?;
    Ok(Stop { _store: store, db })
}

/// Half of the tasks have succeeded, a part is claimed, the rest waits.
async fn fill(db: &dyn Database, arguments: &Arguments) -> Result<(), AnyError> {
    let params = Json::parse(r#"{"table": "orders", "since": 1e3, "columns": ["id", "total"]}"#)?;
    let names: Result<Vec<_>, _> = (0..RUN).map(|number| format!("t{number:04}").parse()).collect();
    let names: Vec<ork_state_api::TaskName> = names?;
    let mut specs = Vec::new();
    for (number, name) in names.iter().enumerate() {
        let spec = TaskSpec::new(name.clone(), "process".parse()?).with_params(params.clone());
        // Pairs: the second waits for the first.
        specs.push(if number % 2 == 1 { spec.after([names[number - 1].clone()]) } else { spec });
    }
    let workflow = db.create_workflow(NewWorkflow::new("copied".parse()?, Dag::new(specs)?)).await?.id;
    let log = vec![b'.'; arguments.log_bytes];
    let claim = || -> ork_state_api::Result<ClaimTasks> {
        let lease = LeaseTime::new(Duration::from_secs(3600))?;
        Ok(ClaimTasks::new("bench".parse()?, lease).with_limit(Limit::new(RUN / 2)?))
    };
    for _ in 0..arguments.tasks.div_ceil(RUN) {
        let run = db.create_run(NewRun::new(workflow)).await?.into_run().id;
        db.start_run(StartRun::pinned(run)).await?;
        let claimed = db.claim_tasks(claim()?).await?;
        if !log.is_empty() {
            for task in &claimed {
                db.append_log(task.task.id, LogChunk::new(&log)?).await?;
            }
        }
        let output = Json::parse(r#"{"rows": 123456, "checksum": "9f86d081884c7d659a2feaa0c55ad015"}"#)?;
        let done =
            claimed.iter().map(|task| TaskUpdate::succeeded(task.claim, Some(output.clone()))).collect();
        db.update_tasks(TaskUpdates::new(done)?).await?;
        // Some of those that waited are held.
        db.claim_tasks(claim()?.with_limit(Limit::new(RUN / 10)?)).await?;
    }
    Ok(())
}

/// The most memory that this process has had, where the system tells.
fn peak_memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    peak.map_or_else(|| "?".to_owned(), |peak| peak.trim().to_owned())
}
