//! Clients of a history that are separate processes. Calls and answers are lines of JSON.

use std::collections::BTreeMap;
use std::sync::Arc;

use ork_state_api::{
    Claim, ClaimTasks, ClaimedTask, ConnectOptions, CreatedRun, EndedRun, Entity, Error, ErrorKind,
    Heartbeat, HeartbeatOutcome, Json, Label, LeaseTime, Limit, ManualClock, NewRun, Registry, Result, Run,
    RunId, RunStatus, StartRun, Target, Task, TaskChange, TaskId, TaskName, TaskStatus, TaskUpdate,
    TaskUpdates, Text, Timestamp, Token, UpdateOutcome, UpdateReport, WorkflowId, WorkflowName,
};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::LEASE;
use crate::child::{ChildProcess, PlayResult, Role};
use crate::ctx::with;
use crate::model::{Answer, Call};

/// A call for a process to make: the ones that conflict most often.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Asked {
    Create { workflow: WorkflowId, key: Label },
    Start(RunId),
    Cancel(RunId),
    Pause(RunId),
    Resume(RunId),
    Claim { owner: Label, limit: Limit },
    Renew { task: TaskId, token: Token },
    Update { task: TaskId, token: Token, end: End },
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) enum End {
    Running,
    Succeeded,
    Failed,
    Released,
}

impl Asked {
    /// The request for a call, if there is one for its kind. Only its kind and ids are kept.
    pub(super) fn of(call: &Call) -> Option<Self> {
        Some(match call {
            Call::CreateRun { new } => {
                Self::Create { workflow: new.workflow, key: new.idempotency_key.clone()? }
            }
            Call::StartRun { start } => Self::Start(start.run),
            Call::CancelRun { id } => Self::Cancel(*id),
            Call::PauseRun { id } => Self::Pause(*id),
            Call::ResumeRun { id } => Self::Resume(*id),
            Call::ClaimTasks { claim } => Self::Claim { owner: claim.owner.clone(), limit: claim.limit },
            Call::Heartbeat { heartbeat } => {
                let Claim { task, token } = *heartbeat.claims().first()?;
                Self::Renew { task, token }
            }
            Call::UpdateTasks { updates } => {
                let step = updates.steps().first()?;
                let end = match step.end {
                    Some(TaskChange::Succeeded { .. }) => End::Succeeded,
                    Some(TaskChange::Failed { .. }) => End::Failed,
                    Some(TaskChange::Released) => End::Released,
                    _ => End::Running,
                };
                Self::Update { task: step.claim.task, token: step.claim.token, end }
            }
            _ => return None,
        })
    }

    /// The call to make.
    pub(super) fn call(self) -> Result<Call> {
        let lease = LeaseTime::new(LEASE)?;
        Ok(match self {
            Self::Create { workflow, key } => {
                Call::CreateRun { new: NewRun::new(workflow).with_idempotency_key(key) }
            }
            Self::Start(run) => Call::StartRun { start: StartRun::pinned(run) },
            Self::Cancel(id) => Call::CancelRun { id },
            Self::Pause(id) => Call::PauseRun { id },
            Self::Resume(id) => Call::ResumeRun { id },
            Self::Claim { owner, limit } => {
                Call::ClaimTasks { claim: ClaimTasks::new(owner, lease).with_limit(limit) }
            }
            Self::Renew { task, token } => {
                Call::Heartbeat { heartbeat: Heartbeat::new(vec![Claim { task, token }], lease)? }
            }
            Self::Update { task, token, end } => {
                let claim = Claim { task, token };
                let update = match end {
                    End::Running => TaskUpdate::running(claim),
                    End::Succeeded => TaskUpdate::succeeded(claim, None),
                    End::Failed => TaskUpdate::failed_for_good(claim, Text::lossy("for good")),
                    End::Released => TaskUpdate::released(claim),
                };
                Call::UpdateTasks { updates: TaskUpdates::one(update) }
            }
        })
    }
}

/// The answer that a process got.
#[derive(Debug, Serialize, Deserialize)]
enum Told {
    Created { run: Run, is_new: bool },
    Run(Run),
    Claimed(Vec<Claimed>),
    Renewed(Vec<Option<Timestamp>>),
    Updated { outcomes: Vec<Outcome>, ended: Vec<(RunId, RunStatus)> },
    Failed(Failure),
}

#[derive(Debug, Serialize, Deserialize)]
struct Claimed {
    task: Task,
    token: Token,
    params: Option<Json>,
    workflow: WorkflowId,
    workflow_name: WorkflowName,
    target: Target,
    outputs: BTreeMap<TaskName, Option<Json>>,
}

#[derive(Debug, Serialize, Deserialize)]
enum Outcome {
    Applied(TaskStatus),
    Terminal(TaskStatus),
    Lost,
    NotFound,
}

#[derive(Debug, Serialize, Deserialize)]
enum Failure {
    NotFound(String, String),
    Exists(String, String),
    Transition {
        entity: String,
        id: String,
        from: String,
        to: String,
    },
    Conflict(String),
    LeaseLost(TaskId),
    /// Anything else, which should not be an answer to any of these calls.
    Other(String),
}

impl Told {
    fn of(answer: Answer) -> Self {
        let run = |run: Result<Run>| run.map_or_else(|error| Self::Failed(Failure::of(&error)), Self::Run);
        match answer {
            Answer::CreateRun(Ok(created)) => {
                let is_new = matches!(created, CreatedRun::New(_));
                Self::Created { run: created.into_run(), is_new }
            }
            Answer::StartRun(it) | Answer::CancelRun(it) | Answer::PauseRun(it) | Answer::ResumeRun(it) => {
                run(it)
            }
            Answer::ClaimTasks(Ok(claimed)) => Self::Claimed(claimed.into_iter().map(Claimed::of).collect()),
            Answer::Heartbeat(Ok(outcomes)) => {
                let until = |outcome| match outcome {
                    HeartbeatOutcome::Extended { expires_at } => Some(expires_at),
                    HeartbeatOutcome::Lost => None,
                };
                Self::Renewed(outcomes.into_iter().map(until).collect())
            }
            Answer::UpdateTasks(Ok(UpdateReport { outcomes, ended_runs, .. })) => Self::Updated {
                outcomes: outcomes.into_iter().map(Outcome::of).collect(),
                ended: ended_runs.into_iter().map(|it| (it.run, it.status)).collect(),
            },
            other => Self::Failed(match other.error() {
                Some(error) => Failure::of(error),
                None => Failure::Other(format!("{other:?}")),
            }),
        }
    }

    /// The answer to this call.
    fn answer(self, call: &Call) -> Answer {
        match (call, self) {
            (_, Self::Failed(failure)) => call.fails(failure.error()),
            (Call::CreateRun { .. }, Self::Created { run, is_new: true }) => {
                Answer::CreateRun(Ok(CreatedRun::New(run)))
            }
            (Call::CreateRun { .. }, Self::Created { run, .. }) => {
                Answer::CreateRun(Ok(CreatedRun::Existing(run)))
            }
            (Call::StartRun { .. }, Self::Run(run)) => Answer::StartRun(Ok(run)),
            (Call::CancelRun { .. }, Self::Run(run)) => Answer::CancelRun(Ok(run)),
            (Call::PauseRun { .. }, Self::Run(run)) => Answer::PauseRun(Ok(run)),
            (Call::ResumeRun { .. }, Self::Run(run)) => Answer::ResumeRun(Ok(run)),
            (Call::ClaimTasks { .. }, Self::Claimed(claimed)) => {
                Answer::ClaimTasks(Ok(claimed.into_iter().map(Claimed::into_task).collect()))
            }
            (Call::Heartbeat { .. }, Self::Renewed(until)) => {
                let outcome = |until: Option<Timestamp>| {
                    until.map_or(HeartbeatOutcome::Lost, |expires_at| HeartbeatOutcome::Extended {
                        expires_at,
                    })
                };
                Answer::Heartbeat(Ok(until.into_iter().map(outcome).collect()))
            }
            (Call::UpdateTasks { .. }, Self::Updated { outcomes, ended }) => {
                Answer::UpdateTasks(Ok(UpdateReport::new(
                    outcomes.into_iter().map(Outcome::into_outcome).collect(),
                    ended.into_iter().map(|(run, status)| EndedRun::new(run, status)).collect(),
                )))
            }
            (_, other) => call.fails(Error::internal(format!("was answered with something else: {other:?}"))),
        }
    }
}

impl Claimed {
    fn of(task: ClaimedTask) -> Self {
        let ClaimedTask { task, claim, params, workflow, workflow_name, target, dependency_outputs, .. } =
            task;
        Self {
            task,
            token: claim.token,
            params,
            workflow,
            workflow_name,
            target,
            outputs: dependency_outputs,
        }
    }

    fn into_task(self) -> ClaimedTask {
        let Self { task, token, params, workflow, workflow_name, target, outputs } = self;
        with(ClaimedTask::new(task, token, workflow, workflow_name, target), |claimed| {
            claimed.params = params;
            claimed.dependency_outputs = outputs;
        })
    }
}

impl Outcome {
    const fn of(outcome: UpdateOutcome) -> Self {
        match outcome {
            UpdateOutcome::Applied { status } => Self::Applied(status),
            UpdateOutcome::AlreadyTerminal { status } => Self::Terminal(status),
            UpdateOutcome::LeaseLost => Self::Lost,
            UpdateOutcome::NotFound => Self::NotFound,
        }
    }

    const fn into_outcome(self) -> UpdateOutcome {
        match self {
            Self::Applied(status) => UpdateOutcome::Applied { status },
            Self::Terminal(status) => UpdateOutcome::AlreadyTerminal { status },
            Self::Lost => UpdateOutcome::LeaseLost,
            Self::NotFound => UpdateOutcome::NotFound,
        }
    }
}

impl Failure {
    fn of(error: &Error) -> Self {
        match error.kind() {
            ErrorKind::NotFound { entity, id } => Self::NotFound(entity.to_string(), id.clone()),
            ErrorKind::AlreadyExists { entity, id } => Self::Exists(entity.to_string(), id.clone()),
            ErrorKind::InvalidTransition { entity, id, from, to } => {
                let (id, from, to) = (id.clone(), from.clone(), to.clone());
                Self::Transition { entity: entity.to_string(), id, from, to }
            }
            ErrorKind::Conflict { reason } => Self::Conflict(reason.clone()),
            ErrorKind::LeaseLost { task } => Self::LeaseLost(*task),
            _ => Self::Other(format!("{error:?}")),
        }
    }

    fn error(self) -> Error {
        match self {
            Self::NotFound(entity, id) => Error::new(ErrorKind::NotFound { entity: named(&entity), id }),
            Self::Exists(entity, id) => Error::new(ErrorKind::AlreadyExists { entity: named(&entity), id }),
            Self::Transition { entity, id, from, to } => {
                Error::new(ErrorKind::InvalidTransition { entity: named(&entity), id, from, to })
            }
            Self::Conflict(reason) => Error::conflict(reason),
            Self::LeaseLost(task) => Error::new(ErrorKind::LeaseLost { task }),
            Self::Other(told) => Error::internal(told),
        }
    }
}

/// The entity with this name. Other entities become a snapshot, and none of these calls is about
/// one.
fn named(word: &str) -> Entity {
    let all = [Entity::Workflow, Entity::Run, Entity::Task, Entity::DeferredJob];
    all.into_iter().find(|entity| entity.to_string() == word).unwrap_or(Entity::Snapshot)
}

/// A process that makes calls, one at a time, on a clock that stands still.
pub(super) struct Caller(ChildProcess);

impl Caller {
    pub(super) async fn start(url: String, now: Timestamp) -> std::io::Result<Self> {
        let mut process = ChildProcess::start(&Role::Answer { url, now })?;
        // It has opened the store.
        process.line().await?;
        Ok(Self(process))
    }

    pub(super) async fn answer(&mut self, asked: Asked, call: &Call) -> PlayResult<Answer> {
        self.0.say(&serde_json::to_string(&asked)?).await?;
        let line = self.0.line().await?.ok_or("the process ended")?;
        let told: String = serde_json::from_str(&line)?;
        Ok(serde_json::from_str::<Told>(&told)?.answer(call))
    }
}

/// The process's role: makes the call in each line and prints the answer.
pub(crate) async fn answer(url: &str, now: Timestamp) -> PlayResult {
    let options = ConnectOptions::new(url)?.with_clock(Arc::new(ManualClock::at(now)));
    let db = Registry::linked()?.connect(options).await?;
    db.migrate().await?;
    println!("ready");
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let call = serde_json::from_str::<Asked>(&line)?.call()?;
        let told = serde_json::to_string(&Told::of(call.of(&*db).await))?;
        // As a string: a payload is passed on as it was written, and may have line breaks in it.
        println!("{}", serde_json::to_string(&told)?);
    }
    Ok(())
}
