//! Claims ready tasks and renews their leases.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use ork_state_api::{
    Claim, ClaimTasks, ClaimedTask, DependencyOutputs, Error, Heartbeat, HeartbeatOutcome, Json, Result,
    RunId, Target, TaskId, TaskName, Timestamp, Token, WorkflowId, WorkflowName,
};
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::core::Core;
use crate::error::Access;
use crate::queue::Queue;
use crate::rows::{self, Reader, int_limit, interval};
use crate::statement::Statement;

pub(crate) async fn claim(db: Arc<Core>, queue: Arc<Queue>, claim: ClaimTasks) -> Result<Vec<ClaimedTask>> {
    const CLAIM: Statement = Statement::new("SELECT * FROM {schema}.ork_claim_tasks($1, $2, $3, $4, $5, $6)");
    let include_outputs = claim.dependency_outputs == DependencyOutputs::Include;
    let mut claimed = Vec::new();
    let mut left = int_limit(claim.limit);
    let mut from = queue.start(&db).await?;
    // How many tasks were found when the whole queue was scanned.
    let mut seen = usize::MAX;
    while left > 0 {
        let claim_left = || {
            db.query(CLAIM)
                .bind(claim.owner.as_str())
                .bind(interval(claim.lease.get()))
                .bind(left)
                .bind(include_outputs)
                .bind(db.now())
                .bind(from)
        };
        let rows = match db.rows(Access::Write, claim_left).await {
            Ok(rows) => rows,
            Err(error) if claimed.is_empty() => return Err(error),
            // These tasks are already leased. An error would hide them from everybody until the
            // leases lapse.
            Err(_) => break,
        };
        let (outputs, rows) = split(&rows)?;
        let outputs = include_outputs.then(|| read_outputs(&outputs));
        let mut unreadable = Vec::new();
        let mut workflows = Workflows::default();
        for row in rows {
            match claimed_task(row, &mut workflows, outputs.as_ref()) {
                Ok(task) => claimed.push(task),
                Err(_) => unreadable.push(row),
            }
        }
        left = int_limit(claim.limit).saturating_sub(i32::try_from(claimed.len()).unwrap_or(i32::MAX));
        if !unreadable.is_empty() {
            // They stay pending, where `verify` finds them. Other tasks take their place (rule G8).
            match set_aside(&db, &unreadable).await {
                Err(error) if claimed.is_empty() => return Err(error),
                Err(_) => break,
                Ok(()) => {}
            }
        } else if left == 0 || from.take().is_none() || !queue.is_to_be_looked_at() {
            break;
        } else {
            seen = claimed.len();
        }
    }
    if claimed.len() > seen {
        queue.forget();
    }
    Ok(claimed)
}

/// Separates the rows of outputs from those of claimed tasks.
fn split(rows: &[PgRow]) -> Result<(Vec<&PgRow>, Vec<&PgRow>)> {
    let (mut outputs, mut tasks) = (Vec::new(), Vec::new());
    for row in rows {
        let kind = if Reader::of(row, "tasks")?.get("is_output")? { &mut outputs } else { &mut tasks };
        kind.push(row);
    }
    Ok((outputs, tasks))
}

/// The outputs of a run's tasks.
type Outputs = HashMap<RunId, HashMap<TaskName, Option<Json>>>;

/// The outputs that can be read.
fn read_outputs(rows: &[&PgRow]) -> Outputs {
    let mut outputs = Outputs::new();
    for row in rows {
        let read = || {
            let row = Reader::of(row, "tasks")?;
            Ok::<_, Error>((
                RunId::from_uuid(row.get("run_id")?),
                row.text("task_name")?,
                row.json("params")?,
            ))
        };
        if let Ok((run, name, output)) = read() {
            outputs.entry(run).or_default().insert(name, output);
        }
    }
    outputs
}

async fn set_aside(db: &Core, unreadable: &[&PgRow]) -> Result<()> {
    // Returns claims without putting the tasks back in the queue.
    const SET_ASIDE: Statement = Statement::new(
        "WITH given_back AS (
             DELETE FROM {schema}.task_leases l
             USING unnest($1::uuid[], $2::bigint[]) AS c (task_id, token)
             WHERE l.task_id = c.task_id AND l.token = c.token
             RETURNING l.task_id
         )
         UPDATE {schema}.tasks t
         SET status = 'pending', attempts = t.attempts - 1, dispatched_at = NULL
         FROM given_back g
         WHERE t.id = g.task_id",
    );
    let (mut tasks, mut tokens) = (Vec::new(), Vec::new());
    for row in unreadable {
        let row = Reader::of(row, "tasks")?;
        tasks.push(row.get::<Uuid>("id")?);
        tokens.push(row.get::<i64>("lease_token")?);
    }
    db.rows(Access::Write, || db.query(SET_ASIDE).bind(&tasks).bind(&tokens)).await?;
    Ok(())
}

/// The fields that the claimed tasks of a workflow share. They come with the first of these tasks
/// only.
type Workflows = HashMap<Uuid, Result<(WorkflowName, Target)>>;

fn claimed_task(row: &PgRow, workflows: &mut Workflows, outputs: Option<&Outputs>) -> Result<ClaimedTask> {
    let columns = Reader::of(row, "tasks")?;
    let Some(workflow) = columns.get::<Option<Uuid>>("workflow_id")? else {
        return Err(columns.corrupt("run_id", "names no run"));
    };
    // Read even if this task is skipped: the next ones need it.
    let read = || {
        let row = Reader::new(row, "workflows", workflow).with_prefix("workflow_");
        Ok((row.text("name")?, rows::target(row)?))
    };
    let (workflow_name, target) = workflows.entry(workflow).or_insert_with(read).clone()?;
    let task = rows::task(row)?;
    let mut dependency_outputs = BTreeMap::new();
    if let Some(outputs) = outputs {
        for name in &task.depends_on {
            let output = outputs.get(&task.run).and_then(|outputs| outputs.get(name));
            let output =
                output.ok_or_else(|| columns.corrupt("depends_on", "the output of one cannot be read"))?;
            dependency_outputs.insert(name.clone(), output.clone());
        }
    }
    let token = task.lease.as_ref().map(|lease| lease.token);
    let token = token.ok_or_else(|| Error::internal("a claimed task without a lease"))?;
    let mut claimed = ClaimedTask::new(task, token, WorkflowId::from_uuid(workflow), workflow_name, target);
    claimed.params = columns.json("params")?;
    claimed.dependency_outputs = dependency_outputs;
    Ok(claimed)
}

pub(crate) async fn heartbeat(db: Arc<Core>, heartbeat: Heartbeat) -> Result<Vec<HeartbeatOutcome>> {
    const HEARTBEAT: Statement =
        Statement::new("SELECT task_id, token, expires_at FROM {schema}.ork_heartbeat($1, $2, $3, $4)");
    if heartbeat.claims().is_empty() {
        return Ok(Vec::new());
    }
    let (tasks, tokens): (Vec<Uuid>, Vec<i64>) =
        heartbeat.claims().iter().map(|claim| (claim.task.as_uuid(), claim.token.get())).unzip();
    let renew = || {
        db.query(HEARTBEAT).bind(&tasks).bind(&tokens).bind(interval(heartbeat.lease().get())).bind(db.now())
    };
    let rows = db.rows(Access::Write, renew).await?;
    let renewed: HashMap<Claim, Timestamp> = rows.iter().map(renewed).collect::<Result<_>>()?;
    let outcome = |claim| match renewed.get(claim) {
        Some(&expires_at) => HeartbeatOutcome::Extended { expires_at },
        None => HeartbeatOutcome::Lost,
    };
    Ok(heartbeat.claims().iter().map(outcome).collect())
}

fn renewed(row: &PgRow) -> Result<(Claim, Timestamp)> {
    let task = Reader::new(row, "task_leases", Uuid::nil()).get("task_id")?;
    let row = Reader::new(row, "task_leases", task);
    let claim = Claim { task: TaskId::from_uuid(task), token: Token::from_stored(row.get("token")?) };
    Ok((claim, row.time("expires_at")?))
}
