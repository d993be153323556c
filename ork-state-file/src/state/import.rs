//! Records of another store, and the state that they become.

use std::sync::Arc;

use ork_state_api::backend::{ImportProgress, Record};
use ork_state_api::{Error, Result, Run, TaskId};

use crate::change::{Change, LogLength, NewJob, NewTask, TaskPatch};

use super::State;

/// Imported records that are not yet part of the store.
#[derive(Debug, Default, Clone)]
pub(crate) struct Import {
    pub(crate) progress: ImportProgress,
    /// In encoded form, without those of logs.
    pub(crate) records: Vec<Arc<str>>,
    pub(crate) logs: Vec<LogLength>,
}

impl Import {
    /// The state of the store once the import is finished.
    pub(crate) fn finished(&self) -> Result<State> {
        let (mut state, _) = State::of_records(self.records.iter().map(|record| Record::decode(record)))?;
        for (task, length) in &self.logs {
            state.apply(Change::LogLength { task: *task, length: *length }).map_err(unfit)?;
        }
        Ok(state)
    }
}

/// Parts of logs, each with its offset.
type LogParts = Vec<(TaskId, u64, Vec<u8>)>;

impl State {
    /// The state with these records, and the logs, which are not part of a state.
    pub(crate) fn of_records(records: impl Iterator<Item = Result<Record>>) -> Result<(Self, LogParts)> {
        let (mut state, mut logs) = (Self::default(), LogParts::new());
        let mut tasks = RunTasks::default();
        for record in records {
            match record? {
                Record::Snapshot(snapshot) => state.put_snapshot(snapshot),
                Record::Workflow(workflow) => state.put_workflow(workflow),
                Record::Run(run) => {
                    std::mem::take(&mut tasks).put_into(&mut state)?;
                    state.put_run(run.clone());
                    tasks.run = Some(run);
                }
                Record::Task { detail, token } => {
                    let id = detail.task.id;
                    tasks.later.push(Change::Task(TaskPatch::of(&detail.task, token)));
                    if detail.output.is_some() {
                        tasks.later.push(Change::Output { task: id, output: detail.output });
                    }
                    tasks.new.push(NewTask { task: detail.task, params: detail.params });
                }
                Record::Job { job, token, .. } => tasks.later.push(Change::Jobs(vec![NewJob { job, token }])),
                Record::Log { task, offset, bytes } => {
                    let length = offset + bytes.len() as u64;
                    tasks.later.push(Change::LogLength { task, length });
                    logs.push((task, offset, bytes));
                }
                other => return Err(unfit(format!("an imported {} is of no known kind", other.kind()))),
            }
        }
        tasks.put_into(&mut state)?;
        Ok((state, logs))
    }
}

/// The tasks of a run, which are added at once, and the changes that follow for each.
#[derive(Default)]
struct RunTasks {
    run: Option<Run>,
    new: Vec<NewTask>,
    later: Vec<Change>,
}

impl RunTasks {
    fn put_into(self, state: &mut State) -> Result<()> {
        let Some(run) = self.run else { return Ok(()) };
        if !self.new.is_empty() {
            state.apply(Change::Tasks { run: run.id, tasks: self.new }).map_err(unfit)?;
        }
        self.later.into_iter().try_for_each(|change| state.apply(change)).map_err(unfit)
    }
}

fn unfit(problem: String) -> Error {
    Error::corrupt("import", "?", "record", problem)
}
