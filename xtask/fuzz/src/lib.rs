//! The bodies of the fuzz targets, which `cargo xtask fuzz` runs.
//!
//! Each function must return whatever it is given. It panics where a rule does not hold.

use std::time::Duration;

use ork_state_api::backend::{Record, StoreUrl};
use ork_state_api::ork::takeover::{OldJob, OldRun, OldSnapshot, OldSpec, OldTask, OldWorkflow, Takeover};
use ork_state_api::{ConnectOptions, Dag, Registry, Timestamp};
use {ork_state_file as _, ork_state_postgres as _, ork_state_sqlite as _};

/// A DAG as backends store it. A DAG that can be read has a canonical form that reads as the same
/// DAG.
pub fn dag(bytes: &[u8]) {
    let Ok(json) = std::str::from_utf8(bytes) else { return };
    let Ok(dag) = Dag::from_json(json) else { return };
    let again = Dag::from_json(dag.to_json().as_str());
    assert!(again.is_ok_and(|again| again == dag && again.content_hash() == dag.content_hash()));
}

/// Rows of Ork's: an array of a workflow, its compiled tasks, its snapshots, a run, its tasks, and
/// its deferred jobs.
///
/// Whatever they hold, they are converted to records that can be stored and read back.
pub fn takeover(bytes: &[u8]) {
    type Rows = (OldWorkflow, Vec<OldSpec>, Vec<OldSnapshot>, OldRun, Vec<OldTask>, Vec<OldJob>);
    let Ok((mut workflow, compiled, mut snapshots, mut run, mut tasks, jobs)) =
        serde_json::from_slice::<Rows>(bytes)
    else {
        return;
    };
    // The ids match, as foreign keys ensure.
    run.workflow_id = workflow.id;
    tasks.iter_mut().for_each(|task| task.run_id = run.id);
    snapshots.iter_mut().for_each(|snapshot| snapshot.workflow_id = workflow.id);
    if let Some(current) = snapshots.first() {
        workflow.current_snapshot_id = Some(current.id);
    }
    let now = Timestamp::MIN.saturating_add(Duration::from_secs(63_000_000_000));
    let mut takeover = Takeover::new(now, [workflow.name.clone()]);
    let of_workflow = takeover.workflow(workflow, Ok(compiled), snapshots);
    let of_run = takeover.run(&run, tasks, jobs);
    for record in of_workflow.into_iter().chain(of_run).flatten() {
        let encoded = record.encode();
        assert!(encoded.is_ok_and(|text| Record::decode(&text).is_ok_and(|again| again == record)));
    }
    let _report = takeover.finish();
}

/// Parses a URL of any backend, up to where its store would be opened.
///
/// The bytes follow a password. No error and no `Debug` may depend on that password. A search for
/// the password itself would not do. The driver drops line breaks and decodes, so the bytes may
/// spell it too.
pub fn url(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    read_url(text);
    let [one, other] =
        ["sesame", "barley"].map(|password| read_url(&format!("postgres://user:{password}{text}")));
    assert_eq!(one, other);
}

/// What a user may see of a URL: the parsed options, or an error.
fn read_url(text: &str) -> String {
    let read = || {
        let options = ConnectOptions::new(text)?;
        let url: &StoreUrl = options.url();
        let backend = Registry::linked()?.by_scheme(url.scheme())?;
        url.parameters(backend)?;
        Ok(match backend.name {
            "postgres" => format!("{:?}", ork_state_postgres::PostgresOptions::new(text)?),
            "sqlite" => format!("{:?}", ork_state_sqlite::SqliteOptions::from_url(&options)?),
            _ => format!("{:?}", ork_state_file::FileOptions::from_url(&options)?),
        })
    };
    read().unwrap_or_else(|error: ork_state_api::Error| format!("{error} {error:?} {:?}", error.kind()))
}

/// The lines of a file backend's journal.
#[cfg(fuzzing)]
pub fn journal(bytes: &[u8]) {
    ork_state_file::fuzz::journal(bytes);
}

/// Only a build for fuzzing opens the decoder to other crates.
#[cfg(not(fuzzing))]
pub fn journal(_: &[u8]) {}

/// The `main` of a target: libFuzzer's in a build for fuzzing, otherwise one that does nothing.
///
/// An ordinary build of the workspace only checks that the targets compile.
#[macro_export]
macro_rules! target {
    ($target:path) => {
        #[cfg(fuzzing)]
        libfuzzer_sys::fuzz_target!(|bytes: &[u8]| $target(bytes));

        #[cfg(not(fuzzing))]
        fn main() {
            $target(b"");
        }
    };
}

#[cfg(test)]
mod tests {
    /// The seeds pass in any build, so that an error once found by fuzzing stays covered.
    #[test]
    fn seeds_pass() {
        for (name, target) in [("dag", super::dag as fn(&[u8])), ("url", super::url)] {
            let seeds = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
            for seed in std::fs::read_dir(seeds).unwrap() {
                target(&std::fs::read(seed.unwrap().path()).unwrap());
            }
        }
    }
}
