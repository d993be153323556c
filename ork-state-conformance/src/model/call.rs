//! Calls of a store and their answers, as values. Traces, histories and faults are built from them.

use std::collections::BTreeMap;

use async_trait::async_trait;
use ork_state_api::backend::{Backend, ImportPage, ImportProgress, Plugin, Transfer};
use ork_state_api::{
    Capability, ClaimJobs, ClaimTasks, ClaimedJob, ClaimedTask, CreatedRun, Database, DeferTask, DeferredJob,
    DeferredJobStore, DueSchedule, Error, ErrorKind, ExpiredTasks, FireSchedule, FiredSchedule, Heartbeat,
    HeartbeatOutcome, JobStatus, JobUpdates, Json, Limit, ListRuns, ListTasks, ListWorkflows, LogAppended,
    LogChunk, LogRange, LogSlice, LogStore, Maintenance, MigrationReport, NewRun, NewWorkflow, Page, Prune,
    Pruned, ReadyTask, Result, RetryRun, Run, RunFilter, RunId, RunKey, RunStore, Schedule, ScheduleStore,
    Snapshot, SnapshotId, StartRun, Stats, Task, TaskDetail, TaskId, TaskName, TaskStore, TaskUpdates, Topic,
    UpdateReport, UpdateWorkflow, Violation, Watch, Workflow, WorkflowFilter, WorkflowId, WorkflowName,
    WorkflowStore,
};

/// Something that answers calls. With [`Calls`] around it, it is a whole [`Database`].
#[async_trait]
pub trait Answers: std::fmt::Debug + Send + Sync {
    /// The plugin that it stands for.
    fn backend(&self) -> &'static Backend;

    /// Answers a call. The answer must be of the call's method.
    async fn answer(&self, call: Call) -> Answer;

    /// The one method whose answer is not a value.
    async fn watch(&self, topic: Topic) -> Result<Watch>;
}

/// A store made from something that answers calls.
#[derive(Debug)]
pub struct Calls<A>(pub A);

impl<A: Answers> Plugin for Calls<A> {
    fn backend(&self) -> &'static Backend {
        self.0.backend()
    }
}

/// Converts an argument that a call owns to the one that the method takes.
trait Lend<'a, T> {
    fn lend(&'a self) -> Result<T>;
}

impl<T: Clone> Lend<'_, T> for T {
    fn lend(&self) -> Result<T> {
        Ok(self.clone())
    }
}

impl<'a> Lend<'a, &'a WorkflowName> for WorkflowName {
    fn lend(&'a self) -> Result<&'a WorkflowName> {
        Ok(self)
    }
}

impl<'a> Lend<'a, &'a [TaskName]> for Vec<TaskName> {
    fn lend(&'a self) -> Result<&'a [TaskName]> {
        Ok(self)
    }
}

impl<'a> Lend<'a, LogChunk<'a>> for Vec<u8> {
    fn lend(&'a self) -> Result<LogChunk<'a>> {
        LogChunk::new(self)
    }
}

/// Converts an argument that the method takes to one that a call owns.
trait Own<T> {
    fn own(self) -> T;
}

impl<T> Own<T> for T {
    fn own(self) -> T {
        self
    }
}

impl Own<WorkflowName> for &WorkflowName {
    fn own(self) -> WorkflowName {
        self.clone()
    }
}

impl Own<Vec<TaskName>> for &[TaskName] {
    fn own(self) -> Vec<TaskName> {
        self.to_vec()
    }
}

impl Own<Vec<u8>> for LogChunk<'_> {
    fn own(self) -> Vec<u8> {
        self.bytes().to_vec()
    }
}

macro_rules! calls {
    ($($store:ident [$($also:tt)*] { $($call:ident $name:ident($($arg:ident: $owned:ty [$($ty:tt)+]),*) -> $answer:ty;)+ })+) => {
        /// A call of a method of a store, with its arguments.
        #[derive(Debug, Clone)]
        pub enum Call {
            $($(
                #[doc = concat!("`", stringify!($name), "`")]
                $call {
                    $(#[doc = "The argument of this name."] $arg: $owned,)*
                },
            )+)+
        }

        /// The answer of a method.
        #[derive(Debug, Clone)]
        pub enum Answer {
            $($(
                #[doc = concat!("Of `", stringify!($name), "`.")]
                $call(Result<$answer>),
            )+)+
        }

        impl Call {
            /// The names of all methods.
            pub const NAMES: &[&str] = &[$($(stringify!($name)),+),+];

            /// The name of the method.
            #[must_use]
            pub const fn name(&self) -> &'static str {
                match self {
                    $($(Self::$call { .. } => stringify!($name),)+)+
                }
            }

            /// Whether it may change anything.
            #[must_use]
            pub const fn writes(&self) -> bool {
                use Call as C;
                !matches!(
                    self,
                    C::GetWorkflow { .. } | C::FindWorkflow { .. } | C::ListWorkflows { .. } | C::CountWorkflows { .. }
                        | C::GetSnapshot { .. } | C::GetRun { .. } | C::ListRuns { .. } | C::CountRuns { .. }
                        | C::ReadyTasks { .. } | C::GetTask { .. } | C::ListTasks { .. } | C::TaskOutputs { .. }
                        | C::ReadLog { .. } | C::DueSchedules { .. } | C::ListJobs { .. } | C::PlanMigration {}
                        | C::Stats {} | C::Verify {} | C::ImportProgress {}
                )
            }

            /// Whether it does nothing if it is repeated at once, as by a caller without an answer
            /// (T7, R1). Its arguments identify what it did.
            #[must_use]
            pub const fn has_one_effect(&self) -> bool {
                use Call as C;
                match self {
                    C::CreateRun { new } => new.idempotency_key.is_some(),
                    C::ClaimTasks { .. } | C::ClaimJobs { .. } | C::AppendLog { .. } | C::Prune { .. }
                        | C::ExpireLeases { .. } | C::ExpireTimeouts { .. } => false,
                    _ => true,
                }
            }

            /// The capability that it needs, if any.
            #[must_use]
            pub const fn needs(&self) -> Option<Capability> {
                use Call as C;
                match self {
                    C::AppendLog { .. } | C::ReadLog { .. } => Some(Capability::Logs),
                    C::SetSchedule { .. } | C::DueSchedules { .. } | C::FireSchedule { .. } => Some(Capability::Schedules),
                    C::DeferTask { .. } | C::ClaimJobs { .. } | C::UpdateJobs { .. } | C::ListJobs { .. } => {
                        Some(Capability::DeferredJobs)
                    }
                    C::ImportProgress {} | C::Import { .. } | C::FinishImport {} | C::AbandonImport {} => {
                        Some(Capability::Transfer)
                    }
                    _ => None,
                }
            }

            /// Makes the call.
            pub async fn of(&self, db: &dyn Database) -> Answer {
                match self {
                    $($(Self::$call { $($arg),* } => {
                        let call = async { db.$name($($arg.lend()?),*).await };
                        Answer::$call(call.await)
                    })+)+
                }
            }

            /// An error as the answer to this call.
            #[must_use]
            pub fn fails(&self, error: Error) -> Answer {
                match self {
                    $($(Self::$call { .. } => Answer::$call(Err(error)),)+)+
                }
            }
        }

        impl Answer {
            /// Whether the answers mean the same: equal values, or errors of one kind about one
            /// thing, whatever their wording.
            #[must_use]
            pub fn is_like(&self, other: &Self) -> bool {
                match (self, other) {
                    $($((Self::$call(a), Self::$call(b)) => match (a, b) {
                        (Ok(a), Ok(b)) => a == b,
                        (Err(a), Err(b)) => is_alike(a, b),
                        _ => false,
                    },)+)+
                    _ => false,
                }
            }

            /// The error, if it is one.
            #[must_use]
            pub const fn error(&self) -> Option<&Error> {
                match self {
                    $($(Self::$call(Err(error)) => Some(error),)+)+
                    _ => None,
                }
            }
        }

        $(
            #[async_trait]
            impl<A: Answers> $store for Calls<A> {
                $(async fn $name(&self, $($arg: $($ty)+),*) -> Result<$answer> {
                    match self.0.answer(Call::$call { $($arg: $arg.own()),* }).await {
                        Answer::$call(answer) => answer,
                        other => Err(not_an_answer(stringify!($name), &other)),
                    }
                })+
                $($also)*
            }
        )+
    };
}

calls! {
    WorkflowStore [] {
        CreateWorkflow create_workflow(new: NewWorkflow [NewWorkflow]) -> Workflow;
        GetWorkflow get_workflow(id: WorkflowId [WorkflowId]) -> Workflow;
        FindWorkflow find_workflow(name: WorkflowName [&WorkflowName]) -> Workflow;
        ListWorkflows list_workflows(list: ListWorkflows [ListWorkflows]) -> Page<Workflow, WorkflowName>;
        CountWorkflows count_workflows(filter: WorkflowFilter [WorkflowFilter]) -> u64;
        UpdateWorkflow update_workflow(update: UpdateWorkflow [UpdateWorkflow]) -> Workflow;
        GetSnapshot get_snapshot(id: SnapshotId [SnapshotId]) -> Snapshot;
        DeleteWorkflow delete_workflow(id: WorkflowId [WorkflowId]) -> ();
    }
    RunStore [] {
        CreateRun create_run(new: NewRun [NewRun]) -> CreatedRun;
        GetRun get_run(id: RunId [RunId]) -> Run;
        ListRuns list_runs(list: ListRuns [ListRuns]) -> Page<Run, RunKey>;
        CountRuns count_runs(filter: RunFilter [RunFilter]) -> u64;
        StartRun start_run(start: StartRun [StartRun]) -> Run;
        CancelRun cancel_run(id: RunId [RunId]) -> Run;
        PauseRun pause_run(id: RunId [RunId]) -> Run;
        ResumeRun resume_run(id: RunId [RunId]) -> Run;
        RetryRun retry_run(retry: RetryRun [RetryRun]) -> Run;
    }
    TaskStore [] {
        ReadyTasks ready_tasks(limit: Limit [Limit]) -> Vec<ReadyTask>;
        ClaimTasks claim_tasks(claim: ClaimTasks [ClaimTasks]) -> Vec<ClaimedTask>;
        Heartbeat heartbeat(heartbeat: Heartbeat [Heartbeat]) -> Vec<HeartbeatOutcome>;
        ExpireLeases expire_leases(limit: Limit [Limit]) -> ExpiredTasks;
        ExpireTimeouts expire_timeouts(limit: Limit [Limit]) -> ExpiredTasks;
        UpdateTasks update_tasks(updates: TaskUpdates [TaskUpdates]) -> UpdateReport;
        GetTask get_task(id: TaskId [TaskId]) -> TaskDetail;
        ListTasks list_tasks(list: ListTasks [ListTasks]) -> Page<Task, u32>;
        TaskOutputs task_outputs(run: RunId [RunId], names: Vec<TaskName> [&[TaskName]]) -> BTreeMap<TaskName, Option<Json>>;
    }
    LogStore [] {
        AppendLog append_log(task: TaskId [TaskId], chunk: Vec<u8> [LogChunk<'_>]) -> LogAppended;
        ReadLog read_log(task: TaskId [TaskId], range: LogRange [LogRange]) -> LogSlice;
    }
    ScheduleStore [] {
        SetSchedule set_schedule(workflow: WorkflowId [WorkflowId], schedule: Option<Schedule> [Option<Schedule>]) -> Workflow;
        DueSchedules due_schedules(limit: Limit [Limit]) -> Vec<DueSchedule>;
        FireSchedule fire_schedule(fire: FireSchedule [FireSchedule]) -> FiredSchedule;
    }
    DeferredJobStore [] {
        DeferTask defer_task(defer: DeferTask [DeferTask]) -> Vec<DeferredJob>;
        ClaimJobs claim_jobs(claim: ClaimJobs [ClaimJobs]) -> Vec<ClaimedJob>;
        UpdateJobs update_jobs(updates: JobUpdates [JobUpdates]) -> UpdateReport<JobStatus>;
        ListJobs list_jobs(task: TaskId [TaskId]) -> Vec<DeferredJob>;
    }
    Maintenance [
        async fn watch(&self, topic: Topic) -> Result<Watch> {
            self.0.watch(topic).await
        }
    ] {
        Migrate migrate() -> MigrationReport;
        PlanMigration plan_migration() -> MigrationReport;
        Prune prune(prune: Prune [Prune]) -> Pruned;
        Stats stats() -> Stats;
        Verify verify() -> Vec<Violation>;
    }
    Transfer [] {
        ImportProgress import_progress() -> Option<ImportProgress>;
        Import import(page: ImportPage [ImportPage]) -> ();
        FinishImport finish_import() -> ();
        AbandonImport abandon_import() -> ();
    }
}

fn not_an_answer(method: &str, answer: &Answer) -> Error {
    Error::internal(format!("{method} was answered with something else: {answer:?}"))
}

/// Whether two errors are of one kind and about one thing. Each backend chooses its wording.
fn is_alike(a: &Error, b: &Error) -> bool {
    use ErrorKind::{AlreadyExists, InvalidTransition, LeaseLost, NotFound};
    match (a.kind(), b.kind()) {
        (NotFound { .. }, NotFound { .. })
        | (AlreadyExists { .. }, AlreadyExists { .. })
        | (LeaseLost { .. }, LeaseLost { .. }) => a.kind() == b.kind(),
        (
            InvalidTransition { entity, id, from, to: _ },
            InvalidTransition { entity: other, id: other_id, from: other_from, to: _ },
        ) => (entity, id, from) == (other, other_id, other_from),
        (a, b) => std::mem::discriminant(a) == std::mem::discriminant(b),
    }
}
