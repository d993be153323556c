//! Memory use while all of a large store is read.

use std::time::Duration;

use ork_state_api::copy::copy;
use ork_state_api::{Limit, ListRuns, ListTasks, PageRequest, Prune};
use serde::{Deserialize, Serialize};

use super::AnyError;
use super::child::{Other, Role};
use super::figures::{Outcome, Point, Series, Spread, Verdict, Wanted};
use super::store::{self, Bench, connect};

const RUN: usize = 10_000;
const PAGE: usize = 1000;
const LIMIT_MIB: f64 = 64.0;

/// What is done with a whole store.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Walk {
    List,
    /// Copies it to this store.
    Export(String),
    Prune,
}

pub(super) async fn measure(bench: &Bench) -> Result<Option<Outcome>, AnyError> {
    // A store in memory has no other processes.
    if bench.backend() == "memory" {
        return Ok(None);
    }
    let runs = bench.size(100, 1);
    let tasks = (runs * RUN) as f64;
    let store = bench.store().await?;
    let workflow = store::workflow(&*store.db, "memory", RUN, 10).await?;
    for _ in 0..runs {
        let run = store::start(&*store.db, workflow).await?;
        store.db.cancel_run(run).await?;
    }
    // A store of the backend that keeps the least of its input in memory.
    let directory = tempfile::tempdir()?;
    let target = format!("sqlite://{}/copy.db", directory.path().display());
    let (mut series, mut verdicts) = (Vec::new(), Vec::new());
    for (name, walk) in
        [("list by pages of 1,000", Walk::List), ("export", Walk::Export(target)), ("prune", Walk::Prune)]
    {
        let mut other = Other::start(&Role::Memory { url: store.url(), walk })?;
        let mib = other.line().await?.parse::<f64>()? / 1024.0;
        verdicts.push(Verdict::new(format!("{name}: peak growth"), mib, "MiB", Wanted::AtMost(LIMIT_MIB)));
        series.push(Series {
            name: name.to_owned(),
            unit: "MiB",
            over: "tasks",
            points: vec![Point { at: tasks, spread: Spread::of(vec![mib]) }],
        });
    }
    Ok(Some(Outcome {
        target: "P8",
        scenario: String::new(),
        title: "All tasks are listed, copied into a SQLite store, and pruned: how much the memory of the process that does it grows from when it has opened the store",
        backend: bench.backend().to_owned(),
        parameters: vec![("tasks", super::number(tasks)), ("runs", runs.to_string())],
        series,
        verdicts,
        seconds: 0.0,
    }))
}

/// The most KiB by which the memory of this process grew.
pub(super) async fn walk(url: &str, walk: Walk) -> Result<u64, AnyError> {
    let db = connect(url).await?;
    db.stats().await?;
    // Resets the peak, which counts from here on.
    std::fs::write("/proc/self/clear_refs", "5")?;
    let before = status("VmRSS:")?;
    match walk {
        Walk::List => {
            let (mut page, mut listed) = (PageRequest::first(Limit::new(PAGE)?), 0);
            loop {
                let runs = db.list_runs(ListRuns::from(page)).await?;
                for run in &runs.items {
                    let mut page = PageRequest::first(Limit::new(PAGE)?);
                    loop {
                        let tasks = db.list_tasks(ListTasks::of(run.id, page)).await?;
                        listed += tasks.items.len();
                        let Some(next) = tasks.next else { break };
                        page.after = Some(next);
                    }
                }
                let Some(next) = runs.next else { break };
                page.after = Some(next);
            }
            if listed == 0 {
                return Err("there are no tasks".into());
            }
        }
        Walk::Export(to) => {
            let target = connect(&to).await?;
            target.migrate().await?;
            copy(&*db, &*target, |_| ()).await?;
        }
        Walk::Prune => {
            let mut prune = Prune::older_than(Duration::ZERO);
            prune.limit = Limit::new(10)?;
            let mut pruned = 0;
            loop {
                let some = db.prune(prune).await?;
                pruned += some.tasks;
                if some.runs == 0 {
                    break;
                }
            }
            if pruned == 0 {
                return Err("nothing was pruned".into());
            }
        }
    }
    Ok(status("VmHWM:")?.saturating_sub(before))
}

/// A number that the system reports about this process; in KiB if it is about memory.
pub(super) fn status(name: &str) -> Result<u64, AnyError> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)).ok_or("the system does not tell")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
