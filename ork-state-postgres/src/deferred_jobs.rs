//! Deferred jobs: work outside of Ork that tasks wait for.

use async_trait::async_trait;
use ork_state_api::backend::cannot_defer;
use ork_state_api::{
    ClaimJobs, ClaimedJob, DeferTask, DeferredJob, DeferredJobStore, Entity, Error, JobChange, JobId,
    JobStatus, JobUpdates, Json, Result, TaskId, TaskStatus, Token, UpdateOutcome, UpdateReport,
};
use sqlx::postgres::PgRow;
use sqlx::postgres::types::PgInterval;
use uuid::Uuid;

use crate::database::PostgresDatabase;
use crate::error::Access;
use crate::rows::{self, Reader, int_limit, interval};
use crate::statement::Statement;
use crate::updates::ended_run;

#[async_trait]
impl DeferredJobStore for PostgresDatabase {
    async fn defer_task(&self, defer: DeferTask) -> Result<Vec<DeferredJob>> {
        const DEFER: Statement = Statement::new(
            "SELECT x.answer, x.status AS task_status, {job}
             FROM {schema}.ork_defer_task($1, $2, $3, $4, $5, $6, $7, $8) x
             CROSS JOIN LATERAL (SELECT (x.job).*) j
             ORDER BY j.job_index",
        );
        self.call(|db| async move {
            let (claim, jobs) = (defer.claim(), defer.jobs());
            let ids: Vec<Uuid> = jobs.iter().map(|_| JobId::generate().as_uuid()).collect();
            let services: Vec<&str> = jobs.iter().map(|job| job.service_type.as_str()).collect();
            let names: Vec<&str> = jobs.iter().map(|job| job.job_id.as_str()).collect();
            let data: Vec<&str> = jobs.iter().map(|job| job.job_data.as_str()).collect();
            let delays: Vec<PgInterval> = jobs.iter().map(|job| interval(job.poll_after.get())).collect();
            let statement = || {
                db.query(DEFER)
                    .bind(claim.task.as_uuid())
                    .bind(claim.token.get())
                    .bind(&ids)
                    .bind(&services)
                    .bind(&names)
                    .bind(&data)
                    .bind(&delays)
                    .bind(db.now())
            };
            let rows = db.rows(Access::Write, statement).await?;
            let first = rows.first().ok_or_else(|| Error::internal("a deferral without an answer"))?;
            let answer = Reader::new(first, "tasks", claim.task.as_uuid());
            if answer.get::<&str>("answer")? == "lost" {
                let status: Option<TaskStatus> = answer.optional_text("task_status")?;
                return Err(cannot_defer(claim.task, status));
            }
            rows.iter().map(rows::job).collect()
        })
        .await
    }

    async fn claim_jobs(&self, claim: ClaimJobs) -> Result<Vec<ClaimedJob>> {
        const CLAIM: Statement =
            Statement::new("SELECT {job} FROM {schema}.ork_claim_jobs($1, $2, $3, $4) j");
        self.call(|db| async move {
            let statement = || {
                db.query(CLAIM)
                    .bind(claim.owner.as_str())
                    .bind(interval(claim.lease.get()))
                    .bind(int_limit(claim.limit))
                    .bind(db.now())
            };
            let rows = db.rows(Access::Write, statement).await?;
            // A job that cannot be read is due again when its lease lapses, and `verify` finds it
            // (rule G8).
            Ok(rows.iter().filter_map(|row| claimed_job(row).ok()).collect())
        })
        .await
    }

    async fn update_jobs(&self, updates: JobUpdates) -> Result<UpdateReport<JobStatus>> {
        const UPDATE: Statement = Statement::new(
            "SELECT answer, item, status, run_id
             FROM {schema}.ork_update_jobs($1, $2, $3, $4, $5, $6, $7)",
        );
        self.call(|db| async move {
            let items = updates.items();
            if items.is_empty() {
                return Ok(UpdateReport::new(Vec::new(), Vec::new()));
            }
            let jobs: Vec<Uuid> = items.iter().map(|item| item.claim.job.as_uuid()).collect();
            let tokens: Vec<i64> = items.iter().map(|item| item.claim.token.get()).collect();
            let changes: Vec<&str> = items.iter().map(|item| word(&item.change)).collect();
            let outputs: Vec<Option<&str>> = items.iter().map(|item| output(&item.change)).collect();
            let errors: Vec<Option<&str>> = items.iter().map(|item| error(&item.change)).collect();
            let delays: Vec<Option<PgInterval>> = items.iter().map(|item| delay(&item.change)).collect();
            let statement = || {
                db.query(UPDATE)
                    .bind(&jobs)
                    .bind(&tokens)
                    .bind(&changes)
                    .bind(&outputs)
                    .bind(&errors)
                    .bind(&delays)
                    .bind(db.now())
            };
            let rows = db.rows(Access::Write, statement).await?;
            let mut report = UpdateReport::new(vec![UpdateOutcome::NotFound; items.len()], Vec::new());
            for row in &rows {
                read_answer(row, &mut report)?;
            }
            report.ended_runs.sort_unstable();
            Ok(report)
        })
        .await
    }

    async fn list_jobs(&self, task: TaskId) -> Result<Vec<DeferredJob>> {
        // A task without jobs gives one row, whose `id` is null; no row means no such task.
        const LIST: Statement = Statement::new(
            "SELECT {job}
             FROM {schema}.tasks t
             LEFT JOIN {schema}.deferred_jobs j ON j.task_id = t.id
             WHERE t.id = $1
             ORDER BY j.created_at, j.deferral, j.job_index, j.id",
        );
        self.call(move |db| async move {
            let list = || db.query(LIST).bind(task.as_uuid());
            let rows = db.rows(Access::Read, list).await?;
            let first = rows.first().ok_or_else(|| Error::not_found(Entity::Task, task))?;
            let none = Reader::new(first, "tasks", task.as_uuid()).get::<Option<Uuid>>("id")?.is_none();
            rows.iter().skip(usize::from(none)).map(rows::job).collect()
        })
        .await
    }
}

fn claimed_job(row: &PgRow) -> Result<ClaimedJob> {
    let job = rows::job(row)?;
    let token = Reader::new(row, "deferred_jobs", job.id.as_uuid()).get("token")?;
    Ok(ClaimedJob::new(job, Token::from_stored(token)))
}

/// The name of a change in `ork_update_jobs`.
const fn word(change: &JobChange) -> &'static str {
    match change {
        JobChange::Polled { .. } => "polled",
        JobChange::Completed { .. } => "completed",
        JobChange::Failed { .. } => "failed",
    }
}

fn output(change: &JobChange) -> Option<&str> {
    match change {
        JobChange::Completed { output } => output.as_ref().map(Json::as_str),
        JobChange::Polled { .. } | JobChange::Failed { .. } => None,
    }
}

fn error(change: &JobChange) -> Option<&str> {
    match change {
        JobChange::Failed { error } => Some(error),
        JobChange::Polled { .. } | JobChange::Completed { .. } => None,
    }
}

fn delay(change: &JobChange) -> Option<PgInterval> {
    match change {
        JobChange::Polled { next_after } => Some(interval(next_after.get())),
        JobChange::Completed { .. } | JobChange::Failed { .. } => None,
    }
}

fn read_answer(row: &PgRow, report: &mut UpdateReport<JobStatus>) -> Result<()> {
    let answer = Reader::new(row, "deferred_jobs", Uuid::nil());
    let word: &str = answer.get("answer")?;
    if word == "ended" {
        report.ended_runs.push(ended_run(row, "run_id")?);
        return Ok(());
    }
    let number = usize::try_from(answer.get::<i32>("item")?).ok().and_then(|item| item.checked_sub(1));
    let outcome = number
        .and_then(|number| report.outcomes.get_mut(number))
        .ok_or_else(|| Error::internal("an answer to no item"))?;
    *outcome = match word {
        "applied" => UpdateOutcome::Applied { status: answer.text("status")? },
        "terminal" => UpdateOutcome::AlreadyTerminal { status: answer.text("status")? },
        "lost" => UpdateOutcome::LeaseLost,
        _ => return Err(Error::internal("an answer of no known kind")),
    };
    Ok(())
}
