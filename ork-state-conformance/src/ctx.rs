//! The context of a case: a store, a clock that stands still, and short methods for common steps.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ork_state_api::backend::Backend;
use ork_state_api::{
    Claim, ClaimTasks, ClaimedTask, Clock, ConnectOptions, Dag, Database, Delay, HeartbeatOutcome, Label,
    LeaseTime, Limit, ListTasks, ManualClock, NewRun, NewWorkflow, PageRequest, Registry, Result, Run, RunId,
    StartRun, Task, TaskCounts, TaskSpec, TaskUpdate, TaskUpdates, Text, Timestamp, UpdateReport, Workflow,
};

use crate::{CaseResult, Damage, Fixture, NotApplicable, TestStore};

/// The lease that cases use when its length does not matter.
pub const LEASE: Duration = Duration::from_secs(60);

/// A case's store, migrated and empty at the start, on a [`ManualClock`]. Clones share it.
#[derive(Clone)]
pub struct Ctx(Arc<Inner>);

struct Inner {
    fixture: Arc<dyn Fixture>,
    store: Arc<dyn TestStore>,
    url: String,
    clock: Arc<ManualClock>,
    db: Arc<dyn Database>,
    names: AtomicUsize,
    notes: Mutex<Vec<String>>,
    damaged: AtomicBool,
    seed: u64,
    shrinks: bool,
}

impl std::fmt::Debug for Ctx {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ctx").field("db", &self.0.db).finish_non_exhaustive()
    }
}

impl Ctx {
    /// Opens this store.
    pub(crate) async fn open(
        fixture: Arc<dyn Fixture>,
        store: Arc<dyn TestStore>,
        seed: u64,
        shrinks: bool,
    ) -> Result<Self> {
        let url = store.url();
        let clock = Arc::new(ManualClock::default());
        let db = fixture.connect(ConnectOptions::new(&url)?.with_clock(clock.clone())).await?;
        db.migrate().await?;
        Ok(Self(Arc::new(Inner {
            fixture,
            store,
            url,
            clock,
            db,
            names: AtomicUsize::new(0),
            notes: Mutex::default(),
            damaged: AtomicBool::new(false),
            seed,
            shrinks,
        })))
    }

    /// The store.
    #[must_use]
    pub fn db(&self) -> &Arc<dyn Database> {
        &self.0.db
    }

    /// The plugin under test.
    #[must_use]
    pub fn backend(&self) -> &'static Backend {
        self.0.db.backend()
    }

    /// Where fresh stores come from.
    #[must_use]
    pub fn fixture(&self) -> &dyn Fixture {
        &*self.0.fixture
    }

    /// Like `fixture`, to be kept.
    pub(crate) fn shared_fixture(&self) -> Arc<dyn Fixture> {
        self.0.fixture.clone()
    }

    /// The store's URL, for another process.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.0.url
    }

    /// The same store, opened again as another process would, with the same clock. For cases that
    /// need [`Durable`](ork_state_api::Capability::Durable).
    ///
    /// # Errors
    /// Those of connecting.
    pub async fn reopen(&self) -> Result<Arc<dyn Database>> {
        self.fixture().connect(ConnectOptions::new(&self.0.url)?.with_clock(self.0.clock.clone())).await
    }

    /// A store at this URL, opened as another program would, on real time.
    ///
    /// # Errors
    /// Those of connecting.
    pub async fn connect(&self, url: &str) -> Result<Arc<dyn Database>> {
        self.fixture().connect(ConnectOptions::new(url)?).await
    }

    /// Damages the store behind the backend's back. The case must then do the verification itself.
    ///
    /// # Errors
    /// [`NotApplicable`] if the store cannot hold such a thing.
    pub async fn damage(&self, damage: Damage) -> CaseResult {
        if !self.0.store.damage(damage).await? {
            return Err(NotApplicable(format!("its stores cannot have {damage}")).into());
        }
        self.0.damaged.store(true, Ordering::Relaxed);
        Ok(())
    }

    pub(crate) fn is_damaged(&self) -> bool {
        self.0.damaged.load(Ordering::Relaxed)
    }

    /// The random generator. It is the same in every run with this seed.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.0.seed
    }

    /// Whether a failing example is reduced to its shortest form.
    pub(crate) fn shrinks(&self) -> bool {
        self.0.shrinks
    }

    /// Adds a note to the report, such as a figure.
    pub fn note(&self, note: impl Into<String>) {
        self.0.notes.lock().unwrap_or_else(PoisonError::into_inner).push(note.into());
    }

    pub(crate) fn take_notes(&self) -> Vec<String> {
        std::mem::take(&mut self.0.notes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The clock of the store.
    #[must_use]
    pub fn clock(&self) -> Arc<ManualClock> {
        self.0.clock.clone()
    }

    /// The current time of the store.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.0.clock.now()
    }

    /// Advances the clock.
    pub fn advance(&self, by: Duration) {
        self.0.clock.advance(by);
    }

    /// A workflow with a unique name.
    ///
    /// # Errors
    /// The store's.
    pub async fn workflow(&self, dag: Dag) -> Result<Workflow> {
        let number = self.0.names.fetch_add(1, Ordering::Relaxed);
        self.db().create_workflow(NewWorkflow::new(format!("workflow-{number:04}").try_into()?, dag)).await
    }

    /// A pending run of a new workflow.
    ///
    /// # Errors
    /// The store's.
    pub async fn pending_run(&self, tasks: &str) -> Result<Run> {
        let workflow = self.workflow(dag(tasks)?).await?;
        Ok(self.db().create_run(NewRun::new(workflow.id)).await?.into_run())
    }

    /// A run of a new workflow with these [tasks](dag), started.
    ///
    /// # Errors
    /// The store's.
    pub async fn start(&self, tasks: &str) -> Result<Run> {
        let run = self.pending_run(tasks).await?;
        self.db().start_run(StartRun::pinned(run.id)).await
    }

    /// All tasks of a run, in order.
    ///
    /// # Errors
    /// The store's.
    pub async fn tasks(&self, run: RunId) -> Result<Vec<Task>> {
        Ok(self.db().list_tasks(ListTasks::of(run, PageRequest::first(Limit::MAX))).await?.items)
    }

    /// The task with this name.
    ///
    /// # Errors
    /// The store's; `InvalidInput` if there is none.
    pub async fn task(&self, run: RunId, name: &str) -> Result<Task> {
        let found = self.tasks(run).await?.into_iter().find(|task| task.name.as_str() == name);
        found.ok_or_else(|| {
            ork_state_api::Error::invalid("case", format!("names a task {name:?} that the run has not"))
        })
    }

    /// The tasks of a run as `name=status`, in order, to compare all at once.
    ///
    /// # Errors
    /// The store's.
    pub async fn statuses(&self, run: RunId) -> Result<String> {
        let tasks = self.tasks(run).await?;
        let words: Vec<String> = tasks.iter().map(|task| format!("{}={}", task.name, task.status)).collect();
        Ok(words.join(" "))
    }

    /// Claims up to `limit` tasks for [`LEASE`].
    ///
    /// # Errors
    /// The store's.
    pub async fn claim(&self, limit: usize) -> Result<Vec<ClaimedTask>> {
        self.db().claim_tasks(claim_request("tester", LEASE)?.with_limit(Limit::new(limit)?)).await
    }

    /// Claims the one task that must be ready.
    ///
    /// # Errors
    /// The store's; `InvalidInput` if there is no ready task.
    pub async fn claim_one(&self) -> Result<ClaimedTask> {
        let claimed = self.claim(1).await?.pop();
        claimed.ok_or_else(|| ork_state_api::Error::invalid("case", "claims a task and none is ready"))
    }

    /// Applies updates.
    ///
    /// # Errors
    /// The store's.
    pub async fn update(&self, updates: impl IntoIterator<Item = TaskUpdate>) -> Result<UpdateReport> {
        self.db().update_tasks(TaskUpdates::new(updates.into_iter().collect())?).await
    }

    /// Completes a claimed task without output.
    ///
    /// # Errors
    /// The store's.
    pub async fn succeed(&self, task: &ClaimedTask) -> Result<UpdateReport> {
        self.update([TaskUpdate::succeeded(task.claim, None)]).await
    }

    /// Fails a claimed task's attempt. It is retried after the delay if attempts are left.
    ///
    /// # Errors
    /// The store's.
    pub async fn fail(&self, task: &ClaimedTask, retry_after: Duration) -> Result<UpdateReport> {
        self.update([TaskUpdate::failed(task.claim, Text::lossy("broken"), Delay::new(retry_after)?)]).await
    }

    /// Renews one lease by [`LEASE`].
    ///
    /// # Errors
    /// The store's.
    pub async fn heartbeat(&self, claims: &[Claim]) -> Result<Vec<HeartbeatOutcome>> {
        self.db().heartbeat(ork_state_api::Heartbeat::new(claims, LeaseTime::new(LEASE)?)?).await
    }

    /// Claims and completes until nothing is ready. Returns how many tasks that were.
    ///
    /// # Errors
    /// The store's.
    pub async fn work_off(&self) -> Result<usize> {
        work_off(&**self.db()).await
    }
}

/// Claims and completes until nothing is ready. Returns how many tasks that were.
pub(crate) async fn work_off(db: &dyn Database) -> Result<usize> {
    let mut done = 0;
    loop {
        let claim = claim_request("tester", LEASE)?.with_limit(Limit::new(1000)?);
        let claimed = db.claim_tasks(claim).await?;
        if claimed.is_empty() {
            return Ok(done);
        }
        done += claimed.len();
        let updates = claimed.iter().map(|task| TaskUpdate::succeeded(task.claim, None)).collect();
        db.update_tasks(TaskUpdates::new(updates)?).await?;
    }
}

/// Opens a store through its linked plugin, on real time.
pub(crate) async fn connect(url: &str) -> Result<Arc<dyn Database>> {
    Registry::linked()?.connect(ConnectOptions::new(url)?).await
}

/// A claim of a hundred tasks for this owner.
///
/// # Errors
/// `InvalidInput` for an invalid label or lease.
pub fn claim_request(owner: &str, lease: Duration) -> Result<ClaimTasks> {
    Ok(ClaimTasks::new(Label::new(owner)?, LeaseTime::new(lease)?))
}

/// A DAG in one line. `extract load*2:extract` is a task and another one that depends on it and may
/// be retried twice.
///
/// # Errors
/// `InvalidInput` if it is not a DAG.
pub fn dag(tasks: &str) -> Result<Dag> {
    let specs: Result<Vec<TaskSpec>> = tasks
        .split_whitespace()
        .map(|task| {
            let (name, dependencies) = task.split_once(':').unwrap_or((task, ""));
            let (name, retries) = name.split_once('*').unwrap_or((name, "0"));
            let dependencies: Result<Vec<_>> =
                dependencies.split(',').filter(|name| !name.is_empty()).map(str::parse).collect();
            let retries = retries.parse().map_err(|source| {
                ork_state_api::Error::invalid("retries", "are no number").with_source(source)
            })?;
            Ok(TaskSpec::new(name.parse()?, "process".parse()?)
                .after(dependencies?)
                .with_max_retries(retries))
        })
        .collect();
    Dag::new(specs?)
}

/// `count` tasks without dependencies, `t0000` onwards.
///
/// # Errors
/// `InvalidInput` beyond the limits of a DAG.
pub fn wide_dag(count: usize) -> Result<Dag> {
    let tasks: Vec<String> = (0..count).map(|index| format!("t{index:05}")).collect();
    dag(&tasks.join(" "))
}

/// The same value with a change. Types that the contract may extend cannot be written as a literal.
pub(crate) fn with<T>(mut value: T, change: impl FnOnce(&mut T)) -> T {
    change(&mut value);
    value
}

/// Counts of tasks: all, unfinished, failed, cancelled.
pub(crate) fn counts(total: u32, unfinished: u32, failed: u32, cancelled: u32) -> TaskCounts {
    with(TaskCounts::new(total), |counts| {
        (counts.unfinished, counts.failed, counts.cancelled) = (unfinished, failed, cancelled);
    })
}
