//! Deferred jobs: work outside of Ork that a task waits for.

use std::collections::{BTreeMap, HashMap};

use async_trait::async_trait;
use ork_state_api::backend::{DeferredEnd, cannot_defer};
use ork_state_api::{
    ClaimJobs, ClaimedJob, DeferTask, DeferredJob, DeferredJobStore, Entity, Error, JobChange, JobClaim,
    JobId, JobStatus, JobUpdates, Json, Result, RunId, TaskId, TaskStatus, Text, Timestamp, Token,
    UpdateOutcome, UpdateReport,
};
use serde_json::{Value, json};
use sqlx::Row as _;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use crate::batch::{self, Texts};
use crate::database::SqliteDatabase;
use crate::error::Attempt;
use crate::held::{Held, held_columns};
use crate::rows::{self, Cells, bytes, hex, job_columns};
use crate::settle::{set_deadlines, settle};

#[async_trait]
impl DeferredJobStore for SqliteDatabase {
    async fn defer_task(&self, defer: DeferTask) -> Result<Vec<DeferredJob>> {
        let clock = self.clock();
        self.write(move |connection| {
            Box::pin(async move { defer_task(connection, &defer, clock.now()).await })
        })
        .await
    }

    async fn claim_jobs(&self, claim: ClaimJobs) -> Result<Vec<ClaimedJob>> {
        let clock = self.clock();
        self.lease(move |connection| {
            Box::pin(async move { claim_jobs(connection, &claim, clock.now()).await })
        })
        .await
    }

    async fn update_jobs(&self, updates: JobUpdates) -> Result<UpdateReport<JobStatus>> {
        if updates.items().is_empty() {
            self.require_current().await?;
            return Ok(UpdateReport::new(Vec::new(), Vec::new()));
        }
        let clock = self.clock();
        self.write(move |connection| {
            Box::pin(async move { update_jobs(connection, &updates, clock.now()).await })
        })
        .await
    }

    async fn list_jobs(&self, task: TaskId) -> Result<Vec<DeferredJob>> {
        const LIST: &str = concat!(
            "SELECT ",
            job_columns!(),
            " FROM deferred_jobs WHERE task_id = ?1 ORDER BY deferral, job_index"
        );
        const EXISTS: &str = "SELECT 1 FROM tasks WHERE id = ?1";
        self.read(move |connection| {
            Box::pin(async move {
                let key = bytes(task.as_uuid());
                let found = sqlx::query(LIST).bind(key.clone()).fetch_all(&mut *connection).await?;
                if found.is_empty()
                    && sqlx::query(EXISTS).bind(key).fetch_optional(connection).await?.is_none()
                {
                    return Err(Error::not_found(Entity::Task, task).into());
                }
                Ok(found.iter().map(rows::job).collect::<Result<_>>()?)
            })
        })
        .await
    }
}

/// Ends a claim and creates jobs in its place (rule D1).
async fn defer_task(
    connection: &mut SqliteConnection,
    defer: &DeferTask,
    now: Timestamp,
) -> Attempt<Vec<DeferredJob>> {
    const END_LEASE: &str = "DELETE FROM task_leases WHERE task_id = ?1 AND token = ?2 AND expires_at > ?3";
    const WAIT: &str =
        "UPDATE tasks SET status = 'running', started_at = coalesce(started_at, ?2), open_jobs = ?3
         WHERE id = ?1 RETURNING rowid, id, run_id";
    let (task, token) = (defer.claim().task, defer.claim().token.get());
    let key = bytes(task.as_uuid());
    let held = sqlx::query(END_LEASE)
        .bind(key.clone())
        .bind(token)
        .bind(now.as_micros())
        .execute(&mut *connection)
        .await?;
    if held.rows_affected() == 0 {
        return Err(cannot_defer(task, status(connection, task).await?).into());
    }
    let row = sqlx::query(WAIT)
        .bind(key)
        .bind(now.as_micros())
        .bind(i64::try_from(defer.jobs().len()).unwrap_or(i64::MAX))
        .fetch_optional(&mut *connection)
        .await?;
    let row = row.ok_or_else(|| Error::not_found(Entity::Task, task))?;
    let run = RunId::from_uuid(Cells::new(&row, "tasks").uuid("run_id")?);
    set_deadlines(connection, &[Value::from(row.try_get::<i64, _>("rowid")?)]).await?;
    let jobs: Vec<DeferredJob> =
        (0..).zip(defer.jobs()).map(|(index, new)| DeferredJob::new(new, task, run, index, now)).collect();
    insert(connection, &jobs, task, run, token, now).await?;
    Ok(jobs)
}

async fn status(connection: &mut SqliteConnection, task: TaskId) -> Attempt<Option<TaskStatus>> {
    const STATUS: &str = "SELECT id, status FROM tasks WHERE id = ?1";
    let row = sqlx::query(STATUS).bind(bytes(task.as_uuid())).fetch_optional(connection).await?;
    Ok(row.map(|row| Cells::new(&row, "tasks").text("status")).transpose()?)
}

async fn insert(
    connection: &mut SqliteConnection,
    jobs: &[DeferredJob],
    task: TaskId,
    run: RunId,
    deferral: i64,
    now: Timestamp,
) -> Attempt<()> {
    const INSERT: &str =
        "INSERT INTO deferred_jobs (id, task_id, run_id, job_index, deferral, status, poll_at, created_at,
             service_type, job_id, job_data)
         SELECT unhex(value ->> 0), ?3, ?4, key, ?5, 'pending', value ->> 1, ?6, value ->> 2,
             CAST(substr(?2, value ->> 3, value ->> 4) AS TEXT),
             CAST(substr(?2, value ->> 5, value ->> 6) AS TEXT)
         FROM json_each(?1)";
    let mut texts = Texts::new();
    let rows: Vec<Value> = jobs
        .iter()
        .map(|job| {
            let [id_at, id_len] = texts.add(Some(&job.job_id));
            let [data_at, data_len] = texts.add(Some(job.job_data.as_str()));
            let poll_at = job.poll_at.map(Timestamp::as_micros);
            json!([
                hex(job.id.as_uuid()),
                poll_at,
                job.service_type.as_str(),
                id_at,
                id_len,
                data_at,
                data_len
            ])
        })
        .collect();
    let (rows, texts) = (batch::json(&rows)?, texts.into_blob());
    let keep_prepared = batch::is_small(rows.len() + texts.len());
    sqlx::query(INSERT)
        .bind(rows)
        .bind(texts)
        .bind(bytes(task.as_uuid()))
        .bind(bytes(run.as_uuid()))
        .bind(deferral)
        .bind(now.as_micros())
        .persistent(keep_prepared)
        .execute(connection)
        .await?;
    Ok(())
}

/// Reads the index of open jobs up to now. The cost does not grow with the jobs that are not due.
pub(crate) const DUE: &str = concat!(
    "SELECT rowid AS job_row, token, ",
    job_columns!(),
    " FROM deferred_jobs WHERE poll_at <= ?1 AND (poll_at, id) > (?2, ?3) ORDER BY poll_at, id LIMIT ?4"
);

/// Takes the jobs that have been due for the longest. A job that cannot be read is skipped (rule
/// G8).
async fn claim_jobs(
    connection: &mut SqliteConnection,
    asked: &ClaimJobs,
    now: Timestamp,
) -> Attempt<Vec<ClaimedJob>> {
    const CLAIM: &str =
        "UPDATE deferred_jobs SET status = 'polling', token = token + 1, owner = ?2, poll_at = ?3,
             started_at = coalesce(started_at, ?4)
         WHERE rowid IN (SELECT value FROM json_each(?1))";
    let expires_at = now.saturating_add(asked.lease.get());
    let mut claimed = Vec::new();
    let mut taken: Vec<Value> = Vec::new();
    let mut after: (i64, Vec<u8>) = (i64::MIN, Vec::new());
    loop {
        let wanted = asked.limit.get() - claimed.len();
        let found = sqlx::query(DUE)
            .bind(now.as_micros())
            .bind(after.0)
            .bind(after.1.clone())
            .bind(i64::try_from(wanted).unwrap_or(i64::MAX))
            .fetch_all(&mut *connection)
            .await?;
        for row in &found {
            let Ok(mut job) = rows::job(row) else { continue };
            let token = Token::from_stored(row.try_get::<i64, _>("token")? + 1);
            taken.push(Value::from(row.try_get::<i64, _>("job_row")?));
            job.status = JobStatus::Polling;
            (job.owner, job.poll_at) = (Some(asked.owner.clone()), Some(expires_at));
            job.started_at.get_or_insert(now);
            claimed.push(ClaimedJob::new(job, token));
        }
        match found.last() {
            Some(last) if found.len() == wanted && claimed.len() < asked.limit.get() => {
                after = (last.try_get("poll_at")?, last.try_get("id")?);
            }
            _ => break,
        }
    }
    if !taken.is_empty() {
        batch::query(CLAIM, &taken)?
            .bind(asked.owner.to_string())
            .bind(expires_at.as_micros())
            .bind(now.as_micros())
            .execute(connection)
            .await?;
    }
    Ok(claimed)
}

/// Records the results of polls. The last job of a task ends the task's attempt (rule D1).
async fn update_jobs(
    connection: &mut SqliteConnection,
    updates: &JobUpdates,
    now: Timestamp,
) -> Attempt<UpdateReport<JobStatus>> {
    let found = polled(connection, updates).await?;
    let mut outcomes = Vec::with_capacity(updates.items().len());
    let (mut texts, mut rows) = (Texts::new(), Vec::new());
    // How many jobs of each task ended.
    let mut ended: BTreeMap<TaskId, u32> = BTreeMap::new();
    for update in updates.items() {
        let Some(job) = found.get(&update.claim.job) else {
            outcomes.push(UpdateOutcome::NotFound);
            continue;
        };
        if let Some(refused) = job.refuse(update.claim, now)? {
            outcomes.push(refused);
            continue;
        }
        let (status, next_at, output, error) = match &update.change {
            JobChange::Polled { next_after } => {
                (JobStatus::Polling, Some(now.saturating_add(next_after.get()).as_micros()), None, None)
            }
            JobChange::Completed { output } => {
                (JobStatus::Completed, None, output.as_ref().map(Json::as_str), None)
            }
            JobChange::Failed { error } => (JobStatus::Failed, None, None, Some(error.as_str())),
        };
        if status.is_terminal() {
            *ended.entry(job.task).or_default() += 1;
        }
        let [output_at, output_len] = texts.add(output);
        let [error_at, error_len] = texts.add(error);
        let status_word = status.as_str();
        rows.push(json!([job.row, status_word, next_at, output_at, output_len, error_at, error_len]));
        outcomes.push(UpdateOutcome::Applied { status });
    }
    if rows.is_empty() {
        return Ok(UpdateReport::new(outcomes, Vec::new()));
    }
    store(connection, &rows, texts, now).await?;
    let mut tasks = without_jobs(connection, &ended).await?;
    for (task, end) in ends(connection, &tasks).await? {
        let Some(task) = tasks.iter_mut().find(|held| held.id == task) else { continue };
        task.changed_by = Some(0);
        match end {
            DeferredEnd::Succeeded { output } => task.succeed(output),
            DeferredEnd::Failed { error } => task.fail_now(error.to_string(), now),
        }
    }
    let ended_runs = settle(connection, tasks, now).await?;
    Ok(UpdateReport::new(outcomes, ended_runs.into_iter().map(|(_, run)| run).collect()))
}

/// A polled job, as the transaction finds it.
struct Polled {
    row: i64,
    id: JobId,
    task: TaskId,
    status: String,
    token: i64,
    has_owner: bool,
    poll_at: Option<i64>,
}

impl Polled {
    fn from_row(row: &SqliteRow) -> Result<Self> {
        let cells = Cells::new(row, "deferred_jobs");
        Ok(Self {
            row: cells.required("job_row")?,
            id: JobId::from_uuid(cells.uuid("id")?),
            task: TaskId::from_uuid(cells.uuid("task_id")?),
            status: cells.lossy("status")?,
            token: cells.required("token")?,
            has_owner: cells.required("has_owner")?,
            poll_at: cells.optional("poll_at")?,
        })
    }

    /// Why an item under this claim is not applied; `None` if it is.
    fn refuse(&self, claim: JobClaim, now: Timestamp) -> Result<Option<UpdateOutcome<JobStatus>>> {
        let Some(poll_at) = self.poll_at else {
            let status = self.status.parse().map_err(|error: Error| {
                Error::corrupt("deferred_jobs", self.id, "status", &error).with_source(error)
            })?;
            return Ok(Some(UpdateOutcome::AlreadyTerminal { status }));
        };
        let holds = self.has_owner && self.token == claim.token.get() && now.as_micros() < poll_at;
        Ok((!holds).then_some(UpdateOutcome::LeaseLost))
    }
}

async fn polled(connection: &mut SqliteConnection, updates: &JobUpdates) -> Attempt<HashMap<JobId, Polled>> {
    const FIND: &str = "SELECT j.rowid AS job_row, j.id, j.task_id, j.status, j.token, j.owner IS NOT NULL AS has_owner, j.poll_at
         FROM json_each(?1) AS asked CROSS JOIN deferred_jobs AS j ON j.id = unhex(asked.value)";
    let ids = updates.items().iter().map(|update| Value::from(hex(update.claim.job.as_uuid())));
    let found = batch::query(FIND, &ids.collect::<Vec<_>>())?.fetch_all(connection).await?;
    let jobs = found.iter().map(Polled::from_row).collect::<Result<Vec<_>>>()?;
    Ok(jobs.into_iter().map(|job| (job.id, job)).collect())
}

async fn store(
    connection: &mut SqliteConnection,
    rows: &[Value],
    texts: Texts,
    now: Timestamp,
) -> Attempt<()> {
    // Fields: row, status, time of the next poll (none if it has ended), output, error.
    const STORE: &str = "UPDATE deferred_jobs SET
             status = new.value ->> 1,
             poll_at = new.value ->> 2,
             owner = NULL,
             last_polled_at = ?3,
             finished_at = iif(new.value ->> 2 IS NULL, ?3, NULL),
             output = CAST(substr(?2, new.value ->> 3, new.value ->> 4) AS TEXT),
             error = CAST(substr(?2, new.value ->> 5, new.value ->> 6) AS TEXT)
         FROM json_each(?1) AS new
         WHERE deferred_jobs.rowid = new.value ->> 0";
    let (rows, texts) = (batch::json(rows)?, texts.into_blob());
    let keep_prepared = batch::is_small(rows.len() + texts.len());
    sqlx::query(STORE)
        .bind(rows)
        .bind(texts)
        .bind(now.as_micros())
        .persistent(keep_prepared)
        .execute(connection)
        .await?;
    Ok(())
}

/// Counts down the jobs that tasks wait for. Returns the tasks that wait for none any more.
async fn without_jobs(
    connection: &mut SqliteConnection,
    ended: &BTreeMap<TaskId, u32>,
) -> Attempt<Vec<Held>> {
    const COUNT: &str = "UPDATE tasks SET open_jobs = max(open_jobs - (new.value ->> 1), 0)
         FROM json_each(?1) AS new WHERE tasks.id = unhex(new.value ->> 0)
         RETURNING rowid, open_jobs";
    const FIND: &str = concat!(
        "SELECT ",
        held_columns!(),
        " FROM json_each(?1) AS asked
         CROSS JOIN tasks AS t ON t.rowid = asked.value
         LEFT JOIN task_leases AS l ON l.task_id = t.id
         LEFT JOIN runs AS r ON r.id = t.run_id"
    );
    if ended.is_empty() {
        return Ok(Vec::new());
    }
    let counts: Vec<Value> =
        ended.iter().map(|(task, number)| json!([hex(task.as_uuid()), number])).collect();
    let counted: Vec<(i64, i64)> =
        sqlx::query_as(COUNT).bind(batch::json(&counts)?).fetch_all(&mut *connection).await?;
    let done: Vec<Value> =
        counted.into_iter().filter(|(_, open)| *open == 0).map(|(row, _)| Value::from(row)).collect();
    if done.is_empty() {
        return Ok(Vec::new());
    }
    let found = batch::query(FIND, &done)?.fetch_all(connection).await?;
    Ok(found.iter().map(Held::from_row).collect::<Result<_>>()?)
}

/// How tasks end by the jobs of their last deferral, as
/// [`deferred_end`](ork_state_api::backend::deferred_end) decides. Only the columns that matter are
/// read.
async fn ends(connection: &mut SqliteConnection, tasks: &[Held]) -> Attempt<Vec<(TaskId, DeferredEnd)>> {
    // The jobs of this attempt: when the task was deferred, the token was its latest.
    const JOBS: &str = "SELECT j.id, j.task_id, j.status = 'failed' AS has_failed, j.error, j.output
         FROM json_each(?1) AS asked
         CROSS JOIN tasks AS t ON t.rowid = asked.value
         CROSS JOIN deferred_jobs AS j ON j.task_id = t.id AND j.deferral = t.token
         ORDER BY j.task_id, j.job_index";
    if tasks.is_empty() {
        return Ok(Vec::new());
    }
    let asked: Vec<Value> = tasks.iter().map(|task| Value::from(task.row)).collect();
    let found = batch::query(JOBS, &asked)?.fetch_all(connection).await?;
    let mut ends: Vec<(TaskId, DeferredEnd)> = Vec::new();
    for row in &found {
        let cells = Cells::new(row, "deferred_jobs");
        let task = TaskId::from_uuid(cells.uuid("task_id")?);
        let end = if cells.required("has_failed")? {
            let error: Option<Text> = cells.optional_text("error")?;
            DeferredEnd::Failed { error: error.unwrap_or_else(|| Text::lossy("")) }
        } else {
            DeferredEnd::Succeeded { output: cells.json("output")? }
        };
        match ends.last_mut() {
            Some((last, so_far)) if *last == task => match (&so_far, end) {
                (DeferredEnd::Failed { .. }, _) => {}
                (_, failed @ DeferredEnd::Failed { .. }) => *so_far = failed,
                _ => *so_far = DeferredEnd::Succeeded { output: None },
            },
            _ => ends.push((task, end)),
        }
    }
    Ok(ends)
}
