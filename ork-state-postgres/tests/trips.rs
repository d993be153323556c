//! How often a call waits for the server: one that costs another round trip does so over every
//! network, however fast the server is.

#![allow(clippy::unwrap_used, clippy::panic, clippy::wildcard_imports, reason = "test code")]

use std::time::Duration;

use crate::common::proxy::Proxy;
use crate::common::*;
use ork_state_api::*;
use ork_state_conformance::Fixture;
use ork_state_postgres::{PostgresDatabase, PostgresOptions};

struct Rig {
    proxy: Proxy,
    db: PostgresDatabase,
    /// What was more than it may be.
    wrong: Vec<String>,
}

impl Rig {
    /// Makes a call, and compares how often it went to the server.
    async fn expect<T>(&mut self, name: &str, trips: usize, call: impl Future<Output = Result<T>>) -> T {
        self.proxy.take_trips();
        let given = call.await.unwrap_or_else(|error| panic!("{name}: {error}"));
        let counted = self.proxy.take_trips();
        if counted != trips {
            self.wrong.push(format!("{name}: {counted} round trips, not {trips}"));
        }
        given
    }

    /// Each kind of call, with batches of this size.
    async fn live(&mut self, round: usize, size: usize) {
        let db = self.db.clone();
        let lease = LeaseTime::new(Duration::from_secs(60)).unwrap();
        let names: Vec<String> = (0..size).map(|number| format!("t{number}*1")).collect();
        let new = |name: String| NewWorkflow::new(name.parse().unwrap(), dag(&names.join(" ")));
        let workflow =
            self.expect("create_workflow", 1, db.create_workflow(new(format!("w{round}")))).await.id;
        self.expect("get_workflow", 1, db.get_workflow(workflow)).await;
        self.expect("list_workflows", 1, db.list_workflows(ListWorkflows::default())).await;
        self.expect(
            "update_workflow",
            1,
            db.update_workflow(UpdateWorkflow::new(workflow).with_dag(dag("a"))),
        )
        .await;
        self.expect(
            "update_workflow",
            1,
            db.update_workflow(UpdateWorkflow::new(workflow).with_dag(dag(&names.join(" ")))),
        )
        .await;
        let run = self.expect("create_run", 1, db.create_run(NewRun::new(workflow))).await.into_run().id;
        // The pinned DAG comes to the client and goes back as rows.
        self.expect("start_run, pinned", 2, db.start_run(StartRun::pinned(run))).await;
        let other = self.expect("create_run", 1, db.create_run(NewRun::new(workflow))).await.into_run().id;
        self.expect("start_run", 1, db.start_run(StartRun::with_dag(other, dag("a b")))).await;
        self.expect("pause_run", 1, db.pause_run(other)).await;
        self.expect("resume_run", 1, db.resume_run(other)).await;
        self.expect("cancel_run", 1, db.cancel_run(other)).await;
        // The tasks come to the client, which plans the retry, and the plan goes back.
        self.expect("retry_run", 2, db.retry_run(RetryRun::unsuccessful(other))).await;
        self.expect("cancel_run", 1, db.cancel_run(other)).await;
        self.expect("get_run", 1, db.get_run(run)).await;
        self.expect("list_runs", 1, db.list_runs(ListRuns::default())).await;
        self.expect("count_runs", 1, db.count_runs(RunFilter::all())).await;
        self.expect("ready_tasks", 1, db.ready_tasks(Limit::new(size).unwrap())).await;
        let claim = || ClaimTasks::new("me".parse().unwrap(), lease).with_limit(Limit::new(size).unwrap());
        let claimed = self.expect("claim_tasks", 1, db.claim_tasks(claim())).await;
        assert_eq!(claimed.len(), size);
        self.expect("claim_tasks of none", 1, db.claim_tasks(claim())).await;
        let claims: Vec<Claim> = claimed.iter().map(|task| task.claim).collect();
        self.expect("heartbeat", 1, db.heartbeat(Heartbeat::new(claims.clone(), lease).unwrap())).await;
        let all = |update: fn(Claim) -> TaskUpdate| {
            TaskUpdates::new(claims.iter().copied().map(update).collect()).unwrap()
        };
        self.expect("update_tasks, running", 1, db.update_tasks(all(TaskUpdate::running))).await;
        let id = claims[0].task;
        self.expect("append_log", 1, db.append_log(id, LogChunk::new(b"a line\n").unwrap())).await;
        self.expect("read_log", 1, db.read_log(id, LogRange::new(LogPosition::Offset(0), 1000).unwrap()))
            .await;
        self.expect(
            "update_tasks, released",
            1,
            db.update_tasks(all(|claim| TaskUpdate { claim, change: TaskChange::Released })),
        )
        .await;
        let claimed = self
            .expect("claim_tasks with outputs", 1, db.claim_tasks(claim().with_dependency_outputs()))
            .await;
        let done = claimed.iter().map(|task| TaskUpdate::succeeded(task.claim, None)).collect();
        self.expect("update_tasks, succeeded", 1, db.update_tasks(TaskUpdates::new(done).unwrap())).await;
        self.expect("get_task", 1, db.get_task(id)).await;
        self.expect("list_tasks", 1, db.list_tasks(ListTasks::of(run, PageRequest::default()))).await;
        self.expect("task_outputs", 1, db.task_outputs(run, &[claimed[0].task.name.clone()])).await;
        self.expect("expire_leases", 1, db.expire_leases(Limit::default())).await;
        self.expect("expire_timeouts", 1, db.expire_timeouts(Limit::default())).await;
        self.expect("due_schedules", 1, db.due_schedules(Limit::default())).await;
        self.expect("stats", 1, db.stats()).await;
        let prune = Prune::older_than(Duration::from_secs(3600));
        self.expect("prune", 1, db.prune(prune)).await;
        self.expect("delete_workflow", 1, db.delete_workflow(workflow)).await;
    }
}

/// The first round prepares the statements, which takes a round trip more for each.
async fn calls_wait_for_the_server_once_whatever_their_size() {
    let store = FIXTURE.migrated().await.unwrap();
    let proxy = Proxy::start(&store).await;
    let options = PostgresOptions::new(&proxy.url(&store, "max_connections=1")).unwrap();
    let db = options.with_clock(std::sync::Arc::new(ManualClock::default())).connect().await.unwrap();
    let mut rig = Rig { proxy, db, wrong: Vec::new() };
    rig.live(0, 2).await;
    for (round, size) in [(1, 1), (2, 500)] {
        rig.wrong.clear();
        rig.live(round, size).await;
        assert_eq!(rig.wrong, Vec::<String>::new(), "with batches of {size}");
    }
}

/// Where the queue begins is asked for ten times a second, not with each claim.
async fn claims_by_the_clock_of_the_server_take_one_round_trip_too() {
    let store = FIXTURE.migrated().await.unwrap();
    let proxy = Proxy::start(&store).await;
    let options = PostgresOptions::new(&proxy.url(&store, "max_connections=1")).unwrap();
    let db = options.connect().await.unwrap();
    let workflow = workflow(&db, "w", "a b c d").await;
    for _ in 0..50 {
        start(&db, workflow).await;
    }
    claim(&db, 1).await;
    proxy.take_trips();
    let begun = std::time::Instant::now();
    for _ in 0..100 {
        assert_eq!(claim(&db, 1).await.len(), 1);
    }
    let looks = begun.elapsed().as_millis() as usize / 100 + 1;
    let trips = proxy.take_trips();
    // The schema is looked at every few seconds; to look at the queue the first time, its statement
    // is prepared.
    assert!(trips <= 100 + looks + 3, "{trips} round trips, {looks} looks");
}

async fn updates_of_one_task_each_that_wait_together_go_together() {
    let store = FIXTURE.migrated().await.unwrap();
    let proxy = Proxy::start(&store).await;
    let db = PostgresOptions::new(&proxy.url(&store, "max_connections=1")).unwrap().connect().await.unwrap();
    let names: Vec<String> = (0..64).map(|number| format!("t{number}")).collect();
    let run = start(&db, workflow(&db, "w", &names.join(" ")).await).await.id;
    let claims: Vec<Claim> = claim(&db, 64).await.iter().map(|task| task.claim).collect();
    // Prepares the statement.
    update(&db, vec![TaskUpdate::running(claims[0])]).await;
    proxy.take_trips();
    let running = update_together(&db, claims.iter().copied().map(TaskUpdate::running).collect()).await;
    assert_eq!(proxy.take_trips(), 1);
    let applied = [UpdateOutcome::Applied { status: TaskStatus::Running }];
    assert!(running.iter().all(|report| report.as_ref().unwrap().outcomes == applied));
    let fail = |&claim: &Claim| TaskUpdate::failed_for_good(claim, Text::lossy("no"));
    let ended = update_together(&db, claims.iter().map(fail).collect()).await;
    assert_eq!(proxy.take_trips(), 1);
    // The run has its error from the first task, so the last one ended it.
    let ended: Vec<_> = ended.into_iter().map(|report| report.unwrap().ended_runs).collect();
    assert_eq!(ended[63], [EndedRun::new(run, RunStatus::Failed)]);
    assert!(ended[..63].iter().all(Vec::is_empty), "{ended:?}");
    assert_eq!(db.get_run(run).await.unwrap().error.as_deref(), Some("task \"t0\" failed"));
    assert_sound(&db).await;
}

ork_state_conformance::own_tests!([
    calls_wait_for_the_server_once_whatever_their_size,
    claims_by_the_clock_of_the_server_take_one_round_trip_too,
    updates_of_one_task_each_that_wait_together_go_together
]);
