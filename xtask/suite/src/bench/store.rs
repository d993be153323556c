//! Stores to measure, and their contents.

use std::sync::Arc;
use std::time::Duration;

use ork_state_api::{
    ClaimTasks, ConnectOptions, Dag, Database, LeaseTime, Limit, NewRun, NewWorkflow, Registry, RunId,
    StartRun, TaskName, TaskSpec, WorkflowId,
};
use ork_state_conformance::{Fixture, TestStore};

use super::AnyError;

/// A backend to measure.
pub(super) struct Bench {
    pub(super) fixture: Arc<dyn Fixture>,
    quick: bool,
    pub(super) repetitions: usize,
}

/// A store, which is removed when this is dropped.
pub(super) struct Store {
    store: Arc<dyn TestStore>,
    pub(super) db: Arc<dyn Database>,
}

impl Store {
    pub(super) fn url(&self) -> String {
        self.store.url()
    }
}

impl Bench {
    pub(super) const fn new(fixture: Arc<dyn Fixture>, quick: bool, repetitions: usize) -> Self {
        Self { fixture, quick, repetitions }
    }

    pub(super) fn backend(&self) -> &'static str {
        self.fixture.backend()
    }

    /// The full size, or a far smaller one in a quick run.
    pub(super) const fn size(&self, full: usize, quick: usize) -> usize {
        if self.quick { quick } else { full }
    }

    pub(super) async fn store(&self) -> Result<Store, AnyError> {
        let store = self.fixture.migrated().await?;
        let db = connect(&store.url()).await?;
        // A store in memory is a new one each time it is opened.
        db.migrate().await?;
        Ok(Store { store, db })
    }
}

pub(super) async fn connect(url: &str) -> ork_state_api::Result<Arc<dyn Database>> {
    Registry::linked()?.connect(ConnectOptions::new(url)?).await
}

/// A claim whose lease outlives any measurement.
pub(super) fn claim(owner: &str, limit: usize) -> ork_state_api::Result<ClaimTasks> {
    Ok(ClaimTasks::new(owner.parse()?, LeaseTime::new(Duration::from_secs(24 * 3600))?)
        .with_limit(Limit::new(limit)?))
}

/// Tasks in chains of this length. With 1, no task waits for another.
pub(super) fn chains(tasks: usize, length: usize) -> ork_state_api::Result<Dag> {
    retried_chains(tasks, length, 0)
}

/// Like `chains`, with this many retries for each task.
pub(super) fn retried_chains(tasks: usize, length: usize, retries: u32) -> ork_state_api::Result<Dag> {
    let names: Vec<TaskName> =
        (0..tasks).map(|number| format!("task-{number:05}").parse()).collect::<Result<_, _>>()?;
    let executor: ork_state_api::Label = "process".parse()?;
    let spec = |number: usize| {
        let spec = TaskSpec::new(names[number].clone(), executor.clone()).with_max_retries(retries);
        if number.is_multiple_of(length) { spec } else { spec.after([names[number - 1].clone()]) }
    };
    Dag::new((0..tasks).map(spec))
}

pub(super) async fn workflow(
    db: &dyn Database,
    name: &str,
    tasks: usize,
    length: usize,
) -> ork_state_api::Result<WorkflowId> {
    Ok(db.create_workflow(NewWorkflow::new(name.parse()?, chains(tasks, length)?)).await?.id)
}

pub(super) async fn start(db: &dyn Database, workflow: WorkflowId) -> ork_state_api::Result<RunId> {
    let run = db.create_run(NewRun::new(workflow)).await?.into_run().id;
    db.start_run(StartRun::pinned(run)).await?;
    Ok(run)
}
