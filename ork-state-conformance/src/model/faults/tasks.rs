//! T1 to T8, L1.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ork_state_api::{
    Claim, Entity, Error, HeartbeatOutcome, Lease, Limit, TaskChange, TaskId, TaskStatus, Text, Timestamp,
    UpdateOutcome,
};

use super::super::{Answer, Call, Model, TaskRow, Turn};
use super::general::{changed, put, whole};
use super::{Fault, tasks_of};
use crate::Rule::{L1, T1, T2, T3, T4, T5, T6, T7, T8};

pub(super) const FAULTS: &[Fault] = &[
    // T1
    Fault::new(T1, "running-is-success", "has what depends on a running task ready", |turn| {
        looking(turn, |row| {
            if row.detail.task.status == TaskStatus::Running {
                row.detail.task.status = TaskStatus::Success;
            }
        })
    }),
    Fault::new(
        T1,
        "failure-resolves",
        "has what depends on a failed attempt ready while it waits for its retry",
        |turn| {
            looking(turn, |row| {
                if row.detail.task.status == TaskStatus::Pending && row.detail.task.error.is_some() {
                    row.detail.task.status = TaskStatus::Success;
                }
            })
        },
    ),
    Fault::new(T1, "one-is-enough", "has a task ready once one of its dependencies has succeeded", |turn| {
        let met: BTreeSet<TaskId> = tasks_ready_by_one(turn.model);
        let before: BTreeMap<TaskId, Vec<usize>> = tasks_of(turn.model)
            .filter(|row| met.contains(&row.detail.task.id))
            .map(|row| (row.detail.task.id, std::mem::take(&mut row.dependencies)))
            .collect();
        let answer = turn.honest();
        for (id, dependencies) in before {
            turn.model.edit_task(id, |row| row.dependencies = dependencies);
        }
        answer
    }),
    Fault::new(T1, "retries-at-once", "has a task ready before its retry time", |turn| {
        if matches!(turn.call, Call::ClaimTasks { .. } | Call::ReadyTasks { .. }) {
            let now = turn.now;
            for row in tasks_of(turn.model) {
                row.ready_since = row.ready_since.min(now);
            }
        }
        turn.honest()
    }),
    Fault::new(T1, "looking-takes", "takes what is only looked at", |turn| {
        let answer = turn.honest();
        if let Answer::ReadyTasks(Ok(ready)) = &answer {
            for task in ready {
                turn.model.edit_task(task.task, |row| row.detail.task.status = TaskStatus::Dispatched);
            }
        }
        answer
    }),
    Fault::new(
        T1,
        "a-hundred-dependents",
        "makes a hundred dependents of a task ready and forgets the others",
        |turn| {
            let before = turn.model.clone();
            let answer = turn.honest();
            if let Answer::UpdateTasks(Ok(_)) = &answer {
                let never = turn.now.saturating_add(Duration::from_secs(1_000_000_000));
                let released: Vec<TaskId> = before
                    .tasks
                    .values()
                    .flatten()
                    .filter(|row| before.unmet(row) > 0)
                    .map(|row| row.detail.task.id)
                    .filter(|id| turn.model.row(*id).is_ok_and(|row| turn.model.unmet(row) == 0))
                    .collect();
                for id in released.into_iter().skip(100) {
                    turn.model.edit_task(id, |row| row.ready_since = never);
                }
            }
            answer
        },
    ),
    Fault::new(
        T1,
        "look-in-other-order",
        "shows what is ready in another order than it is claimed in",
        |turn| match turn.honest() {
            Answer::ReadyTasks(Ok(mut ready)) => {
                ready.reverse();
                Answer::ReadyTasks(Ok(ready))
            }
            answer => answer,
        },
    ),
    // T2
    Fault::new(T2, "nobody-claims", "gives a task to everybody who asks", |turn| match turn.call {
        Call::ClaimTasks { .. } => turn.model.clone().answer(turn.now, turn.call.clone(), None),
        _ => turn.honest(),
    }),
    Fault::new(T2, "claim-checked-before", "looks for ready tasks, and takes them a moment later", |turn| {
        let before = turn.model.clone();
        let answer = turn.honest();
        if let Answer::ClaimTasks(Ok(_)) = &answer {
            for (old, new) in changed(&before, turn.model, |_| true) {
                put(turn.model, old);
                turn.later(move |model| put(model, new));
            }
        }
        answer
    }),
    Fault::new(T2, "lapsed-lease", "gives out leases that have lapsed already", |turn| {
        let now = turn.now;
        claimed(turn, |lease| lease.expires_at = now)
    }),
    Fault::new(T2, "leases-of-a-minute", "gives leases of a minute, whatever is asked for", |turn| {
        let until = turn.now.saturating_add(Duration::from_secs(60));
        claimed(turn, |lease| lease.expires_at = until)
    }),
    Fault::new(T2, "tokens-stay", "gives a task's next claim the same token", |turn| {
        if let Call::ClaimTasks { .. } = turn.call {
            for row in tasks_of(turn.model) {
                row.token = 0;
            }
        }
        turn.honest()
    }),
    Fault::new(T2, "last-first", "hands out the last of the ready tasks first", |turn| match turn.honest() {
        Answer::ClaimTasks(Ok(mut claimed)) => {
            claimed.reverse();
            Answer::ClaimTasks(Ok(claimed))
        }
        answer => answer,
    }),
    Fault::new(T2, "by-run", "hands out tasks by run and not by how long they are ready", |turn| {
        if let Call::ClaimTasks { .. } = turn.call {
            let now = turn.now;
            let epoch = Timestamp::from_micros(0).unwrap_or(now);
            for row in tasks_of(turn.model).filter(|row| row.ready_since <= now) {
                row.ready_since = epoch;
            }
        }
        turn.honest()
    }),
    Fault::new(T2, "limit-ignored", "hands out all there is", |turn| {
        if let Call::ClaimTasks { claim } = &mut turn.call {
            claim.limit = Limit::new(Limit::MAX).unwrap_or(claim.limit);
        }
        turn.honest()
    }),
    Fault::new(T2, "one-left-lying", "hands out one task less than there are", |turn| {
        if let Call::ClaimTasks { claim } = &mut turn.call {
            let ready = turn.model.ready_tasks(turn.now, claim.limit).len();
            claim.limit = Limit::new(ready.saturating_sub(1)).unwrap_or(claim.limit);
        }
        turn.honest()
    }),
    Fault::new(T2, "one-run-a-claim", "hands out tasks of one run at a time", |turn| {
        let Call::ClaimTasks { claim } = &mut turn.call else { return turn.honest() };
        let ready = turn.model.ready_tasks(turn.now, claim.limit);
        let first = ready.iter().take_while(|task| task.run == ready[0].run).count();
        claim.limit = Limit::new(first).unwrap_or(claim.limit);
        turn.honest()
    }),
    Fault::new(
        T2,
        "waiting-in-the-way",
        "looks at the first five hundred pending tasks for ready ones",
        |turn| {
            if let Call::ClaimTasks { .. } = turn.call {
                let mut waiting =
                    turn.model.tasks.values().flatten().filter(|row| {
                        row.detail.task.status == TaskStatus::Pending && turn.model.unmet(row) > 0
                    });
                if waiting.nth(499).is_some() {
                    return Answer::ClaimTasks(Ok(vec![]));
                }
            }
            turn.honest()
        },
    ),
    Fault::new(
        T2,
        "lapsed-is-ready",
        "hands out a task whose lease has lapsed before it is taken back",
        |turn| {
            if let Call::ClaimTasks { .. } = turn.call {
                let now = turn.now;
                for row in tasks_of(turn.model) {
                    if row.detail.task.lease.as_ref().is_some_and(|lease| lease.expires_at <= now) {
                        row.detail.task.status = TaskStatus::Pending;
                    }
                }
            }
            turn.honest()
        },
    ),
    Fault::new(T2, "claim-without-params", "leaves the parameters out of a claim", |turn| {
        told(turn, |task| task.params = None)
    }),
    Fault::new(T2, "claim-without-target", "leaves the workflow's parameters out of a claim", |turn| {
        told(turn, |task| task.target.params = None)
    }),
    Fault::new(T2, "claim-without-outputs", "leaves the outputs of dependencies out of a claim", |turn| {
        told(turn, |task| task.dependency_outputs.clear())
    }),
    Fault::new(T2, "attempt-not-counted", "does not count an attempt when it is claimed", |turn| {
        let answer = turn.honest();
        if let Answer::ClaimTasks(Ok(claimed)) = &answer {
            for task in claimed {
                turn.model.edit_task(task.id, |row| row.detail.task.attempts -= 1);
            }
        }
        answer
    }),
    Fault::new(T2, "claim-as-running", "has a claimed task run at once", |turn| {
        let answer = turn.honest();
        if let Answer::ClaimTasks(Ok(claimed)) = &answer {
            for task in claimed {
                turn.model.edit_task(task.id, |row| row.detail.task.status = TaskStatus::Running);
            }
        }
        answer
    }),
    Fault::new(T2, "nothing-ready-fails", "has it for an error that nothing is ready", |turn| {
        match turn.honest() {
            Answer::ClaimTasks(Ok(claimed)) if claimed.is_empty() => {
                Answer::ClaimTasks(Err(Error::not_found(Entity::Task, "ready")))
            }
            answer => answer,
        }
    }),
    // T3
    Fault::new(T3, "stale-owner-renews", "renews a lease by any token", |turn| {
        if let Call::Heartbeat { heartbeat } = turn.call.clone() {
            for claim in heartbeat.claims() {
                with_token(turn.model, *claim);
            }
        }
        turn.honest()
    }),
    Fault::new(T3, "lapsed-renews", "renews a lease that has lapsed", |turn| {
        if let Call::Heartbeat { .. } = turn.call {
            all_live(turn);
        }
        turn.honest()
    }),
    Fault::new(T3, "lapses-late", "has a lease live at the moment of its end", |turn| {
        if let Call::Heartbeat { .. } = turn.call {
            let now = turn.now;
            let next = now.saturating_add(Duration::from_micros(1));
            for row in tasks_of(turn.model) {
                if let Some(lease) = row.detail.task.lease.as_mut().filter(|lease| lease.expires_at == now) {
                    lease.expires_at = next;
                }
            }
        }
        turn.honest()
    }),
    Fault::new(T3, "lapses-early", "has a lease lapse a microsecond before its end", |turn| {
        if let Call::Heartbeat { .. } | Call::ExpireLeases { .. } = turn.call {
            turn.now = turn.now.saturating_add(Duration::from_micros(1));
        }
        turn.honest()
    }),
    Fault::new(T3, "only-longer", "never shortens a lease", |turn| renewed(turn, |old, new, _| old.max(new))),
    Fault::new(T3, "renewed-from-the-end", "renews a lease from its end and not from now", |turn| {
        renewed(turn, |old, new, now| old.saturating_add(new.saturating_since(now)))
    }),
    Fault::new(T3, "renewal-told-only", "says that it renewed a lease and does not", |turn| {
        renewed(turn, |old, _, _| old)
    }),
    Fault::new(T3, "lost-not-told", "says that it renewed a lease that is lost", |turn| {
        match turn.honest() {
            Answer::Heartbeat(Ok(mut outcomes)) => {
                let expires_at = turn.now.saturating_add(Duration::from_secs(60));
                for outcome in &mut outcomes {
                    if *outcome == HeartbeatOutcome::Lost {
                        *outcome = HeartbeatOutcome::Extended { expires_at };
                    }
                }
                Answer::Heartbeat(Ok(outcomes))
            }
            answer => answer,
        }
    }),
    Fault::new(T3, "running-never-lapses", "does not take a running task back", |turn| {
        expiring(turn, |row, _| row.detail.task.status == TaskStatus::Running)
    }),
    Fault::new(T3, "nothing-lapses", "leaves what a dead worker held for ever", |turn| {
        expiring(turn, |_, _| true)
    }),
    Fault::new(T3, "lapse-is-free", "spends no attempt on a lapsed lease", |turn| {
        let answer = turn.honest();
        if let Answer::ExpireLeases(Ok(expired)) = &answer {
            for id in &expired.requeued {
                turn.model.edit_task(*id, |row| row.detail.task.attempts -= 1);
            }
        }
        answer
    }),
    Fault::new(T3, "attempts-without-end", "tries what lapsed again though no attempt is left", |turn| {
        without_end(turn, |call| matches!(call, Call::ExpireLeases { .. }))
    }),
    Fault::new(T3, "live-lapses", "takes back leases that will lapse within a second", |turn| {
        if let Call::ExpireLeases { .. } = turn.call {
            turn.now = turn.now.saturating_add(Duration::from_secs(1));
        }
        turn.honest()
    }),
    Fault::new(T3, "expiry-limit-ignored", "takes back all that lapsed in one call", |turn| {
        if let Call::ExpireLeases { limit } = &mut turn.call {
            *limit = Limit::new(Limit::MAX).unwrap_or(*limit);
        }
        turn.honest()
    }),
    Fault::new(T3, "newest-lapse-first", "takes back what lapsed last first", |turn| {
        let Call::ExpireLeases { limit } = turn.call else { return turn.honest() };
        let now = turn.now;
        let mut lapsed: Vec<(Timestamp, TaskId)> = tasks_of(turn.model)
            .filter_map(|row| Some((row.detail.task.lease.as_ref()?.expires_at, row.detail.task.id)))
            .filter(|(at, _)| *at <= now)
            .collect();
        lapsed.sort();
        let spared: BTreeSet<TaskId> = lapsed.iter().rev().skip(limit.get()).map(|(_, id)| *id).collect();
        sparing(turn, |row, _| spared.contains(&row.detail.task.id))
    }),
    Fault::new(
        T3,
        "lapse-without-beginning",
        "does not say when an attempt began that nobody saw run",
        |turn| {
            let answer = turn.honest();
            if let Answer::ExpireLeases(Ok(expired)) = &answer {
                for id in expired.requeued.iter().chain(&expired.failed) {
                    turn.model.edit_task(*id, |row| row.detail.task.started_at = None);
                }
            }
            answer
        },
    ),
    Fault::new(T3, "lapse-not-told", "does not say whose lease lapsed", |turn| {
        let answer = turn.honest();
        if let Answer::ExpireLeases(Ok(expired)) = &answer {
            for id in expired.requeued.iter().chain(&expired.failed) {
                turn.model.edit_task(*id, |row| row.detail.task.error = None);
            }
        }
        answer
    }),
    // T4
    Fault::new(T4, "stale-token-counts", "takes an update by any token", |turn| {
        if let Call::UpdateTasks { updates } = turn.call.clone() {
            for step in updates.steps() {
                with_token(turn.model, step.claim);
            }
        }
        turn.honest()
    }),
    Fault::new(T4, "lapsed-updates", "takes an update by a lapsed lease", |turn| {
        if let Call::UpdateTasks { .. } = turn.call {
            all_live(turn);
        }
        turn.honest()
    }),
    Fault::new(T4, "unclaimed-updates", "takes an update of a task that nobody has claimed", |turn| {
        if let Call::UpdateTasks { updates } = turn.call.clone() {
            let expires_at = turn.now.saturating_add(Duration::from_secs(1));
            for step in updates.steps() {
                let token = step.claim.token;
                turn.model.edit_task(step.claim.task, |row| {
                    if row.detail.task.status == TaskStatus::Pending && row.token == 0 {
                        let owner = ork_state_api::Label::lossy("nobody");
                        row.detail.task.lease = Some(Lease::new(owner, token, expires_at));
                    }
                });
            }
        }
        turn.honest()
    }),
    Fault::new(T4, "end-not-final", "moves a task that has ended back to running", |turn| {
        let Call::UpdateTasks { updates } = turn.call.clone() else { return turn.honest() };
        for step in updates.steps().iter().filter(|step| step.running) {
            turn.model.edit_task(step.claim.task, |row| {
                if row.detail.task.status.is_terminal() {
                    row.detail.task.status = TaskStatus::Running;
                }
            });
        }
        turn.honest()
    }),
    Fault::new(T4, "later-end-wins", "has a later end replace the first", |turn| {
        let Call::UpdateTasks { updates } = turn.call.clone() else { return turn.honest() };
        let now = turn.now;
        for step in updates.steps() {
            let status = match &step.end {
                Some(TaskChange::Succeeded { .. }) => TaskStatus::Success,
                Some(TaskChange::Failed { .. }) => TaskStatus::Failed,
                _ => continue,
            };
            turn.model.edit_task(step.claim.task, |row| {
                if row.detail.task.status.is_terminal() {
                    (row.detail.task.status, row.detail.task.finished_at) = (status, Some(now));
                }
            });
        }
        turn.honest()
    }),
    Fault::new(T4, "ended-is-lost", "says of a task that has ended that its lease is lost", |turn| {
        outcomes(turn, |outcome| match outcome {
            UpdateOutcome::AlreadyTerminal { .. } => UpdateOutcome::LeaseLost,
            outcome => outcome,
        })
    }),
    Fault::new(T4, "back-to-dispatched", "moves a running task back to dispatched", |turn| {
        let Call::UpdateTasks { updates } = turn.call.clone() else { return turn.honest() };
        let answer = turn.honest();
        for step in updates.steps().iter().filter(|step| !step.running && step.end.is_none()) {
            turn.model.edit_task(step.claim.task, |row| {
                if row.detail.task.status == TaskStatus::Running {
                    row.detail.task.status = TaskStatus::Dispatched;
                }
            });
        }
        answer
    }),
    Fault::new(T4, "execution-forgotten", "does not keep the execution's name", |turn| {
        updated(turn, |_, new| new.detail.task.execution_name = None)
    }),
    Fault::new(T4, "start-forgotten", "does not keep when a task began to run", |turn| {
        updated(turn, |_, new| new.detail.task.started_at = None)
    }),
    Fault::new(T4, "end-forgotten", "does not keep when a task ended", |turn| {
        updated(turn, |_, new| new.detail.task.finished_at = None)
    }),
    Fault::new(T4, "release-spends", "spends an attempt on a task that is given back", |turn| {
        released(turn, |old, new| new.detail.task.attempts = old.detail.task.attempts)
    }),
    Fault::new(
        T4,
        "release-clears-error",
        "drops the error of an earlier attempt when a task is given back",
        |turn| released(turn, |_, new| new.detail.task.error = None),
    ),
    Fault::new(T4, "release-keeps-traces", "leaves the traces of an attempt that is given back", |turn| {
        released(turn, |old, new| new.detail.task.dispatched_at = old.detail.task.dispatched_at)
    }),
    Fault::new(T4, "success-keeps-error", "keeps the error of an earlier attempt with a success", |turn| {
        updated(turn, |old, new| new.detail.task.error.clone_from(&old.detail.task.error))
    }),
    Fault::new(T4, "output-forgotten", "does not keep outputs", |turn| {
        updated(turn, |_, new| new.detail.output = None)
    }),
    Fault::new(T4, "attempt-not-clean", "has a new attempt begin with the traces of the last", |turn| {
        let before = turn.model.clone();
        let answer = turn.honest();
        if let Answer::ClaimTasks(Ok(_)) = &answer {
            for (old, new) in changed(&before, turn.model, |_| true) {
                turn.model.edit_task(new.detail.task.id, |row| {
                    row.detail.task.execution_name = old.detail.task.execution_name;
                });
            }
        }
        answer
    }),
    // T5
    Fault::new(T5, "one-dependent-forgotten", "fails all that depends on a failed task but one", |turn| {
        let before = turn.model.clone();
        let answer = turn.honest();
        if let Some((old, _)) = cascade(&before, turn).pop() {
            put(turn.model, old);
        }
        answer
    }),
    Fault::new(
        T5,
        "one-step-of-cascade",
        "fails what depends on a failed task directly, and no further",
        |turn| {
            let before = turn.model.clone();
            let answer = turn.honest();
            let fallen = cascade(&before, turn);
            let indirect = |row: &TaskRow| {
                let rows = before.rows(row.detail.task.run);
                !row.dependencies.iter().any(|&it| {
                    !fallen.iter().any(|(old, _)| old.detail.task.id == rows[it].detail.task.id)
                        && turn
                            .model
                            .row(rows[it].detail.task.id)
                            .is_ok_and(|row| row.detail.task.status == TaskStatus::Failed)
                })
            };
            let kept: Vec<TaskRow> = fallen.iter().map(|(old, _)| old.clone()).filter(indirect).collect();
            for old in kept {
                put(turn.model, old);
            }
            answer
        },
    ),
    Fault::new(T5, "culprit-not-named", "does not say which task is to blame", |turn| {
        let before = turn.model.clone();
        let answer = turn.honest();
        for (_, new) in cascade(&before, turn) {
            turn.model.edit_task(new.detail.task.id, |row| {
                row.detail.task.error = Some(Text::lossy("dependency failed"));
            });
        }
        answer
    }),
    Fault::new(T5, "last-culprit", "blames the last of several failures for the run", |turn| {
        let before = turn.model.runs.clone();
        let Call::UpdateTasks { updates } = turn.call.clone() else { return turn.honest() };
        let answer = turn.honest();
        if let Some(step) =
            updates.steps().iter().rfind(|step| matches!(step.end, Some(TaskChange::Failed { .. })))
            && let Ok(row) = turn.model.row(step.claim.task)
            && row.detail.task.status == TaskStatus::Failed
            && before.contains_key(&row.detail.task.run)
        {
            let (run, error) =
                (row.detail.task.run, super::super::runs::failed_because(&row.detail.task.name));
            turn.model.edit_run(run, |run| run.error = Some(error));
        }
        answer
    }),
    Fault::new(T5, "one-attempt-less", "tries a task as often as it may be retried", |turn| {
        let max: BTreeMap<TaskId, u32> =
            tasks_of(turn.model).map(|row| (row.detail.task.id, row.detail.task.max_retries)).collect();
        if let Call::UpdateTasks { .. } = turn.call {
            for row in tasks_of(turn.model) {
                row.detail.task.max_retries = row.detail.task.max_retries.saturating_sub(1);
            }
        }
        let answer = turn.honest();
        for (id, max) in max {
            turn.model.edit_task(id, |row| row.detail.task.max_retries = max);
        }
        answer
    }),
    Fault::new(T5, "retries-without-end", "tries a task again as often as it fails", |turn| {
        without_end(turn, |call| matches!(call, Call::UpdateTasks { .. }))
    }),
    Fault::new(T5, "retry-by-the-second", "cuts retry times to whole seconds", |turn| {
        updated(turn, |_, new| {
            if let Some(at) = new.detail.task.retry_at {
                new.detail.task.retry_at = Some(whole(at, 1_000_000));
                new.ready_since = whole(at, 1_000_000);
            }
        })
    }),
    Fault::new(T5, "retry-without-delay", "tries again at once", |turn| {
        let now = turn.now;
        let answer = turn.honest();
        if let Answer::UpdateTasks(Ok(_)) = &answer {
            for row in tasks_of(turn.model).filter(|row| row.detail.task.retry_at.is_some_and(|at| at > now))
            {
                (row.ready_since, row.detail.task.retry_at) = (now, Some(now));
            }
        }
        answer
    }),
    Fault::new(T5, "final-is-retried", "tries again what has failed for good", |turn| {
        let before = turn.model.clone();
        let Call::UpdateTasks { updates } = turn.call.clone() else { return turn.honest() };
        let answer = turn.honest();
        for step in updates
            .steps()
            .iter()
            .filter(|step| matches!(step.end, Some(TaskChange::Failed { retry_after: None, .. })))
        {
            let id = step.claim.task;
            let left =
                turn.model.row(id).is_ok_and(|row| row.detail.task.attempts <= row.detail.task.max_retries);
            if left && let Ok(old) = before.row(id) {
                let run = old.detail.task.run;
                let (rows, live) = (before.rows(run).to_vec(), before.runs.get(&run).cloned());
                turn.model.tasks.insert(run, rows);
                turn.model.runs.extend(live.map(|live| (run, live)));
                turn.model.edit_task(id, |row| {
                    (row.detail.task.status, row.detail.task.lease) = (TaskStatus::Pending, None);
                });
            }
        }
        answer
    }),
    Fault::new(
        T5,
        "failure-in-all-runs",
        "fails the tasks of other runs along that have the name of a failed one",
        |turn| {
            let before = turn.model.clone();
            let answer = turn.honest();
            let names: BTreeSet<_> =
                cascade(&before, turn).into_iter().map(|(_, new)| new.detail.task.name).collect();
            for row in tasks_of(turn.model) {
                let task = &mut row.detail.task;
                if names.contains(&task.name) && !task.status.is_terminal() {
                    task.status = TaskStatus::Failed;
                }
            }
            answer
        },
    ),
    Fault::new(T5, "failure-with-lease", "leaves the lease with a failed attempt", |turn| {
        updated(turn, |old, new| new.detail.task.lease.clone_from(&old.detail.task.lease))
    }),
    // T6
    Fault::new(T6, "unknown-stops-batch", "applies nothing of a batch with an unknown id in it", |turn| {
        let Call::UpdateTasks { updates } = &turn.call else { return turn.honest() };
        match updates.steps().iter().find(|step| turn.model.row(step.claim.task).is_err()) {
            Some(step) => turn.call.fails(Error::not_found(Entity::Task, step.claim.task)),
            None => turn.honest(),
        }
    }),
    Fault::new(T6, "unknown-not-answered", "gives no answer to an unknown id in a batch", |turn| match turn
        .honest()
    {
        Answer::UpdateTasks(Ok(mut report)) => {
            report.outcomes.retain(|outcome| *outcome != UpdateOutcome::NotFound);
            Answer::UpdateTasks(Ok(report))
        }
        answer => answer,
    }),
    Fault::new(T6, "up-to-the-first", "applies a batch up to its first item that cannot be", |turn| {
        let before = turn.model.clone();
        let Call::UpdateTasks { updates } = turn.call.clone() else { return turn.honest() };
        let mut answer = turn.honest();
        if let Answer::UpdateTasks(Ok(report)) = &mut answer {
            let is_applied = |outcome: &UpdateOutcome| matches!(outcome, UpdateOutcome::Applied { .. });
            if let Some(stop) = report.outcomes.iter().position(|outcome| !is_applied(outcome)) {
                for outcome in &mut report.outcomes[stop..] {
                    if is_applied(outcome) {
                        *outcome = UpdateOutcome::LeaseLost;
                    }
                }
                for step in updates.steps().iter().skip(stop) {
                    if let Ok(old) = before.row(step.claim.task) {
                        put(turn.model, old.clone());
                    }
                }
            }
        }
        answer
    }),
    Fault::new(
        T6,
        "twice-counts-twice",
        "spends two attempts on a failure that is in a batch twice",
        |turn| {
            let Call::UpdateTasks { .. } = turn.call else { return turn.honest() };
            let answer = turn.honest();
            if let (Call::UpdateTasks { updates }, Answer::UpdateTasks(Ok(report))) = (&turn.call, &answer)
                && updates.steps().len() < report.outcomes.len()
            {
                for step in updates.steps().to_vec() {
                    if matches!(step.end, Some(TaskChange::Failed { .. })) {
                        turn.model.edit_task(step.claim.task, |row| row.detail.task.attempts += 1);
                    }
                }
            }
            answer
        },
    ),
    Fault::new(T6, "twice-answered-once", "answers an item that is in a batch twice once", |turn| match turn
        .honest()
    {
        Answer::UpdateTasks(Ok(mut report)) => {
            if let Call::UpdateTasks { updates } = &turn.call {
                report.outcomes.truncate(updates.steps().len());
            }
            Answer::UpdateTasks(Ok(report))
        }
        answer => answer,
    }),
    Fault::new(T6, "answers-in-other-order", "answers the items of a batch in another order", |turn| {
        match turn.honest() {
            Answer::UpdateTasks(Ok(mut report)) => {
                report.outcomes.reverse();
                Answer::UpdateTasks(Ok(report))
            }
            answer => answer,
        }
    }),
    Fault::new(T6, "heartbeats-in-other-order", "answers heartbeats in another order", |turn| {
        match turn.honest() {
            Answer::Heartbeat(Ok(mut outcomes)) => {
                outcomes.reverse();
                Answer::Heartbeat(Ok(outcomes))
            }
            answer => answer,
        }
    }),
    Fault::new(T6, "empty-batch-fails", "refuses a batch of nothing", |turn| match &turn.call {
        Call::UpdateTasks { updates } if updates.steps().is_empty() => {
            turn.call.fails(Error::invalid("updates", "are none"))
        }
        _ => turn.honest(),
    }),
    Fault::new(T6, "empty-heartbeat-fails", "refuses a heartbeat of nothing", |turn| match &turn.call {
        Call::Heartbeat { heartbeat } if heartbeat.claims().is_empty() => {
            turn.call.fails(Error::invalid("heartbeat", "is of no claim"))
        }
        _ => turn.honest(),
    }),
    Fault::new(T6, "thousands-fail", "refuses a batch of more than 32,766 items", |turn| {
        let items = match &turn.call {
            Call::UpdateTasks { updates } => updates.steps().len(),
            Call::Heartbeat { heartbeat } => heartbeat.claims().len(),
            Call::TaskOutputs { names, .. } => names.len(),
            _ => 0,
        };
        if items > 32_766 { turn.call.fails(Error::internal("too many parameters")) } else { turn.honest() }
    }),
    // T7
    Fault::new(
        T7,
        "failure-repeated",
        "spends another attempt on a failure that is reported again",
        |turn| {
            repeated(
                turn,
                |step| matches!(step, TaskChange::Failed { .. }),
                |row| row.detail.task.attempts += 1,
            )
        },
    ),
    Fault::new(
        T7,
        "release-repeated",
        "takes another attempt back when a task is given back again",
        |turn| {
            repeated(
                turn,
                |step| matches!(step, TaskChange::Released),
                |row| {
                    row.detail.task.attempts = row.detail.task.attempts.saturating_sub(1);
                },
            )
        },
    ),
    Fault::new(T7, "success-repeated", "dates a success again when it is reported again", |turn| {
        let now = turn.now;
        let Call::UpdateTasks { updates } = turn.call.clone() else { return turn.honest() };
        let answer = turn.honest();
        for step in
            updates.steps().iter().filter(|step| matches!(step.end, Some(TaskChange::Succeeded { .. })))
        {
            turn.model.edit_task(step.claim.task, |row| row.detail.task.finished_at = Some(now));
        }
        answer
    }),
    // T8
    Fault::new(T8, "no-timeouts", "lets every attempt run for ever", |turn| match turn.call {
        Call::ExpireTimeouts { .. } => {
            turn.call = Call::ExpireTimeouts { limit: Limit::ONE };
            turn.now = Timestamp::from_micros(0).unwrap_or(turn.now);
            turn.honest()
        }
        _ => turn.honest(),
    }),
    Fault::new(T8, "timed-from-the-claim", "counts the time of an attempt from its claim", |turn| {
        if let Call::ExpireTimeouts { .. } = turn.call {
            for row in tasks_of(turn.model) {
                let task = &mut row.detail.task;
                if task.status == TaskStatus::Dispatched {
                    (task.status, task.started_at) = (TaskStatus::Running, task.dispatched_at);
                }
            }
        }
        turn.honest()
    }),
    Fault::new(T8, "heartbeat-helps", "gives an attempt more time with every heartbeat", |turn| {
        let now = turn.now;
        let answer = turn.honest();
        if let (Call::Heartbeat { heartbeat }, Answer::Heartbeat(Ok(_))) = (turn.call.clone(), &answer) {
            for claim in heartbeat.claims() {
                turn.model.edit_task(claim.task, |row| {
                    row.detail.task.started_at = row.detail.task.started_at.map(|_| now);
                });
            }
        }
        answer
    }),
    Fault::new(T8, "timeout-is-final", "does not try again what has timed out", |turn| {
        let retries: BTreeMap<TaskId, u32> =
            tasks_of(turn.model).map(|row| (row.detail.task.id, row.detail.task.max_retries)).collect();
        if let Call::ExpireTimeouts { .. } = turn.call {
            for row in tasks_of(turn.model) {
                row.detail.task.max_retries = 0;
            }
        }
        let answer = turn.honest();
        for (id, max) in retries {
            turn.model.edit_task(id, |row| row.detail.task.max_retries = max);
        }
        answer
    }),
    Fault::new(T8, "an-hour-for-all", "has attempts without a limit end after an hour", |turn| {
        if let Call::ExpireTimeouts { .. } = turn.call {
            for row in tasks_of(turn.model) {
                row.detail.task.timeout_seconds.get_or_insert(3_600);
            }
        }
        turn.honest()
    }),
    Fault::new(T8, "timeout-limit-ignored", "ends all that has timed out in one call", |turn| {
        if let Call::ExpireTimeouts { limit } = &mut turn.call {
            *limit = Limit::new(Limit::MAX).unwrap_or(*limit);
        }
        turn.honest()
    }),
    Fault::new(
        T8,
        "late-refused",
        "refuses a success that comes after the limit though nobody has ended the attempt",
        |turn| {
            let Call::UpdateTasks { updates } = turn.call.clone() else { return turn.honest() };
            let now = turn.now;
            for step in updates.steps() {
                turn.model.edit_task(step.claim.task, |row| {
                    let task = &mut row.detail.task;
                    let limit = task.timeout_seconds.map(|seconds| Duration::from_secs(u64::from(seconds)));
                    let over =
                        task.started_at.zip(limit).is_some_and(|(at, limit)| at.saturating_add(limit) < now);
                    if over {
                        task.lease = None;
                    }
                });
            }
            turn.honest()
        },
    ),
    Fault::new(T8, "claim-after-timeout", "takes updates by a claim whose attempt has timed out", |turn| {
        let before = turn.model.clone();
        let answer = turn.honest();
        if let Answer::ExpireTimeouts(Ok(_)) = &answer {
            for (old, new) in changed(&before, turn.model, |_| true) {
                turn.model.edit_task(new.detail.task.id, |row| row.detail.task.lease = old.detail.task.lease);
            }
        }
        answer
    }),
    Fault::new(T8, "time-goes-on", "counts the time of the attempts before", |turn| {
        let before = turn.model.clone();
        let answer = turn.honest();
        if let Answer::UpdateTasks(Ok(_)) = &answer {
            for (old, new) in changed(&before, turn.model, |_| true) {
                if old.detail.task.status == TaskStatus::Dispatched
                    && new.detail.task.status == TaskStatus::Running
                    && new.detail.task.attempts > 1
                {
                    turn.model.edit_task(new.detail.task.id, |row| {
                        row.detail.task.started_at = Some(new.detail.task.created_at);
                    });
                }
            }
        }
        answer
    }),
    // L1
    Fault::new(
        L1,
        "unknown-as-none",
        "tells names that the run does not have as tasks without output",
        |turn| {
            let Call::TaskOutputs { names, .. } = turn.call.clone() else { return turn.honest() };
            match turn.honest() {
                Answer::TaskOutputs(Ok(mut outputs)) => {
                    for name in names {
                        outputs.entry(name).or_default();
                    }
                    Answer::TaskOutputs(Ok(outputs))
                }
                answer => answer,
            }
        },
    ),
    Fault::new(L1, "without-output-left-out", "leaves tasks without output out", |turn| {
        match turn.honest() {
            Answer::TaskOutputs(Ok(mut outputs)) => {
                outputs.retain(|_, output| output.is_some());
                Answer::TaskOutputs(Ok(outputs))
            }
            answer => answer,
        }
    }),
    Fault::new(L1, "outputs-of-any-run", "tells the outputs of another run", |turn| {
        if let Call::TaskOutputs { run, .. } = &mut turn.call
            && let Some(first) = turn.model.tasks.keys().next()
        {
            *run = *first;
        }
        turn.honest()
    }),
    Fault::new(L1, "first-name-only", "tells the output of the first of several names", |turn| {
        if let Call::TaskOutputs { names, .. } = &mut turn.call {
            names.truncate(1);
        }
        turn.honest()
    }),
    Fault::new(L1, "no-run-no-outputs", "tells no outputs of a run that is not there", |turn| {
        match turn.honest() {
            Answer::TaskOutputs(Err(error))
                if matches!(error.kind(), ork_state_api::ErrorKind::NotFound { .. }) =>
            {
                Answer::TaskOutputs(Ok(BTreeMap::new()))
            }
            answer => answer,
        }
    }),
    Fault::new(L1, "names-without-end", "takes more names than the limit", |turn| {
        if let Call::TaskOutputs { names, .. } = &mut turn.call {
            names.truncate(ork_state_api::limits::MAX_BATCH_ITEMS);
        }
        turn.honest()
    }),
];

/// Has what is ready be looked for with the tasks changed; a task that is handed out is changed by
/// that only.
fn looking(turn: &mut Turn<'_>, change: fn(&mut TaskRow)) -> Answer {
    if !matches!(turn.call, Call::ClaimTasks { .. } | Call::ReadyTasks { .. }) {
        return turn.honest();
    }
    let before = turn.model.clone();
    for row in tasks_of(turn.model) {
        change(row);
    }
    let mut answer = turn.honest();
    let mut taken = BTreeSet::new();
    if let Answer::ClaimTasks(Ok(claimed)) = &mut answer {
        taken.extend(claimed.iter().map(|task| task.id));
    }
    for old in before.tasks.values().flatten().filter(|row| !taken.contains(&row.detail.task.id)) {
        put(turn.model, old.clone());
    }
    answer
}

fn tasks_ready_by_one(model: &Model) -> BTreeSet<TaskId> {
    let rows = model.tasks.values().flatten();
    let met = rows.filter(|row| !row.dependencies.is_empty() && model.unmet(row) < row.dependencies.len());
    met.map(|row| row.detail.task.id).collect()
}

/// Claims, with the leases changed that are given out.
fn claimed(turn: &mut Turn<'_>, change: impl Fn(&mut Lease)) -> Answer {
    let mut answer = turn.honest();
    if let Answer::ClaimTasks(Ok(claimed)) = &mut answer {
        for task in claimed {
            if let Some(lease) = &mut task.task.lease {
                change(lease);
            }
            let lease = task.task.lease.clone();
            turn.model.edit_task(task.id, |row| row.detail.task.lease = lease);
        }
    }
    answer
}

/// Claims, and tells something else about what was claimed.
fn told(turn: &mut Turn<'_>, change: fn(&mut ork_state_api::ClaimedTask)) -> Answer {
    let mut answer = turn.honest();
    if let Answer::ClaimTasks(Ok(claimed)) = &mut answer {
        claimed.iter_mut().for_each(change);
    }
    answer
}

/// Gives a task's lease this token.
fn with_token(model: &mut Model, claim: Claim) {
    model.edit_task(claim.task, |row| {
        if let Some(lease) = &mut row.detail.task.lease {
            lease.token = claim.token;
        }
    });
}

/// Has no lease lapsed at this moment.
fn all_live(turn: &mut Turn<'_>) {
    let next = turn.now.saturating_add(Duration::from_micros(1));
    for row in tasks_of(turn.model) {
        if let Some(lease) = &mut row.detail.task.lease {
            lease.expires_at = lease.expires_at.max(next);
        }
    }
}

/// Renews leases up to another time, given the old end, the right one and the present.
fn renewed(turn: &mut Turn<'_>, end: fn(Timestamp, Timestamp, Timestamp) -> Timestamp) -> Answer {
    let before = turn.model.clone();
    let now = turn.now;
    let answer = turn.honest();
    if let Answer::Heartbeat(Ok(_)) = &answer {
        for (old, _) in changed(&before, turn.model, |_| true) {
            turn.model.edit_task(old.detail.task.id, |row| {
                if let (Some(lease), Some(old)) = (&mut row.detail.task.lease, old.detail.task.lease) {
                    lease.expires_at = end(old.expires_at, lease.expires_at, now);
                }
            });
        }
    }
    answer
}

/// Has leases lapse but for those of these tasks.
fn expiring(turn: &mut Turn<'_>, spared: fn(&TaskRow, Timestamp) -> bool) -> Answer {
    match turn.call {
        Call::ExpireLeases { .. } => sparing(turn, spared),
        _ => turn.honest(),
    }
}

fn sparing(turn: &mut Turn<'_>, spared: impl Fn(&TaskRow, Timestamp) -> bool) -> Answer {
    let now = turn.now;
    let leases: Vec<(TaskId, Option<Lease>)> = tasks_of(turn.model)
        .filter(|row| row.detail.task.lease.is_some() && spared(row, now))
        .map(|row| (row.detail.task.id, row.detail.task.lease.take()))
        .collect();
    let answer = turn.honest();
    for (id, lease) in leases {
        turn.model.edit_task(id, |row| row.detail.task.lease = lease);
    }
    answer
}

/// Has every task have attempts left in some calls.
fn without_end(turn: &mut Turn<'_>, meant: fn(&Call) -> bool) -> Answer {
    if !meant(&turn.call) {
        return turn.honest();
    }
    let max: Vec<(TaskId, u32)> =
        tasks_of(turn.model).map(|row| (row.detail.task.id, row.detail.task.max_retries)).collect();
    for row in tasks_of(turn.model) {
        row.detail.task.max_retries = row.detail.task.attempts + 1;
    }
    let answer = turn.honest();
    for (id, max) in max {
        turn.model.edit_task(id, |row| row.detail.task.max_retries = max);
    }
    answer
}

/// Applies updates and tells others of their outcomes.
fn outcomes(turn: &mut Turn<'_>, change: fn(UpdateOutcome) -> UpdateOutcome) -> Answer {
    let mut answer = turn.honest();
    if let Answer::UpdateTasks(Ok(report)) = &mut answer {
        for outcome in &mut report.outcomes {
            *outcome = change(*outcome);
        }
    }
    answer
}

/// Applies updates and then changes each task that they changed, which was like the first and is
/// like the second.
fn updated(turn: &mut Turn<'_>, change: fn(&TaskRow, &mut TaskRow)) -> Answer {
    let before = turn.model.clone();
    let answer = turn.honest();
    if let Answer::UpdateTasks(Ok(_)) = &answer {
        for (old, mut new) in changed(&before, turn.model, |_| true) {
            change(&old, &mut new);
            put(turn.model, new);
        }
    }
    answer
}

/// The same for tasks that are given back.
fn released(turn: &mut Turn<'_>, change: fn(&TaskRow, &mut TaskRow)) -> Answer {
    let Call::UpdateTasks { updates } = turn.call.clone() else { return turn.honest() };
    let before = turn.model.clone();
    let answer = turn.honest();
    for step in updates.steps().iter().filter(|step| matches!(step.end, Some(TaskChange::Released))) {
        let id = step.claim.task;
        if let (Ok(old), Ok(new)) = (before.row(id), turn.model.row(id))
            && old.detail.task != new.detail.task
        {
            let mut new = new.clone();
            change(old, &mut new);
            put(turn.model, new);
        }
    }
    answer
}

/// What fell with the failures of a call, each as it was and as it is.
fn cascade(before: &Model, turn: &Turn<'_>) -> Vec<(TaskRow, TaskRow)> {
    let reported: BTreeSet<TaskId> = match &turn.call {
        Call::UpdateTasks { updates } => updates.steps().iter().map(|step| step.claim.task).collect(),
        _ => return vec![],
    };
    let fallen = changed(before, turn.model, |row| !reported.contains(&row.detail.task.id));
    fallen.into_iter().filter(|(_, new)| new.detail.task.status == TaskStatus::Failed).collect()
}

/// Changes a task once more when the end of its last attempt is reported again.
fn repeated(turn: &mut Turn<'_>, meant: fn(&TaskChange) -> bool, change: fn(&mut TaskRow)) -> Answer {
    let Call::UpdateTasks { updates } = turn.call.clone() else { return turn.honest() };
    for step in updates.steps().iter().filter(|step| step.end.as_ref().is_some_and(meant)) {
        turn.model.edit_task(step.claim.task, |row| {
            if row.detail.task.status == TaskStatus::Pending && row.token == step.claim.token.get() {
                change(row);
            }
        });
    }
    turn.honest()
}
