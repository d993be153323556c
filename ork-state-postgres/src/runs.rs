//! Runs and their state changes.

use std::sync::Arc;

use async_trait::async_trait;
use ork_state_api::backend::RetryPlan;
use ork_state_api::{
    CreatedRun, Dag, Entity, Error, ListRuns, NewRun, Page, Result, RetryRun, Run, RunFilter, RunId, RunKey,
    RunStatus, RunStore, StartRun, Task, TaskId, TaskName,
};
use uuid::Uuid;

use crate::core::Core;
use crate::database::PostgresDatabase;
use crate::error::Access;
use crate::rows::{self, Reader, Stamp, fetch_limit, number};
use crate::site::Query;
use crate::statement::Statement;
use crate::workflows::dag;

#[async_trait]
impl RunStore for PostgresDatabase {
    async fn create_run(&self, new: NewRun) -> Result<CreatedRun> {
        const CREATE: Statement =
            Statement::new("SELECT {run} FROM {schema}.ork_create_run($1, $2, $3, $4, $5) r");
        self.call(|db| async move {
            let id = RunId::generate();
            let create = || {
                db.query(CREATE)
                    .bind(id.as_uuid())
                    .bind(new.workflow.as_uuid())
                    .bind(new.triggered_by.as_str())
                    .bind(new.idempotency_key.as_deref())
                    .bind(db.now())
            };
            let row = db.row(Access::Write, create).await?;
            let run = rows::run(&row.ok_or_else(|| Error::not_found(Entity::Workflow, new.workflow))?)?;
            Ok(if run.id == id { CreatedRun::New(run) } else { CreatedRun::Existing(run) })
        })
        .await
    }

    async fn get_run(&self, id: RunId) -> Result<Run> {
        const GET: Statement = Statement::new("SELECT {run} FROM {schema}.runs r WHERE r.id = $1");
        self.call(
            move |db| async move { one(&db, Access::Read, id, || db.query(GET).bind(id.as_uuid())).await },
        )
        .await
    }

    async fn list_runs(&self, list: ListRuns) -> Result<Page<Run, RunKey>> {
        // $1 to $3: the page; $4: its greatest id. $5 to $7: the filter, with null for a part that
        // is not set. $8: the statuses. $9: the workflow.
        const LIST: Statement = Statement::new(
            "SELECT {run} FROM {schema}.runs r
             WHERE (r.created_at, r.id) < (coalesce($1, 'infinity'), coalesce($2, $4))
                 AND r.created_at >= coalesce($5, '-infinity') AND r.created_at < coalesce($6, 'infinity')
                 AND ($7::text IS NULL OR r.triggered_by = $7)
             ORDER BY r.created_at DESC, r.id DESC
             LIMIT $3",
        );
        const LIST_OF_WORKFLOW: Statement = Statement::new(
            "SELECT {run} FROM {schema}.runs r
             WHERE (r.created_at, r.id) < (coalesce($1, 'infinity'), coalesce($2, $4))
                 AND r.created_at >= coalesce($5, '-infinity') AND r.created_at < coalesce($6, 'infinity')
                 AND ($7::text IS NULL OR r.triggered_by = $7)
                 AND ($8::text[] IS NULL OR r.status = ANY ($8)) AND r.workflow_id = $9
             ORDER BY r.created_at DESC, r.id DESC
             LIMIT $3",
        );
        // Reads one range of the index per status and merges them. A rare status is found without
        // reading past the others.
        const LIST_BY_STATUS: Statement = Statement::new(
            "SELECT r.*
             FROM unnest($8::text[]) AS s (status)
             CROSS JOIN LATERAL (
                 SELECT {run} FROM {schema}.runs r
                 WHERE r.status = s.status
                     AND (r.created_at, r.id) < (coalesce($1, 'infinity'), coalesce($2, $4))
                     AND r.created_at >= coalesce($5, '-infinity') AND r.created_at < coalesce($6, 'infinity')
                     AND ($7::text IS NULL OR r.triggered_by = $7)
                 ORDER BY r.created_at DESC, r.id DESC
                 LIMIT $3
             ) r
             ORDER BY r.created_at DESC, r.id DESC
             LIMIT $3",
        );
        self.call(|db| async move {
            let ListRuns { filter, page, .. } = list;
            let statuses = statuses(&filter);
            let select = || {
                let statement = match (filter.workflow, &statuses) {
                    (Some(_), _) => LIST_OF_WORKFLOW,
                    (None, Some(_)) => LIST_BY_STATUS,
                    (None, None) => LIST,
                };
                let query = db
                    .query(statement)
                    .bind(page.after.map(|key| Stamp(key.created_at)))
                    .bind(page.after.map(|key| key.id.as_uuid()))
                    .bind(fetch_limit(page.limit))
                    .bind(Uuid::max())
                    .bind(filter.created_from.map(Stamp))
                    .bind(filter.created_before.map(Stamp))
                    .bind(filter.triggered_by.as_deref());
                match (filter.workflow, &statuses) {
                    (Some(workflow), statuses) => query.bind(statuses.clone()).bind(workflow.as_uuid()),
                    (None, Some(statuses)) => query.bind(statuses.clone()),
                    (None, None) => query,
                }
            };
            let rows = db.rows(Access::Read, select).await?;
            let runs = rows.iter().map(rows::run).collect::<Result<_>>()?;
            Ok(Page::from_rows(runs, page.limit, RunKey::of))
        })
        .await
    }

    async fn count_runs(&self, filter: RunFilter) -> Result<u64> {
        // $1 to $4: the filter, with null for a part that is not set. $5: the workflow.
        const COUNT: Statement = Statement::new(
            "SELECT count(*) FROM {schema}.runs r
             WHERE r.created_at >= coalesce($1, '-infinity') AND r.created_at < coalesce($2, 'infinity')
                 AND ($3::text IS NULL OR r.triggered_by = $3)
                 AND ($4::text[] IS NULL OR r.status = ANY ($4))",
        );
        const COUNT_OF_WORKFLOW: Statement = Statement::new(
            "SELECT count(*) FROM {schema}.runs r
             WHERE r.created_at >= coalesce($1, '-infinity') AND r.created_at < coalesce($2, 'infinity')
                 AND ($3::text IS NULL OR r.triggered_by = $3)
                 AND ($4::text[] IS NULL OR r.status = ANY ($4)) AND r.workflow_id = $5",
        );
        self.call(|db| async move {
            let count = || {
                let statement = if filter.workflow.is_some() { COUNT_OF_WORKFLOW } else { COUNT };
                let query = db
                    .query(statement)
                    .bind(filter.created_from.map(Stamp))
                    .bind(filter.created_before.map(Stamp))
                    .bind(filter.triggered_by.as_deref())
                    .bind(statuses(&filter));
                match filter.workflow {
                    Some(workflow) => query.bind(workflow.as_uuid()),
                    None => query,
                }
            };
            number(db.row(Access::Read, count).await?)
        })
        .await
    }

    async fn start_run(&self, start: StartRun) -> Result<Run> {
        self.call(|db| start_run(db, start)).await
    }

    async fn cancel_run(&self, id: RunId) -> Result<Run> {
        const CANCEL: Statement = Statement::new("SELECT {run} FROM {schema}.ork_cancel_run($1, $2) r");
        self.call(move |db| async move {
            let cancel = || db.query(CANCEL).bind(id.as_uuid()).bind(db.now());
            became(one(&db, Access::Write, id, cancel).await?, RunStatus::Cancelled)
        })
        .await
    }

    async fn pause_run(&self, id: RunId) -> Result<Run> {
        const PAUSE: Statement = Statement::new("SELECT {run} FROM {schema}.ork_pause_run($1) r");
        self.call(move |db| async move {
            let pause = || db.query(PAUSE).bind(id.as_uuid());
            became(one(&db, Access::Write, id, pause).await?, RunStatus::Paused)
        })
        .await
    }

    async fn resume_run(&self, id: RunId) -> Result<Run> {
        const RESUME: Statement = Statement::new("SELECT {run} FROM {schema}.ork_resume_run($1, $2) r");
        self.call(move |db| async move {
            let resume = || db.query(RESUME).bind(id.as_uuid()).bind(db.now());
            became(one(&db, Access::Write, id, resume).await?, RunStatus::Running)
        })
        .await
    }

    async fn retry_run(&self, retry: RetryRun) -> Result<Run> {
        self.call(|db| retry_run(db, retry)).await
    }
}

fn statuses(filter: &RunFilter) -> Option<Vec<&'static str>> {
    filter.statuses.as_ref().map(|statuses| statuses.iter().map(|status| status.as_str()).collect())
}

/// Plans a retry from the current state. Then applies it if the run has not changed meanwhile.
///
/// No lock is held between the two statements. Every change of an ended run gives its row a new
/// version.
async fn retry_run(db: Arc<Core>, retry: RetryRun) -> Result<Run> {
    const LOOK: Statement = Statement::new(
        "SELECT x.*, {task}
         FROM {schema}.runs r
         LEFT JOIN {schema}.tasks t ON t.run_id = r.id
         LEFT JOIN {schema}.task_leases l ON l.task_id = t.id
         -- With the first row only: the run's fields may be long.
         LEFT JOIN LATERAL (
             SELECT r.xmin::text, {run}
             WHERE t.task_index IS NOT DISTINCT FROM (
                 SELECT min(k.task_index) FROM {schema}.tasks k WHERE k.run_id = $1
             )
         ) AS x (
             version, of_run_id, of_run_workflow_id, of_run_snapshot_id, of_run_status, of_run_triggered_by,
             of_run_idempotency_key, of_run_error, of_run_tasks_total, of_run_tasks_unfinished,
             of_run_tasks_failed, of_run_tasks_cancelled, of_run_created_at, of_run_started_at,
             of_run_finished_at
         ) ON true
         WHERE r.id = $1
         ORDER BY t.task_index",
    );
    const RETRY: Statement =
        Statement::new("SELECT {run} FROM {schema}.ork_retry_run($1, $2, $3, $4, $5, $6, $7, $8) r");
    let id = retry.run;
    loop {
        let rows = db.rows(Access::Read, || db.query(LOOK).bind(id.as_uuid())).await?;
        let first = rows.first().ok_or_else(|| Error::not_found(Entity::Run, id))?;
        let of_run = Reader::new(first, "runs", id.as_uuid());
        let version: &str = of_run.get("version")?;
        let run = rows::run_of(of_run.with_prefix("of_run_"))?;
        // A run without tasks gives one row, whose task is null.
        let none = of_run.get::<Option<Uuid>>("id")?.is_none();
        let tasks: Vec<Task> = rows.iter().skip(usize::from(none)).map(rows::task).collect::<Result<_>>()?;
        let plan = RetryPlan::new(&retry, &run, &tasks)?;
        let (again, unmet) = plan
            .again
            .iter()
            .copied()
            .map(|(task, unmet)| Ok((int(task)?, int(unmet)?)))
            .collect::<Result<(Vec<i32>, Vec<i32>)>>()?;
        let (failed, cancelled) = (int(plan.counts.failed)?, int(plan.counts.cancelled)?);
        let apply = || {
            db.query(RETRY)
                .bind(id.as_uuid())
                .bind(version)
                .bind(&again)
                .bind(&unmet)
                .bind(plan.error.as_deref())
                .bind(failed)
                .bind(cancelled)
                .bind(db.now())
        };
        if let Some(row) = db.row(Access::Write, apply).await? {
            return rows::run(&row);
        }
        // Another call changed the run. Plan again from its current state.
    }
}

/// The run that a statement returns, if it exists.
async fn one(db: &Core, access: Access, id: RunId, query: impl Fn() -> Query + Send) -> Result<Run> {
    let row = db.row(access, query).await?;
    rows::run(&row.ok_or_else(|| Error::not_found(Entity::Run, id))?)
}

/// The run if it has the wanted status, whether it got that now or had it before.
fn became(run: Run, wanted: RunStatus) -> Result<Run> {
    if run.status == wanted {
        return Ok(run);
    }
    Err(Error::invalid_transition(Entity::Run, run.id, run.status, wanted))
}

async fn start_run(db: Arc<Core>, start: StartRun) -> Result<Run> {
    let id = start.run;
    let dag = match start.dag {
        Some(dag) => dag,
        None => match pinned(&db, id).await? {
            Pinned::Dag(dag) => dag,
            Pinned::Started(run) => return started(run),
        },
    };
    let tasks = TaskArrays::new(&dag)?;
    started(one(&db, Access::Write, id, || tasks.bind(&db, id)).await?)
}

/// A run that was started, now or before, whatever its status is now. A cancelled run may never
/// have been started.
fn started(run: Run) -> Result<Run> {
    if run.status == RunStatus::Cancelled {
        return Err(Error::invalid_transition(Entity::Run, run.id, run.status, RunStatus::Running));
    }
    Ok(run)
}

enum Pinned {
    Dag(Dag),
    Started(Run),
}

/// The DAG that a run was created with, or the run itself if it needs no DAG any more.
async fn pinned(db: &Core, id: RunId) -> Result<Pinned> {
    // The DAG is long, and only a run that is not started needs it.
    const PINNED: Statement = Statement::new(
        "SELECT {run}, s.id AS pinned_id, s.tasks_json::text AS pinned_tasks_json
         FROM {schema}.runs r
         LEFT JOIN {schema}.workflow_snapshots s ON s.id = r.snapshot_id AND r.status = 'pending'
         WHERE r.id = $1",
    );
    let row = db.row(Access::Read, || db.query(PINNED).bind(id.as_uuid())).await?;
    let row = row.ok_or_else(|| Error::not_found(Entity::Run, id))?;
    let run = rows::run(&row)?;
    if run.status != RunStatus::Pending {
        return Ok(Pinned::Started(run));
    }
    let snapshot = Reader::new(&row, "workflow_snapshots", run.snapshot.as_uuid()).with_prefix("pinned_");
    if snapshot.get::<Option<Uuid>>("id")?.is_none() {
        return Err(Error::corrupt(
            "runs",
            id,
            "snapshot_id",
            format!("there is no snapshot {}", run.snapshot),
        ));
    }
    Ok(Pinned::Dag(dag(snapshot)?))
}

/// A run's tasks and edges, with one array per column.
struct TaskArrays<'a> {
    ids: Vec<Uuid>,
    names: Vec<&'a str>,
    executors: Vec<&'a str>,
    depends_on: Vec<String>,
    params: Vec<Option<&'a str>>,
    retries: Vec<i32>,
    timeouts: Vec<Option<i32>>,
    unmet: Vec<i32>,
    dependencies: Vec<i32>,
    dependents: Vec<i32>,
}

impl<'a> TaskArrays<'a> {
    fn new(dag: &'a Dag) -> Result<Self> {
        let tasks = dag.tasks();
        let mut edges = (Vec::new(), Vec::new());
        for index in 0..dag.len() {
            for &dependent in dag.dependents(index) {
                edges.0.push(int(index)?);
                edges.1.push(int(dependent)?);
            }
        }
        Ok(Self {
            ids: tasks.iter().map(|_| TaskId::generate().as_uuid()).collect(),
            names: tasks.iter().map(|task| task.name.as_str()).collect(),
            executors: tasks.iter().map(|task| task.executor_type.as_str()).collect(),
            depends_on: tasks.iter().map(|task| array_text(&task.depends_on)).collect(),
            params: tasks.iter().map(|task| task.params.as_ref().map(ork_state_api::Json::as_str)).collect(),
            retries: tasks.iter().map(|task| int(task.max_retries)).collect::<Result<_>>()?,
            timeouts: tasks
                .iter()
                .map(|task| task.timeout_seconds.map(int).transpose())
                .collect::<Result<_>>()?,
            unmet: tasks.iter().map(|task| int(task.depends_on.len())).collect::<Result<_>>()?,
            dependencies: edges.0,
            dependents: edges.1,
        })
    }

    fn bind(&self, db: &Core, run: RunId) -> Query {
        const START: Statement = Statement::new(
            "SELECT {run}
             FROM {schema}.ork_start_run($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) r",
        );
        db.query(START)
            .bind(run.as_uuid())
            .bind(&self.ids)
            .bind(&self.names)
            .bind(&self.executors)
            .bind(&self.depends_on)
            .bind(&self.params)
            .bind(&self.retries)
            .bind(&self.timeouts)
            .bind(&self.unmet)
            .bind(&self.dependencies)
            .bind(&self.dependents)
            .bind(db.now())
    }
}

/// Fits by the API's limits.
fn int(number: impl TryInto<i32>) -> Result<i32> {
    number.try_into().map_err(|_| Error::internal("a number beyond the limits of a DAG"))
}

/// Names as the text form of an array, because arrays of arrays with different lengths cannot be
/// bound.
fn array_text(names: &[TaskName]) -> String {
    let mut text = String::from("{");
    for (number, name) in names.iter().enumerate() {
        if number > 0 {
            text.push(',');
        }
        text.push('"');
        for c in name.chars() {
            if matches!(c, '"' | '\\') {
                text.push('\\');
            }
            text.push(c);
        }
        text.push('"');
    }
    text.push('}');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case(&[], "{}")]
    #[case(&["a"], r#"{"a"}"#)]
    #[case(&["a, b", "NULL", "{}"], r#"{"a, b","NULL","{}"}"#)]
    #[case(&[r#"say "hi""#], r#"{"say \"hi\""}"#)]
    fn names_become_the_text_of_an_array(#[case] names: &[&str], #[case] text: &str) {
        let names: Vec<TaskName> = names.iter().map(|name| name.parse().unwrap()).collect();
        assert_eq!(array_text(&names), text);
    }
}
