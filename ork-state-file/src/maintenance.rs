use async_trait::async_trait;
use ork_state_api::{
    JobStatus, Maintenance, MigrationReport, Prune, Pruned, Result, Rule, RunId, Stats, Topic, Violation,
    Watch,
};

use crate::change::Change;
use crate::database::FileDatabase;
use crate::state::State;
use crate::transaction::Transaction;

#[async_trait]
impl Maintenance for FileDatabase {
    async fn migrate(&self) -> Result<MigrationReport> {
        self.engine().migrate().await
    }

    async fn plan_migration(&self) -> Result<MigrationReport> {
        self.engine().plan_migration().await
    }

    async fn prune(&self, prune: Prune) -> Result<Pruned> {
        self.write(move |tx| Ok(delete_ended(tx, prune))).await
    }

    async fn stats(&self) -> Result<Stats> {
        self.read(|state, now| {
            let oldest = state.ready.first().map(|ready| ready.ready_at).filter(|ready_at| *ready_at <= now);
            let mut stats = stats(state);
            stats.oldest_ready_at = oldest;
            Ok(stats)
        })
        .await
    }

    async fn watch(&self, topic: Topic) -> Result<Watch> {
        self.engine().watch(topic)
    }

    async fn verify(&self) -> Result<Vec<Violation>> {
        let mut found = ork_state_api::verify::observe(self).await?;
        let look = self.read_logs(|state, logs| {
            let problems = state.disagreements().into_iter();
            let more =
                problems.map(|problem| Violation::new(Rule::T2, "indexes", problem)).collect::<Vec<_>>();
            let logged = state.all_tasks().filter(|row| row.log_length > 0);
            let bad = logged.filter(|row| logs.check(row.task.id, row.log_length).is_err());
            Ok((more, bad.map(|row| row.task.id).collect::<Vec<_>>()))
        });
        let (more, bad) = look.await?;
        found.extend(more);
        // A log may be missing because another process has just deleted its task. Then the second
        // look does not find the task.
        let look_again = self.read_logs(move |state, logs| {
            let rows = bad.iter().filter_map(|id| state.find_task(*id));
            let problems =
                rows.filter_map(|row| Some((row.task.id, logs.check(row.task.id, row.log_length).err()?)));
            Ok(problems
                .map(|(id, problem)| Violation::new(Rule::L2, format!("log of task {id}"), problem))
                .collect::<Vec<_>>())
        });
        found.extend(look_again.await?);
        Ok(found)
    }
}

fn delete_ended(tx: &mut Transaction<'_>, prune: Prune) -> Pruned {
    let before = tx.now.saturating_sub(prune.older_than);
    let ended = tx.state.ended.iter().take_while(|(finished_at, _)| *finished_at < before);
    let runs: Vec<RunId> = ended.take(prune.limit.get()).map(|(_, id)| *id).collect();
    if runs.is_empty() {
        return Pruned::default();
    }
    let mut pruned = Pruned::new(runs.len() as u64, 0);
    for run in &runs {
        let (tasks, logged) = tx.state.remove_run(*run);
        pruned.tasks += tasks as u64;
        for task in logged {
            tx.logs.remove(task);
        }
    }
    tx.changes.push(Change::DeleteRuns(runs));
    pruned
}

fn stats(state: &State) -> Stats {
    let mut stats = Stats::none();
    stats.workflows = state.workflows.len() as u64;
    stats.runs.extend(state.counts.runs.iter().map(|(status, count)| (*status, *count)));
    stats.tasks.extend(state.counts.tasks.iter().map(|(status, count)| (*status, *count)));
    let open = state.counts.jobs.iter().filter(|(status, _)| !JobStatus::is_terminal(**status));
    stats.open_jobs.extend(open.map(|(status, count)| (*status, *count)));
    stats
}
