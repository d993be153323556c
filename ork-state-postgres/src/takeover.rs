//! Takes over a database that Ork made. Its rows are read as JSON, converted to records, and
//! written back. They stay in their tables, so anything that others have added to these stays too.
//! [`ork_state_api::ork::takeover`] documents the conversion.

use std::collections::HashMap;

use ork_state_api::backend::Record;
use ork_state_api::ork::takeover::{OldJob, OldRun, OldSnapshot, OldSpec, OldTask, OldWorkflow, Takeover};
use ork_state_api::{Error, Result, Timestamp, Violation};
use serde::de::DeserializeOwned;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Executor, Row};
use uuid::Uuid;

use crate::error::{Access, of_statement};
use crate::site::Site;
use crate::statement::Statement;
use crate::steps::{functions, needed};

/// How many workflows or runs are read at once, and how many tasks of these runs. A single run may
/// have more.
const PAGE: usize = 200;
const TASKS_OF_PAGE: i64 = 5_000;

/// Locks out Ork's programs, after the last step of the schema and within its transaction.
pub(crate) async fn fence(site: &Site, connection: &mut PgConnection) -> Result<()> {
    // A program of Ork that starts finds an unknown migration, and refuses to run.
    const FENCE: Statement = Statement::new(
        "INSERT INTO {schema}._sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES ($1, 'taken over by ork-state', true, '', 0)
         ON CONFLICT DO NOTHING",
    );
    let fence = site.query(FENCE).bind(needed()).execute(connection).await;
    fence.map(drop).map_err(|error| of_statement(&site.place, Access::Write, error))
}

/// Locks the tables of a database that is taken over. Takes all locks at once, so that no other
/// lock comes between.
pub(crate) async fn lock_tables(site: &Site, connection: &mut PgConnection) -> Result<()> {
    // Limits the wait for other sessions that use the tables, such as processes of Ork that still
    // run.
    const PATIENCE: &str = "SET LOCAL lock_timeout = '10s'";
    let locked = async {
        connection.execute(PATIENCE).await?;
        // The tables that every version has.
        connection
            .execute("LOCK TABLE workflows, runs, tasks, _sqlx_migrations IN ACCESS EXCLUSIVE MODE")
            .await
    };
    locked.await.map(drop).map_err(|error| {
        let error = of_statement(&site.place, Access::Read, error);
        Error::new(error.kind().clone())
            .with_hint("Stop the programs of Ork that still use the database, then migrate again")
            .with_source(error)
    })
}

/// Makes the rows follow the rules, between the step that makes the tables and the one that needs
/// this. Returns what was adjusted.
pub(crate) async fn rows(site: &Site, connection: &mut PgConnection) -> Result<Vec<Violation>> {
    const NOW: Statement = Statement::new("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint");
    const NAMES: Statement = Statement::new("SELECT name FROM {schema}.workflows");
    // Read times in UTC, whatever the session's setting. There are no statistics yet for the
    // planner to choose well.
    const SETTINGS: &str = "SET LOCAL timezone = 'UTC'; SET LOCAL enable_seqscan = off; SET LOCAL jit = off";
    let failed = |error| of_statement(&site.place, Access::Read, error);
    connection.execute(sqlx::raw_sql(SETTINGS)).await.map_err(failed)?;
    let now =
        site.query(NOW).fetch_one(&mut *connection).await.and_then(|row| row.try_get(0)).map_err(failed)?;
    let names = site.query(NAMES).fetch_all(&mut *connection).await.map_err(failed)?;
    let names = names.iter().map(|row| row.try_get(0)).collect::<Result<Vec<String>, _>>().map_err(failed)?;
    let takeover = Takeover::new(Timestamp::from_micros(now)?, names);
    let mut old = Old { site, connection, takeover, records: 0 };
    old.workflows().await?;
    old.runs().await?;
    old.orphans().await?;
    let adjusted = old.takeover.finish();
    write(site, connection).await?;
    Ok(adjusted)
}

/// Writes the records into the tables that hold the old rows.
async fn write(site: &Site, connection: &mut PgConnection) -> Result<()> {
    // Back to the planner's choice.
    const SETTINGS: &str = "SET LOCAL enable_seqscan = on";
    // Snapshots get other hashes, and tasks other positions. No old value may conflict with a new
    // one.
    const MAKE_WAY: Statement = Statement::new(
        "UPDATE {schema}.workflow_snapshots SET content_hash = 'of ' || id::text;
         ALTER TABLE {schema}.tasks DROP CONSTRAINT IF EXISTS tasks_run_id_task_index_key",
    );
    const TAKE_IN: Statement = Statement::new("SELECT {schema}.ork_take_in()");
    // What is in no record has been reported and is set aside.
    const CLEAR: Statement = Statement::new(
        "DELETE FROM {schema}.deferred_jobs j WHERE NOT EXISTS (
             SELECT FROM {schema}.import_records r WHERE r.kind = 'job' AND (r.record->'job'->'row'->>'id')::uuid = j.id
         );
         DELETE FROM {schema}.tasks t WHERE NOT EXISTS (
             SELECT FROM {schema}.import_records r WHERE r.kind = 'task' AND (r.record->'task'->'row'->>'id')::uuid = t.id
         );
         DELETE FROM {schema}.runs t WHERE NOT EXISTS (
             SELECT FROM {schema}.import_records r WHERE r.kind = 'run' AND (r.record->'run'->'row'->>'id')::uuid = t.id
         );
         DELETE FROM {schema}.workflow_snapshots s WHERE NOT EXISTS (
             SELECT FROM {schema}.import_records r WHERE r.kind = 'snapshot' AND (r.record->'snapshot'->>'id')::uuid = s.id
         );
         DELETE FROM {schema}.import_records;
         ALTER TABLE {schema}.tasks ADD CONSTRAINT tasks_run_id_task_index_key UNIQUE (run_id, task_index)",
    );
    const LOGS: Statement = Statement::new(
        "INSERT INTO {schema}.task_logs (task_id, length)
         SELECT id, octet_length(convert_to(logs, 'UTF8')) FROM {schema}.tasks WHERE logs <> '';
         INSERT INTO {schema}.task_log_chunks (task_id, start_offset, data)
         SELECT id, 0, convert_to(logs, 'UTF8') FROM {schema}.tasks WHERE logs <> ''",
    );
    let failed = |error| of_statement(&site.place, Access::Write, error);
    connection.execute(SETTINGS).await.map_err(failed)?;
    connection.execute(sqlx::raw_sql(AssertSqlSafe(functions()))).await.map_err(failed)?;
    for statement in [MAKE_WAY, TAKE_IN, CLEAR, LOGS] {
        connection.execute(sqlx::raw_sql(site.text(statement))).await.map_err(failed)?;
    }
    Ok(())
}

/// Reads Ork's rows and turns them into records.
struct Old<'a> {
    site: &'a Site,
    connection: &'a mut PgConnection,
    takeover: Takeover,
    /// How many records there are.
    records: i64,
}

impl Old<'_> {
    /// The rows that a statement returns as JSON, for these ids.
    async fn read<T: DeserializeOwned>(&mut self, statement: Statement, ids: &[Uuid]) -> Result<Vec<T>> {
        let failed = |error| of_statement(&self.site.place, Access::Read, error);
        let rows = self.site.query(statement).bind(ids.to_vec()).fetch_all(&mut *self.connection).await;
        let read = |row| -> Result<T> {
            let json: String = sqlx::postgres::PgRow::try_get(row, 0).map_err(failed)?;
            serde_json::from_str(&json).map_err(|source| {
                Error::corrupt("a table of Ork", "?", "row", "cannot be read").with_source(source)
            })
        };
        rows.map_err(failed)?.iter().map(read).collect()
    }

    async fn workflows(&mut self) -> Result<()> {
        const ALL: Statement =
            Statement::new("SELECT id, 0::bigint FROM {schema}.workflows ORDER BY created_at, id");
        const WORKFLOWS: Statement = Statement::new(
            "SELECT row_to_json(w)::text FROM {schema}.workflows w WHERE w.id = ANY ($1) ORDER BY w.created_at, w.id",
        );
        const TASKS: Statement = Statement::new(
            "SELECT row_to_json(t)::text FROM {schema}.workflow_tasks t
             WHERE t.workflow_id = ANY ($1) ORDER BY t.task_index, t.id",
        );
        const SNAPSHOTS: Statement = Statement::new(
            "SELECT row_to_json(s)::text FROM {schema}.workflow_snapshots s
             WHERE s.workflow_id = ANY ($1) ORDER BY s.created_at, s.id",
        );
        for ids in self.pages(ALL).await? {
            let workflows: Vec<OldWorkflow> = self.read(WORKFLOWS, &ids).await?;
            let tasks = self.read::<OldSpec>(TASKS, &ids).await?;
            let mut tasks = grouped(tasks, |task| task.workflow_id.unwrap_or_default());
            let snapshots = self.read::<OldSnapshot>(SNAPSHOTS, &ids).await?;
            let mut snapshots = grouped(snapshots, |snapshot| snapshot.workflow_id);
            for workflow in workflows {
                let tasks = tasks.remove(&workflow.id).unwrap_or_default();
                let snapshots = snapshots.remove(&workflow.id).unwrap_or_default();
                let records = self.takeover.workflow(workflow, Ok(tasks), snapshots)?;
                self.put(records).await?;
            }
        }
        Ok(())
    }

    async fn runs(&mut self) -> Result<()> {
        const ALL: Statement = Statement::new(
            "SELECT r.id, (SELECT count(*) FROM {schema}.tasks t WHERE t.run_id = r.id)
             FROM {schema}.runs r ORDER BY r.created_at, r.id",
        );
        const RUNS: Statement = Statement::new(
            "SELECT row_to_json(r)::text FROM {schema}.runs r WHERE r.id = ANY ($1) ORDER BY r.created_at, r.id",
        );
        // Logs are not transferred this way.
        const TASKS: Statement = Statement::new(
            "SELECT row_to_json(x)::text
             FROM (
                 SELECT t.id, t.run_id, t.task_index, t.task_name, t.executor_type, t.depends_on, t.status,
                     t.execution_name, t.params, t.output, t.error, t.attempts, t.max_retries, t.timeout_seconds,
                     t.retry_at, t.created_at, t.dispatched_at, t.started_at, t.finished_at
                 FROM {schema}.tasks t WHERE t.run_id = ANY ($1) ORDER BY t.run_id, t.task_index
             ) x",
        );
        const JOBS: Statement = Statement::new(
            "SELECT row_to_json(x)::text
             FROM (
                 SELECT j.id, j.task_id, t.run_id, j.service_type, j.job_id, j.job_data, j.status, j.error,
                     j.created_at, j.started_at, j.last_polled_at, j.finished_at
                 FROM {schema}.tasks t JOIN {schema}.deferred_jobs j ON j.task_id = t.id
                 WHERE t.run_id = ANY ($1)
             ) x",
        );
        for ids in self.pages(ALL).await? {
            let runs: Vec<OldRun> = self.read(RUNS, &ids).await?;
            let mut tasks = grouped(self.read::<OldTask>(TASKS, &ids).await?, |task| task.run_id);
            let run_of_task: HashMap<Uuid, Uuid> =
                tasks.values().flatten().map(|task| (task.id, task.run_id)).collect();
            let mut jobs = grouped(self.read::<OldJob>(JOBS, &ids).await?, |job| {
                run_of_task.get(&job.task_id).copied().unwrap_or_default()
            });
            for run in runs {
                let tasks = tasks.remove(&run.id).unwrap_or_default();
                let jobs = jobs.remove(&run.id).unwrap_or_default();
                let records = self.takeover.run(&run, tasks, jobs)?;
                self.put(records).await?;
            }
        }
        Ok(())
    }

    /// Handles rows that lack a foreign key of Ork's.
    async fn orphans(&mut self) -> Result<()> {
        const SNAPSHOTS: Statement = Statement::new(
            "SELECT row_to_json(s)::text FROM {schema}.workflow_snapshots s
             WHERE $1::uuid[] IS NOT NULL AND NOT EXISTS (SELECT FROM {schema}.workflows w WHERE w.id = s.workflow_id)",
        );
        const TASKS: Statement = Statement::new(
            "SELECT row_to_json(t)::text FROM {schema}.tasks t
             WHERE $1::uuid[] IS NOT NULL AND NOT EXISTS (SELECT FROM {schema}.runs r WHERE r.id = t.run_id)",
        );
        const JOBS: Statement = Statement::new(
            "SELECT row_to_json(j)::text FROM {schema}.deferred_jobs j
             WHERE $1::uuid[] IS NOT NULL AND NOT EXISTS (SELECT FROM {schema}.tasks t WHERE t.id = j.task_id)",
        );
        let snapshots = self.read(SNAPSHOTS, &[]).await?;
        let tasks = self.read(TASKS, &[]).await?;
        let jobs = self.read(JOBS, &[]).await?;
        self.takeover.orphans(snapshots, tasks, jobs);
        self.put(Vec::new()).await
    }

    /// Ids with their number of tasks, in pages of limited size.
    async fn pages(&mut self, all: Statement) -> Result<Vec<Vec<Uuid>>> {
        let failed = |error| of_statement(&self.site.place, Access::Read, error);
        let rows = self.site.query(all).fetch_all(&mut *self.connection).await.map_err(failed)?;
        let (mut pages, mut page, mut tasks) = (Vec::new(), Vec::new(), 0);
        for row in &rows {
            let (id, more): (Uuid, i64) = (row.try_get(0).map_err(failed)?, row.try_get(1).map_err(failed)?);
            if page.len() == PAGE || (tasks + more > TASKS_OF_PAGE && !page.is_empty()) {
                pages.push(std::mem::take(&mut page));
                tasks = 0;
            }
            page.push(id);
            tasks += more;
        }
        pages.push(page);
        Ok(pages)
    }

    /// Stores the records until all are there. Also stores what the contract has no room for.
    async fn put(&mut self, records: Vec<Record>) -> Result<()> {
        const PUT: Statement = Statement::new(
            "INSERT INTO {schema}.import_records (number, kind, record)
             SELECT $1 + u.place, u.kind, u.record::json
             FROM unnest($2::text[], $3::text[]) WITH ORDINALITY u (kind, record, place)",
        );
        const MAKE_ROOM: Statement = Statement::new(
            "CREATE TABLE IF NOT EXISTS {schema}.ork_kept (entity text NOT NULL, field text NOT NULL, value text NOT NULL)",
        );
        const KEEP: Statement =
            Statement::new("INSERT INTO {schema}.ork_kept (entity, field, value) VALUES ($1, $2, $3)");
        let failed = |error| of_statement(&self.site.place, Access::Write, error);
        let kinds: Vec<&str> = records.iter().map(Record::kind).collect();
        let texts = records.iter().map(Record::encode).collect::<Result<Vec<_>>>()?;
        let number = i64::try_from(records.len()).unwrap_or(i64::MAX);
        if number > 0 {
            let put = self
                .site
                .query(PUT)
                .bind(self.records)
                .bind(kinds.iter().map(ToString::to_string).collect::<Vec<_>>());
            put.bind(texts).execute(&mut *self.connection).await.map_err(failed)?;
            self.records += number;
        }
        let kept = self.takeover.take_kept();
        if !kept.is_empty() {
            self.site.query(MAKE_ROOM).execute(&mut *self.connection).await.map_err(failed)?;
        }
        for kept in kept {
            let keep = self.site.query(KEEP).bind(kept.entity).bind(kept.field).bind(kept.value);
            keep.execute(&mut *self.connection).await.map_err(failed)?;
        }
        Ok(())
    }
}

fn grouped<T>(rows: Vec<T>, owner: impl Fn(&T) -> Uuid) -> HashMap<Uuid, Vec<T>> {
    let mut groups: HashMap<Uuid, Vec<T>> = HashMap::new();
    for row in rows {
        groups.entry(owner(&row)).or_default().push(row);
    }
    groups
}
