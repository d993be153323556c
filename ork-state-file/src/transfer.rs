use async_trait::async_trait;
use ork_state_api::backend::{ImportPage, ImportProgress, Record, Transfer, no_import, not_empty};
use ork_state_api::{Error, Result, Run, TaskId};

use crate::change::{Change, NewJob, NewTask, TaskPatch};
use crate::database::FileDatabase;
use crate::error;
use crate::state::{Import, State};
use crate::transaction::Transaction;

#[async_trait]
impl Transfer for FileDatabase {
    async fn import_progress(&self) -> Result<Option<ImportProgress>> {
        self.read(|state, _| Ok(state.import.as_ref().map(|import| import.progress.clone()))).await
    }

    async fn import(&self, page: ImportPage) -> Result<()> {
        self.write(move |tx| import(tx, &page)).await
    }

    async fn finish_import(&self) -> Result<()> {
        self.write(|tx| {
            require_empty(tx.state)?;
            let finished = tx.state.import.as_ref().ok_or_else(no_import)?.finished()?;
            tx.state.replace(finished);
            tx.changes.push(Change::ImportFinished);
            Ok(())
        })
        .await
    }

    async fn abandon_import(&self) -> Result<()> {
        self.write(|tx| {
            let Some(import) = &tx.state.import else { return Ok(()) };
            for (task, _) in &import.logs {
                tx.logs.remove(*task);
            }
            tx.apply(Change::ImportAbandoned)
        })
        .await
    }
}

fn require_empty(state: &State) -> Result<()> {
    if state.workflows.is_empty() { Ok(()) } else { Err(not_empty()) }
}

fn import(tx: &mut Transaction<'_>, page: &ImportPage) -> Result<()> {
    require_empty(tx.state)?;
    let there = tx.state.import.as_ref().map(|import| &import.progress);
    if there.cloned().unwrap_or_default() != *page.after() {
        return Err(page.does_not_follow(there));
    }
    let (mut records, mut logs) = (Vec::new(), Vec::new());
    for (kind, encoded) in page.records() {
        if *kind != "log" {
            records.push(encoded.clone());
            continue;
        }
        // Logs are files: they need not wait in the journal.
        if let Record::Log { task, offset, bytes } = Record::decode(encoded)? {
            tx.logs
                .write(task, offset, &bytes)
                .map_err(|source| error::io(&format!("write the log of task {task}"), source))?;
            logs.push((task, offset + bytes.len() as u64));
        }
    }
    tx.apply(Change::Imported { progress: page.to().clone(), records, logs })
}

impl Import {
    /// What the store holds once it is finished.
    pub(crate) fn finished(&self) -> Result<State> {
        let mut state = State::default();
        let mut tasks = RunTasks::default();
        for record in &self.records {
            match Record::decode(record)? {
                Record::Snapshot(snapshot) => state.put_snapshot(snapshot),
                Record::Workflow(workflow) => state.put_workflow(workflow),
                Record::Run(run) => {
                    std::mem::take(&mut tasks).put_into(&mut state)?;
                    state.put_run(run.clone());
                    tasks.run = Some(run);
                }
                Record::Task { detail, token } => {
                    let id = detail.task.id;
                    tasks.later.push(Change::Task(TaskPatch::of_task(&detail.task, token)));
                    if detail.output.is_some() {
                        tasks.later.push(Change::Output { task: id, output: detail.output });
                    }
                    tasks.new.push(NewTask { task: detail.task, params: detail.params });
                }
                Record::Job { job, token, .. } => tasks.later.push(Change::Jobs(vec![NewJob { job, token }])),
                other => return Err(unfit(format!("an imported {} is of no known kind", other.kind()))),
            }
        }
        tasks.put_into(&mut state)?;
        for (task, length) in &self.logs {
            state.apply(Change::LogLength { task: *task, length: *length }).map_err(unfit)?;
        }
        Ok(state)
    }
}

/// The tasks of a run, which are put in at once, and what is said of each.
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

/// How much of a task's log is there.
pub(crate) type LogLength = (TaskId, u64);
