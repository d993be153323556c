//! The steps of the schema: numbered migrations for tables and rows, and a last step that installs
//! the functions.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::LazyLock;

use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

/// The steps of the schema, for programs that carry their own migrations and apply them with sqlx:
/// `MIGRATOR.run(&pool)`.
///
/// On an empty schema it makes the same store as
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
/// - **Both at once on an empty schema**: one makes the store. The other fails, or finds it made.
/// - **A newer version of this crate was there**: `MIGRATOR` of the older one fails, and so do all
///   calls.
///
/// # A schema other than `public`
///
/// sqlx works in the first schema of the connection's `search_path`. That schema must exist. For
/// [`PostgresOptions::with_schema("ork")`](super::PostgresOptions::with_schema) connect with
/// `PgConnectOptions::options([("search_path", "ork")])`. With the server's default, `"$user",
/// public`, a schema with the user's name comes first.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
///
/// let options: PgConnectOptions = "postgres://ork@localhost/ork".parse()?;
/// let pool = PgPoolOptions::new().connect_with(options.options([("search_path", "ork")])).await?;
/// sqlx::query("CREATE SCHEMA IF NOT EXISTS ork").execute(&pool).await?;
/// ork_state_postgres::MIGRATOR.run(&pool).await?;
/// # Ok(())
/// # }
/// ```
pub static MIGRATOR: LazyLock<Migrator> =
    LazyLock::new(|| Migrator::with_migrations(steps(&functions(), FUNCTIONS_STEP, RELEASED)));

/// The number of the step that installs the functions, the last one.
///
/// Once a step is released, the next change of a function gives this the next free number. So does
/// a new numbered migration.
pub(crate) const FUNCTIONS_STEP: i64 = 17;

/// The number of the step with the constraints on every row.
pub(crate) const CONSTRAINTS_STEP: i64 = 16;

/// The released steps of functions, each with its checksum in hexadecimal. A release adds its own.
/// Later steps replace them, so they do nothing any more, but sqlx must know them all.
const RELEASED: &[(i64, &str)] = &[];

/// The last version of Ork's own migrations. Up to it, ours have the same numbers, names and
/// effects.
pub(crate) const LAST_OF_ORK: i64 = 14;

/// The numbered migrations. A released one is never edited.
const NUMBERED: &[(i64, &str, &str)] = &[
    // Only sqlx applies this step.
    (0, "new stores only", include_str!("../migrations/000_new_stores_only.sql")),
    (1, "init", include_str!("../migrations/001_init.sql")),
    (2, "add executor type", include_str!("../migrations/002_add_executor_type.sql")),
    (3, "add indexes", include_str!("../migrations/003_add_indexes.sql")),
    (4, "rename executor agnostic", include_str!("../migrations/004_rename_executor_agnostic.sql")),
    (5, "add dag support", include_str!("../migrations/005_add_dag_support.sql")),
    (6, "workflow tasks", include_str!("../migrations/006_workflow_tasks.sql")),
    (7, "add task logs", include_str!("../migrations/007_add_task_logs.sql")),
    (8, "add task retries timeouts", include_str!("../migrations/008_add_task_retries_timeouts.sql")),
    (9, "add workflow schedules", include_str!("../migrations/009_add_workflow_schedules.sql")),
    (10, "add pause status", include_str!("../migrations/010_add_pause_status.sql")),
    (11, "add task signatures", include_str!("../migrations/011_add_task_signatures.sql")),
    (12, "add deferred jobs", include_str!("../migrations/012_add_deferred_jobs.sql")),
    (13, "add workflow snapshots", include_str!("../migrations/013_add_workflow_snapshots.sql")),
    (
        14,
        "workflow snapshots unique hash",
        include_str!("../migrations/014_workflow_snapshots_unique_hash.sql"),
    ),
    (15, "tables", include_str!("../migrations/015_tables.sql")),
    (16, "constraints", include_str!("../migrations/016_constraints.sql")),
];

/// Names and texts of the functions, from the files with these names.
macro_rules! functions {
    ($($area:ident: $($name:ident),+;)+) => {
        &[$($((
            stringify!($name),
            include_str!(concat!("../functions/", stringify!($area), "/", stringify!($name), ".sql")),
        ),)+)+]
    };
}

/// The functions, in the order of installation. Any order works.
pub(crate) const FUNCTIONS: &[(&str, &str)] = functions! {
    time: ork_later;
    hints: ork_hint_ended, ork_hint_ready;
    claiming: ork_claim_tasks, ork_heartbeat;
    ending: ork_count_ended, ork_expire_leases, ork_expire_timeouts, ork_finish, ork_update_tasks;
    workflows: ork_delete_workflow, ork_update_workflow;
    runs: ork_cancel_run, ork_create_run, ork_delete_runs, ork_pause_run, ork_resume_run, ork_retry_run,
        ork_start_run, ork_unqueue;
    schedules: ork_fire_schedule;
    jobs: ork_claim_jobs, ork_defer_task, ork_update_jobs;
    logs: ork_append_log, ork_free_logs;
    maintenance: ork_prune;
    transfer: ork_finish_import, ork_import, ork_take_in;
};

/// The prefix of our functions' comments on the server. It identifies the functions of an older
/// version.
const MARK: &str = "ork-state: ";

/// The version of the schema that this code reads and writes.
pub(crate) const fn needed() -> i64 {
    FUNCTIONS_STEP
}

/// The checksum that tells this code's functions from others.
pub(crate) fn functions_checksum() -> &'static [u8] {
    MIGRATOR.iter().last().map_or(&[], |step| &*step.checksum)
}

/// What a function does, in one line: the first line of its file.
fn summary(text: &str) -> &str {
    text.lines().next().unwrap_or_default().trim_start_matches("-- ")
}

/// Replaces the functions of an older version with this code's.
///
/// All of ours are dropped first, found by [`MARK`], because those of another version may have
/// other arguments or results. An operator's own functions stay.
pub(crate) fn functions() -> String {
    let mut text = format!(
        "-- Functions keep the search path that they are made with: this schema only.
SELECT set_config('search_path', quote_ident(current_schema()) || ', pg_temp', true);

DO $drop$
DECLARE
    v_function regprocedure;
BEGIN
    FOR v_function IN
        SELECT p.oid::regprocedure
        FROM pg_catalog.pg_proc p
        JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
        WHERE n.nspname = current_schema()
            AND starts_with(obj_description(p.oid, 'pg_proc'), '{MARK}')
    LOOP
        EXECUTE 'DROP FUNCTION ' || v_function;
    END LOOP;
END
$drop$;
"
    );
    for (name, function) in FUNCTIONS {
        let summary = summary(function).replace('\'', "''");
        // Writing into a string does not fail.
        let _ = write!(text, "\n{function}COMMENT ON FUNCTION {name} IS '{MARK}{summary}';\n");
    }
    text
}

/// All steps, with the functions last.
fn steps(functions: &str, number: i64, released: &[(i64, &str)]) -> Vec<Migration> {
    let step = |version, description, sql| {
        Migration::new(version, Cow::Borrowed(description), MigrationType::Simple, sql, false)
    };
    let mut steps: Vec<Migration> = NUMBERED
        .iter()
        .map(|&(version, description, text)| step(version, description, SqlStr::from_static(text)))
        .collect();
    let replaced = released.iter().filter(|(version, _)| *version != number);
    steps.extend(replaced.map(|(version, checksum)| Migration {
        checksum: Cow::Owned(from_hex(checksum)),
        ..step(*version, "functions", SqlStr::from_static(""))
    }));
    steps.push(step(number, "functions", AssertSqlSafe(functions.to_owned()).into_sql_str()));
    steps.sort();
    let records: Vec<Option<String>> = steps.iter().map(|step| record(step, &steps)).collect();
    steps.into_iter().zip(records).map(|(step, record)| with(step, record)).collect()
}

/// A step with an additional statement. Its checksum stays that of the file, so that it can be
/// compared with the text.
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
        .map(|step| format!("({}, '{}', '\\x{}')", step.version, name(step), to_hex(&step.checksum)))
        .collect();
    (!rows.is_empty()).then(|| {
        format!(
            "INSERT INTO ork_state_migrations (version, name, checksum) VALUES
    {}
ON CONFLICT (version) DO UPDATE SET checksum = excluded.checksum, applied_at = excluded.applied_at;\n",
            rows.join(",\n    ")
        )
    })
}

/// Such as `001_init`.
pub(crate) fn name(step: &Migration) -> String {
    format!("{:03}_{}", step.version, step.description.replace(' ', "_"))
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of a checksum in [`RELEASED`], which a test reads.
fn from_hex(text: &str) -> Vec<u8> {
    let pairs = (0..text.len()).step_by(2).filter_map(|at| text.get(at..at + 2));
    pairs.filter_map(|pair| u8::from_str_radix(pair, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::path::{Path, PathBuf};

    use super::*;

    fn files(directory: &str) -> Vec<PathBuf> {
        fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    walk(&path, found);
                } else if path.extension().is_some_and(|extension| extension == "sql") {
                    found.push(path);
                }
            }
        }
        let mut found = Vec::new();
        walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join(directory), &mut found);
        found.sort();
        found
    }

    fn stem(path: &Path) -> String {
        path.file_stem().unwrap().to_string_lossy().into_owned()
    }

    #[test]
    fn every_file_is_a_step() {
        let numbered: Vec<String> = files("migrations").iter().map(|path| stem(path)).collect();
        let steps: Vec<String> =
            MIGRATOR.iter().map(name).filter(|name| !name.ends_with("functions")).collect();
        assert_eq!(steps, numbered);
        let functions: BTreeSet<String> = files("functions").iter().map(|path| stem(path)).collect();
        assert_eq!(FUNCTIONS.iter().map(|(name, _)| (*name).to_owned()).collect::<BTreeSet<_>>(), functions);
        assert_eq!(FUNCTIONS.len(), functions.len(), "one is listed twice");
    }

    #[test]
    fn the_functions_are_the_last_step() {
        let versions: Vec<i64> = MIGRATOR.iter().map(|step| step.version).collect();
        assert_eq!(versions.last(), Some(&FUNCTIONS_STEP));
        assert!(versions.is_sorted_by(|a, b| a < b), "a number is taken twice: {versions:?}");
    }

    /// Otherwise stores of one version would have different functions. See CONTRIBUTING.md.
    #[test]
    fn a_released_step_of_functions_keeps_its_text() {
        let released: BTreeMap<i64, Vec<u8>> =
            RELEASED.iter().map(|(version, checksum)| (*version, from_hex(checksum))).collect();
        assert!(released.values().all(|checksum| checksum.len() == 48), "one is no checksum");
        if let Some(released) = released.get(&FUNCTIONS_STEP) {
            assert_eq!(
                to_hex(released),
                to_hex(functions_checksum()),
                "the functions were released as step {FUNCTIONS_STEP} and have changed since: give \
                 FUNCTIONS_STEP the next free number"
            );
        }
    }

    #[test]
    fn a_replaced_step_of_functions_is_known_and_does_nothing() {
        let later = steps("SELECT 1;", 19, &[(17, &"0f".repeat(48))]);
        let replaced = later.iter().find(|step| step.version == 17).unwrap();
        assert_eq!(*replaced.checksum, [0x0f; 48]);
        let text = replaced.sql.as_str().trim();
        assert!(text.starts_with("INSERT INTO ork_state_migrations") && !text.contains("FUNCTION"), "{text}");
        assert_eq!(later.last().map(|step| step.version), Some(19));
    }

    #[test]
    fn each_function_is_defined_once() {
        let mut defined: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for path in files("functions").iter().chain(&files("migrations")) {
            let text = std::fs::read_to_string(path).unwrap();
            for line in text.lines() {
                if let Some((_, after)) =
                    line.split_once("FUNCTION ").filter(|(before, _)| before.contains("CREATE"))
                {
                    let name = after.split('(').next().unwrap_or_default().to_owned();
                    defined.entry(name).or_default().push(stem(path));
                }
            }
        }
        let expected: BTreeMap<String, Vec<String>> =
            FUNCTIONS.iter().map(|(name, _)| ((*name).to_owned(), vec![(*name).to_owned()])).collect();
        assert_eq!(defined, expected, "a function and the files that define it");
    }

    #[test]
    fn each_function_is_called() {
        let mut sources: Vec<(String, String)> =
            FUNCTIONS.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap() {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            sources.push((stem(&path), text.split("#[cfg(test)]").next().unwrap_or_default().to_owned()));
        }
        let idle: Vec<&str> = FUNCTIONS
            .iter()
            .map(|(name, _)| *name)
            .filter(|name| {
                let call = format!("{name}(");
                !sources.iter().any(|(source, text)| source != name && text.contains(&call))
            })
            .collect();
        assert_eq!(idle, Vec::<&str>::new(), "neither Rust nor another function calls these");
    }

    #[test]
    fn each_function_says_in_its_first_line_what_it_does() {
        for (name, text) in FUNCTIONS {
            let line = text.lines().next().unwrap();
            assert!(line.starts_with("-- ") && line.ends_with('.') && line.len() <= 100, "{name}: {line}");
        }
    }
}
