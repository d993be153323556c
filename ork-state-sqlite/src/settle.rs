//! What follows when claimed tasks change: the one core of [`update_tasks`](ork_state_api::TaskStore::update_tasks) and
//! [`expire_leases`](ork_state_api::TaskStore::expire_leases).
//!
//! What becomes of each task is worked out in memory by the methods of [`Held`]; [`settle`] writes it, with all
//! that follows (rules R3, T1, T5): leases, dependents, the failure of whatever depends on a failed task, counts,
//! ends of runs. The number of statements does not depend on the number of tasks.

use std::collections::{BTreeMap, HashMap, VecDeque};

use ork_state_api::{
    EndedRun, Json, Label, Result, RunId, RunStatus, TaskName, TaskStatus, Timestamp,
    dependency_failed_message, task_failed_message,
};
use serde_json::{Value, json};
use sqlx::Row as _;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use crate::batch::{self, Texts};
use crate::error::Attempt;
use crate::held::{Held, NewError};
use crate::rows::{Cells, hex};

/// Writes what became of tasks, with all that follows. Answers the runs that ended, by id, each with the call that
/// ended it: of several that are applied together, the last that ended a task of it.
pub(crate) async fn settle(
    connection: &mut SqliteConnection,
    tasks: impl IntoIterator<Item = Held>,
    now: Timestamp,
) -> Attempt<Vec<(usize, EndedRun)>> {
    let mut tasks: Vec<Held> = tasks.into_iter().filter(|task| task.changed).collect();
    if tasks.is_empty() {
        return Ok(Vec::new());
    }
    // The order of culprits: of several that fail in one call it is the one with the lowest index.
    tasks.sort_by_key(|task| (task.run, task.ended_by, task.index));
    store(connection, &tasks, now).await?;
    end_leases(connection, &tasks).await?;

    let mut queued: Vec<Value> =
        tasks.iter().filter(|task| task.ready_at.is_some()).map(|task| Value::from(task.row)).collect();
    queued.extend(release_dependents(connection, &tasks, now).await?);
    enqueue(connection, &queued).await?;

    let mut counts = RunCounts::default();
    for task in tasks.iter().filter(|task| task.status.is_terminal()) {
        counts.ended(task.run, task.status == TaskStatus::Failed, task.ended_by);
        if task.status == TaskStatus::Failed {
            counts.culprit(task.run, &task.name);
        }
    }
    for culprit in fail_dependents(connection, &tasks, now).await? {
        counts.ended(culprit.run, true, culprit.ended_by);
    }
    counts.store(connection, now).await
}

/// Writes the tasks' own rows.
async fn store(connection: &mut SqliteConnection, tasks: &[Held], now: Timestamp) -> Attempt<()> {
    // Which error: 0 keeps the old one, anything else replaces it. An output comes with success only.
    const STORE: &str = "UPDATE tasks SET
             status = new.value ->> 1,
             attempts = new.value ->> 2,
             execution_name = new.value ->> 3,
             dispatched_at = new.value ->> 4,
             started_at = new.value ->> 5,
             ready_at = new.value ->> 6,
             retry_at = new.value ->> 7,
             finished_at = new.value ->> 8,
             error = iif(new.value ->> 9 = 0, error,
                 CAST(substr(?2, new.value ->> 10, new.value ->> 11) AS TEXT)),
             output = iif(new.value ->> 1 = 'success',
                 CAST(substr(?2, new.value ->> 12, new.value ->> 13) AS TEXT), output)
         FROM json_each(?1) AS new
         WHERE tasks.rowid = new.value ->> 0";
    let micros = |time: Option<Timestamp>| time.map(Timestamp::as_micros);
    let mut texts = Texts::new();
    let rows: Vec<Value> = tasks
        .iter()
        .map(|task| {
            let (replace_error, error) = match &task.error {
                NewError::Keep => (0, None),
                NewError::Clear => (1, None),
                NewError::Set(error) => (1, Some(error.as_str())),
            };
            let [error_at, error_len] = texts.add(error);
            let [output_at, output_len] = texts.add(task.output.as_ref().map(Json::as_str));
            json!([
                task.row,
                task.status.as_str(),
                task.attempts,
                task.execution_name.as_ref().map(Label::as_str),
                micros(task.dispatched_at),
                micros(task.started_at),
                micros(task.ready_at),
                micros(task.retry_at),
                micros(Some(now).filter(|_| task.status.is_terminal())),
                replace_error,
                error_at,
                error_len,
                output_at,
                output_len,
            ])
        })
        .collect();
    let (rows, texts) = (batch::json(&rows)?, texts.into_blob());
    let keep_prepared = batch::is_small(rows.len() + texts.len());
    sqlx::query(STORE).bind(rows).bind(texts).persistent(keep_prepared).execute(connection).await?;
    Ok(())
}

async fn end_leases(connection: &mut SqliteConnection, tasks: &[Held]) -> Attempt<()> {
    const DELETE: &str = "DELETE FROM task_leases WHERE task_id IN (SELECT unhex(value) FROM json_each(?1))";
    let ended: Vec<Value> = tasks
        .iter()
        .filter(|task| task.lease.is_none())
        .map(|task| Value::from(hex(task.id.as_uuid())))
        .collect();
    if !ended.is_empty() {
        batch::query(DELETE, &ended)?.execute(connection).await?;
    }
    Ok(())
}

/// Counts down the dependents of tasks that succeeded. Answers the rows of those that are ready now.
async fn release_dependents(
    connection: &mut SqliteConnection,
    tasks: &[Held],
    now: Timestamp,
) -> Attempt<Vec<Value>> {
    // Every dependent is counted, whatever its status. Only a pending one whose count reaches zero
    // becomes ready, and not while its run is paused.
    const RELEASE: &str = "UPDATE tasks SET
             unmet_dependencies = unmet_dependencies - met.number,
             ready_at = iif(
                 status = 'pending' AND unmet_dependencies = met.number
                     AND (SELECT r.status FROM runs AS r WHERE r.id = tasks.run_id) = 'running',
                 ?2, NULL)
         FROM (
             SELECT edge.run_id, edge.dependent_index, count(*) AS number
             FROM json_each(?1) AS done
             CROSS JOIN tasks AS dependency ON dependency.rowid = done.value
             CROSS JOIN task_edges AS edge
                 ON edge.run_id = dependency.run_id AND edge.task_index = dependency.task_index
             GROUP BY edge.run_id, edge.dependent_index
         ) AS met
         WHERE tasks.run_id = met.run_id AND tasks.task_index = met.dependent_index
         RETURNING rowid, ready_at IS NOT NULL";
    let succeeded: Vec<Value> = tasks
        .iter()
        .filter(|task| task.status == TaskStatus::Success)
        .map(|task| Value::from(task.row))
        .collect();
    if succeeded.is_empty() {
        return Ok(Vec::new());
    }
    let dependents: Vec<(i64, bool)> = sqlx::query_as(RELEASE)
        .bind(batch::json(&succeeded)?)
        .bind(now.as_micros())
        .fetch_all(connection)
        .await?;
    Ok(dependents.into_iter().filter(|(_, is_ready)| *is_ready).map(|(row, _)| Value::from(row)).collect())
}

/// Puts tasks into the queue at their `ready_at`.
async fn enqueue(connection: &mut SqliteConnection, rows: &[Value]) -> Attempt<()> {
    const ENQUEUE: &str = "INSERT OR REPLACE INTO ready_tasks (ready_at, run_id, task_index, task_id)
         SELECT ready_at, run_id, task_index, id FROM tasks
         WHERE rowid IN (SELECT value FROM json_each(?1)) AND ready_at IS NOT NULL";
    if !rows.is_empty() {
        batch::query(ENQUEUE, rows)?.execute(connection).await?;
    }
    Ok(())
}

/// Fails whatever depends, however far, on tasks that failed (rule T5). Answers the culprit of each.
///
/// The tasks must be in the order of culprits.
async fn fail_dependents<'a>(
    connection: &mut SqliteConnection,
    tasks: &'a [Held],
    now: Timestamp,
) -> Attempt<Vec<&'a Held>> {
    // What is behind a task that has ended has ended too, so the walk stops there and costs what it changes.
    const BEHIND: &str = "WITH RECURSIVE
         culprit (run_id, task_index) AS (
             SELECT t.run_id, t.task_index FROM json_each(?1) AS failed CROSS JOIN tasks AS t ON t.rowid = failed.value
         ),
         reached (run_id, task_index, task_row) AS (
             SELECT run_id, task_index, NULL FROM culprit
             UNION
             SELECT t.run_id, t.task_index, t.rowid
             FROM reached
             CROSS JOIN task_edges AS edge
                 ON edge.run_id = reached.run_id AND edge.task_index = reached.task_index
             CROSS JOIN tasks AS t
                 ON t.run_id = edge.run_id AND t.task_index = edge.dependent_index
             WHERE t.status = 'pending'
         )
         SELECT run_id, task_index, task_row, (
             SELECT json_group_array(edge.dependent_index) FROM task_edges AS edge
             WHERE edge.run_id = reached.run_id AND edge.task_index = reached.task_index
         ) AS dependents
         FROM reached";
    const FAIL: &str =
        "UPDATE tasks SET status = 'failed', error = new.value ->> 1, finished_at = ?2, ready_at = NULL,
             retry_at = NULL
         FROM json_each(?1) AS new
         WHERE tasks.rowid = new.value ->> 0";
    let culprits: Vec<&Held> = tasks.iter().filter(|task| task.status == TaskStatus::Failed).collect();
    if culprits.is_empty() {
        return Ok(Vec::new());
    }
    let rows: Vec<Value> = culprits.iter().map(|task| Value::from(task.row)).collect();
    let reached = batch::query(BEHIND, &rows)?.fetch_all(&mut *connection).await?;
    let mut behind = Behind::default();
    for row in &reached {
        behind.add(row)?;
    }
    let failing = behind.blame(&culprits);
    if !failing.is_empty() {
        let rows: Vec<Value> = failing
            .iter()
            .map(|(row, culprit)| json!([row, dependency_failed_message(&culprit.name)]))
            .collect();
        batch::query(FAIL, &rows)?.bind(now.as_micros()).execute(connection).await?;
    }
    Ok(failing.into_iter().map(|(_, culprit)| culprit).collect())
}

/// The live tasks behind failed ones, with the edges between them.
#[derive(Default)]
struct Behind {
    dependents: HashMap<(RunId, u32), Vec<u32>>,
    /// The rows of those that are live.
    live: HashMap<(RunId, u32), i64>,
}

impl Behind {
    fn add(&mut self, row: &SqliteRow) -> Result<()> {
        let cells = Cells::new(row, "task_edges").identified_by("run_id");
        let key = (RunId::from_uuid(cells.uuid("run_id")?), cells.number("task_index")?);
        let dependents = serde_json::from_str(cells.required("dependents")?)
            .map_err(|source| cells.corrupt("dependent_index", "is no task index").with_source(source))?;
        if let Some(row) = row.try_get("task_row").ok().flatten() {
            self.live.insert(key, row);
        }
        self.dependents.insert(key, dependents);
        Ok(())
    }

    /// Gives each live task's row to the first culprit that reaches it.
    fn blame<'a>(mut self, culprits: &[&'a Held]) -> Vec<(i64, &'a Held)> {
        let mut failing = Vec::with_capacity(self.live.len());
        for &culprit in culprits {
            let mut next = VecDeque::from([culprit.index]);
            while let Some(index) = next.pop_front() {
                // Taken out: what one culprit has reached, no other need walk again.
                for dependent in self.dependents.remove(&(culprit.run, index)).unwrap_or_default() {
                    if let Some(row) = self.live.remove(&(culprit.run, dependent)) {
                        failing.push((row, culprit));
                        next.push_back(dependent);
                    }
                }
            }
        }
        failing
    }
}

/// What a batch changes of the counts of runs.
#[derive(Default)]
struct RunCounts(BTreeMap<RunId, RunCount>);

#[derive(Default)]
struct RunCount {
    ended: u32,
    failed: u32,
    error: Option<String>,
    last_call: usize,
}

impl RunCounts {
    fn ended(&mut self, run: RunId, failed: bool, call: usize) {
        let count = self.0.entry(run).or_default();
        count.last_call = count.last_call.max(call);
        count.ended += 1;
        count.failed += u32::from(failed);
    }

    /// The first one named is blamed.
    fn culprit(&mut self, run: RunId, name: &TaskName) {
        self.0.entry(run).or_default().error.get_or_insert_with(|| task_failed_message(name));
    }

    /// Counts, and ends the runs whose last task has ended (rule R3).
    async fn store(
        self,
        connection: &mut SqliteConnection,
        now: Timestamp,
    ) -> Attempt<Vec<(usize, EndedRun)>> {
        // Right of `=` are the values before the statement.
        const COUNT: &str = "UPDATE runs SET
                 tasks_unfinished = tasks_unfinished - (new.value ->> 1),
                 tasks_failed = tasks_failed + (new.value ->> 2),
                 error = coalesce(error, new.value ->> 3),
                 status = CASE
                     WHEN tasks_unfinished > new.value ->> 1 THEN status
                     WHEN tasks_failed + (new.value ->> 2) = 0 THEN 'success'
                     ELSE 'failed'
                 END,
                 finished_at = iif(tasks_unfinished > new.value ->> 1, NULL, ?2)
             FROM json_each(?1) AS new
             WHERE runs.id = unhex(new.value ->> 0)
             RETURNING id, status";
        if self.0.is_empty() {
            return Ok(Vec::new());
        }
        let rows: Vec<Value> = self
            .0
            .iter()
            .map(|(run, count)| json!([hex(run.as_uuid()), count.ended, count.failed, count.error]))
            .collect();
        let counted = batch::query(COUNT, &rows)?.bind(now.as_micros()).fetch_all(connection).await?;
        let mut ended = Vec::new();
        for row in &counted {
            let cells = Cells::new(row, "runs");
            let status: RunStatus = cells.text("status")?;
            if status.is_terminal() {
                let run = RunId::from_uuid(cells.uuid("id")?);
                let call = self.0.get(&run).map_or(0, |count| count.last_call);
                ended.push((call, EndedRun { run, status }));
            }
        }
        ended.sort_unstable_by_key(|(_, run)| *run);
        Ok(ended)
    }
}
