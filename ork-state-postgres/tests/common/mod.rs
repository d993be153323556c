//! A database a test, and short words for common steps.

#![allow(unreachable_pub, reason = "a module of a test program")]

pub mod proxy;

use std::sync::Arc;
use std::time::Duration;

use ork_state_api::{
    ClaimTasks, ClaimedTask, Dag, Database, LeaseTime, Limit, ManualClock, NewRun, NewWorkflow, Run,
    StartRun, TaskSpec, TaskStore, TaskUpdate, TaskUpdates, UpdateReport, WorkflowId,
};
use ork_state_conformance::server::PostgresFixture;
use ork_state_conformance::{Fixture, TestStore};
use ork_state_postgres::{PostgresDatabase, PostgresOptions};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection, Executor};

pub const LEASE: Duration = Duration::from_secs(60);

/// One server a test program; it ends with the program.
pub static FIXTURE: PostgresFixture = PostgresFixture::new("postgres");

pub type Store = Arc<dyn TestStore>;

pub async fn empty() -> Store {
    FIXTURE.empty().await.unwrap()
}

/// A migrated store on a clock that stands still.
pub async fn store() -> (Store, PostgresDatabase, Arc<ManualClock>) {
    let store = FIXTURE.migrated().await.unwrap();
    let clock = Arc::new(ManualClock::default());
    let db = options(&store).with_clock(clock.clone()).connect().await.unwrap();
    (store, db, clock)
}

pub fn options(store: &Store) -> PostgresOptions {
    PostgresOptions::new(&store.url()).unwrap()
}

/// The store's URL with a parameter more.
pub fn url_with(store: &Store, parameter: &str) -> String {
    let url = store.url();
    let separator = if url.contains('?') { '&' } else { '?' };
    format!("{url}{separator}{parameter}")
}

/// A session of our own, past the backend.
pub async fn session(store: &Store) -> PgConnection {
    PgConnection::connect(&store.url()).await.unwrap()
}

pub async fn execute(store: &Store, statement: impl Into<String>) {
    let statement = sqlx::raw_sql(AssertSqlSafe(statement.into()));
    session(store).await.execute(statement).await.unwrap();
}

/// `"a b:a c*2:a,b"`: names, `*` retries, `:` dependencies.
pub fn dag(text: &str) -> Dag {
    let tasks = text.split_whitespace().map(|task| {
        let (name, after) = task.split_once(':').unwrap_or((task, ""));
        let (name, retries) = name.split_once('*').unwrap_or((name, "0"));
        TaskSpec::new(name.parse().unwrap(), "process".parse().unwrap())
            .with_max_retries(retries.parse().unwrap())
            .after(after.split(',').filter(|name| !name.is_empty()).map(|name| name.parse().unwrap()))
    });
    Dag::new(tasks).unwrap()
}

pub async fn workflow(db: &PostgresDatabase, name: &str, tasks: &str) -> WorkflowId {
    let new = NewWorkflow::new(name.parse().unwrap(), dag(tasks));
    ork_state_api::WorkflowStore::create_workflow(db, new).await.unwrap().id
}

pub async fn start(db: &dyn Database, workflow: WorkflowId) -> Run {
    let run = db.create_run(NewRun::new(workflow)).await.unwrap().into_run();
    db.start_run(StartRun::pinned(run.id)).await.unwrap()
}

pub async fn claim(db: &dyn Database, limit: usize) -> Vec<ClaimedTask> {
    let lease = LeaseTime::new(LEASE).unwrap();
    let claim = ClaimTasks::new("tester".parse().unwrap(), lease).with_limit(Limit::new(limit).unwrap());
    db.claim_tasks(claim).await.unwrap()
}

pub async fn update(db: &dyn Database, updates: Vec<TaskUpdate>) -> UpdateReport {
    db.update_tasks(TaskUpdates::new(updates).unwrap()).await.unwrap()
}

/// A call each, and the answers in their order. On one thread all of them wait before the first is
/// served, so they go to the server as one.
pub async fn update_together(
    db: &PostgresDatabase,
    updates: Vec<TaskUpdate>,
) -> Vec<ork_state_api::Result<UpdateReport>> {
    let db = db.clone();
    let on_one_thread = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let calls = updates.into_iter().map(|update| {
                let db = db.clone();
                tokio::spawn(async move { db.update_tasks(TaskUpdates::one(update)).await })
            });
            let calls: Vec<_> = calls.collect();
            let mut answers = Vec::new();
            for call in calls {
                answers.push(call.await.unwrap());
            }
            answers
        })
    };
    tokio::task::spawn_blocking(on_one_thread).await.unwrap()
}

/// Nothing but this is wrong.
pub async fn assert_sound(db: &dyn Database) {
    assert_eq!(db.verify().await.unwrap(), []);
}
