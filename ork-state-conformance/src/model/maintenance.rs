use ork_state_api::{Found, Limit, MigrationReport, Prune, Pruned, RunId, Stats, Timestamp};

use super::Model;

use crate::ctx::with;

impl Model {
    /// M1
    pub(super) fn migrate(&mut self) -> MigrationReport {
        let report = self.plan_migration();
        self.is_migrated = true;
        report
    }

    /// M1
    pub(super) fn plan_migration(&self) -> MigrationReport {
        let (found, applied) = match self.is_migrated {
            true => (Found::OrkState(1), vec![]),
            false => (Found::Nothing, vec!["001_model".to_owned()]),
        };
        with(MigrationReport::new(found, 1), |report| report.applied = applied)
    }

    /// M2
    pub(super) fn prune(&mut self, now: Timestamp, prune: Prune) -> Pruned {
        let before = now.saturating_sub(prune.older_than);
        let mut ended: Vec<(Timestamp, RunId)> =
            self.runs.values().filter_map(|run| Some((run.finished_at?, run.id))).collect();
        ended.retain(|(finished_at, _)| *finished_at < before);
        ended.sort();
        ended.truncate(prune.limit.get());
        let mut pruned = Pruned::default();
        for (_, run) in ended {
            pruned.runs += 1;
            pruned.tasks += self.rows(run).len() as u64;
            self.delete_run(run);
        }
        pruned
    }

    /// M3
    pub(super) fn stats(&self, now: Timestamp) -> Stats {
        let mut stats = Stats::none();
        stats.workflows = self.workflows.len() as u64;
        for run in self.runs.values() {
            *stats.runs.entry(run.status).or_default() += 1;
        }
        for row in self.tasks.values().flatten() {
            *stats.tasks.entry(row.detail.task.status).or_default() += 1;
        }
        for row in self.jobs.iter().filter(|row| !row.job.status.is_terminal()) {
            *stats.open_jobs.entry(row.job.status).or_default() += 1;
        }
        stats.oldest_ready_at = self.ready_tasks(now, Limit::ONE).first().map(|ready| ready.ready_at);
        stats
    }
}
