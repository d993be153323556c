//! Which version of the schema a database has, and bringing it to ours.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use ork_state_api::{Dag, Error, Found as Store, MigrationReport, Result, Violation};
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Connection, Executor, Row, SqlStr, query};
use uuid::Uuid;

use crate::database::{Inner, PostgresDatabase};
use crate::error::{Access, of_statement};
use crate::options::Schema;
use crate::rows::Reader;
use crate::steps::{FUNCTIONS_STEP, LAST_OF_ORK, MIGRATOR, functions_checksum, name, needed};

/// How long to wait for another process that is migrating, and for locks that others hold on tables.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often to ask whether it is done.
const POLL: Duration = Duration::from_millis(20);
/// Older servers lack what the migrations use.
const OLDEST_SERVER: i32 = 140_000;

/// Tables that tell a store made by Ork before ork-state, or by sqlx's own migrations.
const LEGACY: &[&str] =
    &["_sqlx_migrations", "workflows", "runs", "tasks", "workflow_tasks", "deferred_jobs"];
/// How long to wait for what others, such as processes of Ork that still run, do in the tables of a database that is taken over.
const TAKEOVER_PATIENCE: &str = "10s";

/// Statements about the schema itself.
pub(crate) struct Statements {
    versions: SqlStr,
    versions_of_ork: SqlStr,
    fence_ork: SqlStr,
    record_for_sqlx: SqlStr,
    snapshots: SqlStr,
    forget_hashes: SqlStr,
    rewrite_snapshot: SqlStr,
    merge_snapshot: SqlStr,
}

impl Statements {
    pub(crate) fn new(schema: &Schema) -> Self {
        Self {
            versions: sql(format!(
                "SELECT version, checksum FROM {schema}.ork_state_migrations ORDER BY version"
            )),
            versions_of_ork: sql(format!(
                "SELECT version, success FROM {schema}._sqlx_migrations ORDER BY version"
            )),
            // A program of Ork that starts finds a migration that it does not know, and refuses.
            fence_ork: sql(format!(
                "INSERT INTO {schema}._sqlx_migrations (version, description, success, checksum, execution_time)
                 VALUES ($1, 'taken over by ork-state', true, '', 0)
                 ON CONFLICT DO NOTHING"
            )),
            record_for_sqlx: sql(format!(
                "INSERT INTO {schema}._sqlx_migrations (version, description, success, checksum, execution_time)
                 VALUES ($1, $2, true, $3, 0)
                 ON CONFLICT (version) DO UPDATE SET checksum = excluded.checksum"
            )),
            snapshots: sql(format!(
                "SELECT s.id, s.workflow_id, s.content_hash, s.tasks_json::text AS tasks_json
                 FROM {schema}.workflow_snapshots s
                 ORDER BY s.created_at, s.id"
            )),
            // No hash is to stand in the way of another's.
            forget_hashes: sql(format!(
                "UPDATE {schema}.workflow_snapshots SET content_hash = 'of ' || id::text"
            )),
            rewrite_snapshot: sql(format!(
                "UPDATE {schema}.workflow_snapshots SET content_hash = $2, tasks_json = $3::text::json WHERE id = $1"
            )),
            // Into another of the same content.
            merge_snapshot: sql(format!(
                "WITH w AS (UPDATE {schema}.workflows SET current_snapshot_id = $2 WHERE current_snapshot_id = $1),
                      r AS (UPDATE {schema}.runs SET snapshot_id = $2 WHERE snapshot_id = $1)
                 DELETE FROM {schema}.workflow_snapshots WHERE id = $1"
            )),
        }
    }
}

/// Takes a statement of this crate's own making. All that is ever put into one is the quoted name of the schema and lists of
/// columns; data is bound.
pub(crate) fn sql(text: String) -> SqlStr {
    sqlx::SqlSafeStr::into_sql_str(AssertSqlSafe(text))
}

/// What a schema holds.
enum Found {
    /// Nothing of ours.
    Empty,
    /// Tables of names like ours that nobody says the version of; one of them.
    Foreign(String),
    /// A database of Ork before ork-state, at this version; the first of its migrations that did not succeed, if there is one.
    Ork { version: i64, failed: Option<i64> },
    /// A store that `MIGRATOR` has begun to make, at this version.
    Begun(i64),
    /// These migrations, with their checksums, in order.
    Migrations(Vec<(i64, Vec<u8>)>),
}

impl Found {
    async fn look(inner: &Inner, connection: &mut PgConnection) -> Result<Self> {
        Self::look_once(inner, connection, false).await
    }

    async fn look_again(inner: &Inner, connection: &mut PgConnection) -> Result<Self> {
        Self::look_once(inner, connection, true).await
    }

    async fn look_once(inner: &Inner, connection: &mut PgConnection, again: bool) -> Result<Self> {
        let failed = |error| of_statement(&inner.place, Access::Read, error);
        // The tables that a store of ours, or an older one, would have.
        let tables: Vec<String> = query(
            "SELECT c.relname::text
             FROM pg_catalog.pg_class c
             JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
             WHERE n.nspname = $1 AND c.relname = ANY ($2) AND c.relkind IN ('r', 'p')
             ORDER BY c.relname",
        )
        .bind(inner.schema.name())
        .bind([LEGACY, &["ork_state_migrations"]].concat())
        .fetch_all(&mut *connection)
        .await
        .and_then(|rows| rows.iter().map(|row| row.try_get(0)).collect())
        .map_err(failed)?;
        if !tables.iter().any(|table| table == "ork_state_migrations") {
            if tables.iter().any(|table| table == "_sqlx_migrations")
                && tables.iter().any(|table| table == "runs")
            {
                match Self::look_at_ork(inner, connection).await? {
                    // Perhaps it was taken over between these two looks.
                    Self::Ork { version, .. } if version == needed() && !again => {
                        return Box::pin(Self::look_again(inner, connection)).await;
                    }
                    found => return Ok(found),
                }
            }
            return Ok(tables.into_iter().next().map_or(Self::Empty, Self::Foreign));
        }
        let version = |row: &PgRow| Ok((row.try_get("version")?, row.try_get("checksum")?));
        query(inner.sql.schema.versions.clone())
            .fetch_all(connection)
            .await
            .and_then(|rows| rows.iter().map(version).collect())
            .map(Self::Migrations)
            .map_err(failed)
    }

    async fn look_at_ork(inner: &Inner, connection: &mut PgConnection) -> Result<Self> {
        let rows = query(inner.sql.schema.versions_of_ork.clone()).fetch_all(connection).await;
        let version = |row: &PgRow| Ok::<(i64, bool), sqlx::Error>((row.try_get(0)?, row.try_get(1)?));
        let versions: Vec<(i64, bool)> = rows
            .and_then(|rows| rows.iter().map(version).collect())
            .map_err(|error| of_statement(&inner.place, Access::Read, error))?;
        let failed = versions.iter().find(|(_, success)| !success).map(|(version, _)| *version);
        Ok(match versions.last() {
            // Ork's own begin with 1.
            Some((version, _)) if versions.first().is_some_and(|(first, _)| *first == 0) => {
                Self::Begun(*version)
            }
            Some((version, _)) => Self::Ork { version: *version, failed },
            None => Self::Foreign("_sqlx_migrations".to_owned()),
        })
    }

    /// The migrations that are there.
    ///
    /// # Errors
    /// `Conflict` for a store that is not ours, `SchemaMismatch` for a newer one.
    fn migrations(self, inner: &Inner) -> Result<Vec<(i64, Vec<u8>)>> {
        match self {
            Self::Empty => Ok(Vec::new()),
            Self::Foreign(table) => Err(Error::conflict(format!(
                "the schema {} at {} has a table {table:?} and was made neither by ork-state nor by Ork",
                inner.schema, inner.place
            ))
            .with_hint("Use another schema by the option `schema`, or another database")),
            Self::Ork { failed: Some(failed), .. } => Err(Error::conflict(format!(
                "Ork's own migration {failed} of the schema {} at {} did not succeed",
                inner.schema, inner.place
            ))
            .with_hint("Finish or undo it with the Ork that began it, then migrate again")),
            Self::Ork { version, .. } if version > LAST_OF_ORK => Err(Error::conflict(format!(
                "the schema {} at {} is at version {version} of Ork, this code knows it up to {LAST_OF_ORK}",
                inner.schema, inner.place
            ))
            .with_hint("Deploy the newer code, which can take it over")),
            Self::Begun(version) => {
                Err(Error::new(ork_state_api::ErrorKind::SchemaMismatch { found: version, needed: needed() })
                    .with_hint("`MIGRATOR` has not made all of the store yet: run it to its end"))
            }
            // Nothing of ours is there yet.
            Self::Ork { .. } => Ok(Vec::new()),
            Self::Migrations(there) if last(&there) > needed() => Err(mismatch(last(&there))),
            Self::Migrations(there) => Ok(there),
        }
    }
}

fn last(migrations: &[(i64, Vec<u8>)]) -> i64 {
    migrations.last().map_or(0, |(version, _)| *version)
}

fn mismatch(found: i64) -> Error {
    let needed = needed();
    let hint = if found < needed {
        "Call `migrate` once before anything else"
    } else {
        "A newer version of the program has migrated the store: run that one"
    };
    Error::new(ork_state_api::ErrorKind::SchemaMismatch { found, needed }).with_hint(hint)
}

/// Whether the store can be worked with.
pub(crate) async fn check(inner: &Inner) -> Result<()> {
    let mut connection = inner.acquire().await?;
    let there = Found::look(inner, &mut connection).await?.migrations(inner)?;
    if last(&there) != needed() {
        return Err(mismatch(last(&there)));
    }
    if has_our_functions(&there) { Ok(()) } else { Err(other_functions(inner)) }
}

/// Whether the functions are those of this code. Only builds of unreleased code differ in them under
/// one version.
fn has_our_functions(there: &[(i64, Vec<u8>)]) -> bool {
    there.iter().any(|(version, checksum)| *version == FUNCTIONS_STEP && *checksum == functions_checksum())
}

fn other_functions(inner: &Inner) -> Error {
    Error::conflict(format!(
        "the functions of the schema {} at {} are those of another build of this version",
        inner.schema, inner.place
    ))
    .with_hint("Call `migrate`: it installs those of this program")
}

/// Whether the server and the store can be worked with once it is migrated.
pub(crate) async fn check_at_connect(inner: &Inner, connection: &mut PgConnection) -> Result<()> {
    let server = query(
        "SELECT current_setting('server_version_num')::int, current_setting('server_version'),
                current_setting('server_encoding')",
    )
    .fetch_one(&mut *connection)
    .await
    .and_then(|row| {
        Ok((row.try_get::<i32, _>(0)?, row.try_get::<String, _>(1)?, row.try_get::<String, _>(2)?))
    });
    let (number, version, encoding) =
        server.map_err(|error| of_statement(&inner.place, Access::Read, error))?;
    if number < OLDEST_SERVER {
        return Err(Error::conflict(format!("the server at {} is PostgreSQL {version}", inner.place))
            .with_hint(format!("PostgreSQL {} or newer is needed", OLDEST_SERVER / 10_000)));
    }
    if encoding != "UTF8" {
        return Err(Error::conflict(format!("the database at {} has the encoding {encoding}", inner.place))
            .with_hint(
                "Text of any script needs UTF8: create the database with `createdb --encoding=UTF8`",
            ));
    }
    match Found::look(inner, connection).await? {
        // Every method says so; connecting does not, so that there is something to ask.
        Found::Foreign(_) | Found::Ork { .. } | Found::Begun(_) => Ok(()),
        found => found.migrations(inner).map(drop),
    }
}

impl PostgresDatabase {
    pub(crate) async fn bring_up_to_date(&self, intent: Intent) -> Result<MigrationReport> {
        self.call_unmigrated(move |inner| async move {
            let mut connection = inner.acquire().await?;
            let there = Found::look(&inner, &mut connection).await?.migrations(&inner)?;
            if last(&there) == needed() && has_our_functions(&there) {
                check_checksums(&there)?;
                let (found, applied, adjusted) = (Store::OrkState(needed()), Vec::new(), Vec::new());
                return Ok(MigrationReport { found, to: needed(), applied, adjusted });
            }
            migrate(&inner, &mut connection, intent).await
        })
        .await
    }
}

/// Whether a migration is to stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Intent {
    Migrate,
    /// It is done and taken back.
    Plan,
}

/// Applies what is missing, in one transaction.
async fn migrate(inner: &Inner, connection: &mut PgConnection, intent: Intent) -> Result<MigrationReport> {
    let failed = |error| of_statement(&inner.place, Access::Write, error);
    let mut transaction = connection.begin().await.map_err(failed)?;
    let settings = format!(
        "SET LOCAL search_path TO {}, pg_temp; SET LOCAL lock_timeout = '{}s'; SET LOCAL statement_timeout = 0",
        inner.schema,
        PATIENCE.as_secs()
    );
    transaction.execute(sqlx::raw_sql(sql(settings))).await.map_err(failed)?;
    lock(inner, &mut transaction).await?;

    // What was there before the lock was had, may have been another process's work in progress.
    let store = Found::look(inner, &mut transaction).await?;
    let of_ork = if let Found::Ork { version, .. } = store { Some(version) } else { None };
    let there = store.migrations(inner)?;
    check_checksums(&there)?;
    let from = of_ork.unwrap_or(last(&there));
    if there.is_empty() {
        create_schema(inner, &mut transaction).await?;
    }
    if of_ork.is_some() {
        lock_tables(inner, &mut transaction).await?;
    }
    let for_sqlx = is_made_by_migrator(inner, &mut transaction).await?;
    let mut applied = Vec::new();
    for step in MIGRATOR.iter() {
        let is_missing =
            step.version > from || (step.version == FUNCTIONS_STEP && !has_our_functions(&there));
        if !is_missing {
            continue;
        }
        transaction.execute(sqlx::raw_sql(step.sql.clone())).await.map_err(|error| {
            let reason = of_statement(&inner.place, Access::Write, error);
            Error::new(reason.kind().clone())
                .with_hint(format!("This was migration {}", name(step)))
                .with_source(reason)
        })?;
        if for_sqlx {
            query(inner.sql.schema.record_for_sqlx.clone())
                .bind(step.version)
                .bind(&*step.description)
                .bind(&*step.checksum)
                .execute(&mut *transaction)
                .await
                .map_err(failed)?;
        }
        applied.push(name(step));
    }
    let mut adjusted = Vec::new();
    if of_ork.is_some() {
        adjusted = read_adjusted(inner, &mut transaction).await?;
        adjusted.extend(rewrite_snapshots(inner, &mut transaction).await?);
        let fence = query(inner.sql.schema.fence_ork.clone()).bind(needed());
        fence.execute(&mut *transaction).await.map_err(failed)?;
    }
    match intent {
        Intent::Migrate => transaction.commit().await.map_err(failed)?,
        Intent::Plan => transaction.rollback().await.map_err(failed)?,
    }
    let found = match (of_ork, from) {
        (Some(version), _) => Store::Ork(version),
        (None, 0) => Store::Nothing,
        (None, version) => Store::OrkState(version),
    };
    Ok(MigrationReport { found, to: needed(), applied, adjusted })
}

/// Whether `MIGRATOR` made the store. Then sqlx keeps a record of its own, which must not fall behind.
async fn is_made_by_migrator(inner: &Inner, connection: &mut PgConnection) -> Result<bool> {
    let failed = |error| of_statement(&inner.place, Access::Read, error);
    let there = query(
        "SELECT FROM pg_catalog.pg_class c
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE n.nspname = $1 AND c.relname = '_sqlx_migrations'",
    )
    .bind(inner.schema.name())
    .fetch_optional(&mut *connection)
    .await
    .map_err(failed)?;
    if there.is_none() {
        return Ok(false);
    }
    let versions = query(inner.sql.schema.versions_of_ork.clone()).fetch_all(connection).await;
    // Only `MIGRATOR` begins with 0.
    versions
        .map(|rows| rows.first().is_some_and(|row| matches!(row.try_get::<i64, _>(0), Ok(0))))
        .map_err(failed)
}

/// Keeps everybody else out of the tables of a database that is taken over, all at once, so that no other lock comes between.
async fn lock_tables(inner: &Inner, connection: &mut PgConnection) -> Result<()> {
    let patience = format!("SET LOCAL lock_timeout = '{TAKEOVER_PATIENCE}'");
    let locked = async {
        connection.execute(sqlx::raw_sql(sql(patience))).await?;
        // The tables that every version has.
        connection
            .execute("LOCK TABLE workflows, runs, tasks, _sqlx_migrations IN ACCESS EXCLUSIVE MODE")
            .await
    };
    locked.await.map(drop).map_err(|error| {
        let error = of_statement(&inner.place, Access::Read, error);
        Error::new(error.kind().clone())
            .with_hint("Stop the programs of Ork that still use the database, then migrate again")
            .with_source(error)
    })
}

/// What the last migration found in the old rows.
async fn read_adjusted(inner: &Inner, connection: &mut PgConnection) -> Result<Vec<Violation>> {
    // Made by that migration in this very transaction; none if another transaction applied it, as by sqlx's own means.
    let read = query("SELECT rule, entity, problem FROM ork_adjusted ORDER BY rule, entity, problem");
    let rows =
        read.fetch_all(connection).await.map_err(|error| of_statement(&inner.place, Access::Read, error))?;
    rows.iter()
        .map(|row| {
            let text = |column| {
                row.try_get::<String, _>(column)
                    .map_err(|source| Error::internal("an adjustment that is no text").with_source(source))
            };
            Ok(Violation::new(rule_named(&text("rule")?), text("entity")?, text("problem")?))
        })
        .collect()
}

/// The rules that a migration names.
fn rule_named(name: &str) -> &'static str {
    const RULES: &[&str] = &["D2", "G5", "G8", "R2", "R3", "R4", "S1", "T1", "T5"];
    RULES.iter().find(|rule| **rule == name).copied().unwrap_or("G8")
}

/// Gives every snapshot its canonical form and hash: the old form went through `jsonb`, which rewrites numbers and the order of keys.
async fn rewrite_snapshots(inner: &Inner, connection: &mut PgConnection) -> Result<Vec<Violation>> {
    let failed = |error| of_statement(&inner.place, Access::Write, error);
    let statements = &inner.sql.schema;
    let rows = query(statements.snapshots.clone()).fetch_all(&mut *connection).await.map_err(failed)?;
    connection.execute(statements.forget_hashes.clone()).await.map_err(failed)?;
    let mut adjusted = Vec::new();
    let mut kept: HashMap<(Uuid, String), Uuid> = HashMap::new();
    for row in &rows {
        let row = Reader::of(row, "workflow_snapshots")?;
        let (id, workflow): (Uuid, Uuid) = (row.get("id")?, row.get("workflow_id")?);
        let dag = match Dag::of_old_form(row.get("tasks_json")?) {
            Ok((dag, problems)) => {
                let entity = format!("snapshot {id}");
                adjusted.extend(problems.into_iter().map(|problem| Violation::new("W2", &*entity, problem)));
                dag
            }
            Err(error) => {
                let problem = format!("is no DAG and cannot be run: {error}");
                adjusted.push(Violation::new("G8", format!("snapshot {id}"), problem));
                continue;
            }
        };
        let hash = dag.content_hash();
        match kept.get(&(workflow, hash.clone())) {
            Some(same) => {
                query(statements.merge_snapshot.clone()).bind(id).bind(same).execute(&mut *connection).await
            }
            None => {
                kept.insert((workflow, hash.clone()), id);
                let rewrite = query(statements.rewrite_snapshot.clone());
                rewrite.bind(id).bind(hash).bind(dag.to_json().as_str()).execute(&mut *connection).await
            }
        }
        .map_err(failed)?;
    }
    Ok(adjusted)
}

/// Waits until no other process migrates this schema, and keeps others from it until the transaction ends.
async fn lock(inner: &Inner, connection: &mut PgConnection) -> Result<()> {
    let begun = Instant::now();
    loop {
        let locked = query("SELECT pg_try_advisory_xact_lock(hashtextextended('ork-state ' || $1, 0))")
            .bind(inner.schema.name())
            .fetch_one(&mut *connection)
            .await
            .and_then(|row| row.try_get(0))
            .map_err(|error| of_statement(&inner.place, Access::Read, error))?;
        if locked {
            return Ok(());
        }
        if begun.elapsed() > PATIENCE {
            return Err(Error::unavailable(format!(
                "another process has been migrating the schema {} at {} for {PATIENCE:?}",
                inner.schema, inner.place
            ))
            .with_hint("Wait for it; `pg_locks` shows whose advisory lock it is"));
        }
        // The lock is asked for, not waited for: a session that waits in the server cannot give up.
        tokio::time::sleep(POLL).await;
    }
}

async fn create_schema(inner: &Inner, connection: &mut PgConnection) -> Result<()> {
    let failed = |error| of_statement(&inner.place, Access::Write, error);
    // `IF NOT EXISTS` asks for the privilege to create one even where there is one.
    let there = query("SELECT FROM pg_catalog.pg_namespace WHERE nspname = $1")
        .bind(inner.schema.name())
        .fetch_optional(&mut *connection)
        .await
        .map_err(failed)?;
    if there.is_none() {
        let create = sql(format!("CREATE SCHEMA IF NOT EXISTS {}", inner.schema));
        connection.execute(create).await.map_err(failed)?;
    }
    Ok(())
}

/// The migrations that are there must be those of this code.
fn check_checksums(there: &[(i64, Vec<u8>)]) -> Result<()> {
    for (version, checksum) in there {
        // Functions are made anew whenever they differ.
        if *version == FUNCTIONS_STEP {
            continue;
        }
        let ours = MIGRATOR.iter().find(|migration| migration.version == *version);
        if ours.is_none_or(|ours| *ours.checksum != **checksum) {
            let name = ours.map_or_else(|| version.to_string(), name);
            return Err(Error::conflict(format!(
                "migration {name} was applied in another form than this code's"
            ))
            .with_hint(
                "The store was migrated by an unreleased version: make it anew, or run that version",
            ));
        }
    }
    Ok(())
}
