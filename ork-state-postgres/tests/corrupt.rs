//! Rows that nobody of us wrote (rule G8).

#![allow(clippy::unwrap_used, clippy::panic, clippy::wildcard_imports, reason = "test code")]

use crate::common::*;
use ork_state_api::*;

/// Checks keep most of it out; whoever damages a store takes them away first.
const UNCHECKED: &str = "ALTER TABLE runs DROP CONSTRAINT runs_status_check; ALTER TABLE tasks DROP CONSTRAINT tasks_status_check;";

const UNREADABLE: &[(&str, &str, &str)] = &[
    ("tasks", "status = 'Pending'", "status"),
    ("tasks", "task_name = '../escape'", "task_name"),
    ("tasks", "executor_type = ''", "executor_type"),
    ("tasks", "depends_on = ARRAY['a', NULL]", "depends_on"),
    ("tasks", "depends_on = ARRAY['a/b']", "depends_on"),
    ("tasks", "attempts = -1", "attempts"),
    ("tasks", "timeout_seconds = -1", "timeout_seconds"),
    ("tasks", "created_at = 'infinity'", "created_at"),
    ("tasks", "retry_at = '0044-03-15 BC'", "retry_at"),
    ("runs", "status = 'paused '", "status"),
    ("runs", "triggered_by = ''", "triggered_by"),
    ("runs", "tasks_total = -5", "tasks_total"),
    ("runs", "started_at = '-infinity'", "started_at"),
    ("workflows", "name = E'a\\tb'", "name"),
    ("workflows", "updated_at = 'infinity'", "updated_at"),
    ("workflow_snapshots", "tasks_json = '[{}]'", "tasks_json"),
];

async fn a_row_that_does_not_parse_is_named() {
    for &(table, change, column) in UNREADABLE {
        let (store, db, _clock) = store().await;
        let workflow = workflow(&db, "w", "a").await;
        let run = start(&db, workflow).await;
        let task =
            db.list_tasks(ListTasks::of(run.id, PageRequest::default())).await.unwrap().items.remove(0);
        execute(&store, format!("{UNCHECKED} UPDATE {table} SET {change}")).await;
        let (error, id) = match table {
            "tasks" => (
                db.list_tasks(ListTasks::of(run.id, PageRequest::default())).await.unwrap_err(),
                task.id.to_string(),
            ),
            "runs" => (db.list_runs(ListRuns::default()).await.unwrap_err(), run.id.to_string()),
            "workflows" => {
                (db.list_workflows(PageRequest::default().into()).await.unwrap_err(), workflow.to_string())
            }
            _ => (db.get_snapshot(run.snapshot).await.unwrap_err(), run.snapshot.to_string()),
        };
        match error.kind() {
            ErrorKind::Corrupt { table: t, id: i, column: c, .. } => {
                assert_eq!((t.as_str(), i.as_str(), c.as_str()), (table, id.as_str(), column));
            }
            _ => panic!("{error:?}"),
        }
        let found = db.verify().await.unwrap();
        assert!(
            found.iter().any(|violation| violation.rule == Rule::G8 && violation.to_string().contains(&id)),
            "{found:?}"
        );
    }
}

async fn a_claim_sets_aside_what_it_cannot_read_and_fills_up_with_others() {
    let (store, db, _clock) = store().await;
    let workflow = workflow(&db, "w", "a b c d e").await;
    let run = start(&db, workflow).await;
    execute(&store, "UPDATE tasks SET executor_type = '' WHERE task_name IN ('a', 'c')").await;
    let names: Vec<_> = claim(&db, 2).await.iter().map(|task| task.name.to_string()).collect();
    assert_eq!(names, ["b", "d"]);
    assert_eq!(claim(&db, 10).await.len(), 1);
    execute(&store, "UPDATE tasks SET executor_type = 'process'").await;
    let all = db.list_tasks(ListTasks::of(run.id, PageRequest::default())).await.unwrap().items;
    let aside: Vec<_> = all.iter().filter(|task| task.status == TaskStatus::Pending).collect();
    assert_eq!(aside.len(), 2);
    assert!(
        aside.iter().all(|task| task.attempts == 0 && task.lease.is_none() && task.dispatched_at.is_none())
    );
    let found = db.verify().await.unwrap();
    for task in aside {
        let id = task.id.to_string();
        let is_it = |violation: &&Violation| violation.rule == Rule::T1 && violation.entity.contains(&id);
        assert!(found.iter().any(|violation| is_it(&violation)), "{found:?}");
    }
    // The way back: what was repaired is handed out after a pause.
    db.pause_run(run.id).await.unwrap();
    db.resume_run(run.id).await.unwrap();
    assert_eq!(claim(&db, 10).await.len(), 2);
    assert_sound(&db).await;
}

async fn a_workflow_that_does_not_parse_stops_its_own_tasks_only() {
    let (store, db, _clock) = store().await;
    for name in ["bad", "good"] {
        let workflow = workflow(&db, name, "a b c").await;
        start(&db, workflow).await;
    }
    execute(&store, "UPDATE workflows SET executor_type = '' WHERE name = 'bad'").await;
    let claimed = claim(&db, 3).await;
    assert_eq!(claimed.iter().map(|task| task.workflow_name.as_str()).collect::<Vec<_>>(), ["good"; 3]);
}

const UNSOUND: &[(&str, Rule)] = &[
    ("UPDATE runs SET snapshot_id = gen_random_uuid()", Rule::R1),
    ("ALTER TABLE tasks DISABLE TRIGGER ALL; UPDATE tasks SET run_id = gen_random_uuid()", Rule::W3),
    ("INSERT INTO task_edges SELECT run_id, 0, 7, id FROM tasks LIMIT 1", Rule::T1),
    ("INSERT INTO task_edges SELECT run_id, 1, 0, id FROM tasks LIMIT 1", Rule::T1),
    ("DELETE FROM task_edges", Rule::T1),
    ("INSERT INTO ready_tasks SELECT now(), run_id, 1, id FROM tasks WHERE task_index = 1", Rule::T1),
    ("DELETE FROM ready_tasks", Rule::T1),
    ("INSERT INTO task_leases SELECT gen_random_uuid(), id, 'x', 1, now() FROM runs", Rule::T2),
    ("INSERT INTO task_logs VALUES (gen_random_uuid(), 0)", Rule::L2),
    ("INSERT INTO task_log_chunks VALUES (gen_random_uuid(), 0, 'x')", Rule::L2),
    ("UPDATE task_logs SET length = 4", Rule::L2),
    ("UPDATE task_log_chunks SET start_offset = 1", Rule::L2),
    ("DELETE FROM task_log_chunks", Rule::L2),
];

async fn verify_finds_what_only_the_database_shows() {
    for &(damage, rule) in UNSOUND {
        let (store, db, _clock) = store().await;
        let workflow = workflow(&db, "w", "a b:a").await;
        let run = start(&db, workflow).await;
        let task =
            db.list_tasks(ListTasks::of(run.id, PageRequest::default())).await.unwrap().items.remove(0);
        db.append_log(task.id, LogChunk::new(b"abc").unwrap()).await.unwrap();
        assert_sound(&db).await;
        execute(&store, damage).await;
        let found = db.verify().await.unwrap();
        assert!(found.iter().any(|violation| violation.rule == rule), "{found:?}");
    }
}

async fn a_lease_without_a_task_does_not_stand_in_the_way() {
    let (store, db, clock) = store().await;
    let workflow = workflow(&db, "w", "a").await;
    start(&db, workflow).await;
    claim(&db, 1).await;
    execute(&store, "INSERT INTO task_leases SELECT gen_random_uuid(), id, 'x', 1, '2000-01-01' FROM runs")
        .await;
    clock.advance(LEASE);
    assert_eq!(db.expire_leases(Limit::ONE).await.unwrap(), ExpiredTasks::default());
    assert_eq!(db.expire_leases(Limit::ONE).await.unwrap().failed.len(), 1);
    assert_sound(&db).await;
}

async fn a_log_with_a_hole_is_corrupt() {
    let (store, db, _clock) = store().await;
    let workflow = workflow(&db, "w", "a").await;
    let run = start(&db, workflow).await;
    let task = db.list_tasks(ListTasks::of(run.id, PageRequest::default())).await.unwrap().items[0].id;
    for _ in 0..3 {
        db.append_log(task, LogChunk::new(b"abc").unwrap()).await.unwrap();
    }
    execute(&store, "DELETE FROM task_log_chunks WHERE start_offset = 3").await;
    let read = |from| db.read_log(task, LogRange::new(LogPosition::Offset(from), 100).unwrap());
    assert!(matches!(read(0).await.unwrap_err().kind(), ErrorKind::Corrupt { .. }));
    assert_eq!(read(6).await.unwrap().bytes, b"abc");
}

/// The answer to the first would tell the status.
async fn an_update_of_what_cannot_be_read_does_not_touch_those_that_wait_with_it() {
    let (store, db, _clock) = store().await;
    start(&db, workflow(&db, "w", "a b").await).await;
    let [a, b] = &claim(&db, 2).await[..] else { panic!("two are ready") };
    execute(&store, format!("{UNCHECKED} UPDATE tasks SET status = 'nonsense' WHERE task_name = 'a'")).await;
    let updates = vec![TaskUpdate::dispatched(a.claim, None), TaskUpdate::succeeded(b.claim, None)];
    let [bad, good] = &update_together(&db, updates).await[..] else { panic!("two answers") };
    let bad = bad.as_ref().unwrap_err();
    assert!(matches!(bad.kind(), ErrorKind::Corrupt { column, .. } if column == "status"), "{bad}");
    // Not as of a second time, when it would have ended already.
    assert_eq!(good.as_ref().unwrap().outcomes, [UpdateOutcome::Applied { status: TaskStatus::Success }]);
}

async fn an_update_that_the_server_refuses_does_not_touch_those_that_wait_with_it() {
    let (store, db, _clock) = store().await;
    start(&db, workflow(&db, "w", "a b c").await).await;
    let claims: Vec<Claim> = claim(&db, 3).await.iter().map(|task| task.claim).collect();
    execute(&store, "ALTER TABLE tasks ADD CHECK (task_name <> 'b' OR status <> 'running')").await;
    let answers = update_together(&db, claims.into_iter().map(TaskUpdate::running).collect()).await;
    let [a, b, c] = &answers[..] else { panic!("three answers") };
    for good in [a, c] {
        assert_eq!(good.as_ref().unwrap().outcomes, [UpdateOutcome::Applied { status: TaskStatus::Running }]);
    }
    assert!(matches!(b.as_ref().unwrap_err().kind(), ErrorKind::Internal { .. }), "{b:?}");
    assert_sound(&db).await;
}

ork_state_conformance::own_tests!([
    a_row_that_does_not_parse_is_named,
    a_claim_sets_aside_what_it_cannot_read_and_fills_up_with_others,
    a_workflow_that_does_not_parse_stops_its_own_tasks_only,
    verify_finds_what_only_the_database_shows,
    a_lease_without_a_task_does_not_stand_in_the_way,
    a_log_with_a_hole_is_corrupt,
    an_update_of_what_cannot_be_read_does_not_touch_those_that_wait_with_it,
    an_update_that_the_server_refuses_does_not_touch_those_that_wait_with_it,
]);
