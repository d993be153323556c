//! T2.

use ork_state_api::{ClaimedTask, Entity, Error, Limit, TaskStatus, Timestamp};

use super::super::{Answer, Call, Model, TaskRow, Turn};
use super::Fault;
use super::shapes::{after, before, changed, edit_each, epoch, in_seconds, postpone, tasks_of};
use crate::Rule::T2;

pub(super) const FAULTS: &[Fault] = &[
    before! { T2, "nobody-claims", "gives a task to everybody who asks",
        |turn, Call::ClaimTasks { .. }| return turn.model.clone().answer(turn.now, turn.call.clone(), None)
    },
    after! { T2, "claim-checked-before", "looks for ready tasks, and takes them a moment later",
        |turn, old, Answer::ClaimTasks(Ok(_))| postpone(turn, changed(old, turn.model))
    },
    after! { T2, "lapsed-lease", "gives out leases that have lapsed already",
        |turn, Answer::ClaimTasks(Ok(claimed))| lapse_at(turn.model, claimed, turn.now)
    },
    after! { T2, "leases-of-a-minute", "gives leases of a minute, whatever is asked for",
        |turn, Answer::ClaimTasks(Ok(claimed))| lapse_at(turn.model, claimed, in_seconds(turn.now, 60))
    },
    before! { T2, "tokens-stay", "gives a task's next claim the same token",
        |turn, Call::ClaimTasks { .. }| tasks_of(turn.model).for_each(|row| row.token = 0)
    },
    after! { T2, "last-first", "hands out the last of the ready tasks first",
        |turn, Answer::ClaimTasks(Ok(claimed))| claimed.reverse()
    },
    before! { T2, "by-run", "hands out tasks by run and not by how long they are ready",
    |turn, Call::ClaimTasks { .. }| {
        for row in tasks_of(turn.model).filter(|row| row.ready_since <= turn.now) {
            row.ready_since = epoch();
        }
    }},
    before! { T2, "limit-ignored", "hands out all there is",
        |turn, Call::ClaimTasks { claim }| claim.limit = Limit::MAX
    },
    before! { T2, "one-left-lying", "hands out one task less than there are",
    |turn, Call::ClaimTasks { claim }| {
        let ready = turn.model.ready_tasks(turn.now, claim.limit).len();
        claim.limit = Limit::new(ready.saturating_sub(1)).unwrap_or(claim.limit);
    }},
    before! { T2, "one-run-a-claim", "hands out tasks of one run at a time",
    |turn, Call::ClaimTasks { claim }| {
        let ready = turn.model.ready_tasks(turn.now, claim.limit);
        let first = ready.iter().take_while(|task| task.run == ready[0].run).count();
        claim.limit = Limit::new(first).unwrap_or(claim.limit);
    }},
    before! { T2, "waiting-in-the-way", "looks at the first five hundred pending tasks for ready ones",
    |turn, Call::ClaimTasks { .. }| {
        let pending = |row: &&TaskRow| row.detail.task.status == TaskStatus::Pending;
        let rows = turn.model.tasks.values().flatten().filter(pending);
        let mut waiting = rows.filter(|row| turn.model.unmet(row) > 0);
        if waiting.nth(499).is_some() {
            return Answer::ClaimTasks(Ok(vec![]));
        }
    }},
    before! { T2, "lapsed-is-ready", "hands out a task whose lease has lapsed before it is taken back",
    |turn, Call::ClaimTasks { .. }| {
        for task in tasks_of(turn.model).map(|row| &mut row.detail.task) {
            if task.lease.as_ref().is_some_and(|lease| lease.expires_at <= turn.now) {
                task.status = TaskStatus::Pending;
            }
        }
    }},
    Fault::new(T2, "claim-without-params", "leaves the parameters out of a claim", |turn| {
        told(turn, |task| task.params = None)
    }),
    Fault::new(T2, "claim-without-target", "leaves the workflow's parameters out of a claim", |turn| {
        told(turn, |task| task.target.params = None)
    }),
    Fault::new(T2, "claim-without-outputs", "leaves the outputs of dependencies out of a claim", |turn| {
        told(turn, |task| task.dependency_outputs.clear())
    }),
    after! { T2, "attempt-not-counted", "does not count an attempt when it is claimed",
    |turn, Answer::ClaimTasks(Ok(claimed))| {
        edit_each(turn.model, claimed.iter().map(|it| &it.id), |row| row.detail.task.attempts -= 1);
    }},
    after! { T2, "claim-as-running", "has a claimed task run at once",
    |turn, Answer::ClaimTasks(Ok(claimed))| {
        edit_each(turn.model, claimed.iter().map(|it| &it.id), |row| {
            row.detail.task.status = TaskStatus::Running;
        });
    }},
    after! { T2, "nothing-ready-fails", "has it for an error that nothing is ready",
    |turn, Answer::ClaimTasks(claimed)| {
        if claimed.as_ref().is_ok_and(Vec::is_empty) {
            *claimed = Err(Error::not_found(Entity::Task, "ready"));
        }
    }},
];

/// Makes the leases of a claim end at this time.
fn lapse_at(model: &mut Model, claimed: &mut [ClaimedTask], at: Timestamp) {
    for task in claimed {
        if let Some(lease) = &mut task.task.lease {
            lease.expires_at = at;
        }
        model.edit_task(task.id, |row| row.detail.task.lease.clone_from(&task.task.lease));
    }
}

/// Claims, and changes the answer about what was claimed.
fn told(turn: &mut Turn<'_>, change: fn(&mut ClaimedTask)) -> Answer {
    let mut answer = turn.honest();
    if let Answer::ClaimTasks(Ok(claimed)) = &mut answer {
        claimed.iter_mut().for_each(change);
    }
    answer
}
