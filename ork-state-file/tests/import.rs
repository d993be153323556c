//! A directory that Ork wrote before ork-state, with files that nobody would write today.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use ork_state_api::ork::takeover::OldSpec;
use ork_state_api::{Found, ListRuns, RunId, RunStatus, connect};
use ork_state_conformance::ork::takeover::{Form, OldStore, check_plan, id, task_id};
use ork_state_file as _;
use serde::Serialize;
use uuid::Uuid;

const FORM: Form<'static> = Form {
    has: &|_, _| true,
    paused: true,
    any_executor: true,
    any_text: true,
    infinity: true,
    orphans: true,
    repeated_names: true,
    large: true,
    keeps: false,
};

fn write<R: Serialize>(directory: &Path, kind: &str, entities: impl IntoIterator<Item = (Uuid, R)>) {
    fs::create_dir_all(directory.join(kind)).unwrap();
    for (id, entity) in entities {
        let text = serde_json::to_string_pretty(&entity).unwrap();
        fs::write(directory.join(kind).join(format!("{id}.json")), text).unwrap();
    }
}

fn old_directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let rows = OldStore::rows(&FORM);
    let mut tasks_of: BTreeMap<Uuid, Vec<OldSpec>> = BTreeMap::new();
    for task in rows.workflow_tasks {
        tasks_of.entry(task.workflow_id.unwrap()).or_default().push(task);
    }
    write(at, "workflow_tasks", tasks_of);
    write(at, "workflows", rows.workflows.into_iter().map(|row| (row.id, row)));
    write(at, "snapshots", rows.workflow_snapshots.into_iter().map(|row| (row.id, row)));
    write(at, "runs", rows.runs.into_iter().map(|row| (row.id, row)));
    write(at, "tasks", rows.tasks.into_iter().map(|row| (row.id, row)));
    write(at, "deferred_jobs", rows.deferred_jobs.into_iter().map(|row| (row.id, row)));
    directory
}

fn files(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for kind in ["workflows", "runs", "tasks", "workflow_tasks", "deferred_jobs"] {
        for entry in fs::read_dir(directory.join(kind)).unwrap() {
            let path = entry.unwrap().path();
            all.insert(path.display().to_string(), fs::read(path).unwrap());
        }
    }
    all
}

#[tokio::test]
async fn a_directory_of_ork_is_imported_and_its_files_stay() {
    let directory = old_directory();
    let before = files(directory.path());
    let url = format!("file:{}", directory.path().display());
    let db = connect(&url).await.unwrap();
    let plan = db.plan_migration().await.unwrap();
    assert!(db.list_runs(ListRuns::default()).await.is_err(), "a plan changes nothing");
    let report = db.migrate().await.unwrap();
    check_plan(&plan, &report, Found::OrkFiles).unwrap();
    assert_eq!(db.migrate().await.unwrap().applied.len(), 0);
    assert!(files(directory.path()) == before, "the old files stay as they are");

    // What is there is there for another process too.
    let db = connect(&url).await.unwrap();
    let rows = OldStore::rows(&FORM);
    rows.check(&FORM, &*db, &report, &[]).await.unwrap();
    rows.work_off(&FORM, &*db).await.unwrap();
}

/// Ork wrote files in place, so one that was being written may be empty or cut.
#[tokio::test]
async fn a_file_that_cannot_be_read_is_told_and_its_run_does_not_succeed() {
    let directory = old_directory();
    let tasks = directory.path().join("tasks");
    // The second task of a run whose tasks have all succeeded, and that is called running.
    fs::write(tasks.join(format!("{}.json", task_id(2, 1))), "{\"id\": \"").unwrap();
    fs::write(directory.path().join("runs").join(format!("{}.json", id(7))), "").unwrap();
    let compiled = directory.path().join("workflow_tasks").join(format!("{}.json", id(96)));
    fs::write(compiled, "[").unwrap();
    let db = connect(&format!("file:{}", directory.path().display())).await.unwrap();
    let report = db.migrate().await.unwrap();
    for entity in [
        format!("tasks/{}.json", task_id(2, 1)),
        format!("runs/{}.json", id(7)),
        format!("workflow {}", id(96)),
    ] {
        assert!(report.adjusted.iter().any(|line| line.entity == entity), "{entity}: {report}");
    }
    let run = db.get_run(RunId::from_uuid(id(2))).await.unwrap();
    assert_eq!(run.status, RunStatus::Failed);
    assert!(run.error.unwrap().contains("may be lost"));
    assert_eq!(db.verify().await.unwrap(), []);
}

/// A disk that fails must not turn a workflow into one that cannot be run.
#[tokio::test]
async fn a_read_that_fails_ends_the_import() {
    let directory = old_directory();
    // A directory is there, and cannot be read as a file.
    let compiled = directory.path().join("workflow_tasks").join(format!("{}.json", id(90)));
    fs::remove_file(&compiled).unwrap();
    fs::create_dir(&compiled).unwrap();
    let db = connect(&format!("file:{}", directory.path().display())).await.unwrap();
    let error = db.migrate().await.unwrap_err();
    assert!(error.to_string().contains("workflow_tasks"), "{error}");
    fs::remove_dir(&compiled).unwrap();
    assert_eq!(db.migrate().await.unwrap().found, Found::OrkFiles);
}

#[tokio::test]
async fn several_that_import_at_once_import_once() {
    let directory = old_directory();
    let url = format!("file:{}", directory.path().display());
    let mut tasks = Vec::new();
    for _ in 0..4 {
        let url = url.clone();
        tasks.push(tokio::spawn(async move { connect(&url).await.unwrap().migrate().await.unwrap() }));
    }
    let mut imports = 0;
    for task in tasks {
        imports += usize::from(task.await.unwrap().found == Found::OrkFiles);
    }
    assert_eq!(imports, 1);
}
