//! Which version of the schema a database has, and bringing it to ours.

use std::time::{Duration, Instant};

use ork_state_api::{Error, MigrationReport, Result};
use sqlx::migrate::{Migration, Migrator};
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Connection, Executor, Row, SqlStr, query};

use crate::database::{Inner, PostgresDatabase};
use crate::error::{Access, of_statement};
use crate::options::Schema;

static MIGRATOR: Migrator = sqlx::migrate!();

/// How long to wait for another process that is migrating, and for locks that others hold on tables.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often to ask whether it is done.
const POLL: Duration = Duration::from_millis(20);
/// Older servers lack what the migrations use.
const OLDEST_SERVER: i32 = 140_000;

/// Tables that tell a store made by Ork before ork-state, or by sqlx's own migrations.
const LEGACY: &[&str] =
    &["_sqlx_migrations", "workflows", "runs", "tasks", "workflow_tasks", "deferred_jobs"];

/// Statements about the schema itself.
pub(crate) struct Statements {
    versions: SqlStr,
    create: SqlStr,
    record: SqlStr,
}

impl Statements {
    pub(crate) fn new(schema: &Schema) -> Self {
        Self {
            versions: sql(format!(
                "SELECT version, checksum FROM {schema}.ork_state_migrations ORDER BY version"
            )),
            create: sql(format!(
                "CREATE TABLE IF NOT EXISTS {schema}.ork_state_migrations (
                     version bigint PRIMARY KEY,
                     name text NOT NULL,
                     checksum bytea NOT NULL,
                     applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
                 )"
            )),
            record: sql(format!(
                "INSERT INTO {schema}.ork_state_migrations (version, name, checksum) VALUES ($1, $2, $3)"
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
    /// A store that this version cannot take over; the table that tells.
    Legacy(String),
    /// These migrations, with their checksums, in order.
    Migrations(Vec<(i64, Vec<u8>)>),
}

impl Found {
    async fn look(inner: &Inner, connection: &mut PgConnection) -> Result<Self> {
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
            return Ok(tables.into_iter().next().map_or(Self::Empty, Self::Legacy));
        }
        let version = |row: &PgRow| Ok((row.try_get("version")?, row.try_get("checksum")?));
        query(inner.sql.schema.versions.clone())
            .fetch_all(connection)
            .await
            .and_then(|rows| rows.iter().map(version).collect())
            .map(Self::Migrations)
            .map_err(failed)
    }

    /// The migrations that are there.
    ///
    /// # Errors
    /// `Conflict` for a store that is not ours, `SchemaMismatch` for a newer one.
    fn migrations(self, inner: &Inner) -> Result<Vec<(i64, Vec<u8>)>> {
        match self {
            Self::Empty => Ok(Vec::new()),
            Self::Legacy(table) => Err(Error::conflict(format!(
                "the schema {} at {} has a table {table:?} and was not made by ork-state",
                inner.schema, inner.place
            ))
            .with_hint(
                "Taking over databases made by Ork before ork-state is not supported by this version yet: \
                 use another schema by the option `schema`, or another database",
            )),
            Self::Migrations(there) if last(&there) > needed() => Err(mismatch(last(&there))),
            Self::Migrations(there) => Ok(there),
        }
    }
}

fn last(migrations: &[(i64, Vec<u8>)]) -> i64 {
    migrations.last().map_or(0, |(version, _)| *version)
}

/// The version that this code reads and writes.
fn needed() -> i64 {
    MIGRATOR.iter().map(|migration| migration.version).max().unwrap_or(0)
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
    let found = last(&Found::look(inner, &mut connection).await?.migrations(inner)?);
    if found == needed() { Ok(()) } else { Err(mismatch(found)) }
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
        Found::Legacy(_) => Ok(()),
        found => found.migrations(inner).map(drop),
    }
}

impl PostgresDatabase {
    pub(crate) async fn bring_up_to_date(&self) -> Result<MigrationReport> {
        self.call_unmigrated(|inner| async move {
            let mut connection = inner.acquire().await?;
            let there = Found::look(&inner, &mut connection).await?.migrations(&inner)?;
            if last(&there) == needed() {
                check_checksums(&there)?;
                return Ok(MigrationReport { from: needed(), to: needed(), applied: Vec::new() });
            }
            migrate(&inner, &mut connection).await
        })
        .await
    }
}

/// Applies what is missing, in one transaction.
async fn migrate(inner: &Inner, connection: &mut PgConnection) -> Result<MigrationReport> {
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
    let there = Found::look(inner, &mut transaction).await?.migrations(inner)?;
    check_checksums(&there)?;
    let from = last(&there);
    if there.is_empty() {
        create_schema(inner, &mut transaction).await?;
        transaction.execute(inner.sql.schema.create.clone()).await.map_err(failed)?;
    }
    let mut applied = Vec::new();
    for migration in MIGRATOR.iter().filter(|migration| migration.version > from) {
        let name = name(migration);
        transaction.execute(sqlx::raw_sql(migration.sql.clone())).await.map_err(|error| {
            let reason = of_statement(&inner.place, Access::Write, error);
            Error::new(reason.kind().clone())
                .with_hint(format!("This was migration {name}"))
                .with_source(reason)
        })?;
        query(inner.sql.schema.record.clone())
            .bind(migration.version)
            .bind(&name)
            .bind(&*migration.checksum)
            .execute(&mut *transaction)
            .await
            .map_err(failed)?;
        applied.push(name);
    }
    transaction.commit().await.map_err(failed)?;
    Ok(MigrationReport { from, to: needed(), applied })
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

/// Such as `001_init`.
fn name(migration: &Migration) -> String {
    format!("{:03}_{}", migration.version, migration.description.replace(' ', "_"))
}
