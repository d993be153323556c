//! Takes over a directory that Ork wrote before ork-state: a JSON file an entity, written in place,
//! without a version.
//!
//! The old files are read and left as they are. What rules compute from rows (counts, edges, what
//! is ready) is computed; what cannot be had as it was is told of by id, and what became of it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::Path;

use ork_state_api::backend::{dependency_failed_message, task_failed_message};
use ork_state_api::ork::read_dag;
use ork_state_api::{
    Dag, DeferredJob, JobId, JobStatus, Json, Label, Lease, NewDeferredJob, Result, Rule, Run, RunId,
    RunStatus, Schedule, SnapshotId, Target, Task, TaskCounts, TaskId, TaskName, TaskStatus, Text, Timestamp,
    Token, Violation, Workflow, WorkflowId, WorkflowName,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::change::{Change, NewJob, NewTask, TaskPatch};
use crate::error::io_at;

/// Whether a directory holds files of Ork's. One of a legacy state store has a directory `runs`
/// too, and is another thing.
pub(crate) fn is_orks(directory: &Path) -> bool {
    ["workflows", "tasks"].iter().any(|name| directory.join(name).is_dir())
}

/// What a directory of Ork's comes to.
#[derive(Debug, Default)]
pub(crate) struct Imported {
    /// Owners before what they own.
    pub(crate) transactions: Vec<Vec<Change>>,
    pub(crate) logs: Vec<(TaskId, String)>,
    pub(crate) adjusted: Vec<Violation>,
}

#[derive(Deserialize)]
struct OldWorkflow {
    id: Uuid,
    name: String,
    #[serde(default)]
    description: Option<String>,
    #[serde(default)]
    job_name: String,
    #[serde(default)]
    region: String,
    #[serde(default)]
    project: String,
    #[serde(default)]
    executor_type: String,
    #[serde(default)]
    task_params: Option<Json>,
    #[serde(default)]
    schedule: Option<String>,
    #[serde(default)]
    schedule_enabled: bool,
    #[serde(default)]
    last_scheduled_at: Option<String>,
    #[serde(default)]
    next_scheduled_at: Option<String>,
    #[serde(default)]
    current_snapshot_id: Option<Uuid>,
    #[serde(default)]
    created_at: Option<String>,
    #[serde(default)]
    updated_at: Option<String>,
}

#[derive(Deserialize)]
struct OldRun {
    id: Uuid,
    workflow_id: Uuid,
    status: RunStatus,
    #[serde(default)]
    triggered_by: String,
    #[serde(default)]
    snapshot_id: Option<Uuid>,
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    created_at: Option<String>,
    #[serde(default)]
    started_at: Option<String>,
    #[serde(default)]
    finished_at: Option<String>,
}

#[derive(Deserialize)]
struct OldTask {
    id: Uuid,
    run_id: Uuid,
    #[serde(default)]
    task_index: i64,
    #[serde(default)]
    task_name: String,
    #[serde(default)]
    executor_type: String,
    #[serde(default)]
    depends_on: Option<Vec<String>>,
    status: String,
    #[serde(default)]
    execution_name: Option<String>,
    #[serde(default)]
    params: Option<Json>,
    #[serde(default)]
    output: Option<Json>,
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    logs: Option<String>,
    #[serde(default)]
    attempts: i64,
    #[serde(default)]
    max_retries: i64,
    #[serde(default)]
    timeout_seconds: Option<i64>,
    #[serde(default)]
    retry_at: Option<String>,
    #[serde(default)]
    created_at: Option<String>,
    #[serde(default)]
    dispatched_at: Option<String>,
    #[serde(default)]
    started_at: Option<String>,
    #[serde(default)]
    finished_at: Option<String>,
}

#[derive(Deserialize)]
struct OldSnapshot {
    id: Uuid,
    workflow_id: Uuid,
    tasks_json: Json,
    #[serde(default)]
    created_at: Option<String>,
}

#[derive(Deserialize)]
struct OldJob {
    id: Uuid,
    task_id: Uuid,
    #[serde(default)]
    service_type: String,
    #[serde(default)]
    job_id: String,
    #[serde(default)]
    job_data: Option<Json>,
    status: JobStatus,
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    created_at: Option<String>,
    #[serde(default)]
    started_at: Option<String>,
    #[serde(default)]
    last_polled_at: Option<String>,
    #[serde(default)]
    finished_at: Option<String>,
}

/// Reads the directory; `now` is for what has no time of its own.
pub(crate) fn import(directory: &Path, now: Timestamp) -> Result<Imported> {
    let mut import = Import { now, out: Imported::default(), lost_tasks: 0 };
    let workflows: Vec<OldWorkflow> = import.read_all(directory, "workflows")?;
    let runs: Vec<OldRun> = import.read_all(directory, "runs")?;
    let before = import.out.adjusted.len();
    let tasks: Vec<OldTask> = import.read_all(directory, "tasks")?;
    import.lost_tasks = import.out.adjusted.len() - before;
    let snapshots: Vec<OldSnapshot> = import.read_all(directory, "snapshots")?;
    let jobs: Vec<OldJob> = import.read_all(directory, "deferred_jobs")?;

    let known = import.workflows(directory, workflows, snapshots)?;
    import.runs(runs, tasks, jobs, &known);
    import.out.adjusted.sort();
    Ok(import.out)
}

struct Import {
    now: Timestamp,
    out: Imported,
    /// How many files of tasks cannot be read: nobody knows of which runs.
    lost_tasks: usize,
}

/// What runs need to know of a workflow.
struct Known {
    current: SnapshotId,
    /// How many tasks each has.
    snapshots: BTreeMap<SnapshotId, usize>,
}

impl Import {
    fn tell(&mut self, rule: Rule, entity: impl Into<String>, problem: impl Into<String>) {
        self.out.adjusted.push(Violation::new(rule, entity, problem));
    }

    /// All entities of a kind, by the names of their files. One that cannot be read stays in its
    /// file and is told of.
    fn read_all<T: DeserializeOwned>(&mut self, directory: &Path, kind: &str) -> Result<Vec<T>> {
        let folder = directory.join(kind);
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
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
        let mut all = Vec::with_capacity(paths.len());
        for path in paths {
            let bytes = fs::read(&path).map_err(|source| io_at("read", &path, source))?;
            match serde_json::from_slice(&bytes) {
                Ok(entity) => all.push(entity),
                Err(error) => {
                    let file = path.strip_prefix(directory).unwrap_or(&path).display().to_string();
                    self.tell(
                        Rule::G8,
                        file,
                        format!("cannot be read ({error}): it is not taken over and stays as it is"),
                    );
                }
            }
        }
        Ok(all)
    }

    fn time(&mut self, text: Option<&str>, entity: &str, field: &str) -> Option<Timestamp> {
        let text = text?;
        let time = text.parse::<Timestamp>().or_else(|_| format!("{}Z", text.replace(' ', "T")).parse());
        if time.is_err() {
            let shown: String = text.chars().take(40).collect();
            self.tell(Rule::G3, entity, format!("has no time in {field}: {shown:?}"));
        }
        time.ok()
    }

    fn workflows(
        &mut self,
        directory: &Path,
        workflows: Vec<OldWorkflow>,
        snapshots: Vec<OldSnapshot>,
    ) -> Result<HashMap<WorkflowId, Known>> {
        let mut by_workflow: HashMap<Uuid, Vec<OldSnapshot>> = HashMap::new();
        for snapshot in snapshots {
            by_workflow.entry(snapshot.workflow_id).or_default().push(snapshot);
        }
        let (mut known, mut names) = (HashMap::new(), BTreeSet::new());
        for old in workflows {
            let id = WorkflowId::from_uuid(old.id);
            let entity = format!("workflow {id}");
            let created_at = self.time(old.created_at.as_deref(), &entity, "created_at").unwrap_or(self.now);
            let mut changes = Vec::new();
            let (mut snapshots, mut sizes) = (BTreeMap::<SnapshotId, String>::new(), BTreeMap::new());
            let mut same: HashMap<SnapshotId, SnapshotId> = HashMap::new();
            for snapshot in by_workflow.remove(&old.id).unwrap_or_default() {
                let snapshot_id = SnapshotId::from_uuid(snapshot.id);
                let Some(dag) = self.dag(&format!("snapshot {snapshot_id}"), snapshot.tasks_json.as_str())
                else {
                    continue;
                };
                let hash = dag.content_hash();
                sizes.insert(snapshot_id, dag.len());
                if let Some((there, _)) = snapshots.iter().find(|(_, there)| **there == hash) {
                    same.insert(snapshot_id, *there);
                    continue;
                }
                let created_at = self
                    .time(snapshot.created_at.as_deref(), &entity, "created_at of a snapshot")
                    .unwrap_or(created_at);
                snapshots.insert(snapshot_id, hash);
                changes.push(Change::Snapshot { id: snapshot_id, workflow: id, created_at, dag });
            }
            let current = old.current_snapshot_id.map(SnapshotId::from_uuid);
            let current = current.map(|current| same.get(&current).copied().unwrap_or(current));
            let current = match current.filter(|current| snapshots.contains_key(current)) {
                Some(current) => current,
                None => {
                    let dag = self.tasks_of_workflow(directory, old.id)?;
                    let hash = dag.content_hash();
                    match snapshots.iter().find(|(_, there)| **there == hash) {
                        Some((there, _)) => *there,
                        None => {
                            let current = SnapshotId::generate();
                            sizes.insert(current, dag.len());
                            snapshots.insert(current, hash);
                            changes.push(Change::Snapshot { id: current, workflow: id, created_at, dag });
                            current
                        }
                    }
                }
            };
            let workflow = self.workflow(&old, current, created_at, &mut names);
            changes.insert(0, Change::Workflow(workflow));
            self.out.transactions.push(changes);
            known.insert(id, Known { current, snapshots: sizes });
        }
        for orphan in by_workflow.into_values().flatten() {
            let problem = format!(
                "belongs to workflow {}, which is not there: it is not taken over",
                orphan.workflow_id
            );
            self.tell(Rule::W2, format!("snapshot {}", orphan.id), problem);
        }
        Ok(known)
    }

    fn dag(&mut self, entity: &str, json: &str) -> Option<Dag> {
        match read_dag(json) {
            Ok((dag, problems)) => {
                for problem in problems {
                    self.tell(Rule::W2, entity, problem);
                }
                Some(dag)
            }
            Err(error) => {
                self.tell(Rule::G8, entity, format!("is no DAG: {error}; it is not taken over"));
                None
            }
        }
    }

    /// The DAG of a workflow from before there were snapshots.
    fn tasks_of_workflow(&mut self, directory: &Path, workflow: Uuid) -> Result<Dag> {
        let path = directory.join("workflow_tasks").join(format!("{workflow}.json"));
        let empty = || Dag::new([]);
        match fs::read_to_string(&path) {
            Ok(json) => self.dag(&format!("workflow_tasks/{workflow}.json"), &json).map_or_else(empty, Ok),
            Err(error) if error.kind() == io::ErrorKind::NotFound => empty(),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                self.tell(Rule::G8, format!("workflow_tasks/{workflow}.json"), "is no text");
                empty()
            }
            Err(error) => Err(io_at("read", &path, error)),
        }
    }

    fn workflow(
        &mut self,
        old: &OldWorkflow,
        snapshot: SnapshotId,
        created_at: Timestamp,
        names: &mut BTreeSet<WorkflowName>,
    ) -> Workflow {
        let id = WorkflowId::from_uuid(old.id);
        let entity = format!("workflow {id}");
        let name = self.workflow_name(&old.name, &entity, names);
        let schedule = old.schedule.as_deref().map(|expression| {
            let next_at = self.time(old.next_scheduled_at.as_deref(), &entity, "next_scheduled_at");
            if old.schedule_enabled && next_at.is_none() {
                self.tell(Rule::S1, &*entity, "had a schedule in force without a next slot: it is due now");
            }
            let mut schedule =
                Schedule::new(Text::lossy(expression), next_at.or(old.schedule_enabled.then_some(self.now)));
            schedule.enabled = old.schedule_enabled;
            schedule.last_at = self.time(old.last_scheduled_at.as_deref(), &entity, "last_scheduled_at");
            schedule
        });
        let mut target = Target::new(label(&old.executor_type, "process"), Text::lossy(&old.job_name));
        target.region = Text::lossy(&old.region);
        target.project = Text::lossy(&old.project);
        target.params = old.task_params.clone();
        let mut workflow = Workflow::from_stored(id, name, target, snapshot, created_at);
        workflow.description = old.description.as_deref().map(Text::lossy);
        workflow.schedule = schedule;
        workflow.updated_at =
            self.time(old.updated_at.as_deref(), &entity, "updated_at").unwrap_or(created_at);
        workflow
    }

    /// A name that can be used and that nobody has.
    fn workflow_name(&mut self, old: &str, entity: &str, names: &mut BTreeSet<WorkflowName>) -> WorkflowName {
        let plain: String = old.chars().map(|c| if c.is_control() { '_' } else { c }).collect();
        let mut suffix = String::new();
        let mut number = 1;
        loop {
            number += 1;
            let base = if plain.is_empty() { "unnamed" } else { &plain };
            let cut = &base[..base.floor_char_boundary(255 - suffix.len())];
            if let Ok(name) = WorkflowName::new(format!("{cut}{suffix}"))
                && names.insert(name.clone())
            {
                if name.as_str() != old {
                    self.tell(
                        Rule::W1,
                        entity,
                        format!("is called {name:?} now: its name could not be used, or another has it"),
                    );
                }
                return name;
            }
            suffix = format!(" ({number})");
        }
    }

    fn runs(
        &mut self,
        runs: Vec<OldRun>,
        tasks: Vec<OldTask>,
        jobs: Vec<OldJob>,
        known: &HashMap<WorkflowId, Known>,
    ) {
        let mut tasks_of: HashMap<Uuid, Vec<OldTask>> = HashMap::new();
        for task in tasks {
            tasks_of.entry(task.run_id).or_default().push(task);
        }
        let mut jobs_of: HashMap<Uuid, Vec<OldJob>> = HashMap::new();
        for job in jobs {
            jobs_of.entry(job.task_id).or_default().push(job);
        }
        for run in runs {
            let tasks = tasks_of.remove(&run.id).unwrap_or_default();
            match known.get(&WorkflowId::from_uuid(run.workflow_id)) {
                Some(workflow) => self.run(&run, tasks, &mut jobs_of, workflow),
                None => {
                    let problem = format!(
                        "belongs to workflow {}, which is not there: it is not taken over",
                        run.workflow_id
                    );
                    self.tell(Rule::W3, format!("run {}", run.id), problem);
                }
            }
        }
        for orphan in tasks_of.into_values().flatten() {
            let problem =
                format!("belongs to run {}, which is not there: it is not taken over", orphan.run_id);
            self.tell(Rule::W3, format!("task {}", orphan.id), problem);
        }
        for orphan in jobs_of.into_values().flatten() {
            let problem =
                format!("belongs to task {}, which is not there: it is not taken over", orphan.task_id);
            self.tell(Rule::D1, format!("deferred job {}", orphan.id), problem);
        }
    }

    fn run(
        &mut self,
        old: &OldRun,
        mut tasks: Vec<OldTask>,
        jobs: &mut HashMap<Uuid, Vec<OldJob>>,
        workflow: &Known,
    ) {
        let id = RunId::from_uuid(old.id);
        let entity = format!("run {id}");
        let created_at = self.time(old.created_at.as_deref(), &entity, "created_at").unwrap_or(self.now);
        let started_at = self.time(old.started_at.as_deref(), &entity, "started_at");
        let finished_at = self.time(old.finished_at.as_deref(), &entity, "finished_at");
        // A run that has tasks was started.
        let status = match old.status {
            RunStatus::Pending if !tasks.is_empty() => RunStatus::Running,
            status => status,
        };
        let snapshot = old.snapshot_id.map(SnapshotId::from_uuid);
        let mut run = Run::from_stored(
            id,
            WorkflowId::from_uuid(old.workflow_id),
            snapshot.filter(|id| workflow.snapshots.contains_key(id)).unwrap_or(workflow.current),
            label(&old.triggered_by, "manual"),
            created_at,
        );
        run.status = status;
        run.error = old.error.as_deref().map(Text::lossy);
        run.started_at = started_at.or((status != RunStatus::Pending).then_some(created_at));
        run.finished_at = finished_at;
        tasks.sort_by_key(|task| (task.task_index, task.id));
        // A task that is lost must not let its run count as a success.
        let expected = workflow.snapshots.get(&run.snapshot).copied().unwrap_or(0);
        let has_gap = (0..).zip(&tasks).any(|(place, task)| task.task_index != place);
        let may_lack_a_task = self.lost_tasks > 0 && !tasks.is_empty() && (has_gap || tasks.len() < expected);
        let mut rows = self.tasks(&run, tasks);
        self.settle(&mut run, &mut rows, may_lack_a_task);
        for row in &mut rows {
            self.jobs(row, jobs.remove(&row.old.id).unwrap_or_default());
        }
        // A claimed task that waits for no job has a lease, which has lapsed: nobody holds it as
        // far as we know.
        for row in rows.iter_mut().filter(|row| row.task.status.is_claimed()) {
            row.token = Token::from_stored(1);
            if row.task.open_jobs == 0 {
                let owner = label("Ork before ork-state", "ork");
                row.task.lease = Some(Lease::new(owner, row.token, self.now));
            }
        }
        let mut changes = vec![Change::Run(run.clone())];
        if !rows.is_empty() {
            let new =
                rows.iter().map(|row| NewTask { task: row.task.clone(), params: row.old.params.clone() });
            changes.push(Change::Tasks { run: id, tasks: new.collect() });
        }
        for row in rows {
            let task = row.task.id;
            if row.token.get() != 0 {
                changes.push(Change::Task(TaskPatch::of(&row.task, row.token)));
            }
            if row.old.output.is_some() {
                changes.push(Change::Output { task, output: row.old.output });
            }
            if !row.jobs.is_empty() {
                changes.push(Change::Jobs(row.jobs));
            }
            if let Some(log) = row.old.logs.filter(|log| !log.is_empty()) {
                changes.push(Change::LogLength { task, length: log.len() as u64 });
                self.out.logs.push((task, log));
            }
        }
        self.out.transactions.push(changes);
    }

    /// The tasks of a run by their places, with dependencies that are there. What cannot be had as
    /// it was is told of.
    fn tasks(&mut self, run: &Run, old: Vec<OldTask>) -> Vec<Row> {
        let mut used: BTreeSet<TaskName> = BTreeSet::new();
        let mut renamed: HashMap<String, TaskName> = HashMap::new();
        for task in &old {
            let name = self.task_name(task, &mut used);
            renamed.entry(task.task_name.clone()).or_insert(name);
        }
        let mut given: BTreeSet<TaskName> = BTreeSet::new();
        let mut rows = Vec::with_capacity(old.len());
        for (index, old) in (0_u32..).zip(old) {
            let entity = format!("task {}", old.id);
            if old.task_index != i64::from(index) {
                let problem = format!(
                    "had the index {}: the tasks of its run are numbered without gaps now",
                    old.task_index
                );
                self.tell(Rule::R2, &*entity, problem);
            }
            let name = match renamed.get(&old.task_name) {
                Some(name) if given.insert(name.clone()) => name.clone(),
                _ => self.task_name(&old, &mut used),
            };
            let mut depends_on = Vec::new();
            let mut missing = Vec::new();
            for dependency in old.depends_on.iter().flatten() {
                match renamed.get(dependency) {
                    Some(name) if !depends_on.contains(name) => depends_on.push(name.clone()),
                    Some(_) => {}
                    None => missing.push(dependency.chars().take(100).collect::<String>()),
                }
            }
            if !missing.is_empty() {
                let problem =
                    format!("depended on {missing:?}, which its run does not have: it does not any more");
                self.tell(Rule::T1, &*entity, problem);
            }
            let task = self.task(run, &old, index, name, depends_on);
            rows.push(Row { old, task, token: Token::from_stored(0), missing, jobs: Vec::new() });
        }
        rows
    }

    /// A name that can be used and that no task before has.
    fn task_name(&mut self, old: &OldTask, used: &mut BTreeSet<TaskName>) -> TaskName {
        let plain: String = old
            .task_name
            .chars()
            .map(|c| if c.is_control() || matches!(c, '/' | '\\') { '_' } else { c })
            .collect();
        let base =
            if matches!(&*plain, "" | "." | "..") { format!("task_{}", old.task_index) } else { plain };
        let mut suffix = String::new();
        let mut number = 1;
        loop {
            number += 1;
            let cut = &base[..base.floor_char_boundary(255 - suffix.len())];
            if let Ok(name) = TaskName::new(format!("{cut}{suffix}"))
                && used.insert(name.clone())
            {
                if name.as_str() != old.task_name {
                    let problem =
                        format!("is called {name:?} now: its name could not be used, or another has it");
                    self.tell(Rule::R2, format!("task {}", old.id), problem);
                }
                return name;
            }
            suffix = format!(" ({number})");
        }
    }

    fn task(
        &mut self,
        run: &Run,
        old: &OldTask,
        index: u32,
        name: TaskName,
        depends_on: Vec<TaskName>,
    ) -> Task {
        let id = TaskId::from_uuid(old.id);
        let entity = format!("task {id}");
        let created_at =
            self.time(old.created_at.as_deref(), &entity, "created_at").unwrap_or(run.created_at);
        let dispatched_at = self.time(old.dispatched_at.as_deref(), &entity, "dispatched_at");
        let started_at = self.time(old.started_at.as_deref(), &entity, "started_at");
        let status = match old.status.as_str() {
            "paused" => TaskStatus::Pending,
            word => word.parse().unwrap_or_else(|_| {
                let shown: String = word.chars().take(40).collect();
                self.tell(Rule::G8, &*entity, format!("had the unknown status {shown:?}: it has failed"));
                TaskStatus::Failed
            }),
        };
        let max_retries = u32::try_from(old.max_retries.clamp(0, 1_000_000)).unwrap_or(0);
        let attempts = u32::try_from(old.attempts.clamp(0, i64::from(max_retries) + 1)).unwrap_or(0);
        let mut task =
            Task::from_stored(id, run.id, index, name, label(&old.executor_type, "process"), created_at);
        task.depends_on = depends_on;
        task.status = status;
        task.attempts = match status {
            TaskStatus::Pending => attempts.min(max_retries),
            status if status.is_claimed() => attempts.max(1),
            _ => attempts,
        };
        task.max_retries = max_retries;
        task.timeout_seconds = old
            .timeout_seconds
            .and_then(|seconds| u32::try_from(seconds).ok())
            .filter(|seconds| *seconds > 0);
        task.execution_name = old.execution_name.as_deref().and_then(|name| Label::new(name).ok());
        task.error = old.error.as_deref().map(Text::lossy);
        task.retry_at =
            self.time(old.retry_at.as_deref(), &entity, "retry_at").filter(|_| status == TaskStatus::Pending);
        task.dispatched_at = dispatched_at.or(status.is_claimed().then_some(created_at));
        task.started_at =
            started_at.or((status == TaskStatus::Running).then_some(dispatched_at.unwrap_or(created_at)));
        task.finished_at = self
            .time(old.finished_at.as_deref(), &entity, "finished_at")
            .or(started_at)
            .or(dispatched_at)
            .or(Some(created_at))
            .filter(|_| status.is_terminal());
        task
    }

    /// Brings a run and its tasks to where the rules have them.
    fn settle(&mut self, run: &mut Run, rows: &mut [Row], may_lack_a_task: bool) {
        let index_of: HashMap<TaskName, usize> =
            rows.iter().enumerate().map(|(index, row)| (row.task.name.clone(), index)).collect();
        let dependencies: Vec<Vec<usize>> = rows
            .iter()
            .map(|row| row.task.depends_on.iter().filter_map(|name| index_of.get(name).copied()).collect())
            .collect();
        if run.status.is_terminal() {
            for row in rows.iter_mut().filter(|row| !row.task.status.is_terminal()) {
                let problem = format!("had not ended in a run that has ({}): it is cancelled", run.status);
                self.tell(Rule::R4, format!("task {}", row.task.id), problem);
                row.task.status = TaskStatus::Cancelled;
                row.task.finished_at = Some(row.task.finished_at.or(run.finished_at).unwrap_or(self.now));
                row.task.retry_at = None;
            }
        } else {
            self.fail_what_cannot_run(rows, &dependencies);
        }
        for index in 0..rows.len() {
            let unmet =
                dependencies[index].iter().filter(|d| rows[**d].task.status != TaskStatus::Success).count();
            rows[index].task.unmet_dependencies = u32::try_from(unmet).unwrap_or(u32::MAX);
        }
        let number = |wanted: fn(TaskStatus) -> bool| {
            u32::try_from(rows.iter().filter(|row| wanted(row.task.status)).count()).unwrap_or(u32::MAX)
        };
        run.tasks = TaskCounts::new(number(|_| true));
        run.tasks.unfinished = number(|status| !status.is_terminal());
        run.tasks.failed = number(|status| status == TaskStatus::Failed);
        run.tasks.cancelled = number(|status| status == TaskStatus::Cancelled);
        self.end_if_over(run, rows, may_lack_a_task);
        for row in rows.iter_mut() {
            let task = &mut row.task;
            let queued = run.status == RunStatus::Running
                && task.status == TaskStatus::Pending
                && task.unmet_dependencies == 0;
            task.ready_at = queued.then(|| task.retry_at.map_or(self.now, |retry_at| retry_at.max(self.now)));
        }
    }

    /// Tasks that can never be ready fail, with whatever depends on them.
    fn fail_what_cannot_run(&mut self, rows: &mut [Row], dependencies: &[Vec<usize>]) {
        // Takes away whatever waits for nothing that is left; what remains waits for itself.
        let mut waiting: BTreeSet<usize> =
            (0..rows.len()).filter(|index| !rows[*index].task.status.is_terminal()).collect();
        loop {
            let before = waiting.len();
            let free: BTreeSet<usize> = waiting
                .iter()
                .copied()
                .filter(|index| !dependencies[*index].iter().any(|dependency| waiting.contains(dependency)))
                .collect();
            waiting.retain(|index| !free.contains(index));
            if waiting.len() == before {
                break;
            }
        }
        for (index, row) in rows.iter_mut().enumerate() {
            let error = if waiting.contains(&index) {
                "depends on itself, however indirectly".to_owned()
            } else if row.task.status == TaskStatus::Pending && !row.missing.is_empty() {
                format!("depends on {:?}, which its run does not have", row.missing)
            } else {
                continue;
            };
            self.tell(
                Rule::T1,
                format!("task {}", row.task.id),
                format!("could never run: it {error}, and has failed"),
            );
            row.fail(&error, self.now);
        }
        let mut changed = true;
        while std::mem::take(&mut changed) {
            for index in 0..rows.len() {
                let ended =
                    |d: &&usize| matches!(rows[**d].task.status, TaskStatus::Failed | TaskStatus::Cancelled);
                let Some(&culprit) = dependencies[index].iter().find(ended) else { continue };
                if rows[index].task.status != TaskStatus::Pending {
                    continue;
                }
                let error = dependency_failed_message(&rows[culprit].task.name);
                let entity = format!("task {}", rows[index].task.id);
                self.tell(Rule::T5, entity, "depended on a task that failed or was cancelled: it has failed");
                rows[index].fail(&error, self.now);
                changed = true;
            }
        }
    }

    /// A run whose tasks have all ended has ended, as they did.
    fn end_if_over(&mut self, run: &mut Run, rows: &[Row], may_lack_a_task: bool) {
        let of_tasks = match run.tasks {
            TaskCounts { failed: 1.., .. } => RunStatus::Failed,
            _ if may_lack_a_task && !run.status.is_terminal() => {
                run.error = Some(Text::lossy("a task of it may be lost: files of tasks could not be read"));
                RunStatus::Failed
            }
            TaskCounts { cancelled: 1.., .. } => RunStatus::Cancelled,
            _ => RunStatus::Success,
        };
        let wrong = match run.status {
            RunStatus::Running | RunStatus::Paused => run.tasks.unfinished == 0,
            RunStatus::Success => of_tasks != RunStatus::Success,
            RunStatus::Pending | RunStatus::Failed | RunStatus::Cancelled => false,
        };
        if wrong {
            let problem =
                format!("was {} though its tasks had ended otherwise: it is {of_tasks}", run.status);
            self.tell(Rule::R3, format!("run {}", run.id), problem);
            run.status = of_tasks;
            let last = rows.iter().filter_map(|row| row.task.finished_at).max();
            run.finished_at = run.finished_at.or(last).or(Some(self.now));
        }
        if run.status == RunStatus::Failed && run.error.is_none() {
            let failed = rows.iter().map(|row| &row.task).filter(|task| task.status == TaskStatus::Failed);
            let culprit = failed.min_by_key(|task| (task.unmet_dependencies > 0, task.index));
            run.error = Some(Text::lossy(&culprit.map_or_else(
                || "failed, and no task of it did".to_owned(),
                |task| task_failed_message(&task.name),
            )));
        }
        run.finished_at = match run.status.is_terminal() {
            true => run.finished_at.or(run.started_at).or(Some(run.created_at)),
            false => None,
        };
    }

    /// A task's deferred jobs: those that are open belong to the running attempt; of a task that
    /// does not run they are over.
    fn jobs(&mut self, row: &mut Row, mut old: Vec<OldJob>) {
        old.sort_by(|a, b| (&a.created_at, a.id).cmp(&(&b.created_at, b.id)));
        for (index, old) in (0_u32..).zip(old) {
            let id = JobId::from_uuid(old.id);
            let entity = format!("deferred job {id}");
            let created_at =
                self.time(old.created_at.as_deref(), &entity, "created_at").unwrap_or(row.task.created_at);
            let last_polled_at = self.time(old.last_polled_at.as_deref(), &entity, "last_polled_at");
            let mut status = old.status;
            if !status.is_terminal() && row.task.status != TaskStatus::Running {
                self.tell(
                    Rule::D2,
                    &*entity,
                    "was open though its task does not wait for it: it is cancelled",
                );
                status = JobStatus::Cancelled;
            }
            row.task.open_jobs += u32::from(!status.is_terminal());
            let finished_at = self.time(old.finished_at.as_deref(), &entity, "finished_at");
            let new = NewDeferredJob::new(
                label(&old.service_type, "unknown"),
                Text::lossy(&old.job_id),
                old.job_data.unwrap_or_else(Json::null),
            );
            let mut job = DeferredJob::from_stored(id, row.task.id, row.task.run, index, new, created_at);
            job.status = status;
            job.poll_at = (!status.is_terminal()).then_some(self.now);
            job.error = old.error.as_deref().map(Text::lossy);
            job.started_at = self.time(old.started_at.as_deref(), &entity, "started_at");
            job.last_polled_at = last_polled_at;
            job.finished_at =
                finished_at.or(last_polled_at).or(Some(created_at)).filter(|_| status.is_terminal());
            row.jobs.push(NewJob { job, token: Token::from_stored(0) });
        }
    }
}

/// A task on its way.
struct Row {
    old: OldTask,
    task: Task,
    token: Token,
    /// What it depended on and its run does not have.
    missing: Vec<String>,
    jobs: Vec<NewJob>,
}

impl Row {
    fn fail(&mut self, error: &str, now: Timestamp) {
        self.task.status = TaskStatus::Failed;
        self.task.error = Some(Text::lossy(error));
        self.task.finished_at = Some(now);
        self.task.retry_at = None;
    }
}

/// The text as a label, or this one if it is empty.
fn label(text: &str, instead: &str) -> Label {
    Label::lossy(if text.is_empty() { instead } else { text })
}
