//! Reads a directory that Ork wrote before ork-state: one JSON file per entity, written in place,
//! without a version. The files stay as they are.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;

use ork_state_api::ork::takeover::{OldJob, OldRun, OldSnapshot, OldSpec, OldTask, OldWorkflow, Takeover};
use ork_state_api::{Error, Result, Rule, TaskId, Timestamp, Violation};
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::error::io_at;
use crate::state::State;

/// Whether a directory holds files of Ork's. A legacy state store has a directory `runs` too, but
/// is something else.
pub(crate) fn is_orks(directory: &Path) -> bool {
    ["workflows", "tasks"].iter().any(|name| directory.join(name).is_dir())
}

/// The result of converting a directory of Ork's.
#[derive(Debug, Default)]
pub(crate) struct Imported {
    pub(crate) state: State,
    /// Parts of logs, each with its offset.
    pub(crate) logs: Vec<(TaskId, u64, Vec<u8>)>,
    pub(crate) adjusted: Vec<Violation>,
}

/// Reads the directory. `now` is for entities without a time of their own.
pub(crate) fn import(directory: &Path, now: Timestamp) -> Result<Imported> {
    let files = Files(directory);
    let (workflows, unreadable) = files.read_all::<OldWorkflow>("workflows")?;
    let names = workflows.iter().map(|workflow| workflow.name.clone());
    let mut takeover = Takeover::new(now, names);
    unreadable.tell(&mut takeover);
    let (runs, unreadable) = files.read_all::<OldRun>("runs")?;
    unreadable.tell(&mut takeover);
    let (tasks, unreadable) = files.read_all::<OldTask>("tasks")?;
    if !unreadable.0.is_empty() {
        takeover.lacks_tasks();
    }
    unreadable.tell(&mut takeover);
    let (snapshots, unreadable) = files.read_all::<OldSnapshot>("snapshots")?;
    unreadable.tell(&mut takeover);
    let (jobs, unreadable) = files.read_all::<OldJob>("deferred_jobs")?;
    unreadable.tell(&mut takeover);

    let mut snapshots = grouped(snapshots, |snapshot| snapshot.workflow_id);
    let mut run_of_task: HashMap<Uuid, Uuid> = tasks.iter().map(|task| (task.id, task.run_id)).collect();
    let mut tasks = grouped(tasks, |task| task.run_id);
    // Jobs of a missing task are grouped under its own id, which is no run's.
    let mut jobs = grouped(jobs, |job| *run_of_task.entry(job.task_id).or_insert(job.task_id));

    let mut records = Vec::new();
    for workflow in workflows {
        let specs = files.tasks_of_workflow(workflow.id)?;
        let snapshots = snapshots.remove(&workflow.id).unwrap_or_default();
        records.extend(takeover.workflow(workflow, specs, snapshots)?);
    }
    for run in runs {
        let tasks = tasks.remove(&run.id).unwrap_or_default();
        let jobs = jobs.remove(&run.id).unwrap_or_default();
        records.extend(takeover.run(&run, tasks, jobs)?);
    }
    takeover.orphans(all(snapshots), all(tasks), all(jobs));
    let (state, logs) = State::of_records(records.into_iter().map(Ok))?;
    Ok(Imported { state, logs, adjusted: takeover.finish() })
}

fn grouped<T>(rows: Vec<T>, mut owner: impl FnMut(&T) -> Uuid) -> HashMap<Uuid, Vec<T>> {
    let mut groups: HashMap<Uuid, Vec<T>> = HashMap::new();
    for row in rows {
        groups.entry(owner(&row)).or_default().push(row);
    }
    groups
}

fn all<T>(groups: HashMap<Uuid, Vec<T>>) -> Vec<T> {
    groups.into_values().flatten().collect()
}

/// Files that cannot be read, each with the reason.
#[derive(Default)]
struct Unreadable(Vec<(String, String)>);

impl Unreadable {
    fn tell(self, takeover: &mut Takeover) {
        for (file, reason) in self.0 {
            let problem = format!("cannot be read ({reason}): it is not taken over and stays as it is");
            takeover.tell(Rule::G8, file, problem);
        }
    }
}

/// A directory of Ork's.
struct Files<'a>(&'a Path);

impl Files<'_> {
    /// All entities of a kind, by file name.
    fn read_all<T: DeserializeOwned>(&self, kind: &str) -> Result<(Vec<T>, Unreadable)> {
        let folder = self.0.join(kind);
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Default::default()),
            Err(error) => return Err(io_at("read", &folder, error)),
        };
        let mut paths = Vec::new();
        for entry in entries {
            let path = entry.map_err(|source| io_at("read", &folder, source))?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                paths.push(path);
            }
        }
        paths.sort();
        let (mut all, mut unreadable) = (Vec::with_capacity(paths.len()), Unreadable::default());
        for path in paths {
            let bytes = fs::read(&path).map_err(|source| io_at("read", &path, source))?;
            match serde_json::from_slice(&bytes) {
                Ok(entity) => all.push(entity),
                Err(error) => {
                    let file = path.strip_prefix(self.0).unwrap_or(&path).display().to_string();
                    unreadable.0.push((file, error.to_string()));
                }
            }
        }
        Ok((all, unreadable))
    }

    /// The compiled tasks of a workflow.
    ///
    /// # Errors
    /// A failed read. What cannot be parsed is the inner error.
    fn tasks_of_workflow(&self, workflow: Uuid) -> Result<Result<Vec<OldSpec>>> {
        let path = self.0.join("workflow_tasks").join(format!("{workflow}.json"));
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Ok(Vec::new())),
            Err(error) => return Err(io_at("read", &path, error)),
        };
        Ok(serde_json::from_slice(&bytes).map_err(|source| {
            Error::invalid(format!("workflow_tasks/{workflow}.json"), "is no array of tasks")
                .with_source(source)
        }))
    }
}
