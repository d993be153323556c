use std::collections::BTreeSet;
use std::time::Duration;

use ork_state_api::ErrorKind::{Conflict, InvalidTransition, NotFound};
use ork_state_api::RunStatus::{Cancelled, Failed, Paused, Pending, Running, Success};
use ork_state_api::limits::MAX_LABEL_BYTES;
use ork_state_api::{
    ClaimTasks, CreatedRun, Dag, Entity, HeartbeatOutcome, Label, LeaseTime, NewRun, Run, RunId, RunStatus,
    StartRun, Task, TaskCounts, TaskSpec, TaskStatus, TaskUpdate, Text, UpdateOutcome, WorkflowId,
};

use super::{assert_fails, together};
use crate::case::case;
use crate::ctx::{counts, with};
use crate::{Ctx, dag, wide_dag};

fn keyed(workflow: WorkflowId, key: &str) -> ork_state_api::Result<NewRun> {
    Ok(NewRun::new(workflow).with_idempotency_key(Label::new(key)?))
}

case! { R1, r1_a_created_run_is_pending_and_pins_the_snapshot(t) {
    let workflow = t.workflow(dag("a")?).await?;
    let CreatedRun::New(run) = t.db().create_run(NewRun::new(workflow.id).with_trigger(Label::new("cron")?)).await? else {
        return Err("without a key every run is new".into());
    };
    assert_eq!((run.status, run.snapshot, run.workflow), (Pending, workflow.snapshot, workflow.id));
    assert_eq!((run.triggered_by.as_str(), run.tasks), ("cron", TaskCounts::default()));
    assert_eq!((run.created_at, run.started_at, run.finished_at, &run.error), (t.now(), None, None, &None));
    assert_eq!(t.db().get_run(run.id).await?, run);
    assert_eq!(t.tasks(run.id).await?, []);
    Ok(())
}}

case! { R1, r1_without_a_key_every_call_makes_a_run(t) {
    let workflow = t.workflow(dag("a")?).await?.id;
    let first = t.db().create_run(NewRun::new(workflow)).await?.into_run();
    let second = t.db().create_run(NewRun::new(workflow)).await?.into_run();
    assert_ne!(first.id, second.id);
    Ok(())
}}

case! { R1, r1_a_key_makes_one_run(t) {
    let workflow = t.workflow(dag("a")?).await?.id;
    let CreatedRun::New(first) = t.db().create_run(keyed(workflow, "day-1")?).await? else { return Err("it is new".into()) };
    assert_eq!(first.idempotency_key.as_deref(), Some("day-1"));
    assert_eq!(t.db().create_run(keyed(workflow, "day-1")?).await?, CreatedRun::Existing(first));
    Ok(())
}}

case! { R1, r1_the_existing_run_comes_as_it_stands(t) {
    let workflow = t.workflow(dag("a")?).await?.id;
    let run = t.db().create_run(keyed(workflow, "k")?).await?.into_run();
    t.db().start_run(StartRun::pinned(run.id)).await?;
    t.work_off().await?;
    let CreatedRun::Existing(again) = t.db().create_run(keyed(workflow, "k")?).await? else { return Err("it exists".into()) };
    assert_eq!((again.id, again.status), (run.id, Success));
    Ok(())
}}

case! { R1, r1_a_key_belongs_to_its_workflow(t) {
    let (one, two) = (t.workflow(dag("a")?).await?.id, t.workflow(dag("a")?).await?.id);
    let first = t.db().create_run(keyed(one, "k")?).await?.into_run();
    let CreatedRun::New(second) = t.db().create_run(keyed(two, "k")?).await? else { return Err("another workflow".into()) };
    assert_ne!(first.id, second.id);
    Ok(())
}}

case! { R1, r1_keys_differ_by_every_byte(t) {
    let workflow = t.workflow(dag("a")?).await?.id;
    let mut ids = BTreeSet::new();
    for key in ["k", "K", "k ", " k", "é", "e\u{301}", "%", "_"] {
        ids.insert(t.db().create_run(keyed(workflow, key)?).await?.into_run().id);
    }
    assert_eq!(ids.len(), 8);
    Ok(())
}}

case! { R1, r1_one_run_when_many_ask_at_once(t) {
    let workflow = t.workflow(dag("a")?).await?.id;
    let callers = (0..16).map(|_| {
        let db = t.db().clone();
        async move { db.create_run(keyed(workflow, "same")?).await }
    });
    let (mut ids, mut made) = (BTreeSet::new(), 0);
    for result in together(callers).await? {
        let created = result?;
        made += usize::from(matches!(created, CreatedRun::New(_)));
        ids.insert(created.into_run().id);
    }
    assert_eq!((ids.len(), made), (1, 1));
    Ok(())
}}

case! { R1, r1_an_unknown_workflow_is_not_found(t) {
    assert_fails!(t.db().create_run(NewRun::new(WorkflowId::generate())).await, NotFound { entity: Entity::Workflow, .. });
    assert_fails!(t.db().create_run(keyed(WorkflowId::generate(), "k")?).await, NotFound { entity: Entity::Workflow, .. });
    Ok(())
}}

case! { R2, r2_starting_makes_all_tasks_and_sets_the_run_going(t) {
    let run = t.start("a b*2:a c:a,b").await?;
    assert_eq!((run.status, run.started_at, run.finished_at), (Running, Some(t.now()), None));
    assert_eq!(run.tasks, counts(3, 3, 0, 0));
    let tasks = t.tasks(run.id).await?;
    let shape: Vec<_> = tasks.iter().map(|k| (k.index, k.name.as_str(), k.unmet_dependencies, k.max_retries, k.attempts)).collect();
    assert_eq!(shape, [(0, "a", 0, 0, 0), (1, "b", 1, 2, 0), (2, "c", 2, 0, 0)]);
    let depends: Vec<_> = tasks[2].depends_on.iter().map(ork_state_api::TaskName::as_str).collect();
    assert_eq!(depends, ["a", "b"]);
    assert_eq!((tasks[0].ready_at, tasks[1].ready_at), (Some(t.now()), None));
    assert_eq!((tasks[0].run, tasks[0].created_at, &tasks[0].lease), (run.id, t.now(), &None));
    Ok(())
}}

case! { R2, r2_starting_again_changes_nothing(t) {
    let run = t.start("a b:a").await?;
    let before = t.tasks(run.id).await?;
    t.advance(Duration::from_secs(1));
    assert_eq!(t.db().start_run(StartRun::pinned(run.id)).await?, run);
    assert_eq!(t.db().start_run(StartRun::with_dag(run.id, dag("x y z")?)).await?, run);
    assert_eq!(t.tasks(run.id).await?, before);
    Ok(())
}}

case! { R2, r2_two_schedulers_start_it_once(t) {
    for _ in 0..10 {
        let run = t.pending_run("a b:a c:a d:b,c").await?.id;
        let callers = (0..4).map(|_| {
            let db = t.db().clone();
            async move { db.start_run(StartRun::pinned(run)).await }
        });
        for result in together(callers).await? {
            assert_eq!(result?.status, Running);
        }
        assert_eq!(t.tasks(run).await?.len(), 4);
        assert_eq!(t.work_off().await?, 4);
    }
    Ok(())
}}

case! { R2, r2_an_empty_dag_succeeds_at_once(t) {
    let run = t.start("").await?;
    assert_eq!((run.status, run.started_at, run.finished_at), (Success, Some(t.now()), Some(t.now())));
    assert_eq!(t.db().start_run(StartRun::pinned(run.id)).await?, run);
    Ok(())
}}

case! { R2, r2_a_dag_given_with_the_call_is_used(t) {
    let run = t.pending_run("a").await?;
    let started = t.db().start_run(StartRun::with_dag(run.id, dag("x y:x")?)).await?;
    assert_eq!((started.tasks.total, started.snapshot), (2, run.snapshot));
    assert_eq!(t.statuses(run.id).await?, "x=pending y=pending");
    Ok(())
}}

case! { R2, r2_an_empty_dag_given_with_the_call_succeeds(t) {
    let run = t.pending_run("a").await?;
    assert_eq!(t.db().start_run(StartRun::with_dag(run.id, dag("")?)).await?.status, Success);
    Ok(())
}}

case! { R2, r2_an_ended_run_is_left_as_it_is(t) {
    let run = t.start("a").await?;
    t.work_off().await?;
    let ended = t.db().get_run(run.id).await?;
    assert_eq!(t.db().start_run(StartRun::pinned(run.id)).await?, ended);
    assert_eq!(t.work_off().await?, 0);
    Ok(())
}}

case! { R2, r2_a_paused_run_is_left_as_it_is(t) {
    let run = t.start("a").await?;
    let paused = t.db().pause_run(run.id).await?;
    assert_eq!(t.db().start_run(StartRun::pinned(run.id)).await?, paused);
    assert!(t.claim(1).await?.is_empty());
    Ok(())
}}

case! { R2, r2_a_cancelled_run_does_not_start(t) {
    let run = t.pending_run("a").await?;
    t.db().cancel_run(run.id).await?;
    let error = assert_fails!(t.db().start_run(StartRun::pinned(run.id)).await, InvalidTransition { entity: Entity::Run, .. });
    assert!(error.to_string().contains("cancelled"), "{error}");
    assert_eq!(t.tasks(run.id).await?, []);
    Ok(())
}}

case! { R2, r2_a_run_that_was_started_and_cancelled_does_not_start(t) {
    let run = t.start("a b").await?;
    t.succeed(&t.claim_one().await?).await?;
    let cancelled = t.db().cancel_run(run.id).await?;
    let tasks = t.tasks(run.id).await?;
    for start in [StartRun::pinned(run.id), StartRun::with_dag(run.id, dag("x")?)] {
        assert_fails!(t.db().start_run(start).await, InvalidTransition { entity: Entity::Run, .. });
    }
    assert_eq!((t.db().get_run(run.id).await?, t.tasks(run.id).await?), (cancelled, tasks));
    Ok(())
}}

case! { R2, r2_two_starts_with_different_dags_make_the_tasks_of_one(t) {
    for _ in 0..10 {
        let run = t.pending_run("pinned").await?.id;
        let dags = [dag("a b:a")?, dag("x y z:x")?];
        let callers = dags.map(|dag| {
            let db = t.db().clone();
            async move { db.start_run(StartRun::with_dag(run, dag)).await }
        });
        let mut totals = BTreeSet::new();
        for result in together(callers).await? {
            totals.insert(result?.tasks.total);
        }
        assert_eq!(totals.len(), 1, "both are told of the same tasks: {totals:?}");
        let statuses = t.statuses(run).await?;
        assert!(["a=pending b=pending", "x=pending y=pending z=pending"].contains(&statuses.as_str()), "{statuses}");
        t.work_off().await?;
    }
    Ok(())
}}

case! { [R2, R4], r2_a_start_races_with_a_cancellation(t) {
    for _ in 0..20 {
        let run = t.pending_run("a b:a").await?.id;
        let (first, second) = (t.db().clone(), t.db().clone());
        let starting = tokio::spawn(async move { first.start_run(StartRun::pinned(run)).await });
        let cancelling = tokio::spawn(async move { second.cancel_run(run).await });
        let (started, cancelled) = (starting.await?, cancelling.await??);
        let tasks = match started {
            Ok(started) => {
                assert_eq!(started.status, Running);
                "a=cancelled b=cancelled"
            }
            Err(error) => {
                assert!(matches!(error.kind(), InvalidTransition { .. }), "{error:?}");
                ""
            }
        };
        assert_eq!((cancelled.status, t.statuses(run).await?.as_str()), (Cancelled, tasks));
        assert_eq!(t.db().get_run(run).await?, cancelled);
    }
    assert!(t.claim(100).await?.is_empty());
    Ok(())
}}

// The run has no task, so it ends as it starts. Then the workflow may be deleted.
case! { [R2, W3], r2_a_start_races_with_the_deletion_of_its_workflow(t) {
    for _ in 0..20 {
        let run = t.pending_run("").await?;
        let (first, second) = (t.db().clone(), t.db().clone());
        let starting = tokio::spawn(async move { first.start_run(StartRun::pinned(run.id)).await });
        let deleting = tokio::spawn(async move { second.delete_workflow(run.workflow).await });
        let (started, deleted) = (starting.await??, deleting.await?);
        assert_eq!(started.status, Success, "it is pending, so that its workflow stays");
        match deleted {
            Ok(()) => drop(assert_fails!(t.db().get_run(run.id).await, NotFound { entity: Entity::Run, .. })),
            Err(error) => {
                assert!(matches!(error.kind(), Conflict { .. }), "{error:?}");
                assert_eq!(t.db().get_run(run.id).await?, started);
            }
        }
    }
    Ok(())
}}

case! { [R4, T2], r4_a_claim_races_with_a_cancellation(t) {
    for _ in 0..20 {
        let run = t.start("a b:a").await?.id;
        let (first, second) = (t.clone(), t.db().clone());
        let claiming = tokio::spawn(async move { first.claim(10).await });
        let cancelling = tokio::spawn(async move { second.cancel_run(run).await });
        let (claimed, cancelled) = (claiming.await??, cancelling.await??);
        assert_eq!((cancelled.status, cancelled.tasks.unfinished), (Cancelled, 0));
        assert_eq!(t.statuses(run).await?, "a=cancelled b=cancelled");
        // Whichever came first, no lease is left.
        let claims: Vec<_> = claimed.iter().map(|task| task.claim).collect();
        assert!(t.heartbeat(&claims).await?.iter().all(|answer| *answer == HeartbeatOutcome::Lost));
        assert_eq!(t.task(run, "a").await?.lease, None);
        assert!(t.claim(10).await?.is_empty());
    }
    Ok(())
}}

case! { [R4, R5], r4_what_the_attempts_left_stays(t, paused: bool) {
    let run = t.start("failed retried*2 held*1 done waits:held").await?;
    let claimed = t.claim(10).await?;
    let [failed, retried, held, done] = &claimed[..] else { return Err("four tasks are ready".into()) };
    let name = |name: &str| Ok::<_, ork_state_api::Error>(Some(Label::new(name)?));
    t.update([
        TaskUpdate::failed_for_good(failed.claim, Text::new("own")?),
        TaskUpdate::dispatched(retried.claim, name("first")?),
        TaskUpdate::running(retried.claim),
        TaskUpdate::dispatched(held.claim, name("second")?),
        TaskUpdate::running(held.claim),
        TaskUpdate::succeeded(done.claim, None),
    ]).await?;
    t.advance(Duration::from_secs(1));
    t.fail(retried, Duration::from_secs(9)).await?;
    if paused {
        t.db().pause_run(run.id).await?;
    }
    let (before, tasks) = (t.db().get_run(run.id).await?, t.tasks(run.id).await?);
    t.advance(Duration::from_secs(1));
    let cancelled = t.db().cancel_run(run.id).await?;

    let cancelled_tasks = before.tasks.cancelled + before.tasks.unfinished;
    let counts = with(before.tasks, |counts| { counts.unfinished = 0; counts.cancelled = cancelled_tasks; });
    let expected = with(before, |run| { run.status = Cancelled; run.finished_at = Some(t.now()); run.tasks = counts; });
    assert_eq!((counts.total, counts.failed, expected.error.as_deref()), (5, 1, Some("task \"failed\" failed")));
    assert_eq!((&cancelled, &t.db().get_run(run.id).await?), (&expected, &expected));
    let expected: Vec<Task> = tasks.into_iter().map(|task| {
        if task.status.is_terminal() {
            return task;
        }
        let (lease, ready_at, retry_at) = (None, None, None);
        with(task, |task| { task.status = TaskStatus::Cancelled; task.finished_at = Some(t.now()); task.lease = lease; task.ready_at = ready_at; task.retry_at = retry_at; })
    }).collect();
    assert_eq!(t.tasks(run.id).await?, expected);
    let left: Vec<_> = expected.iter().map(|task| (task.attempts, task.execution_name.as_deref(), task.error.as_deref())).collect();
    let all = [(1, None, Some("own")), (1, Some("first"), Some("broken")), (1, Some("second"), None), (1, None, None), (0, None, None)];
    assert_eq!(left, all);
    Ok(())
}
    of_a_running_run => false,
    of_a_paused_run => true,
}

case! { [R1, G5], r1_labels_as_long_as_the_limit_come_back(t) {
    let long = |letter: &str| Label::new(letter.repeat(MAX_LABEL_BYTES / letter.len()));
    let spec = TaskSpec::new("a".parse()?, long("x")?);
    let workflow = t.workflow(Dag::new([spec])?).await?.id;
    let new = NewRun::new(workflow).with_trigger(long("é")?).with_idempotency_key(long("\u{1F600}")?);
    let run = t.db().create_run(new.clone()).await?.into_run();
    assert_eq!((run.triggered_by, run.idempotency_key), (long("é")?, Some(long("\u{1F600}")?)));
    let CreatedRun::Existing(again) = t.db().create_run(new).await? else { return Err("the key is taken".into()) };
    assert_eq!(again.id, run.id);
    t.db().start_run(StartRun::pinned(run.id)).await?;
    let request = ClaimTasks::new(long("o")?, LeaseTime::new(crate::LEASE)?);
    let a = t.db().claim_tasks(request).await?.remove(0);
    t.update([TaskUpdate::dispatched(a.claim, Some(long("n")?))]).await?;
    let task = t.task(run.id, "a").await?;
    assert_eq!((task.executor_type, task.execution_name), (long("x")?, Some(long("n")?)));
    assert_eq!(task.lease.map(|lease| lease.owner), Some(long("o")?));
    Ok(())
}}

case! { R2, r2_a_dag_of_ten_thousand_tasks_starts(t) {
    let workflow = t.workflow(wide_dag(10_000)?).await?;
    let run = t.db().create_run(NewRun::new(workflow.id)).await?.into_run();
    assert_eq!(t.db().start_run(StartRun::pinned(run.id)).await?.tasks.total, 10_000);
    assert_eq!(t.work_off().await?, 10_000);
    assert_eq!(t.db().get_run(run.id).await?.status, Success);
    Ok(())
}}

case! { R3, r3_the_last_success_ends_the_run(t) {
    let run = t.start("a b").await?;
    let (first, second) = (t.claim_one().await?, t.claim_one().await?);
    assert_eq!(t.succeed(&first).await?.ended_runs, []);
    assert_eq!(t.db().get_run(run.id).await?.status, Running);
    t.advance(Duration::from_secs(5));
    let report = t.succeed(&second).await?;
    assert_eq!(report.ended_runs.iter().map(|ended| (ended.run, ended.status)).collect::<Vec<_>>(), [(run.id, Success)]);
    let ended = t.db().get_run(run.id).await?;
    assert_eq!((ended.status, ended.finished_at, ended.error), (Success, Some(t.now()), None));
    assert_eq!(ended.tasks, counts(2, 0, 0, 0));
    Ok(())
}}

case! { R3, r3_a_failure_among_successes_fails_the_run_when_all_have_ended(t) {
    let run = t.start("a b").await?;
    let (first, second) = (t.claim_one().await?, t.claim_one().await?);
    assert_eq!(t.fail(&first, Duration::ZERO).await?.ended_runs, []);
    let going = t.db().get_run(run.id).await?;
    assert_eq!((going.status, going.error.as_deref()), (Running, Some("task \"a\" failed")));
    assert_eq!(t.succeed(&second).await?.ended_runs[0].status, Failed);
    let ended = t.db().get_run(run.id).await?;
    assert_eq!((ended.status, ended.error.as_deref()), (Failed, Some("task \"a\" failed")));
    assert_eq!(ended.tasks, counts(2, 0, 1, 0));
    Ok(())
}}

case! { R3, r3_several_runs_end_in_one_call(t) {
    let mut runs = Vec::new();
    for _ in 0..5 {
        runs.push(t.start("a").await?.id);
    }
    let claimed = t.claim(10).await?;
    let report = t.update(claimed.iter().map(|task| TaskUpdate::succeeded(task.claim, None))).await?;
    runs.sort_unstable();
    assert_eq!(report.ended_runs.iter().map(|ended| ended.run).collect::<Vec<_>>(), runs, "by id, each once");
    Ok(())
}}

case! { R3, r3_one_of_many_finishers_ends_the_run(t) {
    let run = t.start(&(0..32).map(|i| format!("t{i} ")).collect::<String>()).await?;
    let finishers = t.claim(100).await?.into_iter().map(|task| {
        let t = t.clone();
        async move { t.succeed(&task).await }
    });
    let mut ended = 0;
    for report in together(finishers).await? {
        ended += report?.ended_runs.len();
    }
    assert_eq!(ended, 1);
    assert_eq!(t.db().get_run(run.id).await?.status, Success);
    Ok(())
}}

case! { R3, r3_finishers_of_the_last_two_dependencies_make_the_dependent_ready_once(t) {
    for _ in 0..20 {
        let run = t.start("a b c:a,b").await?;
        let claimed = t.claim(2).await?;
        let finishers = claimed.into_iter().map(|task| {
            let t = t.clone();
            async move { t.succeed(&task).await }
        });
        for report in together(finishers).await? {
            report?;
        }
        assert_eq!(t.work_off().await?, 1);
        assert_eq!(t.db().get_run(run.id).await?.status, Success);
    }
    Ok(())
}}

/// Brings a new run of two tasks into a status. One task is finished, where that is possible.
async fn run_in(t: &Ctx, status: RunStatus) -> ork_state_api::Result<Run> {
    let run = t.pending_run("a b").await?;
    if status != Pending {
        t.db().start_run(StartRun::pinned(run.id)).await?;
    }
    match status {
        Pending | Running => {}
        Paused => {
            t.db().pause_run(run.id).await?;
        }
        Success => {
            t.work_off().await?;
        }
        Failed => {
            for task in t.claim(2).await? {
                t.fail(&task, Duration::ZERO).await?;
            }
        }
        Cancelled => {
            t.db().cancel_run(run.id).await?;
        }
    }
    let run = t.db().get_run(run.id).await?;
    assert_eq!(run.status, status);
    Ok(run)
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Cancel,
    Pause,
    Resume,
}

async fn take(t: &Ctx, step: Step, run: RunId) -> ork_state_api::Result<Run> {
    match step {
        Step::Cancel => t.db().cancel_run(run).await,
        Step::Pause => t.db().pause_run(run).await,
        Step::Resume => t.db().resume_run(run).await,
    }
}

/// Checks that a step from a status leads to another one, leaves the run as it is, or is refused.
async fn step_leads_to(t: &Ctx, step: Step, from: RunStatus, to: Option<RunStatus>) -> crate::CaseResult {
    let run = run_in(t, from).await?;
    let tasks = t.tasks(run.id).await?;
    t.advance(Duration::from_secs(1));
    match to {
        Some(to) if to != from => assert_eq!(take(t, step, run.id).await?.status, to),
        Some(_) => assert_eq!(take(t, step, run.id).await?, run, "a repeated step changes nothing"),
        None => {
            let error =
                assert_fails!(take(t, step, run.id).await, InvalidTransition { entity: Entity::Run, .. });
            assert!(error.to_string().contains(from.as_str()), "{error}");
            assert_eq!(t.db().get_run(run.id).await?, run, "a refused step changes nothing");
        }
    }
    if to.is_none_or(|to| to == from) {
        assert_eq!(t.tasks(run.id).await?, tasks);
    }
    Ok(())
}

case! { R4, r4_cancel(t, row: (RunStatus, Option<RunStatus>)) {
    step_leads_to(&t, Step::Cancel, row.0, row.1).await
}
    from_pending => (Pending, Some(Cancelled)),
    from_running => (Running, Some(Cancelled)),
    from_paused => (Paused, Some(Cancelled)),
    from_success_is_refused => (Success, None),
    from_failed_is_refused => (Failed, None),
    again => (Cancelled, Some(Cancelled)),
}

case! { R5, r5_pause(t, row: (RunStatus, Option<RunStatus>)) {
    step_leads_to(&t, Step::Pause, row.0, row.1).await
}
    from_pending_is_refused => (Pending, None),
    from_running => (Running, Some(Paused)),
    again => (Paused, Some(Paused)),
    from_success_is_refused => (Success, None),
    from_failed_is_refused => (Failed, None),
    from_cancelled_is_refused => (Cancelled, None),
}

case! { R5, r5_resume(t, row: (RunStatus, Option<RunStatus>)) {
    step_leads_to(&t, Step::Resume, row.0, row.1).await
}
    from_pending_is_refused => (Pending, None),
    from_running_again => (Running, Some(Running)),
    from_paused => (Paused, Some(Running)),
    from_success_is_refused => (Success, None),
    from_failed_is_refused => (Failed, None),
    from_cancelled_is_refused => (Cancelled, None),
}

case! { G7, g7_an_unknown_run_is_not_found(t) {
    let id = RunId::generate();
    assert_fails!(t.db().get_run(id).await, NotFound { entity: Entity::Run, .. });
    assert_fails!(t.db().start_run(StartRun::pinned(id)).await, NotFound { entity: Entity::Run, .. });
    assert_fails!(t.db().start_run(StartRun::with_dag(id, dag("a")?)).await, NotFound { entity: Entity::Run, .. });
    for step in [Step::Cancel, Step::Pause, Step::Resume] {
        let error = assert_fails!(take(&t, step, id).await, NotFound { entity: Entity::Run, .. });
        assert!(error.to_string().contains(&id.to_string()), "{error}");
    }
    Ok(())
}}

case! { R4, r4_cancelling_ends_unfinished_tasks_and_leaves_finished_ones(t) {
    let run = t.start("a b c d:c").await?;
    let (a, _b) = (t.claim_one().await?, t.claim_one().await?);
    t.succeed(&a).await?;
    t.advance(Duration::from_secs(3));
    let cancelled = t.db().cancel_run(run.id).await?;
    assert_eq!((cancelled.status, cancelled.finished_at), (Cancelled, Some(t.now())));
    assert_eq!(cancelled.tasks, counts(4, 0, 0, 3));
    assert_eq!(t.statuses(run.id).await?, "a=success b=cancelled c=cancelled d=cancelled");
    let b = t.task(run.id, "b").await?;
    assert_eq!((b.finished_at, b.lease, b.ready_at), (Some(t.now()), None, None));
    assert!(t.claim(10).await?.is_empty());
    Ok(())
}}

case! { R4, r4_a_late_success_does_not_revive_the_run(t) {
    let run = t.start("a b:a").await?;
    let a = t.claim_one().await?;
    let cancelled = t.db().cancel_run(run.id).await?;
    let report = t.succeed(&a).await?;
    assert_eq!(report.outcomes, [UpdateOutcome::AlreadyTerminal { status: TaskStatus::Cancelled }]);
    assert_eq!(report.ended_runs, []);
    assert_eq!(t.db().get_run(run.id).await?, cancelled);
    assert_eq!(t.statuses(run.id).await?, "a=cancelled b=cancelled");
    Ok(())
}}

case! { R4, r4_a_late_failure_does_not_fail_the_run(t) {
    let run = t.start("a*5 b:a").await?;
    let a = t.claim_one().await?;
    t.db().cancel_run(run.id).await?;
    assert_eq!(t.fail(&a, Duration::ZERO).await?.outcomes, [UpdateOutcome::AlreadyTerminal { status: TaskStatus::Cancelled }]);
    assert_eq!(t.db().get_run(run.id).await?.error, None);
    assert_eq!(t.statuses(run.id).await?, "a=cancelled b=cancelled");
    Ok(())
}}

case! { R4, r4_tasks_waiting_for_a_retry_are_cancelled(t) {
    let run = t.start("a*5").await?;
    t.fail(&t.claim_one().await?, Duration::from_secs(10)).await?;
    t.db().cancel_run(run.id).await?;
    t.advance(Duration::from_secs(60));
    assert!(t.claim(1).await?.is_empty());
    assert_eq!(t.task(run.id, "a").await?.retry_at, None);
    Ok(())
}}

case! { R4, r4_cancelling_races_with_the_last_completion(t) {
    for _ in 0..20 {
        let run = t.start("a").await?;
        let task = t.claim_one().await?;
        let (first, second) = (t.clone(), t.clone());
        let cancelling = tokio::spawn(async move { first.db().cancel_run(run.id).await });
        let completing = tokio::spawn(async move { second.succeed(&task).await });
        let (cancelled, completed) = (cancelling.await?, completing.await??);
        let end = t.db().get_run(run.id).await?.status;
        match cancelled {
            Ok(run) => {
                assert_eq!((run.status, end), (Cancelled, Cancelled));
                assert_eq!(completed.outcomes, [UpdateOutcome::AlreadyTerminal { status: TaskStatus::Cancelled }]);
            }
            Err(error) => {
                assert!(matches!(error.kind(), InvalidTransition { .. }), "{error:?}");
                assert_eq!((end, completed.ended_runs.len()), (Success, 1));
            }
        }
    }
    Ok(())
}}
