//! A run from its beginning to its end, through all that can happen to its tasks.

#![allow(clippy::unwrap_used, clippy::panic, clippy::wildcard_imports, reason = "test code")]

use crate::common::*;
use ork_state_api::backend::{dependency_failed_message, lease_lapsed_message, task_failed_message};
use ork_state_api::*;

async fn a_diamond_runs_through_with_outputs_retries_and_a_lapse() {
    let (_store, db, clock) = store().await;
    let workflow = workflow(&db, "w", "a b:a c*1:a d*1:b,c").await;
    let run = start(&db, workflow).await;

    let a = claim(&db, 10).await;
    assert_eq!(a.len(), 1);
    let output = Json::parse(r#"{"n": -0.0, "é": 1e2}"#).unwrap();
    update(
        &db,
        vec![TaskUpdate::running(a[0].claim), TaskUpdate::succeeded(a[0].claim, Some(output.clone()))],
    )
    .await;

    let lease = LeaseTime::new(LEASE).unwrap();
    let with_outputs = ClaimTasks::new("w".parse().unwrap(), lease).with_dependency_outputs();
    let both = db.claim_tasks(with_outputs).await.unwrap();
    assert_eq!(both.iter().map(|task| task.name.as_str()).collect::<Vec<_>>(), ["b", "c"]);
    assert!(both.iter().all(|task| task.dependency_outputs["a"].as_ref() == Some(&output)));
    let failed = TaskUpdate::failed(both[1].claim, Text::lossy("oops"), Delay::new(LEASE / 2).unwrap());
    let report = update(&db, vec![TaskUpdate::succeeded(both[0].claim, None), failed]).await;
    assert_eq!(report.outcomes[1], UpdateOutcome::Applied { status: TaskStatus::Pending });
    assert!(claim(&db, 10).await.is_empty(), "its time has not come");
    clock.advance(LEASE / 2);
    let c = claim(&db, 10).await;
    update(&db, vec![TaskUpdate::succeeded(c[0].claim, None)]).await;

    let d = claim(&db, 10).await;
    clock.advance(LEASE);
    assert_eq!(update(&db, vec![TaskUpdate::running(d[0].claim)]).await.outcomes, [UpdateOutcome::LeaseLost]);
    assert_eq!(db.expire_leases(Limit::ONE).await.unwrap().requeued, [d[0].task.id]);
    let task = db.get_task(d[0].task.id).await.unwrap().task;
    assert_eq!(task.error.as_deref(), Some(lease_lapsed_message("tester").as_str()));
    assert_sound(&db).await;
    let d = claim(&db, 10).await;
    let report = update(&db, vec![TaskUpdate::succeeded(d[0].claim, None)]).await;
    assert_eq!(report.ended_runs, [EndedRun::new(run.id, RunStatus::Success)]);
    assert_sound(&db).await;
}

async fn failures_are_named_as_the_api_words_them() {
    let (_store, db, _clock) = store().await;
    let workflow = workflow(&db, "w", "x y a%s b:a%s c:x,b d:y e:d,c").await;
    let run = start(&db, workflow).await;
    let tasks = claim(&db, 10).await;
    let fail = |index: usize| TaskUpdate::failed_for_good(tasks[index].claim, Text::lossy("own"));
    // In the batch's order the higher index comes first; the lower one is the culprit.
    let report = update(&db, vec![fail(2), fail(1), TaskUpdate::succeeded(tasks[0].claim, None)]).await;
    assert_eq!(report.ended_runs, [EndedRun::new(run.id, RunStatus::Failed)]);
    let all = db.list_tasks(ListTasks::of(run.id, PageRequest::default())).await.unwrap().items;
    let errors: Vec<_> = all.iter().map(|task| task.error.as_deref().unwrap_or("-").to_owned()).collect();
    let (y, a) = (dependency_failed_message("y"), dependency_failed_message("a%s"));
    assert_eq!(errors, ["-", "own", "own", &a, &a, &y, &y]);
    let run = db.get_run(run.id).await.unwrap();
    assert_eq!(run.error.as_deref(), Some(task_failed_message("y").as_str()));
    assert_eq!((run.tasks.unfinished, run.tasks.failed), (0, 6));
    assert_sound(&db).await;
}

async fn a_paused_run_waits_and_a_resumed_one_goes_on() {
    let (_store, db, clock) = store().await;
    let workflow = workflow(&db, "w", "a*1 b c:b").await;
    let run = start(&db, workflow).await;
    let tasks = claim(&db, 10).await;
    db.pause_run(run.id).await.unwrap();
    let later = TaskUpdate::failed(tasks[0].claim, Text::lossy("x"), Delay::new(LEASE).unwrap());
    update(&db, vec![later, TaskUpdate::succeeded(tasks[1].claim, None)]).await;
    assert!(claim(&db, 10).await.is_empty());
    assert_sound(&db).await;
    db.resume_run(run.id).await.unwrap();
    assert_eq!(claim(&db, 10).await[0].task.name.as_str(), "c");
    clock.advance(LEASE);
    assert_eq!(claim(&db, 10).await[0].task.name.as_str(), "a");
    db.cancel_run(run.id).await.unwrap();
    assert_sound(&db).await;
    WorkflowStore::delete_workflow(&db, workflow).await.unwrap();
    assert_sound(&db).await;
}

async fn two_claims_of_one_task_are_answered_in_sequence() {
    let (_store, db, clock) = store().await;
    let workflow = workflow(&db, "w", "a*1").await;
    start(&db, workflow).await;
    let old = claim(&db, 1).await[0].claim;
    clock.advance(LEASE);
    db.expire_leases(Limit::ONE).await.unwrap();
    let new = claim(&db, 1).await[0].claim;
    let done = TaskUpdate::succeeded(new, None);
    let report = update(&db, vec![done, TaskUpdate::running(old)]).await;
    let status = TaskStatus::Success;
    assert_eq!(
        report.outcomes,
        [UpdateOutcome::Applied { status }, UpdateOutcome::AlreadyTerminal { status }]
    );
}

async fn without_a_clock_time_is_the_servers() {
    let (store, _, _) = store().await;
    let db = options(&store).connect().await.unwrap();
    let workflow = workflow(&db, "w", "a b:a").await;
    let run = start(&db, workflow).await;
    let a = claim(&db, 1).await;
    let lease = a[0].task.lease.as_ref().unwrap();
    assert_eq!(Some(lease.expires_at), a[0].task.dispatched_at.map(|at| at.saturating_add(LEASE)));
    let beat = Heartbeat::new([a[0].claim], LeaseTime::new(LEASE).unwrap()).unwrap();
    assert!(matches!(db.heartbeat(beat).await.unwrap()[0], HeartbeatOutcome::Extended { .. }));
    update(&db, vec![TaskUpdate::succeeded(a[0].claim, None)]).await;
    assert_eq!(db.ready_tasks(Limit::ONE).await.unwrap().len(), 1);
    let b = claim(&db, 1).await;
    update(&db, vec![TaskUpdate::succeeded(b[0].claim, None)]).await;
    let run = db.get_run(run.id).await.unwrap();
    assert!(run.created_at <= run.started_at.unwrap() && run.started_at < run.finished_at);
    assert_sound(&db).await;
}

async fn an_error_of_connecting_shows_no_password() {
    let (store, _, _) = store().await;
    let url = store.url();
    let (before, rest) = url.split_once("://").unwrap();
    let host = rest.split_once('@').map_or(rest, |(_, host)| host);
    let separator = if url.contains('?') { '&' } else { '?' };
    for bad in [
        // Nobody listens there.
        "postgres://somebody:s3cr3t@127.0.0.1:1/db?connect_timeout=1s".to_owned(),
        "postgres://somebody:s3cr3t@no-such-host.invalid/db?connect_timeout=1s".to_owned(),
        "postgres://somebody:s3cr3t@host:port/db".to_owned(),
        "postgres://somebody:s3cr3t@[host/db".to_owned(),
        "postgres://somebody@host/db?password=s3cr3t&no_such_option=1".to_owned(),
        // There is a server, but no such user: or, where it trusts everybody, no such role.
        format!("{before}://somebody:s3cr3t@{host}{separator}connect_timeout=1s"),
    ] {
        let Err(error) = connect(&bad).await else { panic!("it connects") };
        assert!(!format!("{error} {error:?} {:?}", error.kind()).contains("s3cr3t"), "{error:?}");
    }
}

ork_state_conformance::own_tests!([
    a_diamond_runs_through_with_outputs_retries_and_a_lapse,
    failures_are_named_as_the_api_words_them,
    a_paused_run_waits_and_a_resumed_one_goes_on,
    two_claims_of_one_task_are_answered_in_sequence,
    without_a_clock_time_is_the_servers,
    an_error_of_connecting_shows_no_password,
]);
