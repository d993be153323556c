//! What the legacy stores have on disk: Ork's files, and whose ours are.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, OpenOptions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use ork_state_api::ork::{
    LegacyRunId, LegacySpec, LegacyStatus, LegacyTaskName, LegacyTaskRun, LegacyTaskStatus, ObjectStore,
    StateStore,
};
use ork_state_api::{Error, ErrorKind, Json, RunStatus};
use ork_state_file::{FileStateStore, ObjectStoreFiles};
use rstest::rstest;
use tempfile::TempDir;

const RUN: &str = "0b5f3c1e-6a60-4d5a-9a3e-0a4c8f1f2b11";

/// As Ork wrote it: in place, pretty, with nanoseconds and explicit nulls, fields in any order and
/// some that nobody knows.
fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn orks_state(directory: &Path) {
    write(&directory.join("state.lock"), "");
    let run = r#"{
  "id": "RUN",
  "workflow": "team/nightly report",
  "status": "running",
  "created_at": "2026-02-01T11:23:51.947123456Z",
  "started_at": "2026-02-01T12:23:52.000000001+01:00",
  "finished_at": null
}"#;
    write(&directory.join(format!("runs/{RUN}.json")), &run.replace("RUN", RUN));
    let task = r#"{
  "run_id": "RUN",
  "task": "extract",
  "status": "skipped",
  "attempt": 1,
  "max_retries": 3,
  "created_at": "2026-02-01T11:23:51.947123456Z",
  "dispatched_at": null,
  "started_at": null,
  "finished_at": "2026-02-01T11:23:53Z",
  "error": "bad \u0000 byte",
  "output": null,
  "executor_hint": [1, {"x": null}]
}"#;
    write(&directory.join(format!("runs/{RUN}/tasks/extract.json")), &task.replace("RUN", RUN));
}

fn id() -> LegacyRunId {
    RUN.parse().unwrap()
}

fn name(text: &str) -> LegacyTaskName {
    text.parse().unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// All below a directory, it too.
fn assert_private(directory: &Path) {
    assert_eq!(mode(directory), 0o700, "{}", directory.display());
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => assert_private(&path),
            false => assert_eq!(mode(&path), 0o600, "{}", path.display()),
        }
    }
}

#[tokio::test]
async fn a_directory_of_orks_is_read_as_it_is_and_written_on() {
    let home = TempDir::new().unwrap();
    orks_state(home.path());
    let store = FileStateStore::open(home.path()).await.unwrap();
    let run = store.get_run(&id()).await.unwrap().unwrap();
    assert_eq!(
        (&*run.workflow, run.status, run.finished_at),
        ("team/nightly report", RunStatus::Running, None)
    );
    // Cut to microseconds, and in UTC.
    assert_eq!(run.created_at.to_string(), "2026-02-01T11:23:51.947123Z");
    assert_eq!(run.started_at.unwrap().to_string(), "2026-02-01T11:23:52.000000Z");
    assert_eq!(store.list_runs().await.unwrap(), std::slice::from_ref(&run));

    let task = store.list_task_runs(&id()).await.unwrap().remove(0);
    assert_eq!((task.status, task.attempt, task.max_retries), (LegacyTaskStatus::Skipped, 1, 3));
    assert_eq!((task.dispatched_at, task.output.clone()), (None, None));
    // No text of the contract has a NUL.
    assert_eq!(task.error.as_deref(), Some("bad \u{fffd} byte"));

    let ended = store.update_run_status(&id(), RunStatus::Success).await.unwrap();
    assert_eq!(ended.started_at, run.started_at);
    store.upsert_task_run(&LegacyTaskRun::new(id(), name("load"), run.created_at)).await.unwrap();
    assert_eq!(store.list_task_runs(&id()).await.unwrap().len(), 2);
}

#[tokio::test]
async fn orks_task_files_are_read_as_they_are() {
    let home = TempDir::new().unwrap();
    let place = home.path().join(RUN).join("extract");
    let spec = r#"{
  "run_id": "RUN", "workflow_name": "w", "task_name": "extract", "attempt": 1,
  "executor": "cloudrun", "input": {"rows": 1e2}, "upstream": {"first": null, "second": [1,  2]}
}"#;
    write(&place.join("spec.json"), &spec.replace("RUN", RUN));
    let status = r#"{"status": "failed", "started_at": "2026-02-01T11:23:51.947123456+00:00",
  "finished_at": null, "heartbeat_at": null, "error": null}"#;
    write(&place.join("status.json"), status);
    write(&place.join("output.json"), "{\n  \"rows\": 3\n}\n");
    let store = ObjectStoreFiles::directory(home.path()).await.unwrap();
    let (run, task) = (id(), name("extract"));
    let spec = store.read_spec(&run, &task).await.unwrap();
    assert_eq!((&*spec.executor, spec.input.as_str()), ("cloudrun", "{\"rows\": 1e2}"));
    assert_eq!(spec.upstream[&name("first")], Json::null());
    assert_eq!(spec.upstream[&name("second")].as_str(), "[1,  2]");
    let status = store.read_status(&run, &task).await.unwrap().unwrap();
    assert_eq!(status.started_at.unwrap().to_string(), "2026-02-01T11:23:51.947123Z");
    assert_eq!(store.read_output(&run, &task).await.unwrap().unwrap().as_str(), "{\n  \"rows\": 3\n}");
}

#[tokio::test]
async fn what_we_write_ork_reads() {
    let home = TempDir::new().unwrap();
    let store = FileStateStore::open(home.path()).await.unwrap();
    let run = store.create_run("w".parse().unwrap()).await.unwrap();
    let mut task = LegacyTaskRun::new(run.id.clone(), name("a"), run.created_at);
    store.upsert_task_run(&task).await.unwrap();
    let read = |path: &str| -> serde_json::Value {
        serde_json::from_slice(&fs::read(home.path().join(path)).unwrap()).unwrap()
    };
    // One field for each of Ork's, nulls explicit, and no other.
    let run_file = read(&format!("runs/{}.json", run.id));
    let fields: Vec<&str> = run_file.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(fields, ["created_at", "finished_at", "id", "started_at", "status", "workflow"]);
    let path = format!("runs/{}/tasks/a.json", run.id);
    let fields = [
        "attempt",
        "created_at",
        "dispatched_at",
        "error",
        "finished_at",
        "max_retries",
        "output",
        "run_id",
        "started_at",
        "status",
        "task",
    ];
    assert_eq!(read(&path).as_object().unwrap().keys().collect::<Vec<_>>(), fields);
    // But where Ork's form cannot tell it.
    task.output = Some(Json::null());
    store.upsert_task_run(&task).await.unwrap();
    assert_eq!(read(&path)["output_is_null"], true);
}

#[tokio::test]
async fn everything_is_its_owners_alone() {
    let home = TempDir::new().unwrap();
    let (states, objects) = (home.path().join("states"), home.path().join("objects"));
    let store = FileStateStore::open(&states).await.unwrap();
    let run = store.create_run("w".parse().unwrap()).await.unwrap();
    store.upsert_task_run(&LegacyTaskRun::new(run.id.clone(), name("a"), run.created_at)).await.unwrap();
    let files = ObjectStoreFiles::directory(&objects).await.unwrap();
    files.write_status(&run.id, &name("a"), &LegacyStatus::new(LegacyTaskStatus::Running)).await.unwrap();
    files.write_output(&run.id, &name("a"), &Json::null()).await.unwrap();
    assert_private(&states);
    assert_private(&objects);
}

#[tokio::test]
async fn what_a_killed_process_had_staged_counts_for_nothing() {
    let home = TempDir::new().unwrap();
    let store = FileStateStore::open(home.path()).await.unwrap();
    let run = store.create_run("w".parse().unwrap()).await.unwrap();
    let staged = home.path().join("runs/.staged");
    fs::write(&staged, "{\"id\": \"torn and longer than what is written over it: ".repeat(100)).unwrap();
    assert_eq!(store.list_runs().await.unwrap(), std::slice::from_ref(&run));
    let now = store.update_run_status(&run.id, RunStatus::Running).await.unwrap();
    assert_eq!(store.get_run(&run.id).await.unwrap(), Some(now));
    assert!(!staged.exists());
}

#[tokio::test]
async fn a_write_that_fails_leaves_what_was_there() {
    let home = TempDir::new().unwrap();
    let store = FileStateStore::open(home.path()).await.unwrap();
    let run = store.create_run("w".parse().unwrap()).await.unwrap();
    // In the place of the directory of its tasks.
    fs::write(home.path().join(format!("runs/{}", run.id)), "").unwrap();
    let task = LegacyTaskRun::new(run.id.clone(), name("a"), run.created_at);
    let error = store.upsert_task_run(&task).await.unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains(&*run.id), "{error}");
    assert_eq!(store.list_runs().await.unwrap(), [run]);
}

#[tokio::test]
async fn a_lock_that_is_held_too_long_is_unavailable() {
    let home = TempDir::new().unwrap();
    let store = FileStateStore::open(home.path()).await.unwrap().with_lock_timeout(Duration::from_millis(30));
    let run = store.create_run("w".parse().unwrap()).await.unwrap();
    let lock = OpenOptions::new().write(true).open(home.path().join("state.lock")).unwrap();
    lock.lock().unwrap();
    let refused = |error: Error| {
        assert!(error.is_retryable() && error.to_string().contains("state.lock"), "{error}");
    };
    refused(store.create_run("w".parse().unwrap()).await.unwrap_err());
    refused(store.get_run(&run.id).await.unwrap_err());
    lock.unlock().unwrap();
    // Who reads does not keep others from reading.
    lock.lock_shared().unwrap();
    assert_eq!(store.list_runs().await.unwrap(), [run]);
    refused(store.create_run("w".parse().unwrap()).await.unwrap_err());
}

#[tokio::test]
async fn a_place_that_cannot_be_a_store_is_named() {
    let home = TempDir::new().unwrap();
    let missing = home.path().join("not/there");
    for error in [
        FileStateStore::open(&missing).await.unwrap_err(),
        ObjectStoreFiles::directory(&missing).await.unwrap_err(),
    ] {
        assert!(error.is_retryable() && error.to_string().contains("not/there"), "{error}");
    }
    let file = home.path().join("file");
    fs::write(&file, "").unwrap();
    for error in [
        FileStateStore::open(&file).await.unwrap_err(),
        ObjectStoreFiles::directory(&file).await.unwrap_err(),
    ] {
        let is_invalid = matches!(error.kind(), ErrorKind::InvalidInput { .. });
        assert!(is_invalid && error.to_string().contains(file.to_str().unwrap()), "{error}");
    }
}

#[test]
fn another_executor_than_tokios_will_do() {
    let home = TempDir::new().unwrap();
    // Nothing here waits for anything but the disk, so one poll is enough.
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let mut opening = Box::pin(FileStateStore::open(home.path()));
    assert!(opening.as_mut().poll(&mut context).is_ready());
}

#[tokio::test]
async fn urls_name_places() {
    let home = TempDir::new().unwrap();
    let spec = LegacySpec {
        run_id: "r #1".parse().unwrap(),
        workflow_name: "w".parse().unwrap(),
        task_name: name("ä/b".replace('/', "%2F").as_str()),
        attempt: 0,
        executor: "process".parse().unwrap(),
        input: Json::null(),
        upstream: [].into(),
    };
    let (run, task) = (&spec.run_id, &spec.task_name);
    let by_url = ObjectStoreFiles::connect(&format!("file:{}/o", home.path().display())).await.unwrap();
    by_url.write_spec(&spec).await.unwrap();
    let path = by_url.spec_path(run, task);
    assert!(path.ends_with("/o/r #1/ä%2Fb/spec.json") && Path::new(&path).is_file(), "{path}");
    // In a URL they are encoded.
    let memory = ObjectStoreFiles::connect("memory:").await.unwrap();
    memory.write_spec(&spec).await.unwrap();
    assert_eq!(memory.read_spec(run, task).await.unwrap(), spec);
    assert_eq!(memory.spec_path(run, task), "memory:/r%20%231/%C3%A4%252Fb/spec.json");
}

#[rstest]
#[case("memory:x", "has none")]
#[case("ftp://host/x", "`s3`")]
#[case("file:", "no path")]
#[case("nothing", "no scheme")]
#[cfg_attr(not(feature = "s3"), case("s3://bucket/x", "--features s3"))]
#[cfg_attr(not(feature = "gcs"), case("gs://bucket/x", "--features gcs"))]
#[cfg_attr(not(feature = "azure"), case("az://container/x", "--features azure"))]
#[cfg_attr(feature = "s3", case("s3://user:hunter2@bucket/x", "more than a bucket"))]
#[tokio::test]
async fn urls_that_name_none_are_refused(#[case] url: &str, #[case] says: &str) {
    let error = ObjectStoreFiles::connect(url).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::InvalidInput { .. }));
    assert!(error.to_string().contains(says) && !error.to_string().contains("hunter2"), "{error}");
}
