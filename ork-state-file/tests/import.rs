//! A directory that Ork wrote before ork-state, with files that nobody would write today.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

use ork_state_api::Rule;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use ork_state_api::*;
use ork_state_file as _;
use serde_json::{Value, json};
use uuid::Uuid;

const fn id(number: u128) -> Uuid {
    Uuid::from_u128(0xabcd_0000_0000_4000_8000_0000_0000_0000 + number)
}

fn write(directory: &Path, kind: &str, name: impl std::fmt::Display, entity: &Value) {
    fs::create_dir_all(directory.join(kind)).unwrap();
    fs::write(
        directory.join(kind).join(format!("{name}.json")),
        serde_json::to_string_pretty(entity).unwrap(),
    )
    .unwrap();
}

fn workflow(directory: &Path, number: u128, name: &str) {
    write(
        directory,
        "workflows",
        id(number),
        &json!({
            "id": id(number), "name": name, "description": null, "job_name": "job", "region": "eu", "project": "p",
            "executor_type": "python", "task_params": {"f": 1.5}, "schedule": "* * * * *", "schedule_enabled": number == 90,
            "last_scheduled_at": null, "next_scheduled_at": null, "created_at": "2026-02-01T11:23:51.947123456Z",
            "updated_at": "2026-02-01T11:23:51.947123456Z",
        }),
    );
}

fn run(directory: &Path, number: u128, of: u128, status: &str) {
    write(
        directory,
        "runs",
        id(number),
        &json!({
            "id": id(number), "workflow_id": id(of), "status": status, "triggered_by": "cli", "started_at": null,
            "finished_at": null, "error": null, "created_at": "2026-02-01T11:23:51.947123456Z",
        }),
    );
}

fn task(directory: &Path, run: u128, index: u128, status: &str, depends_on: &[&str]) -> Uuid {
    let task = id(run * 1000 + index + 500);
    write(
        directory,
        "tasks",
        task,
        &json!({
            "id": task, "run_id": id(run), "task_index": index, "task_name": format!("t{index}"), "executor_type": "python",
            "depends_on": depends_on, "status": status, "execution_name": null, "params": {"i": index}, "output": null,
            "error": null, "logs": if index == 0 { "línea \n".repeat(1000) } else { String::new() }, "attempts": 3, "max_retries": 1,
            "timeout_seconds": 60, "retry_at": null, "dispatched_at": null, "started_at": null, "finished_at": null,
            "created_at": "2026-02-01T11:23:51.947123456Z",
        }),
    );
    task
}

fn old_directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    workflow(at, 90, "orders");
    workflow(at, 91, "orders");
    write(
        at,
        "workflow_tasks",
        id(90),
        &json!([
            {"id": id(1), "workflow_id": id(90), "task_index": 1, "task_name": "load", "executor_type": "python", "depends_on": ["extract"], "params": {"x": 1.0}},
            {"id": id(2), "workflow_id": id(90), "task_index": 0, "task_name": "extract", "executor_type": "python", "depends_on": [], "params": null},
        ]),
    );
    run(at, 1, 90, "success");
    task(at, 1, 0, "success", &[]);
    run(at, 2, 90, "running");
    task(at, 2, 0, "success", &[]);
    task(at, 2, 1, "success", &["t0"]);
    run(at, 3, 90, "cancelled");
    task(at, 3, 0, "pending", &[]);
    run(at, 4, 90, "running");
    task(at, 4, 0, "success", &[]);
    let waiting = task(at, 4, 1, "running", &["t0"]);
    task(at, 4, 2, "dispatched", &[]);
    task(at, 4, 3, "pending", &["t1", "t2"]);
    run(at, 5, 90, "running");
    task(at, 5, 0, "pending", &["gone"]);
    task(at, 5, 1, "pending", &["t0"]);
    task(at, 5, 2, "pending", &["t3"]);
    task(at, 5, 3, "pending", &["t2"]);
    task(at, 5, 4, "pending", &[]);
    run(at, 6, 90, "pending");
    // One of its two tasks is in a file that cannot be read.
    run(at, 9, 90, "running");
    task(at, 9, 0, "success", &[]);
    run(at, 7, 99, "running");
    task(at, 8, 0, "running", &[]);
    write(
        at,
        "deferred_jobs",
        id(71),
        &json!({
            "id": id(71), "task_id": waiting, "service_type": "bigquery", "job_id": "j", "job_data": {"n": 1.5}, "status": "polling",
            "error": null, "created_at": "2026-02-01 11:23:51", "started_at": null, "last_polled_at": null, "finished_at": null,
        }),
    );
    fs::write(at.join("tasks").join(format!("{}.json", id(60))), "{\"id\": \"").unwrap();
    fs::write(at.join("runs").join(format!("{}.json", id(61))), "").unwrap();
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
    assert_eq!((report.found, &report.adjusted), (Found::OrkFiles, &plan.adjusted));
    assert_eq!(db.migrate().await.unwrap().applied.len(), 0);
    assert_eq!(files(directory.path()), before);
    assert_eq!(db.verify().await.unwrap(), []);

    // What is there is there for another process too.
    let db = connect(&url).await.unwrap();
    let mut statuses = BTreeMap::new();
    for run in db.list_runs(ListRuns::default()).await.unwrap().items {
        let tasks = db.list_tasks(ListTasks::of(run.id, PageRequest::default())).await.unwrap().items;
        let tasks: Vec<&str> = tasks.iter().map(|task| task.status.as_str()).collect();
        statuses.insert(run.id.as_uuid(), format!("{}: {}", run.status, tasks.join(" ")));
    }
    let expected = [
        (1, "success: success"),
        (2, "success: success success"),
        (3, "cancelled: cancelled"),
        (4, "running: success running dispatched pending"),
        (5, "running: failed failed failed failed pending"),
        (6, "pending: "),
        (9, "failed: success"),
    ];
    let expected: BTreeMap<Uuid, String> = expected.map(|(run, status)| (id(run), status.to_owned())).into();
    assert_eq!(statuses, expected);

    let workflows = db.list_workflows(ListWorkflows::default()).await.unwrap().items;
    let names: Vec<&str> = workflows.iter().map(|workflow| workflow.name.as_str()).collect();
    assert_eq!(names, ["orders", "orders (2)"]);
    let snapshot = db.get_snapshot(workflows[0].snapshot).await.unwrap();
    let tasks: Vec<&str> = snapshot.dag.tasks().iter().map(|task| task.name.as_str()).collect();
    assert_eq!(tasks, ["extract", "load"]);
    assert_eq!(workflows[0].created_at.to_string(), "2026-02-01T11:23:51.947123Z");
    assert_eq!(db.due_schedules(Limit::default()).await.unwrap().len(), 1);
    let first = TaskId::from_uuid(id(1500));
    let log = db.read_log(first, LogRange::new(LogPosition::Offset(0), 1 << 20).unwrap()).await.unwrap();
    assert_eq!(log.bytes, "línea \n".repeat(1000).as_bytes());
    assert_eq!(db.get_task(first).await.unwrap().params.unwrap().to::<Value>().unwrap(), json!({"i": 0}));

    for (rule, entity) in [
        (Rule::W1, format!("workflow {}", id(91))),
        (Rule::R3, format!("run {}", id(2))),
        (Rule::R4, format!("task {}", id(3500))),
        (Rule::T1, format!("task {}", id(5500))),
        (Rule::T5, format!("task {}", id(5501))),
        (Rule::T1, format!("task {}", id(5502))),
        (Rule::S1, format!("workflow {}", id(90))),
        (Rule::W3, format!("run {}", id(7))),
        (Rule::W3, format!("task {}", id(8500))),
        (Rule::G8, format!("tasks/{}.json", id(60))),
        (Rule::G8, format!("runs/{}.json", id(61))),
    ] {
        let told = report.adjusted.iter().any(|adjusted| adjusted.rule == rule && adjusted.entity == entity);
        assert!(told, "{rule} {entity}: {report}");
    }

    // A scheduler takes up where Ork's left off.
    let expired = db.expire_leases(Limit::default()).await.unwrap();
    assert_eq!(expired.requeued.len() + expired.failed.len(), 1, "the deferred task has no lease");
    let lease = LeaseTime::new(std::time::Duration::from_secs(60)).unwrap();
    let jobs = db.claim_jobs(ClaimJobs::new("p".parse().unwrap(), lease)).await.unwrap();
    assert_eq!(jobs.len(), 1);
    db.update_jobs(JobUpdates::one(JobUpdate::completed(jobs[0].claim, None))).await.unwrap();
    let ready = db.claim_tasks(ClaimTasks::new("s".parse().unwrap(), lease)).await.unwrap();
    assert!(ready.iter().any(|task| task.id.as_uuid() == id(5504)), "{ready:?}");
    assert_eq!(db.verify().await.unwrap(), []);
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
