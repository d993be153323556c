//! The ends of claimed tasks: as their workers report them, and when leases lapse.

use std::collections::HashMap;
use std::sync::Arc;

use ork_state_api::backend::UpdateStep;
use ork_state_api::{
    EndedRun, Error, ExpiredTasks, Limit, Result, RunId, TaskChange, TaskId, TaskStatus, TaskUpdates,
    UpdateOutcome, UpdateReport,
};
use sqlx::postgres::PgRow;
use sqlx::postgres::types::PgInterval;
use uuid::Uuid;

use crate::core::Core;
use crate::error::Access;
use crate::rows::{Reader, int_limit, interval};
use crate::site::Query;
use crate::statement::Statement;

/// Why an attempt ends without a report.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Expiry {
    Lease,
    Timeout,
}

pub(crate) async fn apply_alone(db: &Core, updates: &TaskUpdates) -> Result<UpdateReport> {
    let report = apply(db, &[updates]).await?.pop();
    report.unwrap_or_else(|| Err(Error::internal("no answer to a call")))
}

/// Applies batches with one statement. There may be several batches only if no two steps are about
/// one task. An answer that cannot be read is an error of its own batch: its update was applied.
pub(crate) async fn apply(db: &Core, batches: &[&TaskUpdates]) -> Result<Vec<Result<UpdateReport>>> {
    let steps: Vec<&UpdateStep> = batches.iter().flat_map(|batch| batch.steps()).collect();
    let arrays = StepArrays::new(&steps);
    let rows = db.rows(Access::Write, || arrays.bind(db)).await?;
    // A step without an answer row has a lease whose task is gone.
    let mut outcomes: Vec<_> = steps.iter().map(|_| Ok(UpdateOutcome::NotFound)).collect();
    let mut ended_runs = vec![Vec::new(); steps.len()];
    for row in &rows {
        let answer = Reader::new(row, "tasks", Uuid::nil());
        let number = usize::try_from(answer.get::<i32>("step")?).ok().and_then(|step| step.checked_sub(1));
        let Some(number) = number.filter(|&number| number < steps.len()) else {
            return Err(Error::internal("an answer to no step"));
        };
        if answer.get::<&str>("answer")? == "ended" {
            ended_runs[number].push(ended_run(row, "run_id"));
        } else {
            outcomes[number] = outcome(row, steps[number]);
        }
    }
    let mut reports = Vec::with_capacity(batches.len());
    let (mut outcomes, mut ended_runs) = (outcomes.into_iter(), ended_runs.into_iter());
    for batch in batches {
        let steps = batch.steps();
        let outcomes = outcomes.by_ref().take(steps.len()).collect::<Result<Vec<_>>>();
        let ended_runs = ended_runs.by_ref().take(steps.len()).flatten().collect::<Result<Vec<_>>>();
        reports.push(outcomes.and_then(|mut outcomes| {
            let mut ended_runs = ended_runs?;
            in_sequence(steps, &mut outcomes);
            ended_runs.sort_unstable();
            Ok(UpdateReport::new(batch.outcomes(&outcomes), ended_runs))
        }));
    }
    Ok(reports)
}

fn outcome(row: &PgRow, step: &UpdateStep) -> Result<UpdateOutcome> {
    let task = Reader::new(row, "tasks", step.claim.task.as_uuid());
    Ok(match task.get("answer")? {
        "applied" => UpdateOutcome::Applied { status: task.text("status")? },
        "terminal" => UpdateOutcome::AlreadyTerminal { status: task.text("status")? },
        "lost" => UpdateOutcome::LeaseLost,
        "missing" => UpdateOutcome::NotFound,
        _ => return Err(Error::internal("an answer of no known kind")),
    })
}

/// Two steps may name one task under different claims, of which only one holds. If that one comes
/// first and ends the task, the other finds the task ended.
fn in_sequence(steps: &[UpdateStep], outcomes: &mut [UpdateOutcome]) {
    let mut ended: HashMap<TaskId, TaskStatus> = HashMap::new();
    for (step, outcome) in steps.iter().zip(outcomes) {
        match *outcome {
            UpdateOutcome::Applied { status } if status.is_terminal() => {
                ended.insert(step.claim.task, status);
            }
            UpdateOutcome::LeaseLost => {
                if let Some(&status) = ended.get(&step.claim.task) {
                    *outcome = UpdateOutcome::AlreadyTerminal { status };
                }
            }
            _ => {}
        }
    }
}

/// Steps, with one array per column.
struct StepArrays<'a> {
    tasks: Vec<Uuid>,
    tokens: Vec<i64>,
    names: Vec<Option<&'a str>>,
    running: Vec<bool>,
    ends: Vec<Option<&'a str>>,
    outputs: Vec<Option<&'a str>>,
    errors: Vec<Option<&'a str>>,
    delays: Vec<Option<PgInterval>>,
}

impl<'a> StepArrays<'a> {
    fn new(steps: &[&'a UpdateStep]) -> Self {
        let ends = || steps.iter().map(|step| step.end.as_ref());
        Self {
            tasks: steps.iter().map(|step| step.claim.task.as_uuid()).collect(),
            tokens: steps.iter().map(|step| step.claim.token.get()).collect(),
            names: steps.iter().map(|step| step.execution_name.as_deref()).collect(),
            running: steps.iter().map(|step| step.running).collect(),
            ends: ends().map(|end| end.and_then(kind)).collect(),
            outputs: ends()
                .map(|end| match end {
                    Some(TaskChange::Succeeded { output: Some(output) }) => Some(output.as_str()),
                    _ => None,
                })
                .collect(),
            errors: ends()
                .map(|end| match end {
                    Some(TaskChange::Failed { error, .. }) => Some(error.as_str()),
                    _ => None,
                })
                .collect(),
            delays: ends()
                .map(|end| match end {
                    Some(TaskChange::Failed { retry_after: Some(delay), .. }) => Some(interval(delay.get())),
                    _ => None,
                })
                .collect(),
        }
    }

    fn bind(&self, db: &Core) -> Query {
        const UPDATE: Statement = Statement::new(
            "SELECT answer, step, status, run_id
             FROM {schema}.ork_update_tasks($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        );
        db.query(UPDATE)
            .bind(&self.tasks)
            .bind(&self.tokens)
            .bind(&self.names)
            .bind(&self.running)
            .bind(&self.ends)
            .bind(&self.outputs)
            .bind(&self.errors)
            .bind(&self.delays)
            .bind(db.now())
    }
}

/// The name of a claim's end in `ork_update_tasks`.
fn kind(end: &TaskChange) -> Option<&'static str> {
    match end {
        TaskChange::Succeeded { .. } => Some("success"),
        TaskChange::Failed { .. } => Some("failed"),
        TaskChange::Released => Some("released"),
        TaskChange::Dispatched { .. } | TaskChange::Running => None,
    }
}

pub(crate) async fn expire(db: Arc<Core>, limit: Limit, why: Expiry) -> Result<ExpiredTasks> {
    const LEASES: Statement =
        Statement::new("SELECT answer, id, status FROM {schema}.ork_expire_leases($1, $2)");
    const TIMEOUTS: Statement =
        Statement::new("SELECT answer, id, status FROM {schema}.ork_expire_timeouts($1, $2)");
    let statement = match why {
        Expiry::Lease => LEASES,
        Expiry::Timeout => TIMEOUTS,
    };
    let expire = || db.query(statement).bind(int_limit(limit)).bind(db.now());
    let rows = db.rows(Access::Write, expire).await?;
    let mut expired = ExpiredTasks::default();
    for row in &rows {
        let answer = Reader::of(row, "tasks")?;
        let id = TaskId::from_uuid(answer.get("id")?);
        match answer.get("answer")? {
            "requeued" => expired.requeued.push(id),
            "failed" => expired.failed.push(id),
            _ => expired.ended_runs.push(ended_run(row, "id")?),
        }
    }
    expired.requeued.sort_unstable();
    expired.failed.sort_unstable();
    expired.ended_runs.sort_unstable();
    Ok(expired)
}

pub(crate) fn ended_run(row: &PgRow, id: &str) -> Result<EndedRun> {
    let run = Reader::new(row, "runs", Uuid::nil()).get(id)?;
    Ok(EndedRun::new(RunId::from_uuid(run), Reader::new(row, "runs", run).text("status")?))
}
