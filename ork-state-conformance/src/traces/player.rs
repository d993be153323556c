//! Plays a trace against a store and the model beside it. Compares every answer, and at the end the
//! whole state.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ork_state_api::{
    Capability, Claim, ClaimJobs, ClaimTasks, Clock, ConnectOptions, Database, DeferTask, Delay,
    FireSchedule, Heartbeat, JobClaim, JobId, JobUpdate, JobUpdates, LeaseTime, Limit, ListRuns, ListTasks,
    ListWorkflows, LogPosition, LogRange, ManualClock, NewDeferredJob, NewRun, NewWorkflow, Page,
    PageRequest, Prune, Result, RetryRun, RunFilter, RunId, RunKey, RunStatus, Schedule, SnapshotId,
    StartRun, Target, Task, TaskId, TaskStatus, TaskUpdate, TaskUpdates, Timestamp, Token, UpdateWorkflow,
    WorkflowFilter, WorkflowId,
};

use super::steps::{JobStep, Look, Ref, ScheduleStep, Step, TaskStep, UNKNOWN};
use super::words;
use crate::ctx::with;
use crate::model::{Answer, Call, Model};
use crate::{Fixture, TestStore};

/// Where a store's answer differs from the one that the rules require.
#[derive(Debug, Clone)]
pub(super) struct Divergence {
    /// The step, unless it is the check at the end.
    step: Option<(usize, Step)>,
    what: String,
}

impl Divergence {
    pub(super) fn new(what: impl Into<String>) -> Self {
        Self { step: None, what: what.into() }
    }
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.step {
            Some((number, step)) => write!(f, "at step {number}, {step:?}: {}", self.what),
            None => write!(f, "at the end: {}", self.what),
        }
    }
}

impl From<ork_state_api::Error> for Divergence {
    fn from(error: ork_state_api::Error) -> Self {
        Self::new(format!("{error:?}"))
    }
}

/// Names for ids that are the same in every transcript: they are numbered in order of appearance.
#[derive(Default)]
struct Names(HashMap<String, usize>);

impl Names {
    /// The text with its ids renamed and its tokens left out, because each store chooses those
    /// itself.
    fn rename(&mut self, text: &str) -> String {
        const TOKEN: &str = "Token(";
        let (mut renamed, mut rest) = (String::with_capacity(text.len()), text);
        while let Some(c) = rest.chars().next() {
            if let Some(id) = rest.get(..36).filter(|id| uuid::Uuid::try_parse(id).is_ok()) {
                let next = self.0.len();
                let number = *self.0.entry(id.to_owned()).or_insert(next);
                renamed.push_str(&format!("#{number}"));
                rest = &rest[36..];
            } else if let Some(token) = rest.strip_prefix(TOKEN) {
                renamed.push_str(TOKEN);
                rest = token.trim_start_matches(|c: char| c.is_ascii_digit());
            } else {
                renamed.push(c);
                rest = &rest[c.len_utf8()..];
            }
        }
        renamed
    }
}

/// A store, the model, and what was created so far.
pub(super) struct Player {
    fixture: Arc<dyn Fixture>,
    store: Arc<dyn TestStore>,
    db: Arc<dyn Database>,
    clock: Arc<ManualClock>,
    model: Model,
    workflows: Vec<WorkflowId>,
    snapshots: Vec<SnapshotId>,
    runs: Vec<RunId>,
    tasks: Vec<TaskId>,
    claims: Vec<Claim>,
    jobs: Vec<JobId>,
    job_claims: Vec<JobClaim>,
    /// The previous call, if nothing has happened since.
    last: Option<Call>,
    /// Every answer, to compare with another store's.
    transcript: Vec<String>,
    names: Names,
}

impl Player {
    pub(super) async fn new(fixture: Arc<dyn Fixture>) -> Result<Self, Divergence> {
        let store = fixture.migrated().await?;
        let clock = Arc::new(ManualClock::default());
        let db = open(&*fixture, &*store, &clock).await?;
        db.migrate().await?;
        let mut model = Model::default();
        model.answer(clock.now(), Call::Migrate {}, None);
        Ok(Self {
            fixture,
            store,
            db,
            clock,
            model,
            workflows: vec![],
            snapshots: vec![],
            runs: vec![],
            tasks: vec![],
            claims: vec![],
            jobs: vec![],
            job_claims: vec![],
            last: None,
            transcript: vec![],
            names: Names::default(),
        })
    }

    /// Plays the whole trace. Returns the answers, in the order of the calls.
    pub(super) async fn play(mut self, steps: &[Step]) -> Result<Vec<String>, Divergence> {
        self.go_on(steps).await?;
        self.compare_all().await?;
        Ok(self.transcript)
    }

    /// Plays these steps.
    pub(super) async fn go_on(&mut self, steps: &[Step]) -> Result<(), Divergence> {
        for (number, step) in steps.iter().enumerate() {
            let at = |divergence| Divergence { step: Some((number, step.clone())), ..divergence };
            self.step(step).await.map_err(at)?;
        }
        Ok(())
    }

    /// Adopts these answers and this model as the store's.
    pub(super) fn follow(&mut self, model: Model, answers: &[Answer]) {
        self.last = None;
        self.model = model;
        for answer in answers {
            self.remember(answer);
            if let Answer::ListTasks(Ok(page)) = answer {
                self.remember_tasks(page);
            }
        }
    }

    /// The store's URL.
    pub(super) fn url(&self) -> String {
        self.store.url()
    }

    pub(super) const fn model(&self) -> &Model {
        &self.model
    }

    pub(super) fn db(&self) -> &dyn Database {
        &*self.db
    }

    pub(super) fn shared_db(&self) -> Arc<dyn Database> {
        self.db.clone()
    }

    /// Another handle of the store.
    pub(super) async fn another(&self) -> Result<Arc<dyn Database>> {
        open(&*self.fixture, &*self.store, &self.clock).await
    }

    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// The runs that the model has.
    pub(super) fn runs(&self) -> impl Iterator<Item = RunId> {
        self.model.runs.keys().copied()
    }

    pub(super) fn has(&self, capability: Capability) -> bool {
        self.db.backend().capabilities.has(capability)
    }

    async fn step(&mut self, step: &Step) -> Result<(), Divergence> {
        // Two events at one moment are a different trace from two at different moments. Both occur.
        if let Step::Advance(number) = step {
            let pauses = [1, 1_000_000, 999_999, 59_999_999, 60_000_000, 600_000_000, 86_400_000_000];
            self.clock.advance(Duration::from_micros(words::one_of(&pauses, *number)));
            self.last = None;
            return Ok(());
        }
        if let Step::Reopen = step {
            if self.has(Capability::Durable) {
                self.db = open(&*self.fixture, &*self.store, &self.clock).await?;
            }
            return Ok(());
        }
        if let Step::Again = step {
            return self.repeat().await;
        }
        let Some(call) = self.call(step)? else { return Ok(()) };
        self.last = Some(call.clone());
        let answer = self.make(call).await?;
        self.remember(&answer);
        if let Answer::StartRun(Ok(run)) = &answer {
            // Only a list tells the ids of a run's tasks.
            self.list_tasks(run.id).await?;
        }
        Ok(())
    }

    /// Repeats the previous call, as if its answer had been lost. It must not take effect again
    /// (T7, R1).
    async fn repeat(&mut self) -> Result<(), Divergence> {
        let Some(call) = self.last.clone().filter(Call::has_one_effect) else { return Ok(()) };
        let before = self.model.clone();
        self.make(call.clone()).await?;
        if self.model != before {
            return Err(Divergence::new(format!("the model does it twice: {}", shown(&call))));
        }
        Ok(())
    }

    /// Makes a call of the store. The model says what the answer should have been.
    async fn make(&mut self, call: Call) -> Result<Answer, Divergence> {
        let got = call.of(&*self.db).await;
        let wanted = self.model.answer(self.clock.now(), call.clone(), Some(&got));
        if !wanted.is_like(&got) {
            let what = format!(
                "\n    call:   {}\n    wanted: {}\n    got:    {}",
                shown(&call),
                shown(&wanted),
                shown(&got)
            );
            return Err(Divergence::new(what));
        }
        self.transcript.push(match got.error() {
            // Each backend chooses the wording of its errors.
            Some(error) => format!("{} failed: {}", call.name(), error.kind().name()),
            None => self.names.rename(&format!("{} answered {got:?}", call.name())),
        });
        Ok(got)
    }

    async fn list_tasks(&mut self, run: RunId) -> Result<(), Divergence> {
        let list = ListTasks::of(run, PageRequest::first(Limit::MAX));
        let answer = self.make(Call::ListTasks { list }).await?;
        if let Answer::ListTasks(Ok(page)) = &answer {
            self.remember_tasks(page);
        }
        Ok(())
    }

    fn remember_tasks(&mut self, page: &Page<Task, u32>) {
        for task in &page.items {
            if !self.tasks.contains(&task.id) {
                self.tasks.push(task.id);
            }
        }
    }

    /// Keeps the ids and tokens in an answer.
    fn remember(&mut self, answer: &Answer) {
        match answer {
            Answer::CreateWorkflow(Ok(workflow)) => {
                self.workflows.push(workflow.id);
                self.snapshots.push(workflow.snapshot);
            }
            Answer::UpdateWorkflow(Ok(workflow)) => self.snapshots.push(workflow.snapshot),
            Answer::CreateRun(Ok(created)) => self.runs.push(created.clone().into_run().id),
            Answer::FireSchedule(Ok(ork_state_api::FiredSchedule::Fired(run))) => self.runs.push(run.id),
            Answer::ClaimTasks(Ok(claimed)) => self.claims.extend(claimed.iter().map(|it| it.claim)),
            Answer::DeferTask(Ok(jobs)) => self.jobs.extend(jobs.iter().map(|job| job.id)),
            Answer::ClaimJobs(Ok(claimed)) => self.job_claims.extend(claimed.iter().map(|it| it.claim)),
            _ => {}
        }
    }

    fn workflow(&self, reference: Ref) -> WorkflowId {
        pick(&self.workflows, reference).unwrap_or_else(|| WorkflowId::from_uuid(uuid::Uuid::max()))
    }

    fn run(&self, reference: Ref) -> RunId {
        pick(&self.runs, reference).unwrap_or_else(|| RunId::from_uuid(uuid::Uuid::max()))
    }

    fn task(&self, reference: Ref) -> TaskId {
        pick(&self.tasks, reference).unwrap_or_else(|| TaskId::from_uuid(uuid::Uuid::max()))
    }

    fn claim(&self, reference: Ref) -> Claim {
        let unknown = || Claim { task: self.task(reference), token: Token::from_stored(i64::MAX) };
        pick(&self.claims, reference).unwrap_or_else(unknown)
    }

    fn job_claim(&self, reference: Ref) -> JobClaim {
        let job = pick(&self.jobs, reference).unwrap_or_else(|| JobId::from_uuid(uuid::Uuid::max()));
        pick(&self.job_claims, reference).unwrap_or(JobClaim { job, token: Token::from_stored(i64::MAX) })
    }

    /// The call of a step. `None` if the backend opts out of it, or there is nothing to do.
    pub(super) fn call(&self, step: &Step) -> Result<Option<Call>> {
        let needs = match step {
            Step::AppendLog { .. } | Step::Look(Look::Log { .. }) => Some(Capability::Logs),
            Step::SetSchedule { .. } | Step::FireSchedule { .. } | Step::Look(Look::Due(_)) => {
                Some(Capability::Schedules)
            }
            Step::DeferTask { .. }
            | Step::ClaimJobs { .. }
            | Step::UpdateJobs(_)
            | Step::Look(Look::Jobs(_)) => Some(Capability::DeferredJobs),
            _ => None,
        };
        if needs.is_some_and(|capability| !self.has(capability)) {
            return Ok(None);
        }
        Ok(Some(match step {
            Step::Advance(_) | Step::Reopen | Step::Again => return Ok(None),
            Step::CreateWorkflow { name, dag, description } => {
                let mut new = NewWorkflow::new(words::workflow_name(*name)?, words::dag(*dag)?);
                if let Some(number) = description {
                    new = new.with_description(words::text(*number)).with_target(target(*number)?);
                }
                Call::CreateWorkflow { new }
            }
            Step::UpdateWorkflow { workflow, dag, description, target: number } => {
                let mut update = UpdateWorkflow::new(self.workflow(*workflow));
                update.dag = dag.map(words::dag).transpose()?;
                update.description = description.map(|text| text.map(words::text));
                update.target = number.map(target).transpose()?;
                Call::UpdateWorkflow { update }
            }
            Step::DeleteWorkflow(workflow) => Call::DeleteWorkflow { id: self.workflow(*workflow) },
            Step::CreateRun { workflow, key, trigger } => {
                let mut new = NewRun::new(self.workflow(*workflow)).with_trigger(words::label(*trigger)?);
                if let Some(key) = key {
                    new = new.with_idempotency_key(words::label(*key)?);
                }
                Call::CreateRun { new }
            }
            Step::StartRun { run, dag } => {
                let run = self.run(*run);
                let start = match dag {
                    Some(dag) => StartRun::with_dag(run, words::dag(*dag)?),
                    None => StartRun::pinned(run),
                };
                Call::StartRun { start }
            }
            Step::CancelRun(run) => Call::CancelRun { id: self.run(*run) },
            Step::PauseRun(run) => Call::PauseRun { id: self.run(*run) },
            Step::ResumeRun(run) => Call::ResumeRun { id: self.run(*run) },
            Step::RetryRun { run, tasks } => {
                let run = self.run(*run);
                let retry = match tasks {
                    Some(names) => {
                        let names: Result<Vec<_>> =
                            names.iter().map(|name| words::task_name(*name)).collect();
                        RetryRun::from_tasks(run, names?)
                    }
                    None => RetryRun::unsuccessful(run),
                };
                Call::RetryRun { retry }
            }
            Step::ClaimTasks { owner, lease: length, limit: number, outputs } => {
                let mut claim =
                    ClaimTasks::new(words::label(*owner)?, lease(*length)?).with_limit(limit(*number)?);
                if *outputs {
                    claim = claim.with_dependency_outputs();
                }
                Call::ClaimTasks { claim }
            }
            Step::Heartbeat { claims, lease: length } => {
                let claims: Vec<Claim> = claims.iter().map(|claim| self.claim(*claim)).collect();
                Call::Heartbeat { heartbeat: Heartbeat::new(claims, lease(*length)?)? }
            }
            Step::UpdateTasks(updates) => {
                let updates: Result<Vec<TaskUpdate>> =
                    updates.iter().map(|(claim, step)| task_update(self.claim(*claim), step)).collect();
                Call::UpdateTasks { updates: TaskUpdates::new(updates?)? }
            }
            Step::ExpireLeases(number) => Call::ExpireLeases { limit: limit(*number)? },
            Step::ExpireTimeouts(number) => Call::ExpireTimeouts { limit: limit(*number)? },
            Step::AppendLog { task, chunk } => {
                Call::AppendLog { task: self.task(*task), chunk: words::chunk(*chunk) }
            }
            Step::SetSchedule { workflow, schedule } => {
                let schedule = schedule.as_ref().map(|schedule| self.schedule(schedule));
                Call::SetSchedule { workflow: self.workflow(*workflow), schedule }
            }
            Step::FireSchedule { workflow, off, next } => {
                let workflow = self.workflow(*workflow);
                let Some(fire) = self.fire(workflow, *off, *next)? else { return Ok(None) };
                Call::FireSchedule { fire }
            }
            Step::DeferTask { claim, jobs } => {
                let jobs: Result<Vec<NewDeferredJob>> = jobs
                    .iter()
                    .map(|(number, after)| {
                        let job = NewDeferredJob::new(
                            words::label(*number)?,
                            words::text(*number),
                            words::json(*number)?,
                        );
                        Ok(job.with_poll_after(delay(*after)?))
                    })
                    .collect();
                Call::DeferTask { defer: DeferTask::new(self.claim(*claim), jobs?)? }
            }
            Step::ClaimJobs { owner, lease: length, limit: number } => Call::ClaimJobs {
                claim: ClaimJobs::new(words::label(*owner)?, lease(*length)?).with_limit(limit(*number)?),
            },
            Step::UpdateJobs(updates) => {
                let mut seen = BTreeSet::new();
                let mut items = Vec::new();
                for (claim, step) in updates {
                    let claim = self.job_claim(*claim);
                    // A batch names a job only once.
                    if seen.insert(claim.job) {
                        items.push(job_update(claim, step)?);
                    }
                }
                Call::UpdateJobs { updates: JobUpdates::new(items)? }
            }
            Step::Prune { older_than, limit: number } => {
                let older_than = delay(*older_than)?.get();
                Call::Prune { prune: Prune::older_than(older_than).with_limit(limit(*number)?) }
            }
            Step::Look(look) => self.look(look)?,
        }))
    }

    fn look(&self, look: &Look) -> Result<Call> {
        Ok(match look {
            Look::Workflow(workflow) => Call::GetWorkflow { id: self.workflow(*workflow) },
            Look::Named(name) => Call::FindWorkflow { name: words::workflow_name(*name)? },
            Look::Workflows { search, after, limit: number } => {
                let filter = search.map(words::search).transpose()?;
                let filter = filter.map_or(WorkflowFilter::all(), WorkflowFilter::name_contains);
                if number % 5 == 4 {
                    return Ok(Call::CountWorkflows { filter });
                }
                let after = after.map(words::workflow_name).transpose()?;
                Call::ListWorkflows {
                    list: ListWorkflows::new(filter, PageRequest { after, limit: limit(*number)? }),
                }
            }
            Look::Snapshot(snapshot) => {
                let unknown = || SnapshotId::from_uuid(uuid::Uuid::max());
                Call::GetSnapshot { id: pick(&self.snapshots, *snapshot).unwrap_or_else(unknown) }
            }
            Look::Run(run) => Call::GetRun { id: self.run(*run) },
            Look::Runs { workflow, statuses, trigger, since, after, limit: number } => {
                let now = self.clock.now();
                let mut filter = RunFilter::all();
                filter.workflow = workflow.map(|workflow| self.workflow(workflow));
                filter.statuses = statuses.map(|bits| chosen(RunStatus::ALL, bits));
                filter.created_from = since
                    .map(|number| delay(number).map(|delay| now.saturating_sub(delay.get())))
                    .transpose()?;
                filter.created_before = since.filter(|number| number.is_multiple_of(2)).map(|_| now);
                filter.triggered_by = trigger.map(words::label).transpose()?;
                if number % 5 == 4 {
                    return Ok(Call::CountRuns { filter });
                }
                let after = after.map(|run| RunKey { created_at: now, id: self.run(run) });
                Call::ListRuns { list: ListRuns::new(filter, PageRequest { after, limit: limit(*number)? }) }
            }
            Look::Ready(number) => Call::ReadyTasks { limit: limit(*number)? },
            Look::Task(task) => Call::GetTask { id: self.task(*task) },
            Look::Tasks { run, statuses, after, limit: number } => {
                let page = PageRequest { after: after.map(u32::from), limit: limit(*number)? };
                let statuses = statuses.map(|bits| chosen(TaskStatus::ALL, bits));
                Call::ListTasks {
                    list: with(ListTasks::of(self.run(*run), page), |list| list.statuses = statuses),
                }
            }
            Look::Outputs { run, names } => {
                let names: Result<Vec<_>> = names.iter().map(|name| words::task_name(*name)).collect();
                Call::TaskOutputs { run: self.run(*run), names: names? }
            }
            Look::Log { task, from, is_tail, max } => {
                let from = u64::from(*from) * 50;
                let from = if *is_tail { LogPosition::BeforeEnd(from) } else { LogPosition::Offset(from) };
                Call::ReadLog {
                    task: self.task(*task),
                    range: LogRange::new(from, usize::from(*max) * 60 + 1)?,
                }
            }
            Look::Due(number) => Call::DueSchedules { limit: limit(*number)? },
            Look::Jobs(task) => Call::ListJobs { task: self.task(*task) },
            Look::Stats => Call::Stats {},
        })
    }

    fn schedule(&self, step: &ScheduleStep) -> Schedule {
        let now = self.clock.now();
        let next = step.next.map(|number| {
            let away = Duration::from_micros(u64::from(number % 4) * 30_000_000);
            if step.is_past { now.saturating_sub(away) } else { now.saturating_add(away) }
        });
        let schedule = Schedule::new(words::text(step.expression), next);
        if step.enabled { schedule } else { schedule.disabled() }
    }

    /// Fires the slot that the model knows to be next, or one that is slightly different.
    fn fire(&self, workflow: WorkflowId, off: bool, next: Option<u8>) -> Result<Option<FireSchedule>> {
        let known = self.model.workflows.get(&workflow).and_then(|workflow| workflow.schedule.as_ref());
        let slot = known.and_then(|schedule| schedule.next_at).unwrap_or_else(|| self.clock.now());
        let slot = if off { slot.saturating_add(Duration::from_micros(1)) } else { slot };
        let next: Option<Timestamp> =
            next.map(|number| slot.saturating_add(Duration::from_secs(u64::from(number % 3) * 30 + 1)));
        FireSchedule::new(workflow, slot, next).map(Some)
    }

    /// Compares everything in the store with what should be there, and verifies it.
    pub(super) async fn compare_all(&mut self) -> Result<(), Divergence> {
        let everything = Limit::MAX;
        self.make(Call::ListWorkflows { list: PageRequest::first(everything).into() }).await?;
        self.make(Call::ListRuns { list: PageRequest::first(everything).into() }).await?;
        self.make(Call::ReadyTasks { limit: everything }).await?;
        self.make(Call::Stats {}).await?;
        if self.has(Capability::Schedules) {
            self.make(Call::DueSchedules { limit: everything }).await?;
        }
        for snapshot in self.snapshots.clone() {
            self.make(Call::GetSnapshot { id: snapshot }).await?;
        }
        for run in self.runs.clone() {
            let list = ListTasks::of(run, PageRequest::first(everything));
            self.make(Call::ListTasks { list }).await?;
        }
        for task in self.tasks.clone() {
            self.make(Call::GetTask { id: task }).await?;
            if self.has(Capability::Logs) {
                let range = LogRange::new(LogPosition::Offset(0), 1 << 24)?;
                self.make(Call::ReadLog { task, range }).await?;
            }
            if self.has(Capability::DeferredJobs) {
                self.make(Call::ListJobs { task }).await?;
            }
        }
        self.make(Call::Verify {}).await?;
        Ok(())
    }
}

pub(super) async fn open(
    fixture: &dyn Fixture,
    store: &dyn TestStore,
    clock: &Arc<ManualClock>,
) -> Result<Arc<dyn Database>> {
    fixture.connect(ConnectOptions::new(&store.url())?.with_clock(clock.clone())).await
}

fn pick<T: Copy>(made: &[T], reference: Ref) -> Option<T> {
    if reference >= UNKNOWN || made.is_empty() {
        return None;
    }
    made.get(made.len() - 1 - usize::from(reference) % made.len()).copied()
}

fn limit(number: u8) -> Result<Limit> {
    Limit::new(words::one_of(&[1, 2, 3, 100, 10_000], number))
}

/// Leases are a minute, a second, or a week.
fn lease(number: u8) -> Result<LeaseTime> {
    LeaseTime::new(words::one_of(&[60, 60, 1, 604_800].map(Duration::from_secs), number))
}

fn delay(number: u8) -> Result<Delay> {
    Delay::new(words::one_of(&[0, 1, 60, 3600, 86_400].map(Duration::from_secs), number))
}

fn target(number: u8) -> Result<Target> {
    let mut target = Target::new(words::label(number)?, words::text(number));
    target.region = words::text(number.wrapping_add(1));
    target.project = words::text(number.wrapping_add(2));
    target.params = (!number.is_multiple_of(3)).then(|| words::json(number)).transpose()?;
    Ok(target)
}

fn task_update(claim: Claim, step: &TaskStep) -> Result<TaskUpdate> {
    Ok(match step {
        TaskStep::Dispatched(name) => TaskUpdate::dispatched(claim, name.map(words::label).transpose()?),
        TaskStep::Running => TaskUpdate::running(claim),
        TaskStep::Succeeded(output) => TaskUpdate::succeeded(claim, output.map(words::json).transpose()?),
        TaskStep::Failed { error, retry_after: Some(after) } => {
            TaskUpdate::failed(claim, words::text(*error), delay(*after)?)
        }
        TaskStep::Failed { error, retry_after: None } => {
            TaskUpdate::failed_for_good(claim, words::text(*error))
        }
        TaskStep::Released => TaskUpdate::released(claim),
    })
}

fn job_update(claim: JobClaim, step: &JobStep) -> Result<JobUpdate> {
    Ok(match step {
        JobStep::Polled(after) => JobUpdate::polled(claim, delay(*after)?),
        JobStep::Completed(output) => JobUpdate::completed(claim, output.map(words::json).transpose()?),
        JobStep::Failed(error) => JobUpdate::failed(claim, words::text(*error)),
    })
}

/// The items whose bit is set.
fn chosen<T: Copy + Ord>(all: &[T], bits: u8) -> BTreeSet<T> {
    let is_chosen =
        |index: usize| bits.checked_shr(u32::try_from(index).unwrap_or(u32::MAX)).unwrap_or(0) & 1 == 1;
    all.iter().enumerate().filter(|(index, _)| is_chosen(*index)).map(|(_, item)| *item).collect()
}

/// Some answers are long, and nobody reads more than this.
pub(super) fn shown(value: &impl fmt::Debug) -> String {
    const MOST: usize = 4000;
    let mut text = format!("{value:?}");
    if text.len() > MOST {
        text.truncate(text.floor_char_boundary(MOST));
        text.push_str(" ... [cut]");
    }
    text
}
