//! The layers of the API crate, around a store that is quick to make.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

use std::collections::BTreeMap;
use std::future::ready;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ork_state_api::layer::{Fault, FaultLayer, Layered, RetryLayer, RetryPolicy, TraceLayer};
use ork_state_api::{
    ClaimTasks, Dag, Database, Error, ErrorKind, LeaseTime, NewRun, NewWorkflow, PageRequest, RunFilter,
    RunStatus, StartRun, TaskSpec, TaskUpdate, TaskUpdates,
};
use ork_state_example as _;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing_subscriber::layer::{Context, SubscriberExt};

async fn store() -> Arc<dyn Database> {
    let db = ork_state_api::connect("example:").await.unwrap();
    db.migrate().await.unwrap();
    db
}

fn dag() -> Dag {
    Dag::new([TaskSpec::new("a".parse().unwrap(), "process".parse().unwrap())]).unwrap()
}

/// Retries without waiting, and notes for how long it would have.
fn retrying(db: Arc<dyn Database>, retries: u32) -> (Arc<dyn Database>, Arc<Mutex<Vec<Duration>>>) {
    let pauses: Arc<Mutex<Vec<Duration>>> = Arc::default();
    let noted = pauses.clone();
    let policy = RetryPolicy {
        retries,
        first_pause: Duration::from_millis(100),
        longest_pause: Duration::from_millis(300),
    };
    let layer = RetryLayer::new(policy, move |pause| {
        noted.lock().unwrap().push(pause);
        ready(())
    });
    (Arc::new(Layered::new(db, layer)), pauses)
}

fn failing(
    db: Arc<dyn Database>,
    choose: impl Fn(&str, u64) -> Option<Fault> + Send + Sync + 'static,
) -> Arc<dyn Database> {
    Arc::new(Layered::new(db, FaultLayer::new(move |operation, number| choose(operation.name, number))))
}

#[tokio::test]
async fn a_passing_failure_is_tried_again() {
    let away =
        failing(store().await, |_, number| (number < 3).then(|| Fault::Before(Error::unavailable("a test"))));
    let (db, pauses) = retrying(away, 5);
    db.create_workflow(NewWorkflow::new("w".parse().unwrap(), dag())).await.unwrap();
    let pauses = pauses.lock().unwrap().clone();
    assert_eq!(pauses.len(), 3);
    for (pause, whole) in pauses.iter().zip([100, 200, 300]) {
        assert!((whole / 2..=whole).contains(&pause.as_millis()), "{pauses:?}");
    }
}

#[tokio::test]
async fn the_budget_is_kept_and_the_last_error_told() {
    let away =
        failing(store().await, |_, number| Some(Fault::Before(Error::unavailable(format!("call {number}")))));
    let (db, pauses) = retrying(away, 4);
    let error = db.stats().await.unwrap_err();
    assert!(error.to_string().contains("call 4"), "{error}");
    assert_eq!(pauses.lock().unwrap().len(), 4);
}

#[tokio::test]
async fn what_does_not_pass_is_not_tried_again() {
    let (db, pauses) = retrying(store().await, 5);
    assert!(matches!(
        db.find_workflow(&"w".parse().unwrap()).await.unwrap_err().kind(),
        ErrorKind::NotFound { .. }
    ));
    assert!(pauses.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_lost_answer_is_asked_for_again_where_that_has_one_effect() {
    let lossy = failing(store().await, |operation, number| {
        let lost = ["update_tasks", "start_run", "cancel_run"].contains(&operation) && number % 2 == 0;
        lost.then(|| Fault::After(Error::unknown_effect("a test")))
    });
    let (db, _) = retrying(lossy, 5);
    let workflow = db.create_workflow(NewWorkflow::new("w".parse().unwrap(), dag())).await.unwrap();
    for _ in 0..4 {
        let run = db.create_run(NewRun::new(workflow.id)).await.unwrap().into_run();
        db.start_run(StartRun::pinned(run.id)).await.unwrap();
        let claim = ClaimTasks::new("w".parse().unwrap(), LeaseTime::new(Duration::from_secs(9)).unwrap());
        let claimed = db.claim_tasks(claim).await.unwrap();
        assert_eq!(claimed.len(), 1);
        let update = TaskUpdates::one(TaskUpdate::succeeded(claimed[0].claim, None));
        db.update_tasks(update).await.unwrap();
        let ended = db.get_run(run.id).await.unwrap();
        assert_eq!((ended.status, ended.tasks.succeeded()), (RunStatus::Success, 1));
    }
    assert_eq!(db.count_runs(RunFilter::all()).await.unwrap(), 4);
}

#[tokio::test]
async fn a_lost_answer_is_told_where_asking_again_would_do_it_twice() {
    let lossy = failing(store().await, |operation, _| {
        (operation == "create_run").then(|| Fault::After(Error::unknown_effect("a test")))
    });
    let (db, pauses) = retrying(lossy, 5);
    let workflow = db.create_workflow(NewWorkflow::new("w".parse().unwrap(), dag())).await.unwrap();
    db.create_run(NewRun::new(workflow.id)).await.unwrap_err();
    assert_eq!((db.count_runs(RunFilter::all()).await.unwrap(), pauses.lock().unwrap().len()), (1, 0));
}

/// Keeps the fields of every span.
#[derive(Clone, Default)]
struct Spans(Arc<Mutex<BTreeMap<u64, BTreeMap<String, String>>>>);

struct Fields<'a>(&'a mut BTreeMap<String, String>);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}").replace('"', ""));
    }
}

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Spans {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, _: Context<'_, S>) {
        attributes.record(&mut Fields(self.0.lock().unwrap().entry(id.into_u64()).or_default()));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, _: Context<'_, S>) {
        values.record(&mut Fields(self.0.lock().unwrap().entry(id.into_u64()).or_default()));
    }
}

#[tokio::test]
async fn every_operation_has_a_span_without_payloads() {
    let spans = Spans::default();
    let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(spans.clone()));
    let db = Layered::new(store().await, TraceLayer);
    let db: &dyn Database = &db;
    db.create_workflow(NewWorkflow::new("secret-name".parse().unwrap(), dag())).await.unwrap();
    db.list_workflows(PageRequest::default().into()).await.unwrap();
    db.find_workflow(&"nobody".parse().unwrap()).await.unwrap_err();
    db.verify().await.unwrap();
    let told: Vec<String> = spans
        .0
        .lock()
        .unwrap()
        .values()
        .map(|fields| {
            let field = |name: &str| fields.get(name).map_or("-", String::as_str).to_owned();
            format!("{} {} {} {}", field("backend"), field("operation"), field("outcome"), field("rows"))
        })
        .collect();
    for wanted in [
        "example create_workflow ok 1",
        "example list_workflows ok 1",
        "example find_workflow not_found -",
        "example verify ok 0",
    ] {
        assert!(told.iter().any(|line| line == wanted), "{wanted}: {told:?}");
    }
    assert!(!format!("{:?}", spans.0.lock().unwrap()).contains("secret"));
}
