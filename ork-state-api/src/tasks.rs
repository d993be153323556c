//! Tasks of runs: handing them out, keeping them leased, bringing them to an end.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Deref;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{
    Dag, EndedRun, Json, Label, LeaseTime, Limit, Page, PageRequest, Result, RunId, Target, TaskId, TaskName,
    TaskStatus, TaskUpdates, Text, Timestamp, UpdateReport, WorkflowId, WorkflowName,
};

/// A task as it stands, without its payloads (see [`TaskDetail`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Task {
    /// Made by the store.
    pub id: TaskId,
    /// The run it belongs to.
    pub run: RunId,
    /// Its place in the DAG, from 0.
    pub index: u32,
    /// Unique within the run.
    pub name: TaskName,
    /// What runs it.
    pub executor_type: Label,
    /// The tasks it waits for, as its author listed them.
    pub depends_on: Vec<TaskName>,
    /// How many of them have not succeeded.
    pub unmet_dependencies: u32,
    /// How many deferred jobs it waits for: see [`DeferredJobStore`](crate::DeferredJobStore).
    pub open_jobs: u32,
    /// Where it stands.
    pub status: TaskStatus,
    /// Attempts that were begun: one per claim, less those that were released. It starts again with
    /// [`retry_run`](crate::RunStore::retry_run); for a number that never repeats use the claim's
    /// token. A task with one retry that failed for good was tried twice and shows 2.
    pub attempts: u32,
    /// How many attempts may follow the first.
    pub max_retries: u32,
    /// How long one attempt may run, in seconds: see [`TaskStore::expire_timeouts`].
    pub timeout_seconds: Option<u32>,
    /// Who holds it: there while it is `dispatched` or `running`, unless it waits for deferred
    /// jobs.
    pub lease: Option<Lease>,
    /// The executor's name for the present or latest attempt.
    pub execution_name: Option<Label>,
    /// Why the latest attempt failed; gone when one succeeds.
    pub error: Option<Text>,
    /// When it was created.
    pub created_at: Timestamp,
    /// Since when it may be claimed, or when it will be; `None` unless it is pending, waits for no
    /// other task and its run is running. See [`TaskStore::claim_tasks`].
    pub ready_at: Option<Timestamp>,
    /// Not before this it is tried again; `None` unless its latest attempt failed.
    pub retry_at: Option<Timestamp>,
    /// When its present or latest attempt was claimed.
    pub dispatched_at: Option<Timestamp>,
    /// When that attempt was first reported as running; if it never was, when its end was reported
    /// or its lease lapsed.
    pub started_at: Option<Timestamp>,
    /// When it became terminal.
    pub finished_at: Option<Timestamp>,
}

impl Task {
    /// The tasks of a run as they are made when it is started (R2), in the order of its DAG. For
    /// backends.
    pub fn of_run(run: RunId, dag: &Dag, now: Timestamp) -> impl Iterator<Item = Self> {
        (0_u32..).zip(dag.tasks()).map(move |(index, spec)| {
            let (name, executor_type) = (spec.name.clone(), spec.executor_type.clone());
            Self {
                depends_on: spec.depends_on.clone(),
                // A DAG has far fewer tasks than this can hold.
                unmet_dependencies: u32::try_from(spec.depends_on.len()).unwrap_or(u32::MAX),
                max_retries: spec.max_retries,
                timeout_seconds: spec.timeout_seconds,
                ready_at: spec.depends_on.is_empty().then_some(now),
                ..Self::from_stored(TaskId::generate(), run, index, name, executor_type, now)
            }
        })
    }

    /// A pending task that depends on nothing and is tried once, but is not ready. Backends set the
    /// rest.
    #[must_use]
    pub const fn from_stored(
        id: TaskId,
        run: RunId,
        index: u32,
        name: TaskName,
        executor_type: Label,
        created_at: Timestamp,
    ) -> Self {
        Self {
            id,
            run,
            index,
            name,
            executor_type,
            depends_on: Vec::new(),
            unmet_dependencies: 0,
            open_jobs: 0,
            status: TaskStatus::Pending,
            attempts: 0,
            max_retries: 0,
            timeout_seconds: None,
            lease: None,
            execution_name: None,
            error: None,
            created_at,
            ready_at: None,
            retry_at: None,
            dispatched_at: None,
            started_at: None,
            finished_at: None,
        }
    }
}

/// A task with its payloads. It reads as its [`Task`]: `detail.status`, `detail.error`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TaskDetail {
    /// Everything else.
    pub task: Task,
    /// What its executor is given.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "crate::json::some")]
    pub params: Option<Json>,
    /// What it gave. JSON `null` is an output, and another thing than none.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "crate::json::some")]
    pub output: Option<Json>,
}

impl TaskDetail {
    /// A task with these payloads.
    #[must_use]
    pub const fn new(task: Task, params: Option<Json>, output: Option<Json>) -> Self {
        Self { task, params, output }
    }
}

impl Deref for TaskDetail {
    type Target = Task;

    fn deref(&self) -> &Task {
        &self.task
    }
}

/// Somebody's right to work on a task, for a while.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Lease {
    /// Who has it.
    pub owner: Label,
    /// The fencing token of the claim.
    pub token: Token,
    /// It is live before this moment. From this moment on it is lapsed, whether or not
    /// anybody has noticed.
    pub expires_at: Timestamp,
}

impl Lease {
    /// A lease.
    #[must_use]
    pub const fn new(owner: Label, token: Token, expires_at: Timestamp) -> Self {
        Self { owner, token, expires_at }
    }
}

/// A fencing token: it grows with every claim of a task, so an older one is told from the current
/// one, also by systems outside of the store that keep the greatest they have seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Token(i64);

impl Token {
    /// Takes a token as it was stored. For backends.
    #[must_use]
    pub const fn from_stored(token: i64) -> Self {
        Self(token)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> i64 {
        self.0
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One claim of one task: what a worker shows to prove that it still holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Claim {
    /// The task.
    pub task: TaskId,
    /// The token that the claim gave.
    pub token: Token,
}

/// What to claim.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClaimTasks {
    /// Who claims: recorded with the lease, for people. It proves nothing; the token does.
    pub owner: Label,
    /// How long the leases last.
    pub lease: LeaseTime,
    /// At most so many tasks.
    pub limit: Limit,
    /// Whether the outputs of each task's dependencies come along.
    pub dependency_outputs: DependencyOutputs,
}

/// Whether the outputs of dependencies come along with claimed tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DependencyOutputs {
    /// They do not; [`TaskStore::task_outputs`] gives them.
    #[default]
    Omit,
    /// They do.
    Include,
}

impl ClaimTasks {
    /// Up to a hundred tasks, without outputs of dependencies.
    #[must_use]
    pub fn new(owner: Label, lease: LeaseTime) -> Self {
        Self { owner, lease, limit: Limit::default(), dependency_outputs: DependencyOutputs::default() }
    }

    /// Sets how many.
    #[must_use]
    pub const fn with_limit(mut self, limit: Limit) -> Self {
        self.limit = limit;
        self
    }

    /// Asks for the outputs of dependencies.
    #[must_use]
    pub const fn with_dependency_outputs(mut self) -> Self {
        self.dependency_outputs = DependencyOutputs::Include;
        self
    }
}

/// A claimed task, with all that a scheduler needs to run it.
///
/// It reads as its [`Task`]: `claimed.name`, `claimed.attempts`, `claimed.lease`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClaimedTask {
    /// The task as the claim left it: `dispatched`, with its lease.
    pub task: Task,
    /// What to prove the claim with.
    pub claim: Claim,
    /// What its executor is given.
    pub params: Option<Json>,
    /// The workflow it belongs to.
    pub workflow: WorkflowId,
    /// That workflow's name.
    pub workflow_name: WorkflowName,
    /// How and where to run it.
    pub target: Target,
    /// What each of its dependencies gave, by name, if that was asked for; else empty. A dependency
    /// that gave nothing has `None`.
    pub dependency_outputs: BTreeMap<TaskName, Option<Json>>,
}

impl ClaimedTask {
    /// A task as a claim left it, of a workflow, with the token that the claim gave. Backends set
    /// the rest.
    #[must_use]
    pub const fn new(
        task: Task,
        token: Token,
        workflow: WorkflowId,
        workflow_name: WorkflowName,
        target: Target,
    ) -> Self {
        let claim = Claim { task: task.id, token };
        let dependency_outputs = BTreeMap::new();
        Self { task, claim, params: None, workflow, workflow_name, target, dependency_outputs }
    }
}

impl Deref for ClaimedTask {
    type Target = Task;

    fn deref(&self) -> &Task {
        &self.task
    }
}

/// A ready task's place in the queue: the order in which tasks are handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub struct ReadyTask {
    /// Since when it is ready.
    pub ready_at: Timestamp,
    /// Its run.
    pub run: RunId,
    /// Its place in the DAG.
    pub index: u32,
    /// The task.
    pub task: TaskId,
}

impl ReadyTask {
    /// The place of this task.
    #[must_use]
    pub const fn new(ready_at: Timestamp, run: RunId, index: u32, task: TaskId) -> Self {
        Self { ready_at, run, index, task }
    }
}

/// Leases to renew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heartbeat {
    /// The claims; [`MAX_BATCH_ITEMS`](crate::limits::MAX_BATCH_ITEMS) at most.
    claims: Vec<Claim>,
    lease: LeaseTime,
}

impl Heartbeat {
    /// Renews these leases, to last this long from now.
    ///
    /// # Errors
    /// `InvalidInput` for more than [`MAX_BATCH_ITEMS`](crate::limits::MAX_BATCH_ITEMS).
    pub fn new(claims: impl Into<Vec<Claim>>, lease: LeaseTime) -> Result<Self> {
        let claims = claims.into();
        crate::updates::check_batch_len("heartbeat", claims.len())?;
        Ok(Self { claims, lease })
    }

    /// The claims.
    #[must_use]
    pub fn claims(&self) -> &[Claim] {
        &self.claims
    }

    /// How long their leases last from now.
    #[must_use]
    pub const fn lease(&self) -> LeaseTime {
        self.lease
    }
}

/// What became of one lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeartbeatOutcome {
    /// It is live until this moment.
    Extended {
        /// When it lapses.
        expires_at: Timestamp,
    },
    /// It is lost: stop working on the task and drop its result.
    Lost,
}

/// What [`TaskStore::expire_leases`] or [`TaskStore::expire_timeouts`] did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ExpiredTasks {
    /// The tasks that are pending again, by id.
    pub requeued: Vec<TaskId>,
    /// The tasks that failed because no attempt was left, by id.
    pub failed: Vec<TaskId>,
    /// The runs that ended with them, by id.
    pub ended_runs: Vec<EndedRun>,
}

/// The error of a task that fails because one that it depends on, directly or not, failed: it names
/// the task that failed by itself.
///
/// ```
/// # use ork_state_api::backend::dependency_failed_message;
/// assert_eq!(dependency_failed_message("extract"), "dependency \"extract\" failed");
/// ```
#[must_use]
pub fn dependency_failed_message(culprit: &str) -> String {
    format!("dependency \"{culprit}\" failed")
}

/// The error of a run whose task failed: it names the first task that failed by itself.
#[must_use]
pub fn task_failed_message(culprit: &str) -> String {
    format!("task \"{culprit}\" failed")
}

/// The error of a run that is tried again in part while a cancelled task of it stays: it names the
/// first such task.
#[must_use]
pub fn task_cancelled_message(name: &str) -> String {
    format!("task \"{name}\" was cancelled")
}

/// The error of a task whose lease lapsed: it names who held it.
#[must_use]
pub fn lease_lapsed_message(owner: &str) -> String {
    format!("the lease of \"{owner}\" lapsed")
}

/// The error of a task that ran for longer than it may.
#[must_use]
pub fn timed_out_message(timeout_seconds: u32) -> String {
    format!("timed out after {timeout_seconds} s")
}

/// A page of a run's tasks, without their payloads. [`TaskStore::task_outputs`] gives outputs by
/// name, [`TaskStore::get_task`] all of one task.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListTasks {
    /// The run whose tasks are listed.
    pub run: RunId,
    /// Only those of these statuses. None of them if the set is empty.
    pub statuses: Option<BTreeSet<TaskStatus>>,
    /// The page; its key is the index.
    pub page: PageRequest<u32>,
}

impl ListTasks {
    /// All tasks of a run.
    #[must_use]
    pub const fn of(run: RunId, page: PageRequest<u32>) -> Self {
        Self { run, statuses: None, page }
    }

    /// Only those of these statuses.
    #[must_use]
    pub fn with_statuses(mut self, statuses: impl IntoIterator<Item = TaskStatus>) -> Self {
        self.statuses = Some(statuses.into_iter().collect());
        self
    }
}

/// Keeps tasks. The [general rules](crate::Database#general-rules) hold for every method.
///
/// **T1** A task is *ready* when all of these hold: it is pending, every task it depends on has
/// succeeded, its run is running, and its retry time has come if it has one.
#[async_trait]
pub trait TaskStore: Send + Sync {
    /// The tasks that are ready now, in the order in which claims hand them out.
    ///
    /// **T1** Shows exactly the tasks that a claim would hand out at this moment, and takes none. A
    /// task whose dependency failed is never among them, not for a moment.
    ///
    /// # Errors
    /// Only those of the [general rules](crate::Database#general-rules).
    async fn ready_tasks(&self, limit: Limit) -> Result<Vec<ReadyTask>>;

    /// Takes ready tasks: each becomes `dispatched`, with a lease.
    ///
    /// **T2**
    /// - Each ready task goes to exactly one claimer, however many processes ask at once.
    /// - A claim returns fewer tasks than asked only if no other task was ready or another call
    ///   holds the rest. Such a call is another claim, or a pause or cancellation of the run. The
    ///   claim does not wait for it. Nor need it see what becomes ready while it is under way.
    /// - The order is (`ready_at`, run id, index), in the answer too.
    /// - `ready_at` is the latest of these moments: the run started or resumed, the last dependency
    ///   succeeded, the retry time came, the task was released,
    ///   [`expire_leases`](Self::expire_leases) took it back.
    /// - A task whose lease has lapsed is not ready until [`expire_leases`](Self::expire_leases)
    ///   takes it back.
    /// - Each lease has the asked length, counted from now, and is live when the answer is made.
    ///   Its fencing token is greater than any that the task had before.
    /// - The cost does not depend on how many tasks wait.
    ///
    /// An attempt begins: `attempts` grows by one, and `execution_name`, `retry_at` and
    /// `started_at` are emptied.
    ///
    /// # Errors
    /// Only those of the [general rules](crate::Database#general-rules). No ready task is an empty
    /// answer.
    ///
    /// # Cancel safety
    /// If the answer is lost, the tasks stay claimed until their leases lapse and
    /// [`expire_leases`](Self::expire_leases) takes them back. That costs each of them an attempt.
    /// A task without attempts left then fails.
    ///
    /// # Example
    /// ```
    /// # use ork_state_api::*;
    /// # use std::time::Duration;
    /// async fn work_once(db: &dyn Database) -> Result<()> {
    ///     let lease = LeaseTime::new(Duration::from_secs(30))?;
    ///     let claimed = db.claim_tasks(ClaimTasks::new("worker-1".parse()?, lease)).await?;
    ///     let done = claimed.iter().map(|task| TaskUpdate::succeeded(task.claim, None)).collect();
    ///     let report = db.update_tasks(TaskUpdates::new(done)?).await?;
    ///     for (task, outcome) in claimed.iter().zip(report.outcomes) {
    ///         outcome.into_result(task.id)?;
    ///     }
    ///     Ok(())
    /// }
    /// ```
    async fn claim_tasks(&self, claim: ClaimTasks) -> Result<Vec<ClaimedTask>>;

    /// Renews leases.
    ///
    /// **T3** A live lease with this token lasts the asked time from now. Any other lease is lost:
    /// its token is no longer current, it has lapsed (even if nobody has claimed the task since),
    /// or its task has ended or does not exist. Answers come in the order of the claims. A claim
    /// that is listed twice is answered twice (**T6**).
    ///
    /// # Errors
    /// Only those of the [general rules](crate::Database#general-rules). A lost lease is an answer,
    /// not an error.
    ///
    /// # Cancel safety
    /// All of the leases are renewed or none. Repeating it is safe.
    async fn heartbeat(&self, heartbeat: Heartbeat) -> Result<Vec<HeartbeatOutcome>>;

    /// Takes back up to `limit` tasks whose leases have lapsed, the longest lapsed first, then by
    /// task id.
    ///
    /// **T3**
    /// - The attempt is spent, as if it had failed. A task with attempts left is pending again,
    ///   ready from now. One without fails, and its dependents too, as in
    ///   [`update_tasks`](Self::update_tasks) (T5). Its error is
    ///   [`lease_lapsed_message`](crate::backend::lease_lapsed_message).
    /// - Tasks of paused runs are taken back too, and wait for the run to resume.
    /// - Several callers at once share the work: each task is taken back once.
    /// - A call need not wait for another that holds such a task or its run, for example a late
    ///   heartbeat. What the other call holds counts towards the limit and may be left to the next
    ///   call.
    ///
    /// # Errors
    /// Only those of the [general rules](crate::Database#general-rules).
    ///
    /// # Cancel safety
    /// All of it happened or none. Repeating it is safe.
    async fn expire_leases(&self, limit: Limit) -> Result<ExpiredTasks>;

    /// Ends up to `limit` attempts that have run for too long, the longest overdue first, then by
    /// task id.
    ///
    /// **T8**
    /// - An attempt runs from the moment it was reported as `running`, or deferred. It may run for
    ///   [`timeout_seconds`](Task::timeout_seconds), if the task has any. From then on it is
    ///   overdue, whoever holds it and however often the lease was renewed.
    /// - This ends the attempt as a failure with the error
    ///   [`timed_out_message`](crate::backend::timed_out_message). With attempts left the task is
    ///   ready again from now. Else it fails, and its dependents too, as in
    ///   [`update_tasks`](Self::update_tasks) (T5). Its lease is over and its open jobs are
    ///   cancelled (D2).
    /// - Until somebody calls this, an overdue attempt may still succeed.
    /// - Several callers at once share the work, as in [`expire_leases`](Self::expire_leases) (T3).
    ///
    /// # Errors
    /// Only those of the [general rules](crate::Database#general-rules).
    ///
    /// # Cancel safety
    /// All of it happened or none. Repeating it is safe.
    async fn expire_timeouts(&self, limit: Limit) -> Result<ExpiredTasks>;

    /// Reports what became of claimed tasks.
    ///
    /// - **T4** An item is applied if its claim holds: its token is current and its lease is live.
    ///   Else the task stays as it is, and the answer is the first of these that is true: the task
    ///   does not exist (`NotFound`), it has ended (`AlreadyTerminal`, whatever the claim), the
    ///   lease is lost (`LeaseLost`). A status never moves back: `dispatched` on a running task
    ///   only records the execution name.
    /// - **T5** A failure with attempts left makes the task pending again, to be tried after the
    ///   given delay. A failure without, or one that asks for no retry, makes the task `failed`. In
    ///   the same transaction every task that depends on it, however far, fails with the error
    ///   [`dependency_failed_message`](crate::backend::dependency_failed_message). That error names
    ///   this task, or the one with the lowest index if several fail at once.
    /// - **T6** Each item stands for itself: one that is not applied does not touch the others.
    ///   Items about one task take effect one after the other, in the order that [`TaskUpdates`]
    ///   gives. An empty batch is an empty answer.
    /// - **T7** Repeating a batch after its answer was lost changes nothing more. What had ended is
    ///   answered `AlreadyTerminal`, what had gone back to pending `LeaseLost`. So a repeated
    ///   success reads `AlreadyTerminal { status: Success }`, and whoever repeats takes that for
    ///   done.
    /// - **R3** A run ends in the very transaction in which its last task ends: `success` if all
    ///   tasks succeeded, else `failed`. The answer names the runs that ended.
    ///
    /// Success keeps the output, clears `error`, and lets dependents become ready. A release takes
    /// the attempt back and makes the task ready from now.
    ///
    /// # Errors
    /// Only those of the [general rules](crate::Database#general-rules). An item that is not
    /// applied is an answer, not an error.
    ///
    /// # Cancel safety
    /// The whole batch is applied or nothing of it. Repeating it is safe (T7).
    async fn update_tasks(&self, updates: TaskUpdates) -> Result<UpdateReport>;

    /// The task with this id, with its payloads.
    ///
    /// # Errors
    /// `NotFound`.
    async fn get_task(&self, id: TaskId) -> Result<TaskDetail>;

    /// The tasks of a run in the order of its DAG (**G6**). The key is the index. A run has no
    /// tasks before it is started.
    ///
    /// # Errors
    /// `NotFound` for the run.
    async fn list_tasks(&self, list: ListTasks) -> Result<Page<Task, u32>>;

    /// The outputs of these tasks of a run.
    ///
    /// **L1** One call for any number of names. Every name that the run has is in the answer, with
    /// `None` if the task has no output. JSON `null` is an output. A name that the run does not
    /// have is left out. One that is listed twice is answered once.
    ///
    /// # Errors
    /// `NotFound` for the run. `InvalidInput` for more than
    /// [`MAX_BATCH_ITEMS`](crate::limits::MAX_BATCH_ITEMS) names.
    async fn task_outputs(&self, run: RunId, names: &[TaskName]) -> Result<BTreeMap<TaskName, Option<Json>>>;
}
