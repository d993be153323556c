//! R1 to R6.

use ork_state_api::{
    CreatedRun, Dag, Error, Label, NewRun, RetryRun, Run, RunId, RunStatus, StartRun, TaskStatus, Timestamp,
};

use super::super::{Answer, Call, Turn};
use super::general::put;
use super::{Fault, tasks_of};
use crate::Rule::{R1, R2, R3, R4, R5, R6};
use crate::ctx::with;

pub(super) const FAULTS: &[Fault] = &[
    // R1
    Fault::new(R1, "key-ignored", "makes another run for a key", |turn| {
        let Call::CreateRun { new } = turn.call.clone() else { return turn.honest() };
        let there: Vec<Run> = with_key(turn, &new).collect();
        for run in &there {
            turn.model.runs.remove(&run.id);
        }
        let answer = turn.honest();
        turn.model.runs.extend(there.into_iter().map(|run| (run.id, run)));
        answer
    }),
    Fault::new(R1, "key-for-all", "makes one run for a key whatever the workflow", |turn| {
        if let Call::CreateRun { new } = &mut turn.call
            && new.idempotency_key.is_some()
            && let Some(run) = turn.model.runs.values().find(|run| run.idempotency_key == new.idempotency_key)
        {
            new.workflow = run.workflow;
        }
        turn.honest()
    }),
    Fault::new(R1, "key-without-case", "has two keys for one that differ in case only", |turn| {
        if let Call::CreateRun { new } = &mut turn.call {
            new.idempotency_key =
                new.idempotency_key.as_ref().map(|key| Label::lossy(&key.as_str().to_lowercase()));
        }
        turn.honest()
    }),
    Fault::new(R1, "existing-told-as-new", "says of a run that was there that it is new", |turn| match turn
        .honest()
    {
        Answer::CreateRun(Ok(CreatedRun::Existing(run))) => Answer::CreateRun(Ok(CreatedRun::New(run))),
        answer => answer,
    }),
    Fault::new(R1, "existing-as-created", "shows a run that was there as it was created", |turn| match turn
        .honest()
    {
        Answer::CreateRun(Ok(CreatedRun::Existing(run))) => {
            let status = RunStatus::Pending;
            Answer::CreateRun(Ok(CreatedRun::Existing(with(run, |run| {
                run.status = status;
                run.started_at = None;
            }))))
        }
        answer => answer,
    }),
    Fault::new(R1, "key-checked-before", "looks for a key, and takes it a moment later", |turn| {
        let answer = turn.honest();
        if let Answer::CreateRun(Ok(CreatedRun::New(run))) = &answer {
            let run = run.clone();
            turn.model.runs.remove(&run.id);
            turn.later(move |model| drop(model.runs.insert(run.id, run)));
        }
        answer
    }),
    Fault::new(R1, "first-snapshot", "pins the workflow's first snapshot", |turn| {
        let mut answer = turn.honest();
        if let Answer::CreateRun(Ok(CreatedRun::New(run))) = &mut answer
            && let Some(first) = turn.model.snapshots.values().find(|it| it.workflow == run.workflow)
        {
            run.snapshot = first.id;
            turn.model.runs.insert(run.id, run.clone());
        }
        answer
    }),
    Fault::new(R1, "runs-at-once", "creates runs as running", |turn| {
        let mut answer = turn.honest();
        if let Answer::CreateRun(Ok(CreatedRun::New(run))) = &mut answer {
            run.status = RunStatus::Running;
        }
        answer
    }),
    Fault::new(R1, "one-run-at-a-time", "makes one run of a workflow, key or not", |turn| {
        if let Call::CreateRun { new } = &mut turn.call {
            new.idempotency_key.get_or_insert(Label::lossy("only"));
        }
        turn.honest()
    }),
    Fault::new(R1, "workflow-not-checked", "makes a run of a workflow that is not there", |turn| {
        let Call::CreateRun { new } = turn.call.clone() else { return turn.honest() };
        match turn.honest() {
            Answer::CreateRun(Err(error)) => match turn.model.workflows.values().next().cloned() {
                Some(other) => {
                    let run = turn.model.new_run(turn.now, &other, new.triggered_by, None, None);
                    Answer::CreateRun(Ok(CreatedRun::New(run)))
                }
                None => Answer::CreateRun(Err(error)),
            },
            answer => answer,
        }
    }),
    // R2
    Fault::new(R2, "started-again", "makes the tasks again when a run is started again", |turn| {
        before_start(turn, RunStatus::Running)
    }),
    Fault::new(R2, "ended-started", "starts a run that has ended", |turn| {
        before_start(turn, RunStatus::Success)
    }),
    Fault::new(R2, "cancelled-started", "starts a run that was cancelled", |turn| {
        before_start(turn, RunStatus::Cancelled)
    }),
    Fault::new(R2, "paused-started", "sets a paused run going when it is started again", |turn| {
        if let Call::StartRun { start } = &turn.call {
            set(turn, start.run, RunStatus::Paused, RunStatus::Running);
        }
        turn.honest()
    }),
    Fault::new(R2, "given-dag-ignored", "starts a run with its pinned DAG though another is given", |turn| {
        if let Call::StartRun { start } = &mut turn.call {
            start.dag = None;
        }
        turn.honest()
    }),
    Fault::new(R2, "empty-dag-runs", "has a run without tasks run for ever", |turn| {
        let mut answer = turn.honest();
        if let Answer::StartRun(Ok(run)) = &mut answer
            && run.tasks.total == 0
        {
            (run.status, run.finished_at) = (RunStatus::Running, None);
            turn.model.runs.insert(run.id, run.clone());
        }
        answer
    }),
    Fault::new(R2, "a-thousand-tasks", "makes the first thousand tasks of a DAG", |turn| {
        let Call::StartRun { start } = turn.call.clone() else { return turn.honest() };
        let Ok(run) = turn.model.get_run(start.run) else { return turn.honest() };
        let dag = start.dag.or_else(|| Some(turn.model.get_snapshot(run.snapshot).ok()?.dag));
        let first = dag.and_then(|dag| Dag::new(dag.tasks().iter().take(1_000).cloned()).ok());
        match first {
            Some(first) => turn.instead(Call::StartRun { start: StartRun::with_dag(start.run, first) }),
            None => turn.honest(),
        }
    }),
    Fault::new(
        R2,
        "start-checked-before",
        "looks whether a run is to be started, and makes its tasks a moment later",
        |turn| {
            let Call::StartRun { start } = turn.call.clone() else { return turn.honest() };
            let before = turn.model.clone();
            let answer = turn.honest();
            if let Answer::StartRun(Ok(run)) = &answer
                && before.runs.get(&run.id).is_some_and(|old| old.status == RunStatus::Pending)
                && let Some(rows) = turn.model.tasks.get(&run.id).cloned()
            {
                let (new, id) = (turn.model.runs.get(&run.id).cloned(), start.run);
                *turn.model = before;
                turn.later(move |model| {
                    model.places.extend(
                        rows.iter().map(|row| (row.detail.task.id, (id, row.detail.task.index as usize))),
                    );
                    model.tasks.entry(id).or_default().extend(rows);
                    model.runs.extend(new.map(|run| (id, run)));
                });
            }
            answer
        },
    ),
    Fault::new(R2, "start-not-dated", "does not say when a run was started", |turn| {
        let mut answer = turn.honest();
        if let Answer::StartRun(Ok(run)) = &mut answer {
            run.started_at = None;
            turn.model.edit_run(run.id, |run| run.started_at = None);
        }
        answer
    }),
    // R3
    Fault::new(R3, "run-goes-on", "leaves it to others to end a run whose tasks have ended", |turn| {
        let answer = turn.honest();
        for id in ended(&answer) {
            turn.model.edit_run(id, |run| (run.status, run.finished_at) = (RunStatus::Running, None));
        }
        answer
    }),
    Fault::new(R3, "end-not-told", "does not say which runs have ended", |turn| match turn.honest() {
        Answer::UpdateTasks(Ok(mut report)) => {
            report.ended_runs.clear();
            Answer::UpdateTasks(Ok(report))
        }
        answer => answer,
    }),
    Fault::new(R3, "failure-is-success", "ends every run as a success", |turn| {
        let answer = turn.honest();
        for id in ended(&answer) {
            turn.model.edit_run(id, |run| run.status = RunStatus::Success);
        }
        answer
    }),
    Fault::new(
        R3,
        "cancelled-is-success",
        "ends a run as a success in which a cancelled task stays",
        |turn| {
            let mut answer = turn.honest();
            for id in ended(&answer) {
                if turn.model.get_run(id).is_ok_and(|run| run.tasks.failed == 0 && run.tasks.cancelled > 0) {
                    turn.model.edit_run(id, |run| run.status = RunStatus::Success);
                    if let Answer::UpdateTasks(Ok(report)) = &mut answer {
                        report.ended_runs.iter_mut().for_each(|ended| ended.status = RunStatus::Success);
                    }
                }
            }
            answer
        },
    ),
    Fault::new(R3, "first-failure-ends", "fails a run at its first failure, whatever still runs", |turn| {
        let answer = turn.honest();
        let now = turn.now;
        if let Answer::UpdateTasks(Ok(_)) = answer {
            let failed: Vec<RunId> = turn.model.runs.keys().copied().collect();
            for id in failed {
                if turn.model.get_run(id).is_ok_and(|run| run.tasks.failed > 0 && !run.status.is_terminal()) {
                    turn.model.edit_run(id, |run| {
                        (run.status, run.finished_at) = (RunStatus::Failed, Some(now));
                    });
                }
            }
        }
        answer
    }),
    Fault::new(R3, "one-end-a-call", "ends one run a call", |turn| {
        let mut answer = turn.honest();
        if let Answer::UpdateTasks(Ok(report)) = &mut answer {
            for other in report.ended_runs.drain(1.min(report.ended_runs.len())..) {
                turn.model.edit_run(other.run, |run| {
                    (run.status, run.finished_at) = (RunStatus::Running, None);
                });
            }
        }
        answer
    }),
    Fault::new(R3, "end-not-dated", "does not say when a run ended", |turn| {
        let answer = turn.honest();
        for id in ended(&answer) {
            turn.model.edit_run(id, |run| run.finished_at = None);
        }
        answer
    }),
    Fault::new(
        R3,
        "each-sees-the-other",
        "leaves a run going whose last two tasks end at once, for each call sees the other's task live",
        |turn| {
            let before = turn.model.clone();
            let answer = turn.honest();
            if let Answer::UpdateTasks(Ok(_)) = &answer {
                for (old, new) in super::general::changed(&before, turn.model, |_| true) {
                    put(turn.model, old);
                    turn.later(move |model| put(model, new));
                }
            }
            answer
        },
    ),
    // R4
    Fault::new(R4, "running-tasks-go-on", "cancels what waits and not what runs", |turn| {
        after_cancel(turn, |before| matches!(before, TaskStatus::Dispatched | TaskStatus::Running))
    }),
    Fault::new(R4, "retries-go-on", "does not cancel a task that waits for a retry", |turn| {
        let before = turn.model.tasks.clone();
        let answer = turn.honest();
        if let Answer::CancelRun(Ok(run)) = &answer {
            for old in
                before.get(&run.id).into_iter().flatten().filter(|row| row.detail.task.retry_at.is_some())
            {
                put(turn.model, old.clone());
            }
        }
        answer
    }),
    Fault::new(R4, "ends-overwritten", "cancels tasks that have ended too", |turn| {
        let answer = turn.honest();
        if let Answer::CancelRun(Ok(run)) = &answer {
            for row in tasks_of(turn.model).filter(|row| row.detail.task.run == run.id) {
                row.detail.task.status = TaskStatus::Cancelled;
            }
        }
        answer
    }),
    Fault::new(R4, "revived", "has a late success revive a cancelled run", |turn| {
        late(turn, RunStatus::Success)
    }),
    Fault::new(R4, "failed-late", "has a late failure fail a cancelled run", |turn| {
        late(turn, RunStatus::Failed)
    }),
    Fault::new(R4, "paused-not-cancelled", "does not cancel a paused run", |turn| {
        if let Call::CancelRun { id } = turn.call
            && let Some(run) = turn.model.runs.get(&id).filter(|run| run.status == RunStatus::Paused)
        {
            let entity = ork_state_api::Entity::Run;
            return turn.call.fails(Error::invalid_transition(entity, id, run.status, RunStatus::Cancelled));
        }
        turn.honest()
    }),
    Fault::new(R4, "cancelled-once", "refuses to cancel a run again", |turn| {
        if let Call::CancelRun { id } = turn.call
            && let Some(run) = turn.model.runs.get(&id).filter(|run| run.status == RunStatus::Cancelled)
        {
            let entity = ork_state_api::Entity::Run;
            return turn.call.fails(Error::invalid_transition(entity, id, run.status, RunStatus::Cancelled));
        }
        turn.honest()
    }),
    Fault::new(R4, "ended-cancelled", "cancels a run that has ended", |turn| {
        if let Call::CancelRun { id } = turn.call {
            set(turn, id, RunStatus::Success, RunStatus::Running);
            set(turn, id, RunStatus::Failed, RunStatus::Running);
        }
        turn.honest()
    }),
    Fault::new(R4, "attempts-forgotten", "forgets what the cancelled attempts had left", |turn| {
        let answer = turn.honest();
        if let Answer::CancelRun(Ok(run)) = &answer {
            for row in tasks_of(turn.model).filter(|row| row.detail.task.run == run.id) {
                let task = &mut row.detail.task;
                (task.attempts, task.execution_name, task.error, task.started_at) = (0, None, None, None);
            }
        }
        answer
    }),
    Fault::new(R4, "cancel-in-two-steps", "cancels a run a moment before its tasks", |turn| {
        let before = turn.model.tasks.clone();
        let answer = turn.honest();
        if let Answer::CancelRun(Ok(run)) = &answer {
            let (id, now) = (run.id, turn.now);
            if let Some(old) = before.get(&id).cloned()
                && let Some(new) = turn.model.tasks.insert(id, old)
            {
                turn.later(move |model| {
                    // Those that have ended meanwhile stay so.
                    for row in new {
                        if model.row(row.detail.task.id).is_ok_and(|it| !it.detail.task.status.is_terminal())
                        {
                            put(model, row);
                        }
                    }
                    model.edit_run(id, |run| run.finished_at = Some(now));
                });
            }
        }
        answer
    }),
    // R5
    Fault::new(R5, "paused-hands-out", "hands out the tasks of a paused run", |turn| {
        if !matches!(turn.call, Call::ClaimTasks { .. } | Call::ReadyTasks { .. }) {
            return turn.honest();
        }
        let runs = turn.model.runs.clone();
        for run in turn.model.runs.values_mut().filter(|run| run.status == RunStatus::Paused) {
            run.status = RunStatus::Running;
        }
        let answer = turn.honest();
        turn.model.runs = runs;
        answer
    }),
    Fault::new(R5, "pause-ends-leases", "takes the tasks that run away when a run is paused", |turn| {
        let answer = turn.honest();
        if let Answer::PauseRun(Ok(run)) = &answer {
            for row in tasks_of(turn.model).filter(|row| row.detail.task.run == run.id) {
                if row.detail.task.lease.take().is_some() {
                    row.detail.task.status = TaskStatus::Pending;
                }
            }
        }
        answer
    }),
    Fault::new(R5, "pause-loses-ready", "loses what was ready when a run is resumed", |turn| {
        let answer = turn.honest();
        if let Answer::ResumeRun(Ok(run)) = &answer {
            let never = turn.now.saturating_add(std::time::Duration::from_secs(1_000_000_000));
            for row in tasks_of(turn.model).filter(|row| row.detail.task.run == run.id) {
                row.ready_since = never;
            }
        }
        answer
    }),
    Fault::new(
        R5,
        "resumed-to-the-front",
        "has a resumed run go before those that waited meanwhile",
        |turn| {
            let before = turn.model.tasks.clone();
            let answer = turn.honest();
            if let Answer::ResumeRun(Ok(run)) = &answer {
                turn.model.tasks.extend(before.into_iter().filter(|(id, _)| *id == run.id));
            }
            answer
        },
    ),
    Fault::new(
        R5,
        "resumed-before-retry",
        "tries what waits for a retry at once when its run is resumed",
        |turn| {
            let answer = turn.honest();
            if let Answer::ResumeRun(Ok(run)) = &answer {
                let now = turn.now;
                for row in tasks_of(turn.model).filter(|row| row.detail.task.run == run.id) {
                    row.ready_since = now;
                }
            }
            answer
        },
    ),
    Fault::new(R5, "pause-for-all", "pauses all runs of the workflow", |turn| {
        let answer = turn.honest();
        if let Answer::PauseRun(Ok(_)) = &answer {
            for run in turn.model.runs.values_mut().filter(|run| run.status == RunStatus::Running) {
                run.status = RunStatus::Paused;
            }
        }
        answer
    }),
    Fault::new(R5, "paused-never-ends", "does not end a paused run with its last task", |turn| {
        let paused: Vec<RunId> = turn
            .model
            .runs
            .values()
            .filter(|run| run.status == RunStatus::Paused)
            .map(|run| run.id)
            .collect();
        let answer = turn.honest();
        for id in ended(&answer).into_iter().filter(|id| paused.contains(id)) {
            turn.model.edit_run(id, |run| (run.status, run.finished_at) = (RunStatus::Paused, None));
        }
        answer
    }),
    Fault::new(R5, "pending-paused", "pauses a run that has not begun", |turn| {
        if let Call::PauseRun { id } = turn.call {
            set(turn, id, RunStatus::Pending, RunStatus::Running);
        }
        turn.honest()
    }),
    Fault::new(R5, "paused-once", "refuses to pause a run again", |turn| {
        if let Call::PauseRun { id } = turn.call
            && let Some(run) = turn.model.runs.get(&id).filter(|run| run.status == RunStatus::Paused)
        {
            let entity = ork_state_api::Entity::Run;
            return turn.call.fails(Error::invalid_transition(entity, id, run.status, RunStatus::Paused));
        }
        turn.honest()
    }),
    Fault::new(R5, "ended-resumed", "resumes a run that has ended", |turn| {
        if let Call::ResumeRun { id } = turn.call {
            for status in [RunStatus::Success, RunStatus::Failed, RunStatus::Cancelled] {
                set(turn, id, status, RunStatus::Paused);
            }
        }
        turn.honest()
    }),
    Fault::new(R5, "pause-in-two-steps", "writes a pause over what has happened since it looked", |turn| {
        let answer = turn.honest();
        if let Answer::PauseRun(Ok(run)) = &answer {
            let id = run.id;
            turn.model.edit_run(id, |run| run.status = RunStatus::Running);
            turn.later(move |model| {
                model.edit_run(id, |run| (run.status, run.finished_at) = (RunStatus::Paused, None));
            });
        }
        answer
    }),
    // R6
    Fault::new(R6, "successes-again", "does successes again", |turn| {
        if let Call::RetryRun { retry: RetryRun { run, tasks: tasks @ None, .. } } = &mut turn.call {
            *tasks = Some(turn.model.rows(*run).iter().map(|row| row.detail.task.name.clone()).collect());
        }
        turn.honest()
    }),
    Fault::new(R6, "without-what-follows", "does named tasks again and not what follows them", |turn| {
        let Call::RetryRun { retry } = turn.call.clone() else { return turn.honest() };
        let before = turn.model.tasks.get(&retry.run).cloned().unwrap_or_default();
        let answer = turn.honest();
        if let (Answer::RetryRun(Ok(_)), Some(names)) = (&answer, retry.tasks) {
            for old in before.into_iter().filter(|row| !names.contains(&row.detail.task.name)) {
                put(turn.model, old);
            }
        }
        answer
    }),
    Fault::new(R6, "attempts-stay", "counts the attempts of a retried task on", |turn| {
        after_retry(turn, |old, new| new.detail.task.attempts = old.detail.task.attempts)
    }),
    Fault::new(R6, "errors-stay", "keeps the error of a retried task", |turn| {
        after_retry(turn, |old, new| new.detail.task.error.clone_from(&old.detail.task.error))
    }),
    Fault::new(R6, "outputs-stay", "keeps the output of a task that is done again", |turn| {
        after_retry(turn, |old, new| new.detail.output.clone_from(&old.detail.output))
    }),
    Fault::new(R6, "logs-go", "empties the log of a retried task", |turn| {
        after_retry(turn, |old, new| {
            if old.detail.task.status != new.detail.task.status {
                new.log.clear();
            }
        })
    }),
    Fault::new(R6, "cancelled-stay", "does not do cancelled tasks again", |turn| {
        after_retry(turn, |old, new| {
            if old.detail.task.status == TaskStatus::Cancelled {
                *new = old.clone();
            }
        })
    }),
    Fault::new(R6, "retry-with-old-end", "keeps the end of a run that is live again", |turn| {
        let before = turn.model.runs.clone();
        let answer = turn.honest();
        if let Answer::RetryRun(Ok(run)) = &answer
            && let Some(old) = before.get(&run.id)
        {
            let (finished_at, error) = (old.finished_at, old.error.clone());
            turn.model.edit_run(run.id, |run| (run.finished_at, run.error) = (finished_at, error));
        }
        answer
    }),
    Fault::new(R6, "live-retried", "retries a run that has not ended", |turn| {
        if let Call::RetryRun { retry } = &turn.call {
            set(turn, retry.run, RunStatus::Running, RunStatus::Failed);
        }
        turn.honest()
    }),
    Fault::new(R6, "nothing-retried", "sets a run going that has nothing to do again", |turn| {
        let Call::RetryRun { retry } = turn.call.clone() else { return turn.honest() };
        match turn.honest() {
            Answer::RetryRun(Err(error)) if retry.tasks.is_none() => match turn.model.get_run(retry.run) {
                Ok(run) if run.status == RunStatus::Success => Answer::RetryRun(Ok(run)),
                _ => Answer::RetryRun(Err(error)),
            },
            answer => answer,
        }
    }),
    Fault::new(R6, "unknown-names-ignored", "retries what it knows of several named tasks", |turn| {
        if let Call::RetryRun { retry: RetryRun { run, tasks: Some(names), .. } } = &mut turn.call {
            let rows = turn.model.rows(*run);
            names.retain(|name| rows.iter().any(|row| row.detail.task.name == *name));
        }
        turn.honest()
    }),
    Fault::new(
        R6,
        "retry-checked-before",
        "looks whether a run has ended, and retries it a moment later",
        |turn| {
            let Call::RetryRun { retry } = turn.call.clone() else { return turn.honest() };
            let before = turn.model.clone();
            let answer = turn.honest();
            if answer.error().is_none() {
                let (id, now) = (retry.run, turn.now);
                *turn.model = before;
                turn.later(move |model| {
                    model.retry_run(now, &retry).ok();
                    model.edit_run(id, |run| run.status = RunStatus::Running);
                });
            }
            answer
        },
    ),
    Fault::new(R6, "behind-a-failure", "does a task again though what it depends on has failed", |turn| {
        let Call::RetryRun { retry } = turn.call.clone() else { return turn.honest() };
        match turn.honest() {
            Answer::RetryRun(Err(error))
                if matches!(error.kind(), ork_state_api::ErrorKind::Conflict { .. }) =>
            {
                Answer::RetryRun(turn.model.get_run(retry.run))
            }
            answer => answer,
        }
    }),
];

fn with_key(turn: &Turn<'_>, new: &NewRun) -> impl Iterator<Item = Run> {
    let (workflow, key) = (new.workflow, new.idempotency_key.clone());
    let of_key = move |run: &&Run| run.workflow == workflow && run.idempotency_key == key && key.is_some();
    turn.model.runs.values().filter(of_key).cloned().collect::<Vec<_>>().into_iter()
}

fn set(turn: &mut Turn<'_>, id: RunId, from: RunStatus, to: RunStatus) {
    turn.model.edit_run(id, |run| {
        if run.status == from {
            run.status = to;
        }
    });
}

/// Starts a run in this status as if it had not begun.
fn before_start(turn: &mut Turn<'_>, status: RunStatus) -> Answer {
    if let Call::StartRun { start } = &turn.call {
        set(turn, start.run, status, RunStatus::Pending);
    }
    turn.honest()
}

/// The runs that ended with a call.
fn ended(answer: &Answer) -> Vec<RunId> {
    let ended = match answer {
        Answer::UpdateTasks(Ok(report)) => &report.ended_runs,
        Answer::ExpireLeases(Ok(expired)) | Answer::ExpireTimeouts(Ok(expired)) => &expired.ended_runs,
        Answer::UpdateJobs(Ok(report)) => &report.ended_runs,
        _ => return vec![],
    };
    ended.iter().map(|ended| ended.run).collect()
}

/// Cancels a run but for the tasks that were in one of these statuses.
fn after_cancel(turn: &mut Turn<'_>, stays: fn(TaskStatus) -> bool) -> Answer {
    let before = turn.model.tasks.clone();
    let answer = turn.honest();
    if let Answer::CancelRun(Ok(run)) = &answer {
        for old in before.get(&run.id).into_iter().flatten().filter(|row| stays(row.detail.task.status)) {
            put(turn.model, old.clone());
        }
    }
    answer
}

/// Retries a run and then changes each of its tasks, which was like the first and is like the
/// second.
fn after_retry(
    turn: &mut Turn<'_>,
    change: fn(&super::super::TaskRow, &mut super::super::TaskRow),
) -> Answer {
    let before = turn.model.tasks.clone();
    let answer = turn.honest();
    if let Answer::RetryRun(Ok(run)) = &answer {
        let old = before.get(&run.id).into_iter().flatten();
        for (old, new) in old.zip(turn.model.tasks.get_mut(&run.id).into_iter().flatten()) {
            change(old, new);
        }
    }
    answer
}

/// Has an update of a task of a cancelled run end the run in another way.
fn late(turn: &mut Turn<'_>, status: RunStatus) -> Answer {
    let Call::UpdateTasks { updates } = turn.call.clone() else { return turn.honest() };
    let now: Timestamp = turn.now;
    for step in updates.steps() {
        let is_meant = match &step.end {
            Some(ork_state_api::TaskChange::Succeeded { .. }) => status == RunStatus::Success,
            Some(ork_state_api::TaskChange::Failed { .. }) => status == RunStatus::Failed,
            _ => false,
        };
        if let Ok(row) = turn.model.row(step.claim.task)
            && is_meant
        {
            let id = row.detail.task.run;
            turn.model.edit_run(id, |run| {
                if run.status == RunStatus::Cancelled {
                    (run.status, run.finished_at) = (status, Some(now));
                }
            });
        }
    }
    turn.honest()
}
