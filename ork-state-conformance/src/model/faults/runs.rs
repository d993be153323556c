//! R1 to R3.

use ork_state_api::{CreatedRun, Dag, Label, Run, RunId, RunStatus, StartRun};

use super::super::{Answer, Call, Model};
use super::Fault;
use super::shapes::{after, before, changed, postpone};
use crate::Rule::{R1, R2, R3};

pub(super) const FAULTS: &[Fault] = &[
    // R1
    Fault::new(R1, "key-ignored", "makes another run for a key", |turn| {
        let Call::CreateRun { new } = &turn.call else { return turn.honest() };
        let is_meant = |run: &Run| run.workflow == new.workflow && run.idempotency_key == new.idempotency_key;
        let runs = &mut turn.model.runs;
        let there: Vec<_> =
            runs.extract_if(.., |_, run| run.idempotency_key.is_some() && is_meant(run)).collect();
        let answer = turn.honest();
        turn.model.runs.extend(there);
        answer
    }),
    before! { R1, "key-for-all", "makes one run for a key whatever the workflow",
    |turn, Call::CreateRun { new }| {
        let there = turn.model.runs.values().find(|run| run.idempotency_key == new.idempotency_key);
        if let Some(run) = there.filter(|run| run.idempotency_key.is_some()) {
            new.workflow = run.workflow;
        }
    }},
    before! { R1, "key-without-case", "has two keys for one that differ in case only",
    |turn, Call::CreateRun { new }| {
        if let Some(key) = &mut new.idempotency_key {
            *key = Label::lossy(&key.as_str().to_lowercase());
        }
    }},
    after! { R1, "existing-told-as-new", "says of a run that was there that it is new",
    |turn, Answer::CreateRun(Ok(created))| {
        if let CreatedRun::Existing(run) = created {
            *created = CreatedRun::New(run.clone());
        }
    }},
    after! { R1, "existing-as-created", "shows a run that was there as it was created",
    |turn, Answer::CreateRun(Ok(CreatedRun::Existing(run)))| {
        (run.status, run.started_at) = (RunStatus::Pending, None);
    }},
    after! { R1, "key-checked-before", "looks for a key, and takes it a moment later",
    |turn, Answer::CreateRun(Ok(CreatedRun::New(run)))| {
        let run = run.clone();
        turn.model.runs.remove(&run.id);
        turn.later(move |model| drop(model.runs.insert(run.id, run)));
    }},
    after! { R1, "first-snapshot", "pins the workflow's first snapshot",
        |turn, Answer::CreateRun(Ok(CreatedRun::New(run)))| pin_first_snapshot(turn.model, run)
    },
    after! { R1, "runs-at-once", "creates runs as running",
        |turn, Answer::CreateRun(Ok(CreatedRun::New(run)))| run.status = RunStatus::Running
    },
    before! { R1, "one-run-at-a-time", "makes one run of a workflow, key or not",
        |turn, Call::CreateRun { new }| new.idempotency_key.get_or_insert(Label::lossy("only"))
    },
    after! { R1, "workflow-not-checked", "makes a run of a workflow that is not there",
    |turn, Call::CreateRun { new }, Answer::CreateRun(created @ Err(_))| {
        if let Some(other) = turn.model.workflows.values().next().cloned() {
            let run = turn.model.new_run(turn.now, &other, new.triggered_by.clone(), None, None);
            *created = Ok(CreatedRun::New(run));
        }
    }},
    // R2
    before! { R2, "started-again", "makes the tasks again when a run is started again",
    |turn, Call::StartRun { start }| {
        set_status(turn.model, start.run, RunStatus::Running, RunStatus::Pending);
    }},
    before! { R2, "ended-started", "starts a run that has ended", |turn, Call::StartRun { start }| {
        set_status(turn.model, start.run, RunStatus::Success, RunStatus::Pending);
    }},
    before! { R2, "cancelled-started", "starts a run that was cancelled", |turn, Call::StartRun { start }| {
        set_status(turn.model, start.run, RunStatus::Cancelled, RunStatus::Pending);
    }},
    before! { R2, "paused-started", "sets a paused run going when it is started again",
    |turn, Call::StartRun { start }| {
        set_status(turn.model, start.run, RunStatus::Paused, RunStatus::Running);
    }},
    before! { R2, "given-dag-ignored", "starts a run with its pinned DAG though another is given",
        |turn, Call::StartRun { start }| start.dag = None
    },
    after! { R2, "empty-dag-runs", "has a run without tasks run for ever", |turn, Answer::StartRun(Ok(run))| {
        if run.tasks.total == 0 {
            (run.status, run.finished_at) = (RunStatus::Running, None);
            turn.model.runs.insert(run.id, run.clone());
        }
    }},
    before! { R2, "a-thousand-tasks", "makes the first thousand tasks of a DAG",
    |turn, Call::StartRun { start }| {
        let pinned = turn.model.get_run(start.run).and_then(|run| turn.model.get_snapshot(run.snapshot));
        let dag = start.dag.clone().or(pinned.ok().map(|snapshot| snapshot.dag));
        let first = dag.and_then(|dag| Dag::new(dag.tasks().iter().take(1_000).cloned()).ok());
        if let Some(first) = first {
            *start = StartRun::with_dag(start.run, first);
        }
    }},
    after! { R2, "start-checked-before",
        "looks whether a run is to be started, and makes its tasks a moment later",
    |turn, old, Answer::StartRun(Ok(run))| {
        let id = run.id;
        if old.runs.get(&id).is_some_and(|run| run.status == RunStatus::Pending)
            && let Some(rows) = turn.model.tasks.get(&id).cloned()
        {
            let new = turn.model.runs.get(&id).cloned();
            *turn.model = old.clone();
            turn.later(move |model| {
                let places =
                    rows.iter().map(|row| (row.detail.task.id, (id, row.detail.task.index as usize)));
                model.places.extend(places);
                model.tasks.entry(id).or_default().extend(rows);
                model.runs.extend(new.map(|run| (id, run)));
            });
        }
    }},
    after! { R2, "start-not-dated", "does not say when a run was started", |turn, Answer::StartRun(Ok(run))| {
        run.started_at = None;
        turn.model.edit_run(run.id, |run| run.started_at = None);
    }},
    // R3
    after! { R3, "run-goes-on", "leaves it to others to end a run whose tasks have ended", |turn, answer| {
        for id in ended(answer) {
            turn.model.edit_run(id, |run| (run.status, run.finished_at) = (RunStatus::Running, None));
        }
    }},
    after! { R3, "end-not-told", "does not say which runs have ended",
        |turn, Answer::UpdateTasks(Ok(report))| report.ended_runs.clear()
    },
    after! { R3, "failure-is-success", "ends every run as a success", |turn, answer| {
        for id in ended(answer) {
            turn.model.edit_run(id, |run| run.status = RunStatus::Success);
        }
    }},
    after! { R3, "cancelled-is-success", "ends a run as a success in which a cancelled task stays",
    |turn, answer| {
        for id in ended(answer) {
            if turn.model.get_run(id).is_ok_and(|run| run.tasks.failed == 0 && run.tasks.cancelled > 0) {
                turn.model.edit_run(id, |run| run.status = RunStatus::Success);
                if let Answer::UpdateTasks(Ok(report)) = &mut *answer {
                    report.ended_runs.iter_mut().for_each(|ended| ended.status = RunStatus::Success);
                }
            }
        }
    }},
    after! { R3, "first-failure-ends", "fails a run at its first failure, whatever still runs",
    |turn, Answer::UpdateTasks(Ok(_))| {
        let runs: Vec<RunId> = turn.model.runs.keys().copied().collect();
        for id in runs {
            if turn.model.get_run(id).is_ok_and(|run| run.tasks.failed > 0 && !run.status.is_terminal()) {
                let now = turn.now;
                turn.model.edit_run(id, |run| (run.status, run.finished_at) = (RunStatus::Failed, Some(now)));
            }
        }
    }},
    after! { R3, "one-end-a-call", "ends one run a call", |turn, Answer::UpdateTasks(Ok(report))| {
        for other in report.ended_runs.drain(1.min(report.ended_runs.len())..) {
            turn.model.edit_run(other.run, |run| {
                (run.status, run.finished_at) = (RunStatus::Running, None);
            });
        }
    }},
    after! { R3, "end-not-dated", "does not say when a run ended", |turn, answer| {
        for id in ended(answer) {
            turn.model.edit_run(id, |run| run.finished_at = None);
        }
    }},
    after! { R3, "each-sees-the-other",
        "leaves a run going whose last two tasks end at once, for each call sees the other's task live",
        |turn, old, Answer::UpdateTasks(Ok(_))| postpone(turn, changed(old, turn.model))
    },
];

/// Sets a run's status to the second of these if it is the first.
pub(super) fn set_status(model: &mut Model, id: RunId, from: RunStatus, to: RunStatus) {
    if let Some(run) = model.runs.get_mut(&id).filter(|run| run.status == from) {
        run.status = to;
    }
}

/// Gives a new run the first snapshot of its workflow.
pub(super) fn pin_first_snapshot(model: &mut Model, run: &mut Run) {
    if let Some(first) = model.snapshots.values().find(|it| it.workflow == run.workflow) {
        run.snapshot = first.id;
        model.runs.insert(run.id, run.clone());
    }
}

/// The runs that ended in a call.
pub(super) fn ended(answer: &Answer) -> Vec<RunId> {
    let ended = match answer {
        Answer::UpdateTasks(Ok(report)) => &report.ended_runs,
        Answer::ExpireLeases(Ok(expired)) | Answer::ExpireTimeouts(Ok(expired)) => &expired.ended_runs,
        Answer::UpdateJobs(Ok(report)) => &report.ended_runs,
        _ => return vec![],
    };
    ended.iter().map(|ended| ended.run).collect()
}
