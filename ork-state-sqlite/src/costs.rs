//! The cost of calls in instructions of SQLite's virtual machine. These are the same in every run,
//! whatever the machine is. An extra statement, an extra row or an unused index shows here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ork_state_api::{
    Claim, ClaimTasks, Dag, LeaseTime, Limit, LogChunk, LogPosition, LogRange, LogStore as _,
    Maintenance as _, NewRun, NewWorkflow, RunStore as _, StartRun, TaskSpec, TaskStore as _, TaskUpdate,
    TaskUpdates, WorkflowId, WorkflowStore as _,
};

use crate::{SqliteDatabase, SqliteOptions};

struct Rig {
    db: SqliteDatabase,
    steps: Arc<AtomicU64>,
    workflow: WorkflowId,
}

const RUN: usize = 500;

impl Rig {
    /// A store in memory, because its one connection does everything.
    async fn new() -> Self {
        let db = SqliteOptions::in_memory().connect().await.unwrap();
        db.migrate().await.unwrap();
        let steps = Arc::new(AtomicU64::new(0));
        let counted = steps.clone();
        let count = db.write(move |connection| {
            Box::pin(async move {
                let mut handle = connection.lock_handle().await?;
                handle.set_progress_handler(1, move || {
                    counted.fetch_add(1, Ordering::Relaxed);
                    true
                });
                Ok(())
            })
        });
        count.await.unwrap();
        let spec = |number| TaskSpec::new(format!("t{number}").parse().unwrap(), "process".parse().unwrap());
        let new = NewWorkflow::new("w".parse().unwrap(), Dag::new((0..RUN).map(spec)).unwrap());
        let workflow = db.create_workflow(new).await.unwrap().id;
        Self { db, steps, workflow }
    }

    async fn start(&self) {
        let run = self.db.create_run(NewRun::new(self.workflow)).await.unwrap().into_run();
        self.db.start_run(StartRun::pinned(run.id)).await.unwrap();
    }

    async fn claim(&self, limit: usize) -> Vec<Claim> {
        let lease = LeaseTime::new(Duration::from_secs(60)).unwrap();
        let claim = ClaimTasks::new("me".parse().unwrap(), lease).with_limit(Limit::new(limit).unwrap());
        self.db.claim_tasks(claim).await.unwrap().into_iter().map(|task| task.claim).collect()
    }

    async fn update(&self, claims: &[Claim], update: fn(Claim) -> TaskUpdate) {
        let updates = TaskUpdates::new(claims.iter().copied().map(update).collect()).unwrap();
        self.db.update_tasks(updates).await.unwrap();
    }

    /// The instructions of a call.
    async fn cost<T>(&self, call: impl Future<Output = T>) -> (T, u64) {
        self.steps.store(0, Ordering::Relaxed);
        let given = call.await;
        (given, self.steps.load(Ordering::Relaxed))
    }

    /// The costs of claiming 100 tasks, reporting that they run, releasing one, and completing the
    /// others.
    async fn costs(&self) -> [u64; 4] {
        let (claims, claiming) = self.cost(self.claim(100)).await;
        assert_eq!(claims.len(), 100);
        let ((), running) = self.cost(self.update(&claims, TaskUpdate::running)).await;
        let ((), releasing) = self
            .cost(self.update(&claims[..1], |claim| TaskUpdate {
                claim,
                change: ork_state_api::TaskChange::Released,
            }))
            .await;
        let ((), completing) =
            self.cost(self.update(&claims[1..], |claim| TaskUpdate::succeeded(claim, None))).await;
        [claiming, running, releasing, completing]
    }
}

fn is_near(one: u64, other: u64) -> bool {
    one.abs_diff(other) * 20 <= one.max(other)
}

#[tokio::test]
async fn claims_and_updates_cost_the_same_however_much_waits() {
    let rig = Rig::new().await;
    rig.start().await;
    // The first time, SQLite reads its schema.
    rig.costs().await;
    rig.start().await;
    let few = rig.costs().await;
    for _ in 0..40 {
        rig.start().await;
    }
    let many = rig.costs().await;
    for (few, many) in few.into_iter().zip(many) {
        assert!(is_near(few, many), "{few} and {many} instructions");
    }
}

/// Raise a limit only for a reason, and state the reason.
#[tokio::test]
async fn calls_cost_no_more_than_they_did() {
    let rig = Rig::new().await;
    rig.start().await;
    rig.costs().await;
    let ((), starting) = rig.cost(rig.start()).await;
    let [claiming, running, releasing, completing] = rig.costs().await;
    let found = [
        ("starting a run, a task", starting / RUN as u64, LIMITS[0]),
        ("claiming, a task", claiming / 100, LIMITS[1]),
        ("running, a task", running / 100, LIMITS[2]),
        ("giving one task back", releasing, LIMITS[3]),
        ("completing, a task", completing / 99, LIMITS[4]),
    ];
    for (what, cost, limit) in found {
        assert!(cost <= limit, "{what}: {cost} instructions, at most {limit} are expected: {found:?}");
    }
}

const LIMITS: [u64; 5] = [150, 185, 154, 320, 194];

#[tokio::test]
async fn logs_cost_the_same_however_long_they_are() {
    let rig = Rig::new().await;
    rig.start().await;
    let task = rig.claim(1).await[0].task;
    let append = || {
        let chunk = vec![b'x'; 1000];
        let db = &rig.db;
        async move { db.append_log(task, LogChunk::new(&chunk).unwrap()).await.unwrap() }
    };
    let end = LogRange::new(LogPosition::BeforeEnd(2000), 2000).unwrap();
    for _ in 0..10 {
        append().await;
    }
    rig.db.read_log(task, end).await.unwrap();
    let (_, append_short) = rig.cost(append()).await;
    let (_, read_short) = rig.cost(rig.db.read_log(task, end)).await;
    for _ in 0..2000 {
        append().await;
    }
    let (_, append_long) = rig.cost(append()).await;
    let (_, read_long) = rig.cost(rig.db.read_log(task, end)).await;
    assert!(is_near(append_short, append_long), "{append_short} and {append_long} instructions");
    assert!(is_near(read_short, read_long), "{read_short} and {read_long} instructions");
}
