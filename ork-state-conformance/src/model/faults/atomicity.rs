//! G1 and G9.

use std::collections::BTreeSet;

use ork_state_api::RunStatus;

use super::super::{Answer, Call};
use super::Fault;
use super::shapes::{after, changed, postpone};
use crate::Rule::{G1, G9};

pub(super) const FAULTS: &[Fault] = &[
    // G1
    after! { G1, "tasks-after-run", "sets a run going before its tasks are there",
    |turn, Answer::StartRun(Ok(run))| {
        let id = run.id;
        if let Some(rows) = turn.model.tasks.remove(&id) {
            turn.later(move |model| drop(model.tasks.insert(id, rows)));
        }
    }},
    after! { G1, "cascade-in-steps", "shows a failure before what depends on it has failed too",
    |turn, old, Call::UpdateTasks { updates }, _| {
        let reported: BTreeSet<_> = updates.steps().iter().map(|step| step.claim.task).collect();
        let changes = changed(old, turn.model).into_iter();
        postpone(turn, changes.filter(|(old, _)| !reported.contains(&old.detail.task.id)));
    }},
    after! { G1, "runs-one-by-one", "shows runs that end in one call one after the other",
    |turn, old, Answer::UpdateTasks(Ok(report))| {
        for ended in report.ended_runs.iter().skip(1) {
            let Some(old) = old.runs.get(&ended.run).cloned() else { continue };
            if let Some(new) = turn.model.runs.insert(old.id, old) {
                turn.later(move |model| drop(model.runs.insert(new.id, new)));
            }
        }
    }},
    after! { G1, "snapshot-after-workflow", "shows a workflow before its snapshot is there",
    |turn, Answer::CreateWorkflow(Ok(workflow))| {
        if let Some(snapshot) = turn.model.snapshots.remove(&workflow.snapshot) {
            turn.later(move |model| drop(model.snapshots.insert(snapshot.id, snapshot)));
        }
    }},
    // G9
    after! { G9, "dropped-update-is-half", "applies half of a batch whose caller has gone",
    |turn, old, Answer::UpdateTasks(Ok(_))| {
        let changes = changed(old, turn.model);
        postpone(turn, changes.into_iter().skip(1));
    }},
    after! { G9, "dropped-claim-is-lost", "takes tasks before it writes down who has them",
    |turn, Answer::ClaimTasks(Ok(claimed))| {
        for task in claimed {
            let (id, mut lease) = (task.id, None);
            turn.model.edit_task(id, |row| lease = row.detail.task.lease.take());
            turn.later(move |model| model.edit_task(id, |row| row.detail.task.lease = lease));
        }
    }},
    after! { G9, "dropped-start-is-half", "starts a run whose caller has gone with half of its tasks",
    |turn, old, Answer::StartRun(Ok(run))| {
        let id = run.id;
        if old.runs.get(&id).is_some_and(|run| run.status == RunStatus::Pending)
            && let Some(rows) = turn.model.tasks.get_mut(&id)
        {
            let rest = rows.split_off(rows.len() / 2);
            turn.later(move |model| model.tasks.entry(id).or_default().extend(rest));
        }
    }},
];
