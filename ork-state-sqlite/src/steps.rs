//! The steps of the schema: numbered migrations.

use std::borrow::Cow;
use std::sync::LazyLock;

use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

/// The steps of the schema, for programs that carry their own migrations and apply them with sqlx:
/// `MIGRATOR.run(&pool)`.
///
/// On an empty database it makes the same store as
/// [`Maintenance::migrate`](ork_state_api::Maintenance::migrate), in one transaction per step.
/// Prefer `migrate` unless you need sqlx's bookkeeping. It runs in one transaction, reports what it
/// did, and takes over databases of Ork.
///
/// # With `migrate` on one store
///
/// - **`MIGRATOR` made the store**: both work, in any order, also after an upgrade. `migrate` keeps
///   sqlx's table `_sqlx_migrations` up to date.
/// - **`migrate` made the store**, or it is a database of Ork: `MIGRATOR` changes nothing and
///   fails. The first line of its error says to call `migrate` instead.
/// - **`MIGRATOR` stopped halfway**: calls and `migrate` refuse the store until `MIGRATOR` has run
///   to its end.
/// - **Both at once on an empty database**: one makes the store. The other fails, or finds it made.
/// - **A newer version of this crate was there**: `MIGRATOR` of the older one fails, and so do all
///   calls.
///
/// SQLite has one schema only, so there is nothing to choose.
pub static MIGRATOR: LazyLock<Migrator> = LazyLock::new(|| Migrator::with_migrations(steps()));

/// The last version of Ork's own migrations. Up to it, ours have the same numbers, names and
/// effects.
pub(crate) const LAST_OF_ORK: i64 = 9;

/// The numbered migrations. A released one is never edited. Each must work with foreign keys on, as
/// sqlx sets them, on a store that the one before it left.
const NUMBERED: &[(i64, &str, &str)] = &[
    // Only sqlx applies this step.
    (0, "new stores only", include_str!("../migrations/000_new_stores_only.sql")),
    (1, "init", include_str!("../migrations/001_init.sql")),
    (2, "add task logs", include_str!("../migrations/002_add_task_logs.sql")),
    (3, "add task retries timeouts", include_str!("../migrations/003_add_task_retries_timeouts.sql")),
    (4, "add workflow schedules", include_str!("../migrations/004_add_workflow_schedules.sql")),
    (5, "add pause status", include_str!("../migrations/005_add_pause_status.sql")),
    (6, "add task signatures", include_str!("../migrations/006_add_task_signatures.sql")),
    (7, "add deferred jobs", include_str!("../migrations/007_add_deferred_jobs.sql")),
    (8, "add workflow snapshots", include_str!("../migrations/008_add_workflow_snapshots.sql")),
    (
        9,
        "workflow snapshots unique hash",
        include_str!("../migrations/009_workflow_snapshots_unique_hash.sql"),
    ),
    (10, "tables", include_str!("../migrations/010_tables.sql")),
    (11, "queues and counts", include_str!("../migrations/011_queues_and_counts.sql")),
];

/// The version of the schema that this code reads and writes.
pub(crate) fn needed() -> i64 {
    NUMBERED.last().map_or(0, |(version, ..)| *version)
}

fn steps() -> Vec<Migration> {
    let step = |&(version, description, text): &(i64, &'static str, &'static str)| {
        let text = SqlStr::from_static(text);
        Migration::new(version, Cow::Borrowed(description), MigrationType::Simple, text, false)
    };
    let steps: Vec<Migration> = NUMBERED.iter().map(step).collect();
    let records: Vec<Option<String>> = steps.iter().map(|step| record(step, &steps)).collect();
    steps.into_iter().zip(records).map(|(step, record)| with(step, record)).collect()
}

/// A step with an additional statement. Its checksum stays that of the file.
fn with(step: Migration, more: Option<String>) -> Migration {
    let Some(more) = more else { return step };
    let sql = AssertSqlSafe(format!("{}\n{more}", step.sql.as_str())).into_sql_str();
    Migration { sql, ..step }
}

/// The statement with which a step of ours records in the store that it was applied. The first one
/// also records Ork's steps, which have the same effect as ours.
fn record(step: &Migration, steps: &[Migration]) -> Option<String> {
    let first = LAST_OF_ORK + 1;
    let recorded = steps.iter().filter(|other| match step.version {
        version if version < first => false,
        version if version == first => (1..=first).contains(&other.version),
        version => other.version == version,
    });
    let rows: Vec<String> = recorded
        .map(|step| {
            let checksum: String = step.checksum.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("({}, '{}', x'{checksum}', {NOW})", step.version, name(step))
        })
        .collect();
    (!rows.is_empty()).then(|| {
        format!(
            "INSERT INTO ork_state_migrations (version, name, checksum, applied_at) VALUES\n    {};\n",
            rows.join(",\n    ")
        )
    })
}

/// The time in microseconds.
const NOW: &str = "CAST(unixepoch('subsec') * 1000000 AS INTEGER)";

/// The step's file name without its extension.
pub(crate) fn name(step: &Migration) -> String {
    format!("{:03}_{}", step.version, step.description.replace(' ', "_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_a_step() {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/migrations");
        let mut files: Vec<String> = std::fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
            .collect();
        files.sort();
        assert_eq!(MIGRATOR.iter().map(name).collect::<Vec<_>>(), files);
    }
}
