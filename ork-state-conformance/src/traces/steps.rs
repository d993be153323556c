//! The steps of a trace. A step refers to things by how long ago they were made. So any list of
//! steps is a trace, and it can be cut anywhere.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::{Just, Strategy, any, prop_oneof};

use super::drawn;

/// Refers to one of the things made so far; 0 is the latest. From [`UNKNOWN`] on it refers to one
/// that never existed.
pub(super) type Ref = u8;

/// The first number that refers to nothing.
pub(super) const UNKNOWN: Ref = 250;

/// One step. Numbers that are not references select from one of the [alphabets](super::words).
#[derive(Debug, Clone)]
pub(super) enum Step {
    Advance(u8),
    CreateWorkflow {
        name: u8,
        dag: u8,
        description: Option<u8>,
    },
    UpdateWorkflow {
        workflow: Ref,
        dag: Option<u8>,
        description: Option<Option<u8>>,
        target: Option<u8>,
    },
    DeleteWorkflow(Ref),
    CreateRun {
        workflow: Ref,
        key: Option<u8>,
        trigger: u8,
    },
    StartRun {
        run: Ref,
        dag: Option<u8>,
    },
    CancelRun(Ref),
    PauseRun(Ref),
    ResumeRun(Ref),
    RetryRun {
        run: Ref,
        tasks: Option<Vec<u8>>,
    },
    ClaimTasks {
        owner: u8,
        lease: u8,
        limit: u8,
        outputs: bool,
    },
    Heartbeat {
        claims: Vec<Ref>,
        lease: u8,
    },
    UpdateTasks(Vec<(Ref, TaskStep)>),
    ExpireLeases(u8),
    ExpireTimeouts(u8),
    AppendLog {
        task: Ref,
        chunk: u8,
    },
    SetSchedule {
        workflow: Ref,
        schedule: Option<ScheduleStep>,
    },
    FireSchedule {
        workflow: Ref,
        off: bool,
        next: Option<u8>,
    },
    DeferTask {
        claim: Ref,
        jobs: Vec<(u8, u8)>,
    },
    ClaimJobs {
        owner: u8,
        lease: u8,
        limit: u8,
    },
    UpdateJobs(Vec<(Ref, JobStep)>),
    Prune {
        older_than: u8,
        limit: u8,
    },
    Look(Look),
    Reopen,
    /// Repeats the previous call, as a caller without an answer does.
    Again,
}

/// What happened to a claimed task.
#[derive(Debug, Clone)]
pub(super) enum TaskStep {
    Dispatched(Option<u8>),
    Running,
    Succeeded(Option<u8>),
    Failed { error: u8, retry_after: Option<u8> },
    Released,
}

/// The result of a poll.
#[derive(Debug, Clone)]
pub(super) enum JobStep {
    Polled(u8),
    Completed(Option<u8>),
    Failed(u8),
}

/// A schedule. Its slots are relative to now.
#[derive(Debug, Clone)]
pub(super) struct ScheduleStep {
    pub(super) expression: u8,
    pub(super) enabled: bool,
    pub(super) next: Option<u8>,
    pub(super) is_past: bool,
}

/// A call that only reads.
#[derive(Debug, Clone)]
pub(super) enum Look {
    Workflow(Ref),
    Named(u8),
    Workflows {
        search: Option<u8>,
        after: Option<u8>,
        limit: u8,
    },
    Snapshot(Ref),
    Run(Ref),
    Runs {
        workflow: Option<Ref>,
        statuses: Option<u8>,
        trigger: Option<u8>,
        since: Option<u8>,
        after: Option<Ref>,
        limit: u8,
    },
    Ready(u8),
    Task(Ref),
    Tasks {
        run: Ref,
        statuses: Option<u8>,
        after: Option<u8>,
        limit: u8,
    },
    Outputs {
        run: Ref,
        names: Vec<u8>,
    },
    Log {
        task: Ref,
        from: u8,
        is_tail: bool,
        max: u8,
    },
    Due(u8),
    Jobs(Ref),
    Stats,
}

/// Traces of up to this many steps.
pub(super) fn traces(length: usize) -> impl Strategy<Value = Vec<Step>> {
    vec(step(), 1..=length)
}

/// Mostly something recent, at times something older, and at times something that never existed.
fn reference() -> impl Strategy<Value = Ref> {
    prop_oneof![12 => 0_u8..3, 4 => 0_u8..40, 1 => Just(UNKNOWN)]
}

/// A trace with this many steps, the same for the same seed.
pub(super) fn sample(seed: u64, length: usize) -> Vec<Step> {
    drawn(seed, &vec(step(), length)).unwrap_or_default()
}

/// This many steps that may run at the same time. Some have a patience: how often their caller lets
/// others go first before it gives up.
pub(super) fn sample_calls(seed: u64, length: usize) -> Vec<(Step, Option<u8>)> {
    let call = step()
        .prop_filter("is no call", |step| !matches!(step, Step::Advance(_) | Step::Reopen | Step::Again));
    drawn(seed, &vec((call, option::weighted(0.25, any::<u8>())), length)).unwrap_or_default()
}

fn few<T: std::fmt::Debug + Clone>(item: impl Strategy<Value = T>) -> impl Strategy<Value = Vec<T>> {
    vec(item, 0..=5)
}

fn step() -> impl Strategy<Value = Step> {
    let number = any::<u8>;
    let maybe = || option::of(any::<u8>());
    prop_oneof![
        6 => number().prop_map(Step::Advance),
        6 => Just(Step::Again),
        5 => (number(), number(), maybe())
            .prop_map(|(name, dag, description)| Step::CreateWorkflow { name, dag, description }),
        2 => (reference(), maybe(), option::of(maybe()), maybe()).prop_map(
            |(workflow, dag, description, target)| Step::UpdateWorkflow { workflow, dag, description, target }
        ),
        1 => reference().prop_map(Step::DeleteWorkflow),
        7 => (reference(), option::weighted(0.4, number()), number())
            .prop_map(|(workflow, key, trigger)| Step::CreateRun { workflow, key, trigger }),
        9 => (reference(), option::weighted(0.2, number())).prop_map(|(run, dag)| Step::StartRun { run, dag }),
        1 => reference().prop_map(Step::CancelRun),
        2 => reference().prop_map(Step::PauseRun),
        3 => reference().prop_map(Step::ResumeRun),
        3 => (reference(), option::of(vec(number(), 0..3)))
            .prop_map(|(run, tasks)| Step::RetryRun { run, tasks }),
        12 => (number(), number(), number(), any::<bool>())
            .prop_map(|(owner, lease, limit, outputs)| Step::ClaimTasks { owner, lease, limit, outputs }),
        3 => (few(reference()), number()).prop_map(|(claims, lease)| Step::Heartbeat { claims, lease }),
        14 => few((reference(), task_step())).prop_map(Step::UpdateTasks),
        3 => number().prop_map(Step::ExpireLeases),
        2 => number().prop_map(Step::ExpireTimeouts),
        2 => (reference(), number()).prop_map(|(task, chunk)| Step::AppendLog { task, chunk }),
        2 => (reference(), option::weighted(0.8, schedule()))
            .prop_map(|(workflow, schedule)| Step::SetSchedule { workflow, schedule }),
        2 => (reference(), proptest::bool::weighted(0.2), maybe())
            .prop_map(|(workflow, off, next)| Step::FireSchedule { workflow, off, next }),
        3 => (reference(), vec((number(), number()), 1..4))
            .prop_map(|(claim, jobs)| Step::DeferTask { claim, jobs }),
        3 => (number(), number(), number())
            .prop_map(|(owner, lease, limit)| Step::ClaimJobs { owner, lease, limit }),
        4 => few((reference(), job_step())).prop_map(Step::UpdateJobs),
        1 => (number(), number()).prop_map(|(older_than, limit)| Step::Prune { older_than, limit }),
        12 => look().prop_map(Step::Look),
        1 => Just(Step::Reopen),
    ]
}

fn task_step() -> impl Strategy<Value = TaskStep> {
    let number = any::<u8>;
    prop_oneof![
        1 => option::of(number()).prop_map(TaskStep::Dispatched),
        2 => Just(TaskStep::Running),
        6 => option::of(number()).prop_map(TaskStep::Succeeded),
        4 => (number(), option::weighted(0.7, number()))
            .prop_map(|(error, retry_after)| TaskStep::Failed { error, retry_after }),
        1 => Just(TaskStep::Released),
    ]
}

fn job_step() -> impl Strategy<Value = JobStep> {
    prop_oneof![
        2 => any::<u8>().prop_map(JobStep::Polled),
        4 => option::of(any::<u8>()).prop_map(JobStep::Completed),
        2 => any::<u8>().prop_map(JobStep::Failed),
    ]
}

fn schedule() -> impl Strategy<Value = ScheduleStep> {
    let enabled = proptest::bool::weighted(0.8);
    (any::<u8>(), enabled, option::weighted(0.9, any::<u8>()), any::<bool>())
        .prop_map(|(expression, enabled, next, is_past)| ScheduleStep { expression, enabled, next, is_past })
}

fn look() -> impl Strategy<Value = Look> {
    let number = any::<u8>;
    let maybe = || option::of(any::<u8>());
    prop_oneof![
        reference().prop_map(Look::Workflow),
        number().prop_map(Look::Named),
        (maybe(), maybe(), number()).prop_map(|(search, after, limit)| Look::Workflows {
            search,
            after,
            limit
        }),
        reference().prop_map(Look::Snapshot),
        reference().prop_map(Look::Run),
        (option::of(reference()), maybe(), maybe(), maybe(), option::of(reference()), number()).prop_map(
            |(workflow, statuses, trigger, since, after, limit)| {
                Look::Runs { workflow, statuses, trigger, since, after, limit }
            }
        ),
        number().prop_map(Look::Ready),
        reference().prop_map(Look::Task),
        (reference(), maybe(), option::of(0_u8..4), number())
            .prop_map(|(run, statuses, after, limit)| Look::Tasks { run, statuses, after, limit }),
        (reference(), few(number())).prop_map(|(run, names)| Look::Outputs { run, names }),
        (reference(), number(), any::<bool>(), number()).prop_map(|(task, from, is_tail, max)| Look::Log {
            task,
            from,
            is_tail,
            max
        }),
        number().prop_map(Look::Due),
        reference().prop_map(Look::Jobs),
        Just(Look::Stats),
    ]
}
