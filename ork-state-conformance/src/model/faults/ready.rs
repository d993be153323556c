//! T1.

use std::collections::{BTreeMap, BTreeSet};

use ork_state_api::{Task, TaskId, TaskStatus};

use super::super::{Answer, Call, Turn};
use super::Fault;
use super::shapes::{after, before, edit_each, never, put, tasks_of};
use crate::Rule::T1;

pub(super) const FAULTS: &[Fault] = &[
    Fault::new(T1, "running-is-success", "has what depends on a running task ready", |turn| {
        as_success(turn, |task| task.status == TaskStatus::Running)
    }),
    Fault::new(
        T1,
        "failure-resolves",
        "has what depends on a failed attempt ready while it waits for its retry",
        |turn| as_success(turn, |task| task.status == TaskStatus::Pending && task.error.is_some()),
    ),
    Fault::new(T1, "one-is-enough", "has a task ready once one of its dependencies has succeeded", |turn| {
        let rows = turn.model.tasks.values().flatten();
        let met = rows.filter(|row| turn.model.unmet(row) < row.dependencies.len());
        let met: BTreeSet<TaskId> = met.map(|row| row.detail.task.id).collect();
        let right: BTreeMap<TaskId, Vec<usize>> = tasks_of(turn.model)
            .filter(|row| met.contains(&row.detail.task.id))
            .map(|row| (row.detail.task.id, std::mem::take(&mut row.dependencies)))
            .collect();
        let answer = turn.honest();
        for (id, dependencies) in right {
            turn.model.edit_task(id, |row| row.dependencies = dependencies);
        }
        answer
    }),
    before! { T1, "retries-at-once", "has a task ready before its retry time", |turn| {
        if let Call::ClaimTasks { .. } | Call::ReadyTasks { .. } = turn.call {
            tasks_of(turn.model).for_each(|row| row.ready_since = row.ready_since.min(turn.now));
        }
    }},
    after! { T1, "looking-takes", "takes what is only looked at", |turn, Answer::ReadyTasks(Ok(ready))| {
        edit_each(turn.model, ready.iter().map(|it| &it.task), |row| {
            row.detail.task.status = TaskStatus::Dispatched;
        });
    }},
    after! { T1, "a-hundred-dependents", "makes a hundred dependents of a task ready and forgets the others",
    |turn, old, Answer::UpdateTasks(Ok(_))| {
        let rows = old.tasks.values().flatten().filter(|row| old.unmet(row) > 0);
        let released: Vec<TaskId> = rows
            .map(|row| row.detail.task.id)
            .filter(|id| turn.model.row(*id).is_ok_and(|row| turn.model.unmet(row) == 0))
            .collect();
        let never = never(turn.now);
        edit_each(turn.model, released.iter().skip(100), |row| row.ready_since = never);
    }},
    after! { T1, "look-in-other-order", "shows what is ready in another order than it is claimed in",
        |turn, Answer::ReadyTasks(Ok(ready))| ready.reverse()
    },
];

/// Looks for ready tasks as if these tasks had succeeded. A claimed task is changed by the
/// claim only.
fn as_success(turn: &mut Turn<'_>, is_meant: fn(&Task) -> bool) -> Answer {
    let (Call::ClaimTasks { .. } | Call::ReadyTasks { .. }) = turn.call else { return turn.honest() };
    let before = turn.model.tasks.clone();
    for task in tasks_of(turn.model).map(|row| &mut row.detail.task).filter(|task| is_meant(task)) {
        task.status = TaskStatus::Success;
    }
    let answer = turn.honest();
    let taken: BTreeSet<TaskId> = match &answer {
        Answer::ClaimTasks(Ok(claimed)) => claimed.iter().map(|task| task.id).collect(),
        _ => BTreeSet::new(),
    };
    for row in before.into_values().flatten().filter(|row| !taken.contains(&row.detail.task.id)) {
        put(turn.model, row);
    }
    answer
}
