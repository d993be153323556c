//! M1 to M5.

use std::time::Duration;

use ork_state_api::{Found, JobStatus, Limit, RunStatus, Violation};

use super::super::{Answer, Call, Model, Turn};
use super::{Fault, tasks_of};
use crate::Damage;
use crate::Rule::{M1, M2, M3, M4, M5, R3};

pub(super) const FAULTS: &[Fault] = &[
    // M1
    Fault::new(M1, "newer-not-noticed", "works on with a schema that is newer than the code", |turn| {
        turn.model.damaged.retain(|damage| *damage != Damage::NewerSchema);
        turn.honest()
    }),
    Fault::new(M1, "newer-migrated-back", "migrates a newer schema to its own", |turn| {
        if let Call::Migrate {} = turn.call {
            turn.model.damaged.retain(|damage| *damage != Damage::NewerSchema);
        }
        turn.honest()
    }),
    Fault::new(M1, "newer-written-to", "refuses a newer schema to those who read only", |turn| {
        if turn.call.writes() && !matches!(turn.call, Call::Migrate {}) {
            let damaged = std::mem::take(&mut turn.model.damaged);
            let answer = turn.honest();
            turn.model.damaged = damaged;
            return answer;
        }
        turn.honest()
    }),
    Fault::new(M1, "never-migrated", "works without a schema", |turn| {
        turn.model.is_migrated |= !matches!(turn.call, Call::Migrate {} | Call::PlanMigration {});
        turn.honest()
    }),
    Fault::new(M1, "migration-not-told", "does not say what it did to migrate", |turn| match turn.honest() {
        Answer::Migrate(Ok(mut report)) => {
            report.applied.clear();
            Answer::Migrate(Ok(report))
        }
        answer => answer,
    }),
    Fault::new(M1, "migrated-again", "says at every call that it has migrated", |turn| {
        if let Call::Migrate {} = turn.call {
            turn.model.is_migrated = false;
        }
        turn.honest()
    }),
    Fault::new(M1, "migrated-away", "makes an empty store of one that is migrated again", |turn| {
        if let (Call::Migrate {}, true) = (&turn.call, turn.model.is_migrated) {
            turn.model.workflows.clear();
            turn.model.runs.clear();
            turn.model.tasks.clear();
        }
        turn.honest()
    }),
    Fault::new(M1, "plan-migrates", "migrates when it is asked what it would do", |turn| {
        let answer = turn.honest();
        if let Answer::PlanMigration(_) = answer {
            turn.model.is_migrated = true;
        }
        answer
    }),
    Fault::new(M1, "found-nothing", "says that it found nothing where there was a store", |turn| match turn
        .honest()
    {
        Answer::Migrate(Ok(mut report)) => {
            report.found = Found::Nothing;
            Answer::Migrate(Ok(report))
        }
        answer => answer,
    }),
    Fault::new(
        M1,
        "migration-checked-before",
        "looks whether there is something to migrate, and does it a moment later",
        |turn| {
            let is_migrated = turn.model.is_migrated;
            let answer = turn.honest();
            if let (Call::Migrate {}, false) = (&turn.call, is_migrated) {
                turn.model.is_migrated = false;
                turn.later(|model| model.is_migrated = true);
            }
            answer
        },
    ),
    // M2
    Fault::new(M2, "live-pruned", "deletes runs that are live and old", |turn| {
        let Call::Prune { prune } = turn.call.clone() else { return turn.honest() };
        let before = turn.now.saturating_sub(prune.older_than);
        let old: Vec<_> = turn
            .model
            .runs
            .values()
            .filter(|run| !run.status.is_terminal() && run.created_at < before)
            .map(|run| run.id)
            .collect();
        for run in old {
            turn.model.delete_run(run);
        }
        turn.honest()
    }),
    Fault::new(M2, "prune-limit-ignored", "deletes all that is old in one call", |turn| {
        if let Call::Prune { prune } = &mut turn.call {
            prune.limit = Limit::new(Limit::MAX).unwrap_or(prune.limit);
        }
        turn.honest()
    }),
    Fault::new(M2, "newest-pruned-first", "deletes what ended last first", |turn| {
        let Call::Prune { prune } = turn.call.clone() else { return turn.honest() };
        let before = turn.now.saturating_sub(prune.older_than);
        let mut ended: Vec<_> =
            turn.model.runs.values().filter_map(|run| Some((run.finished_at?, run.id))).collect();
        ended.retain(|(at, _)| *at < before);
        ended.sort();
        let spared: Vec<_> = ended.iter().rev().skip(prune.limit.get()).map(|(_, id)| *id).collect();
        let spared: Vec<_> = spared.iter().filter_map(|id| turn.model.runs.remove(id)).collect();
        let answer = turn.honest();
        turn.model.runs.extend(spared.into_iter().map(|run| (run.id, run)));
        answer
    }),
    Fault::new(M2, "age-to-the-second", "has a run old enough a second early", |turn| {
        if let Call::Prune { prune } = &mut turn.call {
            prune.older_than = prune.older_than.saturating_sub(Duration::from_secs(1));
        }
        turn.honest()
    }),
    Fault::new(M2, "age-from-creation", "counts the age of a run from its creation", |turn| {
        let Call::Prune { .. } = turn.call else { return turn.honest() };
        let before = turn.model.runs.clone();
        for run in turn.model.runs.values_mut().filter(|run| run.finished_at.is_some()) {
            run.finished_at = Some(run.created_at);
        }
        let answer = turn.honest();
        let left: Vec<_> = turn.model.runs.keys().copied().collect();
        turn.model.runs.extend(before.into_iter().filter(|(id, _)| left.contains(id)));
        answer
    }),
    Fault::new(M2, "pruned-tasks-left", "leaves the tasks of deleted runs", |turn| {
        let Call::Prune { .. } = turn.call else { return turn.honest() };
        let (tasks, places) = (turn.model.tasks.clone(), turn.model.places.clone());
        let answer = turn.honest();
        (turn.model.tasks, turn.model.places) = (tasks, places);
        answer
    }),
    Fault::new(M2, "pruned-not-counted", "does not say how many tasks it deleted", |turn| {
        match turn.honest() {
            Answer::Prune(Ok(mut pruned)) => {
                pruned.tasks = 0;
                Answer::Prune(Ok(pruned))
            }
            answer => answer,
        }
    }),
    Fault::new(M2, "cancelled-kept", "keeps cancelled runs for ever", |turn| {
        let Call::Prune { .. } = turn.call else { return turn.honest() };
        let cancelled: Vec<_> =
            turn.model.runs.values().filter(|run| run.status == RunStatus::Cancelled).cloned().collect();
        for run in &cancelled {
            turn.model.runs.remove(&run.id);
        }
        let answer = turn.honest();
        turn.model.runs.extend(cancelled.into_iter().map(|run| (run.id, run)));
        answer
    }),
    // M3
    Fault::new(M3, "ended-not-counted", "does not count runs that have ended", |turn| {
        counted(turn, |_, stats| {
            for status in [RunStatus::Success, RunStatus::Failed, RunStatus::Cancelled] {
                stats.runs.insert(status, 0);
            }
        })
    }),
    Fault::new(M3, "tasks-not-counted", "counts no tasks", |turn| {
        counted(turn, |_, stats| stats.tasks.values_mut().for_each(|count| *count = 0))
    }),
    Fault::new(M3, "deleted-still-counted", "counts workflows that were deleted", |turn| {
        counted(turn, |model, stats| {
            stats.workflows = stats.workflows.max(u64::from(model.snapshots.is_empty()));
        })
    }),
    Fault::new(M3, "retries-are-ready", "has what waits for a retry count as ready", |turn| {
        counted(turn, |model, stats| {
            let first = tasks_of(model).filter_map(|row| row.detail.task.retry_at).min();
            stats.oldest_ready_at = stats.oldest_ready_at.or(first);
        })
    }),
    Fault::new(M3, "newest-ready", "tells since when the newest ready task waits", |turn| {
        let now = turn.now;
        counted(turn, |model, stats| {
            let ready = model.ready_tasks(now, Limit::new(Limit::MAX).unwrap_or(Limit::ONE));
            stats.oldest_ready_at = ready.last().map(|task| task.ready_at);
        })
    }),
    Fault::new(M3, "jobs-all-pending", "counts all open jobs as waiting", |turn| {
        counted(turn, |_, stats| {
            let all = stats.open_jobs.values().sum();
            stats.open_jobs.values_mut().for_each(|count| *count = 0);
            stats.open_jobs.insert(JobStatus::Pending, all);
        })
    }),
    Fault::new(M3, "empty-has-one", "counts a workflow too many", |turn| {
        counted(turn, |_, stats| stats.workflows += 1)
    }),
    // M4
    Fault::new(M4, "nothing-found", "finds nothing wrong, whatever there is", |turn| match turn.honest() {
        Answer::Verify(Ok(_)) => Answer::Verify(Ok(vec![])),
        answer => answer,
    }),
    Fault::new(M4, "always-something", "finds something wrong with a sound store", |turn| {
        match turn.honest() {
            Answer::Verify(Ok(found)) if found.is_empty() => {
                Answer::Verify(Ok(vec![Violation::new(R3, "store", "is empty")]))
            }
            answer => answer,
        }
    }),
    Fault::new(M4, "all-suspected", "finds the same wrong with every run where it is with one", |turn| {
        let runs: Vec<_> = turn.model.runs.keys().copied().collect();
        match turn.honest() {
            Answer::Verify(Ok(mut found)) if !found.is_empty() => {
                found.extend(
                    runs.iter().map(|run| Violation::new(R3, format!("run {run}"), "a count is wrong")),
                );
                Answer::Verify(Ok(found))
            }
            answer => answer,
        }
    }),
    Fault::new(M4, "first-finding-only", "stops at the first thing that is wrong", |turn| {
        match turn.honest() {
            Answer::Verify(Ok(mut found)) => {
                found.truncate(1);
                Answer::Verify(Ok(found))
            }
            answer => answer,
        }
    }),
    Fault::new(M4, "verifying-mends", "puts leases right while it verifies", |turn| {
        if let Call::Verify {} = turn.call {
            for row in tasks_of(turn.model) {
                row.detail.task.lease = None;
            }
        }
        turn.honest()
    }),
    // M5
    Fault::silent(M5, "starts-not-hinted", "gives no hint of a started run", |call| {
        // A hint of what comes before it would do.
        call.writes()
            && !matches!(call, Call::CreateWorkflow { .. } | Call::CreateRun { .. } | Call::StartRun { .. })
    }),
    Fault::silent(M5, "updates-not-hinted", "gives no hint of what an update makes ready or ends", |call| {
        call.writes() && !matches!(call, Call::UpdateTasks { .. })
    }),
    Fault::silent(M5, "cancels-not-hinted", "gives no hint of a cancelled run", |call| {
        call.writes() && !matches!(call, Call::CancelRun { .. })
    }),
    Fault::silent(M5, "resumes-not-hinted", "gives no hint of a resumed or retried run", |call| {
        call.writes() && !matches!(call, Call::ResumeRun { .. } | Call::RetryRun { .. })
    }),
];

/// Counts, and tells something else.
fn counted(turn: &mut Turn<'_>, change: impl Fn(&mut Model, &mut ork_state_api::Stats)) -> Answer {
    let mut answer = turn.honest();
    if let Answer::Stats(Ok(stats)) = &mut answer {
        change(turn.model, stats);
    }
    answer
}
