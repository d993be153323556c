//! M1 to M5.

use std::time::Duration;

use ork_state_api::{Found, JobStatus, Limit, RunStatus, Violation};

use super::super::{Answer, Call};
use super::Fault;
use super::shapes::{after, before, delete_runs, tasks_of};
use crate::Damage;
use crate::Rule::{M1, M2, M3, M4, M5, R3};

pub(super) const FAULTS: &[Fault] = &[
    // M1
    before! { M1, "newer-not-noticed", "works on with a schema that is newer than the code",
        |turn| turn.model.damaged.retain(|damage| *damage != Damage::NewerSchema)
    },
    before! { M1, "newer-migrated-back", "migrates a newer schema to its own",
        |turn, Call::Migrate {}| turn.model.damaged.retain(|damage| *damage != Damage::NewerSchema)
    },
    Fault::new(M1, "newer-written-to", "refuses a newer schema to those who read only", |turn| {
        if !turn.call.writes() || matches!(turn.call, Call::Migrate {}) {
            return turn.honest();
        }
        let damaged = std::mem::take(&mut turn.model.damaged);
        let answer = turn.honest();
        turn.model.damaged = damaged;
        answer
    }),
    before! { M1, "never-migrated", "works without a schema",
        |turn| turn.model.is_migrated |= !matches!(turn.call, Call::Migrate {} | Call::PlanMigration {})
    },
    after! { M1, "migration-not-told", "does not say what it did to migrate",
        |turn, Answer::Migrate(Ok(report))| report.applied.clear()
    },
    before! { M1, "migrated-again", "says at every call that it has migrated",
        |turn, Call::Migrate {}| turn.model.is_migrated = false
    },
    before! { M1, "migrated-away", "makes an empty store of one that is migrated again",
    |turn, Call::Migrate {}| {
        if turn.model.is_migrated {
            turn.model.workflows.clear();
            turn.model.runs.clear();
            turn.model.tasks.clear();
        }
    }},
    after! { M1, "plan-migrates", "migrates when it is asked what it would do",
        |turn, Answer::PlanMigration(_)| turn.model.is_migrated = true
    },
    after! { M1, "found-nothing", "says that it found nothing where there was a store",
        |turn, Answer::Migrate(Ok(report))| report.found = Found::Nothing
    },
    after! { M1, "migration-checked-before",
        "looks whether there is something to migrate, and does it a moment later",
    |turn, old, Call::Migrate {}, _| {
        if !old.is_migrated {
            turn.model.is_migrated = false;
            turn.later(|model| model.is_migrated = true);
        }
    }},
    // M2
    before! { M2, "live-pruned", "deletes runs that are live and old", |turn, Call::Prune { prune }| {
        let before = turn.now.saturating_sub(prune.older_than);
        delete_runs(turn.model, |run| !run.status.is_terminal() && run.created_at < before);
    }},
    before! { M2, "prune-limit-ignored", "deletes all that is old in one call",
        |turn, Call::Prune { prune }| prune.limit = Limit::MAX
    },
    Fault::new(M2, "newest-pruned-first", "deletes what ended last first", |turn| {
        let Call::Prune { prune } = &turn.call else { return turn.honest() };
        let before = turn.now.saturating_sub(prune.older_than);
        let mut ended: Vec<_> =
            turn.model.runs.values().filter_map(|run| Some((run.finished_at?, run.id))).collect();
        ended.retain(|(at, _)| *at < before);
        ended.sort();
        let spared = ended.iter().rev().skip(prune.limit.get());
        let spared: Vec<_> = spared.filter_map(|(_, id)| turn.model.runs.remove_entry(id)).collect();
        let answer = turn.honest();
        turn.model.runs.extend(spared);
        answer
    }),
    before! { M2, "age-to-the-second", "has a run old enough a second early", |turn, Call::Prune { prune }| {
        prune.older_than = prune.older_than.saturating_sub(Duration::from_secs(1));
    }},
    Fault::new(M2, "age-from-creation", "counts the age of a run from its creation", |turn| {
        let Call::Prune { .. } = turn.call else { return turn.honest() };
        let mut runs = turn.model.runs.clone();
        for run in turn.model.runs.values_mut().filter(|run| run.finished_at.is_some()) {
            run.finished_at = Some(run.created_at);
        }
        let answer = turn.honest();
        runs.retain(|id, _| turn.model.runs.contains_key(id));
        turn.model.runs = runs;
        answer
    }),
    after! { M2, "pruned-tasks-left", "leaves the tasks of deleted runs", |turn, old, Call::Prune { .. }, _| {
        turn.model.tasks.clone_from(&old.tasks);
        turn.model.places.clone_from(&old.places);
    }},
    after! { M2, "pruned-not-counted", "does not say how many tasks it deleted",
        |turn, Answer::Prune(Ok(pruned))| pruned.tasks = 0
    },
    Fault::new(M2, "cancelled-kept", "keeps cancelled runs for ever", |turn| {
        let Call::Prune { .. } = turn.call else { return turn.honest() };
        let runs = &mut turn.model.runs;
        let cancelled: Vec<_> = runs.extract_if(.., |_, run| run.status == RunStatus::Cancelled).collect();
        let answer = turn.honest();
        turn.model.runs.extend(cancelled);
        answer
    }),
    // M3
    after! { M3, "ended-not-counted", "does not count runs that have ended",
    |turn, Answer::Stats(Ok(stats))| {
        for status in [RunStatus::Success, RunStatus::Failed, RunStatus::Cancelled] {
            stats.runs.insert(status, 0);
        }
    }},
    after! { M3, "tasks-not-counted", "counts no tasks",
        |turn, Answer::Stats(Ok(stats))| stats.tasks.values_mut().for_each(|count| *count = 0)
    },
    after! { M3, "deleted-still-counted", "counts workflows that were deleted",
    |turn, Answer::Stats(Ok(stats))| {
        stats.workflows = stats.workflows.max(u64::from(turn.model.snapshots.is_empty()));
    }},
    after! { M3, "retries-are-ready", "has what waits for a retry count as ready",
    |turn, Answer::Stats(Ok(stats))| {
        let first = tasks_of(turn.model).filter_map(|row| row.detail.task.retry_at).min();
        stats.oldest_ready_at = stats.oldest_ready_at.or(first);
    }},
    after! { M3, "newest-ready", "tells since when the newest ready task waits",
    |turn, Answer::Stats(Ok(stats))| {
        let ready = turn.model.ready_tasks(turn.now, Limit::MAX);
        stats.oldest_ready_at = ready.last().map(|task| task.ready_at);
    }},
    after! { M3, "jobs-all-pending", "counts all open jobs as waiting", |turn, Answer::Stats(Ok(stats))| {
        let all = stats.open_jobs.values().sum();
        stats.open_jobs.values_mut().for_each(|count| *count = 0);
        stats.open_jobs.insert(JobStatus::Pending, all);
    }},
    after! { M3, "empty-has-one", "counts a workflow too many",
        |turn, Answer::Stats(Ok(stats))| stats.workflows += 1
    },
    // M4
    after! { M4, "nothing-found", "finds nothing wrong, whatever there is",
        |turn, Answer::Verify(Ok(found))| found.clear()
    },
    after! { M4, "always-something", "finds something wrong with a sound store",
    |turn, Answer::Verify(Ok(found))| {
        if found.is_empty() {
            found.push(Violation::new(R3, "store", "is empty"));
        }
    }},
    after! { M4, "all-suspected", "finds the same wrong with every run where it is with one",
    |turn, Answer::Verify(Ok(found))| {
        if !found.is_empty() {
            let suspected = |run| Violation::new(R3, format!("run {run}"), "a count is wrong");
            found.extend(turn.model.runs.keys().map(suspected));
        }
    }},
    after! { M4, "first-finding-only", "stops at the first thing that is wrong",
        |turn, Answer::Verify(Ok(found))| found.truncate(1)
    },
    before! { M4, "verifying-mends", "puts leases right while it verifies",
        |turn, Call::Verify {}| tasks_of(turn.model).for_each(|row| row.detail.task.lease = None)
    },
    // M5
    Fault::silent(M5, "starts-not-hinted", "gives no hint of a started run", |call| {
        // A hint of an earlier call would do.
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
