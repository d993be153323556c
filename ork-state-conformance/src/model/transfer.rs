use ork_state_api::backend::{ImportPage, ImportProgress, Record, no_import, not_empty};
use ork_state_api::{Entity, Error, RunId, TaskDetail, TaskName, Timestamp, Token};

use super::{Expected, JobRow, Model, TaskRow};

/// Imported records that are not yet part of the store.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Import {
    pub(crate) progress: ImportProgress,
    pub(crate) records: Vec<String>,
}

impl Model {
    /// M6
    pub(super) fn import_progress(&self) -> Option<ImportProgress> {
        self.import.as_ref().map(|import| import.progress.clone())
    }

    /// M6
    pub(super) fn import(&mut self, page: &ImportPage) -> Expected<()> {
        self.require_empty()?;
        let there = self.import_progress();
        if there.clone().unwrap_or_default() != *page.after() {
            return Err(page.does_not_follow(there.as_ref()));
        }
        let import = self.import.get_or_insert_default();
        import.progress = page.to().clone();
        import.records.extend(page.records().iter().map(|(_, encoded)| encoded.clone()));
        Ok(())
    }

    /// M6
    pub(super) fn finish_import(&mut self) -> Expected<()> {
        self.require_empty()?;
        let mut finished = self.clone();
        let import = finished.import.take().ok_or_else(no_import)?;
        for record in &import.records {
            finished.take_in(Record::decode(record)?)?;
        }
        *self = finished;
        Ok(())
    }

    /// M6
    pub(super) fn abandon_import(&mut self) {
        self.import = None;
    }

    fn require_empty(&self) -> Expected<()> {
        if self.workflows.is_empty() { Ok(()) } else { Err(not_empty()) }
    }

    fn take_in(&mut self, record: Record) -> Expected<()> {
        match record {
            Record::Snapshot(snapshot) => drop(self.snapshots.insert(snapshot.id, snapshot)),
            Record::Workflow(workflow) => drop(self.workflows.insert(workflow.id, workflow)),
            Record::Run(run) => drop(self.runs.insert(run.id, run)),
            Record::Task { detail, token } => self.take_in_task(detail, token)?,
            Record::Job { job, token, .. } => self.jobs.push(JobRow { job, token: token.get() }),
            Record::Log { task, bytes, .. } => self.edit_task(task, |row| row.log.extend(bytes)),
            other => return Err(Error::internal(format!("a {} is of no known kind", other.kind()))),
        }
        Ok(())
    }

    fn take_in_task(&mut self, detail: TaskDetail, token: Token) -> Expected<()> {
        let task = &detail.task;
        let ready_since = task.ready_at.or(task.retry_at).unwrap_or(Timestamp::MIN);
        let dependencies = self.indexes(task.run, &task.depends_on)?;
        self.places.insert(task.id, (task.run, self.rows(task.run).len()));
        let (run, token) = (task.run, token.get());
        let row = TaskRow { detail, dependencies, ready_since, token, log: Vec::new(), is_told: true };
        self.tasks.entry(run).or_default().push(row);
        Ok(())
    }

    /// The positions of the tasks with these names in a run's DAG.
    fn indexes(&self, run: RunId, names: &[TaskName]) -> Expected<Vec<usize>> {
        let missing = || Error::not_found(Entity::Run, run);
        let snapshot =
            self.runs.get(&run).and_then(|run| self.snapshots.get(&run.snapshot)).ok_or_else(missing)?;
        let tasks = snapshot.dag.tasks();
        let place = |name: &TaskName| tasks.iter().position(|task| task.name == *name);
        names.iter().map(|name| place(name).ok_or_else(|| Error::not_found(Entity::Task, name))).collect()
    }
}
