//! A store that lies in one thing at a time: `observe` must tell every lie, and none of a store
//! that tells the truth.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use async_trait::async_trait;
use ork_state_api::backend::{Backend, Capabilities, Plugin};
use ork_state_api::verify::observe;
use ork_state_api::{
    ClaimTasks, ClaimedTask, CreatedRun, Dag, DeferredJob, DeferredJobStore, Error, ExpiredTasks, Heartbeat,
    HeartbeatOutcome, Json, Lease, Limit, ListRuns, ListTasks, ListWorkflows, NewDeferredJob, NewRun,
    NewWorkflow, Page, PageRequest, ReadyTask, Result, RetryRun, Run, RunFilter, RunId, RunKey, RunStatus,
    RunStore, Snapshot, SnapshotId, StartRun, Task, TaskCounts, TaskDetail, TaskId, TaskName, TaskSpec,
    TaskStatus, TaskStore, TaskUpdates, Text, Timestamp, Token, UpdateReport, UpdateWorkflow, Workflow,
    WorkflowFilter, WorkflowId, WorkflowName, WorkflowStore,
};
use rstest::rstest;

/// What the methods answer, whether or not it fits together.
struct Fake {
    workflows: Vec<Workflow>,
    snapshots: Vec<Snapshot>,
    runs: Vec<Run>,
    tasks: Vec<Task>,
    ready: Vec<ReadyTask>,
    jobs: Vec<DeferredJob>,
    /// Runs, and workflows by their names, that cannot be read.
    unreadable: BTreeSet<String>,
    ready_is_unreadable: bool,
}

fn unexpected<T>() -> Result<T> {
    Err(Error::internal("observe has no use for this method"))
}

/// The rows after a key, in the order in which they lie here. Like a backend, it reads one row more
/// than it was asked for.
fn page<T: Clone, K: PartialOrd>(
    rows: &[T],
    request: &PageRequest<K>,
    key: impl Fn(&T) -> K,
    read: impl Fn(&T) -> Result<()>,
) -> Result<Page<T, K>> {
    let after = |row: &&T| request.after.as_ref().is_none_or(|after| key(row) > *after);
    let rows: Vec<T> = rows.iter().filter(after).take(request.limit.get() + 1).cloned().collect();
    rows.iter().try_for_each(read)?;
    Ok(Page::from_rows(rows, request.limit, key))
}

#[async_trait]
impl WorkflowStore for Fake {
    async fn create_workflow(&self, _: NewWorkflow) -> Result<Workflow> {
        unexpected()
    }
    async fn get_workflow(&self, _: WorkflowId) -> Result<Workflow> {
        unexpected()
    }
    async fn find_workflow(&self, _: &WorkflowName) -> Result<Workflow> {
        unexpected()
    }
    async fn list_workflows(&self, list: ListWorkflows) -> Result<Page<Workflow, WorkflowName>> {
        page(
            &self.workflows,
            &list.page,
            |workflow| workflow.name.clone(),
            |workflow| {
                if self.unreadable.contains(workflow.name.as_str()) {
                    return Err(Error::corrupt("workflows", workflow.id, "region", "damaged"));
                }
                Ok(())
            },
        )
    }
    async fn count_workflows(&self, _: WorkflowFilter) -> Result<u64> {
        unexpected()
    }
    async fn update_workflow(&self, _: UpdateWorkflow) -> Result<Workflow> {
        unexpected()
    }
    async fn get_snapshot(&self, id: SnapshotId) -> Result<Snapshot> {
        let found = self.snapshots.iter().find(|snapshot| snapshot.id == id).cloned();
        found.ok_or_else(|| Error::not_found(ork_state_api::Entity::Snapshot, id))
    }
    async fn delete_workflow(&self, _: WorkflowId) -> Result<()> {
        unexpected()
    }
}

#[async_trait]
impl RunStore for Fake {
    async fn create_run(&self, _: NewRun) -> Result<CreatedRun> {
        unexpected()
    }
    async fn get_run(&self, _: RunId) -> Result<Run> {
        unexpected()
    }
    async fn list_runs(&self, list: ListRuns) -> Result<Page<Run, RunKey>> {
        page(&self.runs, &list.page, RunKey::of, |run| {
            if self.unreadable.contains(&run.id.to_string()) {
                return Err(Error::corrupt("runs", run.id, "status", "damaged"));
            }
            Ok(())
        })
    }
    async fn count_runs(&self, _: RunFilter) -> Result<u64> {
        unexpected()
    }
    async fn retry_run(&self, _: RetryRun) -> Result<Run> {
        unexpected()
    }
    async fn start_run(&self, _: StartRun) -> Result<Run> {
        unexpected()
    }
    async fn cancel_run(&self, _: RunId) -> Result<Run> {
        unexpected()
    }
    async fn pause_run(&self, _: RunId) -> Result<Run> {
        unexpected()
    }
    async fn resume_run(&self, _: RunId) -> Result<Run> {
        unexpected()
    }
}

#[async_trait]
impl TaskStore for Fake {
    async fn ready_tasks(&self, _: Limit) -> Result<Vec<ReadyTask>> {
        if self.ready_is_unreadable {
            return Err(Error::corrupt("ready_tasks", "1", "ready_at", "damaged"));
        }
        Ok(self.ready.clone())
    }
    async fn claim_tasks(&self, _: ClaimTasks) -> Result<Vec<ClaimedTask>> {
        unexpected()
    }
    async fn heartbeat(&self, _: Heartbeat) -> Result<Vec<HeartbeatOutcome>> {
        unexpected()
    }
    async fn expire_leases(&self, _: Limit) -> Result<ExpiredTasks> {
        unexpected()
    }
    async fn expire_timeouts(&self, _: Limit) -> Result<ExpiredTasks> {
        unexpected()
    }
    async fn update_tasks(&self, _: TaskUpdates) -> Result<UpdateReport> {
        unexpected()
    }
    async fn get_task(&self, _: TaskId) -> Result<TaskDetail> {
        unexpected()
    }
    async fn list_tasks(&self, list: ListTasks) -> Result<Page<Task, u32>> {
        let of_run: Vec<Task> = self.tasks.iter().filter(|task| task.run == list.run).cloned().collect();
        page(&of_run, &list.page, |task| task.index, |_| Ok(()))
    }
    async fn task_outputs(&self, _: RunId, _: &[TaskName]) -> Result<BTreeMap<TaskName, Option<Json>>> {
        unexpected()
    }
}

static FAKE: Backend = Backend {
    name: "fake",
    package: "none",
    schemes: &[],
    example: "fake:",
    capabilities: Capabilities::all(),
    options: &[],
    connect: |_| Box::pin(async { unexpected() }),
};

impl std::fmt::Debug for Fake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Fake")
    }
}

impl Plugin for Fake {
    fn backend(&self) -> &'static Backend {
        &FAKE
    }
}

#[async_trait]
impl DeferredJobStore for Fake {
    async fn list_jobs(&self, task: TaskId) -> Result<Vec<DeferredJob>> {
        Ok(self.jobs.iter().filter(|job| job.task == task).cloned().collect())
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_micros(1_767_225_600_000_000 + second * 1_000_000).unwrap()
}

/// Two workflows and three runs, newest first: one is running (a success, a claimed task, a ready
/// one and one that waits), one succeeded, one failed. All is as it must be.
fn truth() -> Fake {
    let spec = |name: &str, after: &[&str]| {
        TaskSpec::new(name.parse().unwrap(), "process".parse().unwrap())
            .after(after.iter().map(|name| name.parse().unwrap()))
    };
    let dag =
        Dag::new([spec("done", &[]), spec("held", &[]), spec("ready", &["done"]), spec("last", &["held"])]);
    let (dag, two) = (dag.unwrap(), Dag::new([spec("a", &[]), spec("b", &["a"])]).unwrap());
    let (mut workflows, mut snapshots) = (Vec::new(), Vec::new());
    for (name, dag) in [("A", &dag), ("b", &two)] {
        let new = NewWorkflow::new(name.parse().unwrap(), dag.clone());
        let snapshot = SnapshotId::generate();
        let workflow = Workflow::new(&new, snapshot, at(0));
        snapshots.push(Snapshot::from_stored(snapshot, workflow.id, dag.content_hash(), dag.clone(), at(0)));
        workflows.push(workflow);
    }
    let run = |created_at, of: &Workflow, status: RunStatus, (total, unfinished, failed)| {
        let mut run =
            Run::from_stored(RunId::generate(), of.id, of.snapshot, "manual".parse().unwrap(), created_at);
        run.status = status;
        run.tasks = TaskCounts::new(total);
        run.tasks.unfinished = unfinished;
        run.tasks.failed = failed;
        run.started_at = Some(created_at);
        run.finished_at = status.is_terminal().then_some(created_at);
        run
    };
    let runs = vec![
        run(at(30), &workflows[0], RunStatus::Running, (4, 3, 0)),
        run(at(20), &workflows[1], RunStatus::Success, (2, 0, 0)),
        run(at(10), &workflows[1], RunStatus::Failed, (2, 0, 2)),
    ];
    let mut tasks: Vec<Task> = Task::of_run(runs[0].id, &dag, at(30)).collect();
    end(&mut tasks[0], TaskStatus::Success);
    tasks[1].status = TaskStatus::Running;
    tasks[1].ready_at = None;
    tasks[1].lease = Some(Lease::new("w".parse().unwrap(), Token::from_stored(1), at(90)));
    tasks[2].unmet_dependencies = 0;
    tasks[2].ready_at = Some(at(30));
    let ready = vec![ReadyTask::new(at(30), runs[0].id, 2, tasks[2].id)];
    for (run, status) in [(1, TaskStatus::Success), (2, TaskStatus::Failed)] {
        let run: &Run = &runs[run];
        for mut task in Task::of_run(run.id, &two, run.created_at) {
            end(&mut task, status);
            if status == TaskStatus::Success {
                task.unmet_dependencies = 0;
            }
            tasks.push(task);
        }
    }
    Fake {
        workflows,
        snapshots,
        runs,
        tasks,
        ready,
        jobs: vec![],
        unreadable: BTreeSet::new(),
        ready_is_unreadable: false,
    }
}

fn end(task: &mut Task, status: TaskStatus) {
    task.status = status;
    (task.ready_at, task.finished_at, task.attempts) = (None, Some(task.created_at), 1);
}

/// The rules that `observe` says are broken, with about what.
fn told(store: &Fake) -> Vec<String> {
    // The fake never waits.
    let Poll::Ready(found) = pin!(observe(store)).poll(&mut Context::from_waker(Waker::noop())) else {
        panic!("it waits")
    };
    found.unwrap().iter().map(ToString::to_string).collect()
}

#[test]
fn the_truth_is_not_objected_to() {
    assert_eq!(told(&truth()), [""; 0]);
}

#[rstest]
#[case::unsorted_workflows(|s: &mut Fake| s.workflows.swap(0, 1), "G6 list of workflows")]
#[case::a_repeated_workflow(|s: &mut Fake| s.workflows.insert(1, s.workflows[0].clone()), "G6 list of workflows")]
#[case::a_workflow_without_its_snapshot(|s: &mut Fake| drop(s.snapshots.remove(0)), "which is not there")]
#[case::anothers_snapshot(|s: &mut Fake| s.workflows[0].snapshot = s.snapshots[1].id, "of workflow")]
#[case::a_wrong_hash(|s: &mut Fake| s.snapshots[0].content_hash = "00".into(), "W2 snapshot")]
#[case::unsorted_runs(|s: &mut Fake| s.runs.swap(0, 1), "G6 list of runs")]
#[case::a_repeated_run(|s: &mut Fake| s.runs.insert(0, s.runs[0].clone()), "G6 list of runs")]
#[case::a_wrong_total(|s: &mut Fake| s.runs[0].tasks.total = 5, "R3 run")]
#[case::a_wrong_unfinished(|s: &mut Fake| s.runs[0].tasks.unfinished = 2, "R3 run")]
#[case::a_wrong_failed(|s: &mut Fake| s.runs[2].tasks.failed = 1, "R3 run")]
#[case::a_success_with_a_failed_task(|s: &mut Fake| s.runs[2].status = RunStatus::Success, "a success with a task that is not")]
#[case::a_failure_without_one(|s: &mut Fake| s.runs[1].status = RunStatus::Failed, "failed with no task that is")]
#[case::a_terminal_run_with_live_tasks(|s: &mut Fake| s.runs[0].status = RunStatus::Cancelled, "terminal with live tasks")]
#[case::a_live_run_that_has_ended(|s: &mut Fake| s.runs[1].status = RunStatus::Paused, "live with no task that is")]
#[case::a_pending_run_with_tasks(|s: &mut Fake| s.runs[0].status = RunStatus::Pending, "pending with tasks")]
#[case::an_end_without_its_time(|s: &mut Fake| s.runs[1].finished_at = None, "with finished_at")]
#[case::unsorted_tasks(|s: &mut Fake| s.tasks.swap(0, 1), "out of order or missing")]
#[case::a_missing_task(|s: &mut Fake| drop(s.tasks.remove(2)), "out of order or missing")]
#[case::a_claim_without_lease(|s: &mut Fake| s.tasks[1].lease = None, "T2 task")]
#[case::a_lease_without_claim(|s: &mut Fake| s.tasks[2].lease = s.tasks[1].lease.clone(), "T2 task")]
#[case::a_lease_after_the_end(|s: &mut Fake| s.tasks[0].lease = s.tasks[1].lease.clone(), "T2 task")]
#[case::a_wrong_number_of_unmet(|s: &mut Fake| s.tasks[3].unmet_dependencies = 0, "T1 task")]
#[case::running_before_its_dependency(|s: &mut Fake| s.tasks[3].status = TaskStatus::Running, "with dependencies unmet")]
#[case::pending_after_a_failure(|s: &mut Fake| end(&mut s.tasks[1], TaskStatus::Failed), "T5 task")]
#[case::an_unknown_dependency(|s: &mut Fake| s.tasks[2].depends_on = vec!["gone".parse().unwrap()], "T1 task")]
#[case::a_finished_task_without_its_time(|s: &mut Fake| s.tasks[0].finished_at = None, "T4 task")]
#[case::a_ready_task_without_its_time(|s: &mut Fake| s.tasks[2].ready_at = None, "with ready_at None")]
#[case::a_paused_run_with_ready_tasks(|s: &mut Fake| s.runs[0].status = RunStatus::Paused, "is among the ready tasks")]
#[case::a_ready_task_that_is_not_shown(|s: &mut Fake| s.ready.clear(), "is not among the ready tasks")]
#[case::a_claimed_task_that_is_shown(|s: &mut Fake| s.ready[0].task = s.tasks[1].id, "is among the ready tasks")]
#[case::a_ready_task_twice(|s: &mut Fake| s.ready.push(s.ready[0]), "twice")]
#[case::unsorted_ready_tasks(|s: &mut Fake| s.ready.insert(0, { let mut readytask = s.ready[0]; readytask.ready_at = at(99); readytask }), "T2 ready tasks")]
#[case::a_wrong_cancelled(|s: &mut Fake| s.runs[1].tasks.cancelled = 1, "R3 run")]
#[case::jobs_of_an_ended_task(|s: &mut Fake| s.tasks[0].open_jobs = 1, "D2 task")]
#[case::a_wrong_number_of_jobs(|s: &mut Fake| (s.tasks[1].open_jobs, s.tasks[1].lease) = (2, None), "D1 task")]
#[case::a_lease_while_deferred(|s: &mut Fake| s.tasks[1].open_jobs = 1, "T2 task")]
#[case::too_many_attempts(|s: &mut Fake| s.tasks[0].attempts = 78_874, "was tried 78874 times")]
fn a_lie_is_told(#[case] lie: fn(&mut Fake), #[case] expected: &str) {
    let mut store = truth();
    lie(&mut store);
    let told = told(&store);
    assert!(told.iter().any(|violation| violation.contains(expected)), "{told:?}");
}

#[test]
fn a_deferred_task_has_jobs_and_no_lease() {
    let mut store = truth();
    let new = NewDeferredJob::new("s".parse().unwrap(), "j".parse().unwrap(), Json::parse("{}").unwrap());
    let task = &mut store.tasks[1];
    (task.open_jobs, task.lease) = (1, None);
    store.jobs.push(DeferredJob::new(&new, task.id, task.run, 0, at(40)));
    assert_eq!(told(&store), [""; 0]);
}

#[test]
fn ready_tasks_that_cannot_be_read_are_one_violation() {
    let store = Fake { ready_is_unreadable: true, ..truth() };
    assert_eq!(told(&store), ["G8 ready_tasks 1: column ready_at: damaged"]);
}

#[test]
fn a_run_that_cannot_be_read_does_not_hide_later_ones() {
    // Several of one microsecond, and of those that cannot be read two in a row.
    let mut store = truth();
    let like = store.runs[1].clone();
    let two: Vec<Task> = store.tasks[4..6].to_vec();
    for number in 0..40 {
        let id = RunId::generate();
        let created_at = at(5 - number / 10);
        store.runs.push({
            let mut run = like.clone();
            run.id = id;
            run.created_at = created_at;
            run
        });
        store.tasks.extend(two.iter().map(|task| {
            let mut task = task.clone();
            task.id = TaskId::generate();
            task.run = id;
            task
        }));
    }
    store.runs.sort_by_key(RunKey::of);
    let mut expected = Vec::new();
    for bad in [0, 7, 8, 25, 42] {
        store.unreadable.insert(store.runs[bad].id.to_string());
        expected.push(format!("G8 runs {}: column status: damaged", store.runs[bad].id));
    }
    assert_eq!(told(&store), expected);
    // What is wrong with a later run shows.
    store.runs[30].tasks.total += 1;
    assert_eq!(told(&store).len(), 6);
}

#[test]
fn a_list_that_can_nowhere_be_read_comes_to_an_end() {
    let mut store = truth();
    let id = RunId::from_uuid(uuid::Uuid::max());
    store.runs = vec![{
        let mut run = store.runs[0].clone();
        run.id = id;
        run.created_at = Timestamp::MIN;
        run
    }];
    store.unreadable.insert(id.to_string());
    assert_eq!(told(&store).len(), 1);
}

#[test]
fn a_workflow_that_cannot_be_read_hides_neither_earlier_ones_nor_runs() {
    let mut store = truth();
    store.unreadable.insert("b".into());
    store.runs[0].tasks.total += 1;
    store.runs[0].error = Some(Text::lossy("x"));
    let told = told(&store);
    assert!(told[0].starts_with("G8 workflows") && told[1].starts_with("R3 run"), "{told:?}");
}
