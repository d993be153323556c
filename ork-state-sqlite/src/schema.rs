//! Finds out which schema a database has, and migrates it to ours.

use std::time::{Duration, Instant};

use ork_state_api::{Error, ErrorKind, Found, MigrationReport};
use sqlx::migrate::Migration;
use sqlx::sqlite::SqliteConnection;

use crate::error::{Attempt, is_busy};
use crate::sql::run_sql;
use crate::steps::{LAST_OF_ORK, MIGRATOR, name, needed};
use crate::takeover;

/// How long a migration waits for another one, and how often it checks. Each check itself waits for
/// `busy_timeout`.
const PATIENCE: Duration = Duration::from_secs(30);
const BETWEEN_TRIES: Duration = Duration::from_millis(20);

/// How a database's schema compares to this code's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Schema {
    /// It is what this code needs.
    Current,
    /// Steps are missing. 0 is an empty database.
    Older { found: i64 },
    /// `MIGRATOR` has begun to create it.
    Begun { found: i64 },
    /// It is from a newer version.
    Newer { found: i64 },
    /// A step has our number but is not ours.
    Changed { name: String },
    /// It was made by Ork before this crate existed. `failed` is the first of Ork's own migrations
    /// that did not succeed.
    Ork { version: i64, failed: Option<i64> },
    /// It belongs to another program.
    Foreign { table: String },
}

impl Schema {
    pub(crate) fn can_be_taken_over(&self) -> bool {
        matches!(self, Self::Ork { version, failed: None } if *version <= LAST_OF_ORK)
    }

    /// Why a call on a database with this schema is refused.
    pub(crate) fn error(&self) -> Error {
        let needed = needed();
        let mismatch = |found| Error::new(ErrorKind::SchemaMismatch { found, needed });
        match self {
            Self::Current => Error::internal("a schema that is current was refused"),
            Self::Older { found } => mismatch(*found).with_hint("Call `migrate` first"),
            Self::Begun { found } => {
                mismatch(*found).with_hint("`MIGRATOR` has not made all of the store yet: run it to its end")
            }
            Self::Newer { found } => mismatch(*found).with_hint("Deploy the newer code"),
            Self::Changed { name } => {
                Error::conflict(format!("the database was migrated by another form of the step {name}"))
                    .with_hint("Use the version of this crate that migrated it")
            }
            Self::Ork { failed: Some(failed), .. } => {
                Error::conflict(format!("Ork's own migration {failed} of the database did not succeed"))
                    .with_hint("Finish or undo it with the Ork that began it, then migrate again")
            }
            Self::Ork { version, .. } if *version > LAST_OF_ORK => Error::conflict(format!(
                "the database is at version {version} of Ork, this code knows it up to {LAST_OF_ORK}"
            ))
            .with_hint("Deploy the newer code, which can take it over"),
            Self::Ork { .. } => {
                mismatch(0).with_hint("Call `migrate` first: it takes the database of Ork over")
            }
            Self::Foreign { table } => {
                Error::conflict(format!("the database is not a store of Ork's: it has the table {table:?}"))
                    .with_hint("Choose another file")
            }
        }
    }
}

/// Inspects a database's schema. Changes nothing.
pub(crate) async fn look(connection: &mut SqliteConnection) -> Attempt<Schema> {
    const TABLES: &str =
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'
         ORDER BY name";
    const APPLIED: &str = "SELECT version, name, checksum FROM ork_state_migrations ORDER BY version";
    const IS_OURS: &str = "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = 'ork_state_migrations')";
    const OF_ORK: &str = "SELECT version, success FROM _sqlx_migrations ORDER BY version";

    let tables: Vec<String> = sqlx::query_scalar(TABLES).fetch_all(&mut *connection).await?;
    if !tables.iter().any(|table| table == "ork_state_migrations") {
        if ["_sqlx_migrations", "runs", "tasks"]
            .iter()
            .all(|wanted| tables.iter().any(|table| table == wanted))
        {
            let versions: Vec<(i64, bool)> = sqlx::query_as(OF_ORK).fetch_all(&mut *connection).await?;
            let failed = versions.iter().find(|(_, success)| !success).map(|(version, _)| *version);
            let version = versions.last().map_or(0, |(version, _)| *version);
            // Ork's own begin with 1.
            if versions.first().is_some_and(|(first, _)| *first == 0) {
                return Ok(Schema::Begun { found: version });
            }
            // Perhaps another process has taken it over between these two looks.
            if version > LAST_OF_ORK && sqlx::query_scalar(IS_OURS).fetch_one(&mut *connection).await? {
                return Box::pin(look(connection)).await;
            }
            return Ok(Schema::Ork { version, failed });
        }
        return Ok(match tables.into_iter().next() {
            None => Schema::Older { found: 0 },
            Some(table) => Schema::Foreign { table },
        });
    }
    let applied: Vec<(i64, String, Vec<u8>)> = sqlx::query_as(APPLIED).fetch_all(connection).await?;
    let found = applied.last().map_or(0, |(version, ..)| *version);
    if found > needed() {
        return Ok(Schema::Newer { found });
    }
    for (version, name, checksum) in applied {
        let ours = MIGRATOR.iter().find(|step| step.version == version);
        if ours.is_none_or(|step| *step.checksum != checksum) {
            return Ok(Schema::Changed { name });
        }
    }
    Ok(if found == needed() { Schema::Current } else { Schema::Older { found } })
}

/// Refuses any schema except the one that this code needs. Runs in every transaction, and reads
/// only the version. Steps that are not ours were detected when the store was opened.
pub(crate) async fn check(connection: &mut SqliteConnection) -> Attempt<()> {
    const VERSION: &str = "SELECT max(version) FROM ork_state_migrations";
    // The query fails where there is no such table.
    let found: Option<i64> = sqlx::query_scalar(VERSION).fetch_one(&mut *connection).await.unwrap_or(None);
    if found == Some(needed()) {
        return Ok(());
    }
    match look(connection).await? {
        Schema::Current => Ok(()),
        refused => Err(refused.error().into()),
    }
}

/// Whether the applied steps are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Migrate {
    Commit,
    /// They are rolled back.
    Plan,
}

/// Applies the missing steps, in one transaction, under the write lock.
///
/// The connection must not be in a transaction.
pub(crate) async fn migrate(connection: &mut SqliteConnection, how: Migrate) -> Attempt<MigrationReport> {
    match look(connection).await? {
        // This check takes no lock, so a process that starts does not wait for writers.
        Schema::Current => return Ok(report(Found::OrkState(needed()), Vec::new())),
        Schema::Older { .. } => {}
        schema @ Schema::Ork { .. } if schema.can_be_taken_over() => {}
        refused => return Err(refused.error().into()),
    }
    // Tables are recreated with foreign keys off, as SQLite's documentation says. Otherwise
    // dropping the old table would delete the rows that refer to it. It can only be set outside of
    // a transaction.
    run_sql(connection, "PRAGMA foreign_keys = OFF").await?;
    let result = migrate_locked(connection, how).await;
    if result.is_err() {
        // Fails if the transaction did not begin.
        let _ = run_sql(connection, "ROLLBACK").await;
    }
    run_sql(connection, "PRAGMA foreign_keys = ON; PRAGMA legacy_alter_table = OFF").await?;
    result
}

/// Nothing that an older version of this project wrote has to be adjusted.
fn report(found: Found, applied: Vec<String>) -> MigrationReport {
    let mut report = MigrationReport::new(found, needed());
    report.applied = applied;
    report
}

async fn migrate_locked(connection: &mut SqliteConnection, how: Migrate) -> Attempt<MigrationReport> {
    lock(connection).await?;
    // Another process may have done it while we waited.
    let (found, of_ork) = match look(connection).await? {
        Schema::Current => (needed(), false),
        Schema::Older { found } => (found, false),
        Schema::Ork { version, failed: None } if version <= LAST_OF_ORK => (version, true),
        refused => return Err(refused.error().into()),
    };
    if of_ork {
        takeover::require_orks_alone(connection, found).await?;
        // When a step renames a table, the views of others go on meaning the table of that name.
        run_sql(connection, "PRAGMA legacy_alter_table = ON").await?;
    }
    let for_sqlx = is_made_by_migrator(connection).await?;
    let mut applied = Vec::new();
    for step in MIGRATOR.iter().filter(|step| step.version > found) {
        if of_ork && step.version == LAST_OF_ORK + 1 {
            takeover::set_aside(connection).await?;
        }
        sqlx::raw_sql(step.sql.clone()).execute(&mut *connection).await?;
        if for_sqlx {
            record_for_sqlx(connection, step).await?;
        }
        applied.push(name(step));
    }
    let mut adjusted = Vec::new();
    if of_ork {
        adjusted = takeover::finish(connection, needed()).await?;
    }
    let end = match how {
        Migrate::Commit => "COMMIT",
        Migrate::Plan => "ROLLBACK",
    };
    run_sql(connection, end).await?;
    let found = match found {
        version if of_ork => Found::Ork(version),
        0 => Found::Nothing,
        version => Found::OrkState(version),
    };
    let mut report = report(found, applied);
    report.adjusted = adjusted;
    Ok(report)
}

/// Takes the write lock. Polls up to a limit: with a `busy_timeout` of zero, two migrations at once
/// must both succeed.
async fn lock(connection: &mut SqliteConnection) -> Attempt<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match run_sql(connection, "BEGIN IMMEDIATE").await {
            Err(error) if is_busy(&error) && Instant::now() < deadline => {
                tokio::time::sleep(BETWEEN_TRIES).await;
            }
            result => return Ok(result?),
        }
    }
}

/// Whether `MIGRATOR` made the store. Then sqlx keeps its own record, which must stay up to date.
async fn is_made_by_migrator(connection: &mut SqliteConnection) -> Attempt<bool> {
    const IS_THERE: &str =
        "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = '_sqlx_migrations')";
    // Ork's own migrations begin with 1. A `MIGRATOR` that met another process may have applied
    // only 0.
    const BY_MIGRATOR: &str = "SELECT count(*) = 2 FROM _sqlx_migrations WHERE version IN (0, ?1)";
    Ok(sqlx::query_scalar(IS_THERE).fetch_one(&mut *connection).await?
        && sqlx::query_scalar(BY_MIGRATOR).bind(LAST_OF_ORK + 1).fetch_one(connection).await?)
}

async fn record_for_sqlx(connection: &mut SqliteConnection, step: &'static Migration) -> Attempt<()> {
    const RECORD: &str =
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (?1, ?2, TRUE, ?3, 0)";
    sqlx::query(RECORD)
        .bind(step.version)
        .bind(&*step.description)
        .bind(&*step.checksum)
        .execute(connection)
        .await?;
    Ok(())
}
