//! Layers: what is done around every operation of a store, written once for all backends.
//!
//! ```
//! # use std::sync::Arc;
//! # use ork_state_api::{Database, layer::{Layered, RetryLayer, RetryPolicy, TraceLayer}};
//! # fn wrap(db: Arc<dyn Database>, sleep: impl Fn(std::time::Duration) -> std::future::Ready<()> + Send + Sync + 'static) -> Arc<dyn Database> {
//! // With tokio: `RetryLayer::new(RetryPolicy::default(), tokio::time::sleep)`.
//! let db = Layered::new(db, RetryLayer::new(RetryPolicy::default(), sleep));
//! // Outermost, so that it sees what callers see.
//! Arc::new(Layered::new(Arc::new(db), TraceLayer))
//! # }
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tracing::Instrument as _;

use crate::backend::{Backend, ImportPage, ImportProgress, Plugin, Transfer};
use crate::{
    ClaimJobs, ClaimTasks, ClaimedJob, ClaimedTask, CreatedRun, Database, DeferTask, DeferredJob,
    DeferredJobStore, DueSchedule, Effect, Error, ErrorKind, ExpiredTasks, FireSchedule, FiredSchedule,
    Heartbeat, HeartbeatOutcome, JobStatus, JobUpdates, Json, Limit, ListRuns, ListTasks, ListWorkflows,
    LogAppended, LogChunk, LogRange, LogSlice, LogStore, Maintenance, MigrationReport, NewRun, NewWorkflow,
    Page, Prune, Pruned, ReadyTask, Result, RetryRun, Run, RunFilter, RunId, RunKey, RunStore, Schedule,
    ScheduleStore, Snapshot, SnapshotId, StartRun, Stats, Task, TaskDetail, TaskId, TaskName, TaskStore,
    TaskUpdates, Topic, UpdateReport, UpdateWorkflow, Violation, Watch, Workflow, WorkflowFilter, WorkflowId,
    WorkflowName, WorkflowStore,
};

/// A method of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    /// The method's name.
    pub name: &'static str,
    /// Whether a call whose answer was lost may be made again without harm, as the method's docs
    /// say under "Cancel safety".
    pub is_repeatable: bool,
}

/// A call under way.
pub type Calling<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

/// Something to be done around every operation.
pub trait Layer: fmt::Debug + Send + Sync + 'static {
    /// Makes the call with its request, once, several times or not at all, and answers.
    fn around<'a, R, T>(
        &'a self,
        backend: &'static Backend,
        operation: Operation,
        request: R,
        call: impl Fn(R) -> Calling<'a, T> + Send + Sync + 'a,
    ) -> impl Future<Output = Result<T>> + Send + 'a
    where
        R: Clone + Send + Sync + 'a,
        T: Rows + Send + 'a;
}

/// How many rows an answer is about.
pub trait Rows {
    /// The number; one for an answer about one thing.
    fn rows(&self) -> u64 {
        1
    }
}

/// A store with a layer around it. It is a [`Database`] like any other, so layers stack.
#[derive(Debug)]
pub struct Layered<L> {
    inner: Arc<dyn Database>,
    layer: L,
}

impl<L: Layer> Layered<L> {
    /// Puts a layer around a store.
    #[must_use]
    pub const fn new(inner: Arc<dyn Database>, layer: L) -> Self {
        Self { inner, layer }
    }
}

impl<L: Layer> Plugin for Layered<L> {
    fn backend(&self) -> &'static Backend {
        self.inner.backend()
    }
}

macro_rules! layered {
    ($($store:ident { $($repeatable:ident fn $name:ident($($arg:ident: [$($ty:tt)+]),*) -> $answer:ty;)+ })+) => {$(
        #[async_trait]
        impl<L: Layer> $store for Layered<L> {$(
            async fn $name(&self, $($arg: $($ty)+),*) -> Result<$answer> {
                let operation = Operation { name: stringify!($name), is_repeatable: layered!(@$repeatable) };
                let inner = &*self.inner;
                let call = move |($($arg,)*)| inner.$name($($arg),*);
                self.layer.around(inner.backend(), operation, ($($arg,)*), call).await
            }
        )+}
    )+};
    (@repeatable) => { true };
    (@once) => { false };
}

layered! {
    WorkflowStore {
        once fn create_workflow(new: [NewWorkflow]) -> Workflow;
        repeatable fn get_workflow(id: [WorkflowId]) -> Workflow;
        repeatable fn find_workflow(name: [&WorkflowName]) -> Workflow;
        repeatable fn list_workflows(list: [ListWorkflows]) -> Page<Workflow, WorkflowName>;
        repeatable fn count_workflows(filter: [WorkflowFilter]) -> u64;
        repeatable fn update_workflow(update: [UpdateWorkflow]) -> Workflow;
        repeatable fn get_snapshot(id: [SnapshotId]) -> Snapshot;
        once fn delete_workflow(id: [WorkflowId]) -> ();
    }
    RunStore {
        once fn create_run(new: [NewRun]) -> CreatedRun;
        repeatable fn get_run(id: [RunId]) -> Run;
        repeatable fn list_runs(list: [ListRuns]) -> Page<Run, RunKey>;
        repeatable fn count_runs(filter: [RunFilter]) -> u64;
        repeatable fn start_run(start: [StartRun]) -> Run;
        repeatable fn cancel_run(id: [RunId]) -> Run;
        repeatable fn pause_run(id: [RunId]) -> Run;
        repeatable fn resume_run(id: [RunId]) -> Run;
        once fn retry_run(retry: [RetryRun]) -> Run;
    }
    TaskStore {
        repeatable fn ready_tasks(limit: [Limit]) -> Vec<ReadyTask>;
        repeatable fn claim_tasks(claim: [ClaimTasks]) -> Vec<ClaimedTask>;
        repeatable fn heartbeat(heartbeat: [Heartbeat]) -> Vec<HeartbeatOutcome>;
        repeatable fn expire_leases(limit: [Limit]) -> ExpiredTasks;
        repeatable fn expire_timeouts(limit: [Limit]) -> ExpiredTasks;
        repeatable fn update_tasks(updates: [TaskUpdates]) -> UpdateReport;
        repeatable fn get_task(id: [TaskId]) -> TaskDetail;
        repeatable fn list_tasks(list: [ListTasks]) -> Page<Task, u32>;
        repeatable fn task_outputs(run: [RunId], names: [&[TaskName]]) -> BTreeMap<TaskName, Option<Json>>;
    }
    LogStore {
        once fn append_log(task: [TaskId], chunk: [LogChunk<'_>]) -> LogAppended;
        repeatable fn read_log(task: [TaskId], range: [LogRange]) -> LogSlice;
    }
    ScheduleStore {
        repeatable fn set_schedule(workflow: [WorkflowId], schedule: [Option<Schedule>]) -> Workflow;
        repeatable fn due_schedules(limit: [Limit]) -> Vec<DueSchedule>;
        once fn fire_schedule(fire: [FireSchedule]) -> FiredSchedule;
    }
    DeferredJobStore {
        once fn defer_task(defer: [DeferTask]) -> Vec<DeferredJob>;
        repeatable fn claim_jobs(claim: [ClaimJobs]) -> Vec<ClaimedJob>;
        repeatable fn update_jobs(updates: [JobUpdates]) -> UpdateReport<JobStatus>;
        repeatable fn list_jobs(task: [TaskId]) -> Vec<DeferredJob>;
    }
    Maintenance {
        repeatable fn migrate() -> MigrationReport;
        repeatable fn plan_migration() -> MigrationReport;
        repeatable fn prune(prune: [Prune]) -> Pruned;
        repeatable fn stats() -> Stats;
        repeatable fn watch(topic: [Topic]) -> Watch;
        repeatable fn verify() -> Vec<Violation>;
    }
    Transfer {
        repeatable fn import_progress() -> Option<ImportProgress>;
        once fn import(page: [ImportPage]) -> ();
        once fn finish_import() -> ();
        repeatable fn abandon_import() -> ();
    }
}

impl Rows for () {}
impl Rows for Option<ImportProgress> {}
impl Rows for Workflow {}
impl Rows for Snapshot {}
impl Rows for CreatedRun {}
impl Rows for Run {}
impl Rows for TaskDetail {}
impl Rows for LogAppended {}
impl Rows for LogSlice {}
impl Rows for Stats {}
impl Rows for Watch {}

/// A count is about what it counts.
impl Rows for u64 {
    fn rows(&self) -> u64 {
        *self
    }
}

impl<T> Rows for Vec<T> {
    fn rows(&self) -> u64 {
        self.len() as u64
    }
}

impl<T, K> Rows for Page<T, K> {
    fn rows(&self) -> u64 {
        self.items.rows()
    }
}

impl<K, T> Rows for BTreeMap<K, T> {
    fn rows(&self) -> u64 {
        self.len() as u64
    }
}

impl Rows for FiredSchedule {
    fn rows(&self) -> u64 {
        u64::from(matches!(self, Self::Fired(_)))
    }
}

impl Rows for ExpiredTasks {
    fn rows(&self) -> u64 {
        self.requeued.rows() + self.failed.rows()
    }
}

impl<S> Rows for UpdateReport<S> {
    fn rows(&self) -> u64 {
        self.outcomes.rows()
    }
}

impl Rows for MigrationReport {
    fn rows(&self) -> u64 {
        self.applied.rows()
    }
}

impl Rows for Pruned {
    fn rows(&self) -> u64 {
        self.runs
    }
}

/// Runs every operation in a span of [`tracing`] at level `DEBUG`, target `ork_state`, named
/// `store`.
///
/// Its fields are `backend`, `operation`, and, once the operation has ended, `outcome` (`ok`, or
/// the [kind](ErrorKind::name) of the error) and `rows` (how many the answer is about). No payload
/// is among them. What somebody must look after (`unavailable`, `corrupt`, `internal`,
/// `schema_mismatch`) is an event at level `WARN` too. A subscriber that measures spans has all
/// metrics from these.
#[derive(Debug, Clone, Copy, Default)]
pub struct TraceLayer;

impl Layer for TraceLayer {
    async fn around<'a, R, T>(
        &'a self,
        backend: &'static Backend,
        operation: Operation,
        request: R,
        call: impl Fn(R) -> Calling<'a, T> + Send + Sync + 'a,
    ) -> Result<T>
    where
        R: Clone + Send + Sync + 'a,
        T: Rows + Send + 'a,
    {
        let span = tracing::debug_span!(
            target: "ork_state",
            "store",
            backend = backend.name,
            operation = operation.name,
            outcome = tracing::field::Empty,
            rows = tracing::field::Empty,
        );
        let answer = call(request).instrument(span.clone()).await;
        match &answer {
            Ok(answer) => {
                span.record("outcome", "ok");
                span.record("rows", answer.rows());
            }
            Err(error) => {
                span.record("outcome", error.kind().name());
                if is_alarming(error.kind()) {
                    let _in_span = span.enter();
                    tracing::warn!(target: "ork_state", operation = operation.name, backend = backend.name, "{error}");
                }
            }
        }
        answer
    }
}

/// Whether somebody has to look after it, rather than the caller.
const fn is_alarming(kind: &ErrorKind) -> bool {
    match kind {
        ErrorKind::Unavailable { .. }
        | ErrorKind::Corrupt { .. }
        | ErrorKind::Internal { .. }
        | ErrorKind::SchemaMismatch { .. } => true,
        ErrorKind::NotFound { .. }
        | ErrorKind::AlreadyExists { .. }
        | ErrorKind::InvalidInput { .. }
        | ErrorKind::InvalidTransition { .. }
        | ErrorKind::Conflict { .. }
        | ErrorKind::LeaseLost { .. }
        | ErrorKind::Unsupported { .. } => false,
    }
}

/// How often and after which pauses a [`RetryLayer`] tries again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// At most so many tries after the first one.
    pub retries: u32,
    /// The pause before the first of them; it doubles with each.
    pub first_pause: Duration,
    /// The longest pause.
    pub longest_pause: Duration,
}

/// Eight tries after the first, pauses from 50 ms to 5 s: about 13 s in all.
impl Default for RetryPolicy {
    fn default() -> Self {
        Self { retries: 8, first_pause: Duration::from_millis(50), longest_pause: Duration::from_secs(5) }
    }
}

impl RetryPolicy {
    /// Before which pause this retry comes, counted from 0: by chance between a half and the whole
    /// of it, so that callers who were cut off together do not come back together.
    fn pause(&self, retry: u32) -> Duration {
        let whole = self.first_pause.saturating_mul(2_u32.saturating_pow(retry)).min(self.longest_pause);
        let chance = u32::try_from(RandomState::new().hash_one(retry) % 1000).unwrap_or(0);
        whole / 2 + whole / 2 * chance / 1000
    }
}

type Sleep = dyn Fn(Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync;

/// Makes calls again that failed for a reason that passes.
///
/// That is what [`is_retryable`](Error::is_retryable) says. If nobody knows whether the call took
/// effect ([`Effect::Unknown`]), it is made again only if it [may be](Operation::is_repeatable).
#[derive(Clone)]
pub struct RetryLayer {
    policy: RetryPolicy,
    sleep: Arc<Sleep>,
}

impl fmt::Debug for RetryLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryLayer").field("policy", &self.policy).finish_non_exhaustive()
    }
}

impl RetryLayer {
    /// Retries by this policy, and waits by this function of the caller's runtime, such as
    /// `tokio::time::sleep`.
    pub fn new<F>(policy: RetryPolicy, sleep: impl Fn(Duration) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self { policy, sleep: Arc::new(move |pause| Box::pin(sleep(pause))) }
    }
}

impl Layer for RetryLayer {
    async fn around<'a, R, T>(
        &'a self,
        _: &'static Backend,
        operation: Operation,
        request: R,
        call: impl Fn(R) -> Calling<'a, T> + Send + Sync + 'a,
    ) -> Result<T>
    where
        R: Clone + Send + Sync + 'a,
        T: Rows + Send + 'a,
    {
        for retry in 0..self.policy.retries {
            match call(request.clone()).await {
                Err(error)
                    if error.is_retryable()
                        && (operation.is_repeatable || error.effect() == Effect::NotApplied) =>
                {
                    (self.sleep)(self.policy.pause(retry)).await;
                }
                answer => return answer,
            }
        }
        call(request).await
    }
}

/// A fault to be injected into a call.
#[derive(Debug, Clone)]
pub enum Fault {
    /// The call is not made, and fails with this.
    Before(Error),
    /// The call is made; its answer is lost, and it fails with this, such as
    /// [`Error::unknown_effect`].
    After(Error),
}

type Choose = dyn Fn(Operation, u64) -> Option<Fault> + Send + Sync;

/// Injects faults, for tests of what is built on a store.
///
/// ```
/// # use ork_state_api::{Error, layer::{Fault, FaultLayer}};
/// // Every third update is applied and its answer lost.
/// let layer = FaultLayer::new(|operation, number| {
///     let hit = operation.name == "update_tasks" && number % 3 == 2;
///     hit.then(|| Fault::After(Error::unknown_effect("a test")))
/// });
/// ```
#[derive(Clone)]
pub struct FaultLayer {
    choose: Arc<Choose>,
    calls: Arc<AtomicU64>,
}

impl fmt::Debug for FaultLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultLayer").field("calls", &self.calls).finish_non_exhaustive()
    }
}

impl FaultLayer {
    /// Asks this function before every call, with the number of calls before it.
    pub fn new(choose: impl Fn(Operation, u64) -> Option<Fault> + Send + Sync + 'static) -> Self {
        Self { choose: Arc::new(choose), calls: Arc::default() }
    }
}

impl Layer for FaultLayer {
    async fn around<'a, R, T>(
        &'a self,
        _: &'static Backend,
        operation: Operation,
        request: R,
        call: impl Fn(R) -> Calling<'a, T> + Send + Sync + 'a,
    ) -> Result<T>
    where
        R: Clone + Send + Sync + 'a,
        T: Rows + Send + 'a,
    {
        match (self.choose)(operation, self.calls.fetch_add(1, Ordering::Relaxed)) {
            None => call(request).await,
            Some(Fault::Before(error)) => Err(error),
            Some(Fault::After(error)) => call(request).await.and(Err(error)),
        }
    }
}
