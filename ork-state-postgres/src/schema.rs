//! Finds out which version of the schema a database has, and migrates it to ours.

use std::time::{Duration, Instant};

use ork_state_api::{Error, Found as Store, MigrationReport, Result};
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Connection, Executor, Row, query};

use crate::error::{Access, of_statement};
use crate::site::Site;
use crate::statement::Statement;
use crate::steps::{
    CONSTRAINTS_STEP, FUNCTIONS_STEP, LAST_OF_ORK, MIGRATOR, functions_checksum, name, needed,
};
use crate::takeover;

/// How long to wait for another process that migrates, and for table locks that others hold.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often to check whether it is done.
const POLL: Duration = Duration::from_millis(20);
/// Older servers lack what the migrations use.
const OLDEST_SERVER: i32 = 140_000;

/// The versions in sqlx's own record: Ork's migrations, or those of `MIGRATOR`.
const VERSIONS_OF_SQLX: Statement =
    Statement::new("SELECT version, success FROM {schema}._sqlx_migrations ORDER BY version");

/// Tables that identify a store made by Ork before ork-state, or by sqlx's own migrations.
const LEGACY: &[&str] =
    &["_sqlx_migrations", "workflows", "runs", "tasks", "workflow_tasks", "deferred_jobs"];

/// What a schema holds.
enum Found {
    /// Nothing of ours.
    Empty,
    /// Tables with our names but without a recorded version. Holds one of these names.
    Foreign(String),
    /// A database of Ork before ork-state, at this version. `failed` is the first of its migrations
    /// that did not succeed.
    Ork { version: i64, failed: Option<i64> },
    /// A store that `MIGRATOR` has begun to create, at this version.
    Begun(i64),
    /// The applied migrations with their checksums, in order.
    Migrations(Vec<(i64, Vec<u8>)>),
}

impl Found {
    async fn look(site: &Site, connection: &mut PgConnection) -> Result<Self> {
        Self::look_once(site, connection, false).await
    }

    async fn look_again(site: &Site, connection: &mut PgConnection) -> Result<Self> {
        Self::look_once(site, connection, true).await
    }

    async fn look_once(site: &Site, connection: &mut PgConnection, again: bool) -> Result<Self> {
        const VERSIONS: Statement =
            Statement::new("SELECT version, checksum FROM {schema}.ork_state_migrations ORDER BY version");
        let failed = |error| of_statement(&site.place, Access::Read, error);
        // The tables that our store, or an older one, would have.
        let tables: Vec<String> = query(
            "SELECT c.relname::text
             FROM pg_catalog.pg_class c
             JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
             WHERE n.nspname = $1 AND c.relname = ANY ($2) AND c.relkind IN ('r', 'p')
             ORDER BY c.relname",
        )
        .bind(site.schema.name())
        .bind([LEGACY, &["ork_state_migrations"]].concat())
        .fetch_all(&mut *connection)
        .await
        .and_then(|rows| rows.iter().map(|row| row.try_get(0)).collect())
        .map_err(failed)?;
        if !tables.iter().any(|table| table == "ork_state_migrations") {
            if tables.iter().any(|table| table == "_sqlx_migrations")
                && tables.iter().any(|table| table == "runs")
            {
                match Self::look_at_ork(site, connection).await? {
                    // Perhaps it was taken over between these two looks.
                    Self::Ork { version, .. } if version == needed() && !again => {
                        return Box::pin(Self::look_again(site, connection)).await;
                    }
                    found => return Ok(found),
                }
            }
            return Ok(tables.into_iter().next().map_or(Self::Empty, Self::Foreign));
        }
        let version = |row: &PgRow| Ok((row.try_get("version")?, row.try_get("checksum")?));
        site.query(VERSIONS)
            .fetch_all(connection)
            .await
            .and_then(|rows| rows.iter().map(version).collect())
            .map(Self::Migrations)
            .map_err(failed)
    }

    async fn look_at_ork(site: &Site, connection: &mut PgConnection) -> Result<Self> {
        let rows = site.query(VERSIONS_OF_SQLX).fetch_all(connection).await;
        let version = |row: &PgRow| Ok::<(i64, bool), sqlx::Error>((row.try_get(0)?, row.try_get(1)?));
        let versions: Vec<(i64, bool)> = rows
            .and_then(|rows| rows.iter().map(version).collect())
            .map_err(|error| of_statement(&site.place, Access::Read, error))?;
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

    /// The applied migrations.
    ///
    /// # Errors
    /// `Conflict` for a store that is not ours, `SchemaMismatch` for a newer one.
    fn migrations(self, site: &Site) -> Result<Vec<(i64, Vec<u8>)>> {
        match self {
            Self::Empty => Ok(Vec::new()),
            Self::Foreign(table) => Err(Error::conflict(format!(
                "the schema {} at {} has a table {table:?} and was made neither by ork-state nor by Ork",
                site.schema, site.place
            ))
            .with_hint("Use another schema by the option `schema`, or another database")),
            Self::Ork { failed: Some(failed), .. } => Err(Error::conflict(format!(
                "Ork's own migration {failed} of the schema {} at {} did not succeed",
                site.schema, site.place
            ))
            .with_hint("Finish or undo it with the Ork that began it, then migrate again")),
            Self::Ork { version, .. } if version > LAST_OF_ORK => Err(Error::conflict(format!(
                "the schema {} at {} is at version {version} of Ork, this code knows it up to {LAST_OF_ORK}",
                site.schema, site.place
            ))
            .with_hint("Deploy the newer code, which can take it over")),
            Self::Begun(version) => {
                Err(Error::new(ork_state_api::ErrorKind::SchemaMismatch { found: version, needed: needed() })
                    .with_hint("`MIGRATOR` has not made all of the store yet: run it to its end"))
            }
            // None of our migrations has been applied yet.
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

/// Whether the store is usable.
pub(crate) async fn check(site: &Site, connection: &mut PgConnection) -> Result<()> {
    let there = Found::look(site, connection).await?.migrations(site)?;
    if last(&there) != needed() {
        return Err(mismatch(last(&there)));
    }
    if has_our_functions(&there) { Ok(()) } else { Err(other_functions(site)) }
}

/// Whether the functions are this code's. Only builds of unreleased code have other functions under
/// the same version.
fn has_our_functions(there: &[(i64, Vec<u8>)]) -> bool {
    there.iter().any(|(version, checksum)| *version == FUNCTIONS_STEP && *checksum == functions_checksum())
}

fn other_functions(site: &Site) -> Error {
    Error::conflict(format!(
        "the functions of the schema {} at {} are those of another build of this version",
        site.schema, site.place
    ))
    .with_hint("Call `migrate`: it installs those of this program")
}

/// Whether the server and the store are usable once the store is migrated.
pub(crate) async fn check_at_connect(site: &Site, connection: &mut PgConnection) -> Result<()> {
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
        server.map_err(|error| of_statement(&site.place, Access::Read, error))?;
    if number < OLDEST_SERVER {
        return Err(Error::conflict(format!("the server at {} is PostgreSQL {version}", site.place))
            .with_hint(format!("PostgreSQL {} or newer is needed", OLDEST_SERVER / 10_000)));
    }
    if encoding != "UTF8" {
        return Err(Error::conflict(format!("the database at {} has the encoding {encoding}", site.place))
            .with_hint(
                "Text of any script needs UTF8: create the database with `createdb --encoding=UTF8`",
            ));
    }
    match Found::look(site, connection).await? {
        // Every method reports this. Connecting does not, so that the caller gets a store to call
        // `migrate` on.
        Found::Foreign(_) | Found::Ork { .. } | Found::Begun(_) => Ok(()),
        found => found.migrations(site).map(drop),
    }
}

/// Whether a migration is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Intent {
    Migrate,
    /// It is applied and rolled back.
    Plan,
}

/// Migrates the schema to this code's version, and reports what was done.
pub(crate) async fn migrate(
    site: &Site,
    connection: &mut PgConnection,
    intent: Intent,
) -> Result<MigrationReport> {
    let there = Found::look(site, connection).await?.migrations(site)?;
    if last(&there) == needed() && has_our_functions(&there) {
        check_checksums(&there)?;
        let (found, applied, adjusted) = (Store::OrkState(needed()), Vec::new(), Vec::new());
        return Ok({
            let mut report = MigrationReport::new(found, needed());
            report.applied = applied;
            report.adjusted = adjusted;
            report
        });
    }
    apply(site, connection, intent).await
}

/// Applies the missing steps, in one transaction.
async fn apply(site: &Site, connection: &mut PgConnection, intent: Intent) -> Result<MigrationReport> {
    // The wait for locks is limited like the wait for another migration (`PATIENCE`).
    const SETTINGS: Statement = Statement::new(
        "SET LOCAL search_path TO {schema}, pg_temp;
         SET LOCAL lock_timeout = '60s';
         SET LOCAL statement_timeout = 0",
    );
    const RECORD_FOR_SQLX: Statement = Statement::new(
        "INSERT INTO {schema}._sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES ($1, $2, true, $3, 0)
         ON CONFLICT (version) DO UPDATE SET checksum = excluded.checksum",
    );
    let failed = |error| of_statement(&site.place, Access::Write, error);
    let mut transaction = connection.begin().await.map_err(failed)?;
    transaction.execute(sqlx::raw_sql(site.text(SETTINGS))).await.map_err(failed)?;
    lock(site, &mut transaction).await?;

    // What was seen before we had the lock may have been another process's work in progress.
    let store = Found::look(site, &mut transaction).await?;
    let of_ork = if let Found::Ork { version, .. } = store { Some(version) } else { None };
    let there = store.migrations(site)?;
    check_checksums(&there)?;
    let from = of_ork.unwrap_or(last(&there));
    if there.is_empty() {
        create_schema(site, &mut transaction).await?;
    }
    if of_ork.is_some() {
        takeover::lock_tables(site, &mut transaction).await?;
    }
    let for_sqlx = is_made_by_migrator(site, &mut transaction).await?;
    let (mut applied, mut adjusted) = (Vec::new(), Vec::new());
    for step in MIGRATOR.iter() {
        let is_missing =
            step.version > from || (step.version == FUNCTIONS_STEP && !has_our_functions(&there));
        if !is_missing {
            continue;
        }
        if of_ork.is_some() && step.version == CONSTRAINTS_STEP {
            adjusted = takeover::rows(site, &mut transaction).await?;
        }
        transaction.execute(sqlx::raw_sql(step.sql.clone())).await.map_err(|error| {
            let reason = of_statement(&site.place, Access::Write, error);
            Error::new(reason.kind().clone())
                .with_hint(format!("This was migration {}", name(step)))
                .with_source(reason)
        })?;
        if for_sqlx {
            site.query(RECORD_FOR_SQLX)
                .bind(step.version)
                .bind(&*step.description)
                .bind(&*step.checksum)
                .execute(&mut *transaction)
                .await
                .map_err(failed)?;
        }
        applied.push(name(step));
    }
    if of_ork.is_some() {
        takeover::fence(site, &mut transaction).await?;
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
    let mut report = MigrationReport::new(found, needed());
    report.applied = applied;
    report.adjusted = adjusted;
    Ok(report)
}

/// Whether `MIGRATOR` made the store. Then sqlx keeps its own record, which must stay up to date.
async fn is_made_by_migrator(site: &Site, connection: &mut PgConnection) -> Result<bool> {
    // Ork's own migrations begin with 1. A `MIGRATOR` that met another process may have applied
    // only 0.
    const BY_MIGRATOR: Statement = Statement::new(
        "SELECT (SELECT array_agg(m.version) FROM {schema}._sqlx_migrations m) @> ARRAY[0, $1::bigint]",
    );
    let failed = |error| of_statement(&site.place, Access::Read, error);
    let there = query("SELECT to_regclass($1 || '._sqlx_migrations') IS NOT NULL")
        .bind(site.schema.to_string())
        .fetch_one(&mut *connection)
        .await
        .and_then(|row| row.try_get::<bool, _>(0))
        .map_err(failed)?;
    if !there {
        return Ok(false);
    }
    let by_migrator = site.query(BY_MIGRATOR).bind(LAST_OF_ORK + 1).fetch_one(connection).await;
    by_migrator.and_then(|row| row.try_get::<Option<bool>, _>(0)).map(|by| by == Some(true)).map_err(failed)
}

/// Waits until no other process migrates this schema. Then keeps others out until the transaction
/// ends.
async fn lock(site: &Site, connection: &mut PgConnection) -> Result<()> {
    let begun = Instant::now();
    loop {
        let locked = query("SELECT pg_try_advisory_xact_lock(hashtextextended('ork-state ' || $1, 0))")
            .bind(site.schema.name())
            .fetch_one(&mut *connection)
            .await
            .and_then(|row| row.try_get(0))
            .map_err(|error| of_statement(&site.place, Access::Read, error))?;
        if locked {
            return Ok(());
        }
        if begun.elapsed() > PATIENCE {
            return Err(Error::unavailable(format!(
                "another process has been migrating the schema {} at {} for {PATIENCE:?}",
                site.schema, site.place
            ))
            .with_hint("Wait for it; `pg_locks` shows whose advisory lock it is"));
        }
        // The lock is polled for: a session that waits in the server cannot give up.
        tokio::time::sleep(POLL).await;
    }
}

async fn create_schema(site: &Site, connection: &mut PgConnection) -> Result<()> {
    let failed = |error| of_statement(&site.place, Access::Write, error);
    // `IF NOT EXISTS` needs the privilege to create a schema even if the schema exists.
    let there = query("SELECT FROM pg_catalog.pg_namespace WHERE nspname = $1")
        .bind(site.schema.name())
        .fetch_optional(&mut *connection)
        .await
        .map_err(failed)?;
    if there.is_none() {
        const CREATE: Statement = Statement::new("CREATE SCHEMA IF NOT EXISTS {schema}");
        connection.execute(site.text(CREATE)).await.map_err(failed)?;
    }
    Ok(())
}

/// Checks that the applied migrations are those of this code.
fn check_checksums(there: &[(i64, Vec<u8>)]) -> Result<()> {
    for (version, checksum) in there {
        // Functions are replaced whenever they differ.
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
