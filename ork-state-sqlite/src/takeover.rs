//! Takes over a database that Ork made. Its tables are set aside before ours are created, and their
//! contents come back as records. [`ork_state_api::ork::takeover`] documents the conversion.

use std::collections::HashSet;

use ork_state_api::backend::Record;
use ork_state_api::ork::takeover::{OldJob, OldRun, OldSnapshot, OldSpec, OldTask, OldWorkflow, Takeover};
use ork_state_api::{Error, Rule, Timestamp, Violation};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Row};
use uuid::Uuid;

use crate::error::Attempt;
use crate::sql::run_sql;
use crate::steps::MIGRATOR;
use crate::take_in::take_in;

/// The tables of Ork's last version.
const TABLES: [&str; 6] =
    ["workflows", "workflow_tasks", "workflow_snapshots", "runs", "tasks", "deferred_jobs"];

/// Refuses a database whose tables have columns, indexes or triggers that Ork did not make: the new
/// tables would be without them. Comes before the first step, at this version of Ork's: some of
/// Ork's own steps make tables anew.
pub(crate) async fn require_orks_alone(connection: &mut SqliteConnection, version: i64) -> Attempt<()> {
    const OBJECTS: &str = "SELECT s.type || ' ' || s.name || ' of ' || s.tbl_name
         FROM sqlite_schema AS s
         WHERE s.type IN ('index', 'trigger') AND s.sql IS NOT NULL
             AND s.tbl_name IN ('workflows', 'workflow_tasks', 'workflow_snapshots', 'runs', 'tasks', 'deferred_jobs')
         UNION ALL
         SELECT 'column ' || c.name || ' of ' || s.name
         FROM sqlite_schema AS s
         CROSS JOIN pragma_table_xinfo(s.name) AS c
         WHERE s.name IN ('workflows', 'workflow_tasks', 'workflow_snapshots', 'runs', 'tasks', 'deferred_jobs')
         ORDER BY 1";
    let mut new = SqliteConnectOptions::new().in_memory(true).connect().await?;
    for step in MIGRATOR.iter().filter(|step| (1..=version).contains(&step.version)) {
        sqlx::raw_sql(step.sql.clone()).execute(&mut new).await?;
    }
    let orks: HashSet<String> = sqlx::query_scalar(OBJECTS).fetch_all(&mut new).await?.into_iter().collect();
    let there: Vec<String> = sqlx::query_scalar(OBJECTS).fetch_all(connection).await?;
    let own: Vec<String> = there.into_iter().filter(|object| !orks.contains(object)).collect();
    if own.is_empty() {
        return Ok(());
    }
    let reason = format!("tables of Ork's have what Ork did not make: {}", own.join(", "));
    Err(Error::conflict(reason)
        .with_hint(
            "Drop the indexes and triggers, and copy the columns into a table of your own. \
             Put them back after the migration. Nothing was changed",
        )
        .into())
}

/// Sets Ork's tables aside, as `ork_old_runs` and so on. Runs after the last of Ork's own steps.
pub(crate) async fn set_aside(connection: &mut SqliteConnection) -> Attempt<()> {
    // Frees their names for ours.
    const INDEXES: &str = "SELECT name FROM sqlite_schema
         WHERE type = 'index' AND sql IS NOT NULL
             AND tbl_name IN ('workflows', 'workflow_tasks', 'workflow_snapshots', 'runs', 'tasks', 'deferred_jobs')";
    const NEEDED: &str = "CREATE INDEX ork_old_jobs_of_task ON ork_old_deferred_jobs (task_id);
         CREATE INDEX ork_old_snapshots_of_workflow ON ork_old_workflow_snapshots (workflow_id)";
    let indexes: Vec<String> = sqlx::query_scalar(INDEXES).fetch_all(&mut *connection).await?;
    for index in indexes {
        let drop = format!("DROP INDEX \"{}\"", index.replace('"', "\"\""));
        sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut *connection).await?;
    }
    rename(connection).await?;
    Ok(run_sql(connection, NEEDED).await?)
}

async fn rename(connection: &mut SqliteConnection) -> Attempt<()> {
    for table in TABLES {
        let rename = format!("ALTER TABLE {table} RENAME TO ork_old_{table}");
        sqlx::raw_sql(AssertSqlSafe(rename)).execute(&mut *connection).await?;
    }
    Ok(())
}

/// Brings back what was set aside, after the last step of the schema and within its transaction.
/// Returns what was adjusted.
pub(crate) async fn finish(connection: &mut SqliteConnection, version: i64) -> Attempt<Vec<Violation>> {
    // A program of Ork that starts finds an unknown migration, and refuses to run.
    const FENCE: &str =
        "INSERT OR IGNORE INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (?1, 'taken over by ork-state', TRUE, x'', 0)";
    const LOGS: &str = "INSERT INTO task_log_chunks (task_id, start_offset, data)
         SELECT o.id, 0, CAST(o.logs AS BLOB) FROM ork_old_tasks AS o JOIN tasks AS t ON t.id = o.id WHERE o.logs <> '';
         INSERT INTO task_logs (task_id, length)
         SELECT task_id, length(data) FROM task_log_chunks";
    let mut old = Old::begin(connection).await?;
    old.workflows().await?;
    old.runs().await?;
    old.orphans().await?;
    let adjusted = old.takeover.finish();
    take_in(connection).await?;
    run_sql(connection, LOGS).await?;
    for table in TABLES {
        sqlx::raw_sql(AssertSqlSafe(format!("DROP TABLE ork_old_{table}"))).execute(&mut *connection).await?;
    }
    sqlx::query(FENCE).bind(version).execute(connection).await?;
    Ok(adjusted)
}

/// Reads Ork's rows and turns them into records.
struct Old<'c> {
    connection: &'c mut SqliteConnection,
    takeover: Takeover,
    /// How many records there are.
    records: i64,
}

impl<'c> Old<'c> {
    async fn begin(connection: &'c mut SqliteConnection) -> Attempt<Self> {
        const NOW: &str = "SELECT CAST(unixepoch('subsec') * 1000000 AS INTEGER)";
        const NAMES: &str = "SELECT name FROM ork_old_workflows";
        let now: i64 = sqlx::query_scalar(NOW).fetch_one(&mut *connection).await?;
        let names = sqlx::query(NAMES).fetch_all(&mut *connection).await?;
        let names = names.iter().map(|row| Cells(row).text("name").unwrap_or_default());
        let takeover = Takeover::new(Timestamp::from_micros(now)?, names);
        Ok(Self { connection, takeover, records: 0 })
    }

    async fn workflows(&mut self) -> Attempt<()> {
        const ALL: &str = "SELECT rowid FROM ork_old_workflows ORDER BY rowid";
        const WORKFLOW: &str = "SELECT * FROM ork_old_workflows WHERE rowid = ?1";
        const TASKS: &str =
            "SELECT * FROM ork_old_workflow_tasks WHERE workflow_id = ?1 ORDER BY task_index, rowid";
        const SNAPSHOTS: &str =
            "SELECT * FROM ork_old_workflow_snapshots WHERE workflow_id = ?1 ORDER BY created_at, id";
        let all: Vec<i64> = sqlx::query_scalar(ALL).fetch_all(&mut *self.connection).await?;
        for rowid in all {
            let row = sqlx::query(WORKFLOW).bind(rowid).fetch_one(&mut *self.connection).await?;
            let Some(workflow) = self.row::<OldWorkflow>(&row) else { continue };
            let id = workflow.id.as_bytes().to_vec();
            let tasks = sqlx::query(TASKS).bind(&id).fetch_all(&mut *self.connection).await?;
            let snapshots = sqlx::query(SNAPSHOTS).bind(&id).fetch_all(&mut *self.connection).await?;
            let tasks = tasks.iter().map(|row| Cells(row).spec()).collect();
            let snapshots = self.rows(&snapshots);
            let records = self.takeover.workflow(workflow, Ok(tasks), snapshots)?;
            self.put(records).await?;
        }
        Ok(())
    }

    async fn runs(&mut self) -> Attempt<()> {
        const ALL: &str = "SELECT rowid FROM ork_old_runs ORDER BY rowid";
        const RUN: &str = "SELECT * FROM ork_old_runs WHERE rowid = ?1";
        // Logs are not transferred this way.
        const TASKS: &str =
            "SELECT id, run_id, task_index, task_name, executor_type, depends_on, status, execution_name, params,
                 output, error, attempts, max_retries, timeout_seconds, retry_at, created_at, dispatched_at,
                 started_at, finished_at
             FROM ork_old_tasks WHERE run_id = ?1 ORDER BY task_index";
        const JOBS: &str = "SELECT j.* FROM ork_old_tasks AS t
             CROSS JOIN ork_old_deferred_jobs AS j ON j.task_id = t.id
             WHERE t.run_id = ?1";
        let all: Vec<i64> = sqlx::query_scalar(ALL).fetch_all(&mut *self.connection).await?;
        for rowid in all {
            let row = sqlx::query(RUN).bind(rowid).fetch_one(&mut *self.connection).await?;
            let Some(run) = self.row::<OldRun>(&row) else { continue };
            let id = run.id.as_bytes().to_vec();
            let tasks = sqlx::query(TASKS).bind(&id).fetch_all(&mut *self.connection).await?;
            let jobs = sqlx::query(JOBS).bind(&id).fetch_all(&mut *self.connection).await?;
            let tasks = self.rows(&tasks);
            let jobs = self.rows(&jobs);
            let records = self.takeover.run(&run, tasks, jobs)?;
            self.put(records).await?;
        }
        Ok(())
    }

    /// SQLite checks foreign keys only where it is asked to.
    async fn orphans(&mut self) -> Attempt<()> {
        const SNAPSHOTS: &str = "SELECT * FROM ork_old_workflow_snapshots WHERE workflow_id NOT IN (SELECT id FROM ork_old_workflows)";
        const TASKS: &str = "SELECT * FROM ork_old_tasks WHERE run_id NOT IN (SELECT id FROM ork_old_runs)";
        const SPECS: &str = "SELECT * FROM ork_old_workflow_tasks WHERE workflow_id NOT IN (SELECT id FROM ork_old_workflows)";
        const JOBS: &str =
            "SELECT * FROM ork_old_deferred_jobs WHERE task_id NOT IN (SELECT id FROM ork_old_tasks)";
        let snapshots = sqlx::query(SNAPSHOTS).fetch_all(&mut *self.connection).await?;
        let tasks = sqlx::query(TASKS).fetch_all(&mut *self.connection).await?;
        let jobs = sqlx::query(JOBS).fetch_all(&mut *self.connection).await?;
        let snapshots = self.rows(&snapshots);
        let tasks = self.rows(&tasks);
        let jobs = self.rows(&jobs);
        self.takeover.orphans(snapshots, tasks, jobs);
        let specs = sqlx::query(SPECS).fetch_all(&mut *self.connection).await?;
        for row in &specs {
            let entity = format!("compiled task {:?}", Cells(row).text("task_name").unwrap_or_default());
            let problem = "belongs to a workflow which is not there: it is not taken over, but kept aside";
            self.takeover.tell(Rule::W2, &*entity, problem);
            self.takeover.keep(entity, "row", Cells(row).all());
        }
        self.put(Vec::new()).await
    }

    fn rows<T: OldRow>(&mut self, rows: &[SqliteRow]) -> Vec<T> {
        rows.iter().filter_map(|row| self.row(row)).collect()
    }

    fn row<T: OldRow>(&mut self, row: &SqliteRow) -> Option<T> {
        let read = T::read(&Cells(row));
        match read {
            Some(_) => self.odd_cells(T::WHAT, row),
            None => self.without_id(T::WHAT, row),
        }
        read
    }

    /// A row whose ids cannot be read cannot be attached to anything.
    fn without_id(&mut self, what: &str, row: &SqliteRow) {
        let entity = format!("{what} without an id");
        self.takeover.tell(Rule::G8, &*entity, "has no id of 16 bytes: it is not taken over, but kept aside");
        self.takeover.keep(entity, "row", Cells(row).all());
    }

    /// Values that are not of their column's kind are read as well as possible, told and kept.
    fn odd_cells(&mut self, what: &str, row: &SqliteRow) {
        let cells = Cells(row);
        for (column, bytes, problem) in cells.odd() {
            let entity = format!("{what} {}", cells.id("id").unwrap_or_default());
            self.takeover.tell(Rule::G5, &*entity, format!("{column} {problem}. All of it is kept aside"));
            self.takeover.keep(entity, column, format!("x'{}'", hex(&bytes)));
        }
    }

    /// Stores the records until all are there. Also stores what the contract has no room for.
    async fn put(&mut self, records: Vec<Record>) -> Attempt<()> {
        const PUT: &str = "INSERT INTO import_records (number, kind, record) VALUES (?1, ?2, ?3)";
        const MAKE_ROOM: &str = "CREATE TABLE IF NOT EXISTS ork_kept (
             entity TEXT NOT NULL, field TEXT NOT NULL, value TEXT NOT NULL
         ) STRICT";
        const KEEP: &str = "INSERT INTO ork_kept (entity, field, value) VALUES (?1, ?2, ?3)";
        for record in records {
            let (number, kind, encoded) = (self.records, record.kind(), record.encode()?);
            let put = sqlx::query(PUT).bind(number).bind(kind).bind(encoded);
            put.execute(&mut *self.connection).await?;
            self.records += 1;
        }
        let kept = self.takeover.take_kept();
        if !kept.is_empty() {
            run_sql(self.connection, MAKE_ROOM).await?;
        }
        for kept in kept {
            let keep = sqlx::query(KEEP).bind(kept.entity).bind(kept.field).bind(kept.value);
            keep.execute(&mut *self.connection).await?;
        }
        Ok(())
    }
}

/// The result of converting one row.
trait OldRow: Sized {
    /// The name of the entity in the report.
    const WHAT: &'static str;
    /// None if it has no ids.
    fn read(cells: &Cells<'_>) -> Option<Self>;
}

/// A row of Ork's, whose columns may hold anything: SQLite does not check their types.
struct Cells<'r>(&'r SqliteRow);

impl Cells<'_> {
    /// The bytes of a text or a blob, or a number as it is written.
    fn bytes(&self, column: &str) -> Option<Vec<u8>> {
        self.0.try_get_unchecked::<Option<Vec<u8>>, _>(column).ok().flatten()
    }

    fn text(&self, column: &str) -> Option<String> {
        self.bytes(column).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    fn id(&self, column: &str) -> Option<Uuid> {
        let bytes = self.bytes(column)?;
        Uuid::from_slice(&bytes).ok().or_else(|| std::str::from_utf8(&bytes).ok()?.parse().ok())
    }

    fn integer(&self, column: &str) -> Option<i64> {
        self.text(column)?.trim().parse().ok()
    }

    /// The columns whose value is not of their kind, each with the value and what became of it.
    fn odd(&self) -> Vec<(&'static str, Vec<u8>, &'static str)> {
        const TEXTS: [&str; 15] = [
            "name",
            "description",
            "job_name",
            "region",
            "project",
            "executor_type",
            "task_params",
            "schedule",
            "triggered_by",
            "error",
            "task_name",
            "execution_name",
            "params",
            "output",
            "job_data",
        ];
        const INTEGERS: [&str; 5] =
            ["task_index", "attempts", "max_retries", "timeout_seconds", "schedule_enabled"];
        const REFERENCES: [&str; 2] = ["snapshot_id", "current_snapshot_id"];
        let mut odd = Vec::new();
        let mut look = |columns: &[&'static str], is_odd: &dyn Fn(&str, &[u8]) -> bool, problem| {
            for &column in columns {
                if let Some(bytes) = self.bytes(column).filter(|bytes| is_odd(column, bytes)) {
                    odd.push((column, bytes, problem));
                }
            }
        };
        look(
            &TEXTS,
            &|_, bytes| std::str::from_utf8(bytes).is_err(),
            "was no UTF-8: the bad bytes are replaced",
        );
        look(
            &INTEGERS,
            &|column, _| self.integer(column).is_none(),
            "was no whole number: it is read as none",
        );
        look(&REFERENCES, &|column, _| self.id(column).is_none(), "was no id: it is read as none");
        odd
    }

    /// Every column, in a form for people to read.
    fn all(&self) -> String {
        use sqlx::Column;
        let cell = |column: &sqlx::sqlite::SqliteColumn| {
            let bytes = self.bytes(column.name());
            format!(
                "{} = {}",
                column.name(),
                bytes.map_or("NULL".to_owned(), |bytes| format!("x'{}'", hex(&bytes)))
            )
        };
        self.0.columns().iter().map(cell).collect::<Vec<_>>().join(", ")
    }

    fn spec(&self) -> OldSpec {
        OldSpec {
            workflow_id: self.id("workflow_id"),
            task_index: self.integer("task_index").unwrap_or(0),
            task_name: self.text("task_name").unwrap_or_default(),
            executor_type: self.text("executor_type"),
            depends_on: self.text("depends_on"),
            params: self.text("params"),
            signature: self.text("signature"),
        }
    }
}

impl OldRow for OldWorkflow {
    const WHAT: &'static str = "workflow";

    fn read(cells: &Cells<'_>) -> Option<Self> {
        Some(Self {
            id: cells.id("id")?,
            name: cells.text("name").unwrap_or_default(),
            description: cells.text("description"),
            job_name: cells.text("job_name"),
            region: cells.text("region"),
            project: cells.text("project"),
            executor_type: cells.text("executor_type"),
            task_params: cells.text("task_params"),
            schedule: cells.text("schedule"),
            schedule_enabled: cells.integer("schedule_enabled").is_some_and(|enabled| enabled != 0),
            last_scheduled_at: cells.text("last_scheduled_at"),
            next_scheduled_at: cells.text("next_scheduled_at"),
            current_snapshot_id: cells.id("current_snapshot_id"),
            created_at: cells.text("created_at"),
            updated_at: cells.text("updated_at"),
        })
    }
}

impl OldRow for OldSnapshot {
    const WHAT: &'static str = "snapshot";

    fn read(cells: &Cells<'_>) -> Option<Self> {
        Some(Self {
            id: cells.id("id")?,
            workflow_id: cells.id("workflow_id")?,
            tasks_json: cells.text("tasks_json"),
            created_at: cells.text("created_at"),
        })
    }
}

impl OldRow for OldRun {
    const WHAT: &'static str = "run";

    fn read(cells: &Cells<'_>) -> Option<Self> {
        Some(Self {
            id: cells.id("id")?,
            workflow_id: cells.id("workflow_id")?,
            status: cells.text("status").unwrap_or_default(),
            triggered_by: cells.text("triggered_by"),
            snapshot_id: cells.id("snapshot_id"),
            error: cells.text("error"),
            created_at: cells.text("created_at"),
            started_at: cells.text("started_at"),
            finished_at: cells.text("finished_at"),
        })
    }
}

impl OldRow for OldTask {
    const WHAT: &'static str = "task";

    fn read(cells: &Cells<'_>) -> Option<Self> {
        Some(Self {
            id: cells.id("id")?,
            run_id: cells.id("run_id")?,
            task_index: cells.integer("task_index").unwrap_or(0),
            task_name: cells.text("task_name"),
            executor_type: cells.text("executor_type"),
            depends_on: cells.text("depends_on"),
            status: cells.text("status").unwrap_or_default(),
            execution_name: cells.text("execution_name"),
            params: cells.text("params"),
            output: cells.text("output"),
            error: cells.text("error"),
            logs: None,
            attempts: cells.integer("attempts").unwrap_or(0),
            max_retries: cells.integer("max_retries").unwrap_or(0),
            timeout_seconds: cells.integer("timeout_seconds"),
            retry_at: cells.text("retry_at"),
            created_at: cells.text("created_at"),
            dispatched_at: cells.text("dispatched_at"),
            started_at: cells.text("started_at"),
            finished_at: cells.text("finished_at"),
        })
    }
}

impl OldRow for OldJob {
    const WHAT: &'static str = "deferred job";

    fn read(cells: &Cells<'_>) -> Option<Self> {
        Some(Self {
            id: cells.id("id")?,
            task_id: cells.id("task_id")?,
            service_type: cells.text("service_type"),
            job_id: cells.text("job_id"),
            job_data: cells.text("job_data"),
            status: cells.text("status").unwrap_or_default(),
            error: cells.text("error"),
            created_at: cells.text("created_at"),
            started_at: cells.text("started_at"),
            last_polled_at: cells.text("last_polled_at"),
            finished_at: cells.text("finished_at"),
        })
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
