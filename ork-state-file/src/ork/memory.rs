//! The legacy state store without files, in memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use ork_state_api::ork::{LegacyRun, LegacyRunId, LegacyTaskName, LegacyTaskRun, StateStore, newest_first};
use ork_state_api::{Clock, Entity, Error, Result, RunStatus, SystemClock, WorkflowName};

/// Runs of old flows in memory. They are gone when the last clone of the store is dropped. For
/// tests. Cheap to clone.
#[derive(Debug, Clone)]
pub struct InMemoryStateStore {
    runs: Arc<Mutex<BTreeMap<LegacyRunId, Held>>>,
    clock: Arc<dyn Clock>,
}

#[derive(Debug)]
struct Held {
    run: LegacyRun,
    tasks: BTreeMap<LegacyTaskName, LegacyTaskRun>,
}

impl InMemoryStateStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self { runs: Arc::default(), clock: Arc::new(SystemClock::default()) }
    }

    /// Replaces the store's time (rule G4).
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    fn runs(&self) -> MutexGuard<'_, BTreeMap<LegacyRunId, Held>> {
        // No change is half done where a panic is possible.
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for InMemoryStateStore {
    fn default() -> Self {
        Self::new()
    }
}

fn no_run(id: &LegacyRunId) -> Error {
    Error::not_found(Entity::Run, id)
}

#[async_trait]
impl StateStore for InMemoryStateStore {
    async fn create_run(&self, workflow: WorkflowName) -> Result<LegacyRun> {
        let mut runs = self.runs();
        let run = LegacyRun::new(workflow, self.clock.now());
        runs.insert(run.id.clone(), Held { run: run.clone(), tasks: BTreeMap::new() });
        Ok(run)
    }

    async fn get_run(&self, id: &LegacyRunId) -> Result<Option<LegacyRun>> {
        Ok(self.runs().get(id).map(|held| held.run.clone()))
    }

    async fn list_runs(&self) -> Result<Vec<LegacyRun>> {
        let mut runs: Vec<_> = self.runs().values().map(|held| held.run.clone()).collect();
        newest_first(&mut runs);
        Ok(runs)
    }

    async fn list_task_runs(&self, run: &LegacyRunId) -> Result<Vec<LegacyTaskRun>> {
        let runs = self.runs();
        Ok(runs.get(run).ok_or_else(|| no_run(run))?.tasks.values().cloned().collect())
    }

    async fn upsert_task_run(&self, task: &LegacyTaskRun) -> Result<()> {
        let mut runs = self.runs();
        let held = runs.get_mut(&task.run_id).ok_or_else(|| no_run(&task.run_id))?;
        held.tasks.insert(task.task.clone(), task.clone());
        Ok(())
    }

    async fn update_run_status(&self, run: &LegacyRunId, status: RunStatus) -> Result<LegacyRun> {
        let mut runs = self.runs();
        let held = runs.get_mut(run).ok_or_else(|| no_run(run))?;
        held.run.set_status(status, self.clock.now());
        Ok(held.run.clone())
    }
}
