//! G8, M1, M4: the model's answers after something was written into it that no store would write.

use ork_state_api::{Error, ErrorKind, Rule, Run, RunId, RunStatus, SnapshotId, TaskId, Violation};

use super::{Answer, Call, Expected, Model};
use crate::Damage;

impl Model {
    pub(super) fn damage(&mut self, damage: Damage) {
        if let Damage::RunEnded(id) = damage {
            self.edit_run(id, |run| {
                (run.status, run.finished_at) = (RunStatus::Success, Some(run.created_at));
            });
        }
        self.damaged.push(damage);
    }

    pub(super) fn is_newer(&self) -> bool {
        self.damaged.contains(&Damage::NewerSchema)
    }

    /// The part of this task that cannot be read.
    pub(super) fn corrupt_task(&self, id: TaskId) -> Expected<()> {
        let columns = [
            (Damage::TaskStatus(id), "status"),
            (Damage::TaskName(id), "name"),
            (Damage::DependsOn(id), "depends_on"),
        ];
        self.corrupt("tasks", id.to_string(), &columns)
    }

    pub(super) fn corrupt_run(&self, id: RunId) -> Expected<()> {
        self.corrupt("runs", id.to_string(), &[(Damage::RunStatus(id), "status")])
    }

    pub(super) fn corrupt_snapshot(&self, id: SnapshotId) -> Expected<()> {
        self.corrupt("snapshots", id.to_string(), &[(Damage::Dag(id), "tasks")])
    }

    fn corrupt(&self, table: &'static str, id: String, columns: &[(Damage, &'static str)]) -> Expected<()> {
        match columns.iter().find(|(damage, _)| self.damaged.contains(damage)) {
            Some((_, column)) => Err(Error::corrupt(table, id, *column, "cannot be read")),
            None => Ok(()),
        }
    }

    /// The answer, if nothing in it is damaged.
    pub(super) fn readable(&self, answer: Answer) -> Answer {
        if self.damaged.is_empty() {
            return answer;
        }
        let runs = |runs: &[Run]| runs.iter().try_for_each(|run| self.corrupt_run(run.id));
        match answer {
            Answer::GetRun(Ok(run)) => {
                Answer::GetRun(self.corrupt_run(run.id).map(|()| self.miscounted(run)))
            }
            Answer::ListRuns(Ok(page)) => Answer::ListRuns(runs(&page.items).map(|()| page)),
            Answer::GetSnapshot(Ok(snapshot)) => {
                Answer::GetSnapshot(self.corrupt_snapshot(snapshot.id).map(|()| snapshot))
            }
            Answer::GetTask(Ok(detail)) => {
                Answer::GetTask(self.corrupt_task(detail.task.id).map(|()| detail))
            }
            Answer::ListTasks(Ok(page)) => {
                let unreadable = page.items.iter().try_for_each(|task| self.corrupt_task(task.id));
                Answer::ListTasks(unreadable.map(|()| page))
            }
            answer => answer,
        }
    }

    fn miscounted(&self, mut run: Run) -> Run {
        run.tasks.unfinished += u32::from(self.damaged.contains(&Damage::RunCount(run.id)));
        run
    }

    /// M4: the faults of a store are the damage that was done to it.
    pub(super) fn verify(&self) -> Vec<Violation> {
        let found = self.damaged.iter().filter_map(|damage| {
            let (rule, entity) = match damage {
                Damage::RunStatus(id) => (Rule::G8, format!("run {id}")),
                Damage::TaskStatus(id) | Damage::TaskName(id) | Damage::DependsOn(id) => {
                    (Rule::G8, format!("task {id}"))
                }
                Damage::Dag(id) => (Rule::G8, format!("snapshot {id}")),
                Damage::RunCount(id) | Damage::RunEnded(id) => (Rule::R3, format!("run {id}")),
                Damage::NewerSchema => return None,
            };
            Some(Violation::new(rule, entity, damage.to_string()))
        });
        found.collect()
    }
}

/// M1: the error of every call of a store whose schema is newer than the code.
pub(super) fn newer(call: &Call) -> Answer {
    call.fails(Error::new(ErrorKind::SchemaMismatch { found: 2, needed: 1 }))
}
