//! Workflows and the DAGs of their snapshots.

use std::collections::HashMap;

use serde_json::value::RawValue;

use super::names::{self, Names};
use super::{Known, OldSnapshot, OldSpec, OldWorkflow, Record, Takeover, shown};
use crate::limits::{MAX_DAG_TASKS, MAX_RETRIES};
use crate::{
    Dag, Error, Json, Result, Rule, Schedule, Snapshot, SnapshotId, Target, TaskName, TaskSpec, Timestamp,
    Workflow, WorkflowId, WorkflowName,
};

/// The executor type of a workflow whose tasks are compiled.
const COMPILED: &str = "dag";
/// How many equal tasks a workflow is of which nothing else is said.
const TASK_COUNT: i64 = 3;

/// What names of tasks have become, by what they were.
pub(super) type Renamed = HashMap<String, TaskName>;

/// The dependencies of a task.
pub(super) struct Dependencies {
    pub(super) names: Vec<TaskName>,
    /// What is no task, as it stood there.
    pub(super) missing: Vec<String>,
}

/// The names in a list of dependencies, each by what it is called now.
///
/// # Errors
/// What is no list.
pub(super) fn read_dependencies(list: Option<&str>, renamed: &Renamed) -> Result<(Dependencies, bool)> {
    let unreadable =
        |source| Error::invalid("dependencies", "are no list that can be read").with_source(source);
    let list: Option<Vec<serde_json::Value>> =
        list.map(serde_json::from_str).transpose().map_err(unreadable)?.flatten();
    let (mut names, mut missing, mut repeats) = (Vec::new(), Vec::new(), false);
    for item in list.unwrap_or_default() {
        match item.as_str().and_then(|name| renamed.get(name)) {
            Some(name) if names.contains(name) => repeats = true,
            Some(name) => names.push(name.clone()),
            None => missing.push(item.as_str().map_or_else(|| item.to_string(), str::to_owned)),
        }
    }
    missing.iter_mut().for_each(|name| *name = shown(name));
    Ok((Dependencies { names, missing }, repeats))
}

/// The snapshots of a workflow, each content once.
struct Snapshots {
    workflow: WorkflowId,
    records: Vec<Record>,
    by_hash: HashMap<String, SnapshotId>,
    all: HashMap<SnapshotId, (SnapshotId, usize)>,
}

impl Snapshots {
    fn of(workflow: WorkflowId) -> Self {
        Self { workflow, records: Vec::new(), by_hash: HashMap::new(), all: HashMap::new() }
    }

    /// Answers which snapshot has this content.
    fn put(&mut self, id: SnapshotId, dag: Dag, at: Timestamp) -> SnapshotId {
        let (hash, size) = (dag.content_hash(), dag.len());
        let same = *self.by_hash.entry(hash.clone()).or_insert(id);
        self.all.insert(id, (same, size));
        if same == id {
            self.records.push(Record::Snapshot(Snapshot::from_stored(id, self.workflow, hash, dag, at)));
        }
        same
    }
}

impl Takeover {
    /// A workflow with its snapshots. `tasks` are its rows of `workflow_tasks`, for when it has no
    /// current snapshot, or why they cannot be read.
    ///
    /// # Errors
    /// `Internal`, which is not known to happen.
    pub fn workflow(
        &mut self,
        old: OldWorkflow,
        tasks: Result<Vec<OldSpec>>,
        snapshots: Vec<OldSnapshot>,
    ) -> Result<Vec<Record>> {
        let id = WorkflowId::from_uuid(old.id);
        let entity = format!("workflow {id}");
        let created_at = self.time(&entity, "created_at", old.created_at.as_deref());
        let created_at = self.needed_time(&entity, "created_at", created_at, self.now);

        let mut made = Snapshots::of(id);
        for snapshot in snapshots {
            let snapshot_id = SnapshotId::from_uuid(snapshot.id);
            let entity = format!("snapshot {snapshot_id}");
            let at = self.time(&entity, "created_at", snapshot.created_at.as_deref()).unwrap_or(created_at);
            let dag = self.snapshot(&entity, &snapshot.tasks_json.unwrap_or_default(), &old)?;
            let same = made.put(snapshot_id, dag, at);
            if same != snapshot_id {
                self.tell(Rule::W2, entity, format!("has the tasks of snapshot {same}: it is that one now"));
            }
        }
        let named = old.current_snapshot_id.map(SnapshotId::from_uuid);
        let current = match named.and_then(|named| made.all.get(&named)) {
            Some((current, _)) => *current,
            None => {
                if let Some(named) = named {
                    let problem =
                        format!("had the snapshot {named}, which it has not: its compiled tasks count");
                    self.tell(Rule::W2, &*entity, problem);
                }
                let dag = tasks
                    .and_then(|tasks| self.compiled(&entity, tasks, &old))
                    .or_else(|error| self.cannot_run(&entity, &error.to_string()))?;
                made.put(SnapshotId::generate(), dag, created_at)
            }
        };
        let workflow = self.workflow_row(id, &entity, old, current, created_at)?;
        self.workflows.insert(id, Known { current, snapshots: made.all });
        made.records.push(Record::Workflow(workflow));
        Ok(made.records)
    }

    fn workflow_row(
        &mut self,
        id: WorkflowId,
        entity: &str,
        old: OldWorkflow,
        current: SnapshotId,
        created_at: Timestamp,
    ) -> Result<Workflow> {
        let name = self.workflow_name(entity, &old.name)?;
        let executor_type = self.label(entity, "executor_type", old.executor_type.as_deref(), "process");
        let job_name = self.text(entity, "job_name", &old.job_name.unwrap_or_default());
        let mut target = Target::new(executor_type, job_name);
        target.region = self.text(entity, "region", &old.region.unwrap_or_default());
        target.project = self.text(entity, "project", &old.project.unwrap_or_default());
        target.params = self.json(entity, "task_params", old.task_params);
        let next_at = self.time(entity, "next_scheduled_at", old.next_scheduled_at.as_deref());
        let last_at = self.time(entity, "last_scheduled_at", old.last_scheduled_at.as_deref());
        let schedule = match old.schedule {
            None => {
                if old.schedule_enabled || next_at.is_some() || last_at.is_some() {
                    self.tell(Rule::S1, entity, "had times of a schedule, and no schedule: it has none");
                }
                None
            }
            Some(expression) => {
                if old.schedule_enabled && next_at.is_none() {
                    self.tell(Rule::S1, entity, "had a schedule in force without a next slot: it is due now");
                }
                let next_at = next_at.or(old.schedule_enabled.then_some(self.now));
                let mut schedule = Schedule::new(self.text(entity, "schedule", &expression), next_at);
                schedule.enabled = old.schedule_enabled;
                schedule.last_at = last_at;
                Some(schedule)
            }
        };
        let mut workflow = Workflow::from_stored(id, name, target, current, created_at);
        workflow.description = old.description.as_deref().map(|text| self.text(entity, "description", text));
        workflow.schedule = schedule;
        let updated_at = self.time(entity, "updated_at", old.updated_at.as_deref());
        workflow.updated_at = self.needed_time(entity, "updated_at", updated_at, created_at);
        Ok(workflow)
    }

    fn workflow_name(&mut self, entity: &str, old: &str) -> Result<WorkflowName> {
        let base = names::for_workflow(old);
        let name: WorkflowName = self.workflow_names.give(old, &base)?;
        if name.as_str() != old {
            let problem = format!(
                "was called {:?}: that name cannot be used, or another has it, so it is {name:?}",
                shown(old)
            );
            self.tell(Rule::W1, entity, problem);
            self.keep(entity, "name", old);
        }
        Ok(name)
    }

    fn snapshot(&mut self, entity: &str, json: &str, of: &OldWorkflow) -> Result<Dag> {
        let read = serde_json::from_str::<Vec<OldSpec>>(json)
            .map_err(|source| Error::invalid("DAG", "is not an array of tasks").with_source(source));
        read.and_then(|specs| self.compiled(entity, specs, of)).or_else(|error| {
            self.keep(entity, "tasks_json", json);
            self.cannot_run(entity, &error.to_string())
        })
    }

    /// The tasks that Ork compiled, or those that it ran where there are none.
    fn compiled(&mut self, entity: &str, specs: Vec<OldSpec>, of: &OldWorkflow) -> Result<Dag> {
        if !specs.is_empty() {
            return self.dag(entity, specs);
        }
        if of.executor_type.as_deref() == Some(COMPILED) {
            return Err(Error::invalid("workflow", "has no compiled tasks, and its executor type is `dag`"));
        }
        let count = of.task_params.as_deref().and_then(|params| integer_in(params, "task_count"));
        let most = i64::try_from(MAX_DAG_TASKS).unwrap_or(i64::MAX);
        let wanted = count.unwrap_or(TASK_COUNT);
        let number = wanted.clamp(0, most);
        let mut problem = format!("has no compiled tasks: it is {number} equal tasks, as Ork ran it");
        if number != wanted {
            problem += &format!(" (`task_count` is {wanted})");
        }
        self.tell(Rule::W2, entity, problem);
        let executor_type = self.label(entity, "executor_type", of.executor_type.as_deref(), "process");
        let task = |index| Ok(TaskSpec::new(format!("task_{index}").parse()?, executor_type.clone()));
        Dag::new((0..number).map(task).collect::<Result<Vec<_>>>()?)
    }

    /// A DAG that says that there is none. No executor runs tasks of its type.
    fn cannot_run(&mut self, entity: &str, reason: &str) -> Result<Dag> {
        let problem = format!(
            "cannot be run: {reason}. Its runs have one task of the executor type `dag`, which no executor runs. \
             Give the workflow tasks with `update_workflow`"
        );
        self.tell(Rule::W2, entity, problem);
        let task = TaskSpec::named("cannot_run")?.with_executor(COMPILED.parse()?);
        Dag::new([task.with_params(Json::from_value(&serde_json::json!({ "error": reason }))?)])
    }

    fn dag(&mut self, entity: &str, mut specs: Vec<OldSpec>) -> Result<Dag> {
        specs.sort_by_key(|spec| spec.task_index);
        let olds = specs.iter().map(|spec| (spec.task_index, spec.task_name.as_str()));
        let (new_names, renamed) = self.task_names(olds, |place| format!("{entity}: task {place}"))?;
        let mut tasks = Vec::with_capacity(specs.len());
        for (spec, name) in specs.into_iter().zip(new_names) {
            let about = format!("{entity}: task {name:?}");
            let executor_type = self.label(&about, "executor_type", spec.executor_type.as_deref(), "process");
            let mut task = TaskSpec::new(name, executor_type);
            let (dependencies, repeats) = read_dependencies(spec.depends_on.as_deref(), &renamed)?;
            self.tell_of_dependencies(&about, &dependencies.missing, repeats);
            task.depends_on = dependencies.names;
            if let Some(params) = &spec.params {
                (task.max_retries, task.timeout_seconds) = self.limits_in(&about, params);
            }
            let present = |json: &Json| json.as_str() != "null";
            task.params = self.json(&about, "params", spec.params).filter(present);
            task.signature = self.json(&about, "signature", spec.signature).filter(present);
            tasks.push(task);
        }
        Dag::new(tasks)
    }

    /// The retries and the timeout that stand in a task's parameters.
    fn limits_in(&mut self, about: &str, params: &str) -> (u32, Option<u32>) {
        let retries = integer_in(params, "max_retries").unwrap_or(0);
        let max_retries = u32::try_from(retries.max(0)).unwrap_or(u32::MAX).min(MAX_RETRIES);
        if retries > i64::from(max_retries) {
            self.tell(Rule::W2, about, format!("asked for {retries} retries: it has {max_retries}"));
        }
        let seconds = integer_in(params, "timeout_seconds");
        (max_retries, seconds.and_then(|seconds| self.timeout(about, seconds)))
    }

    pub(super) fn timeout(&mut self, about: &str, seconds: i64) -> Option<u32> {
        let timeout = u32::try_from(seconds).ok().filter(|seconds| (1..=i32::MAX as u32).contains(seconds));
        if timeout.is_none() {
            self.tell(Rule::T8, about, format!("had a timeout of {seconds} s: it has none"));
        }
        timeout
    }

    /// Names of tasks, and what the old ones have become. Whoever has the same name as another is
    /// not what dependencies mean by it.
    pub(super) fn task_names<'a>(
        &mut self,
        olds: impl Iterator<Item = (i64, &'a str)> + Clone,
        entity: impl Fn(usize) -> String,
    ) -> Result<(Vec<TaskName>, Renamed)> {
        let mut names = Names::reserve::<TaskName>(olds.clone().map(|(_, old)| old));
        let (mut new, mut renamed) = (Vec::new(), Renamed::new());
        for (place, (index, old)) in olds.enumerate() {
            let base = names::for_task(old, index);
            let name: TaskName = names.give(old, &base)?;
            if name.as_str() != old {
                let problem = format!(
                    "was called {:?}: that name cannot be used, or another has it, so it is {name:?}",
                    shown(old)
                );
                let entity = entity(place);
                self.tell(Rule::R2, &*entity, problem);
                self.keep(entity, "task_name", old);
            }
            renamed.entry(old.to_owned()).or_insert_with(|| name.clone());
            new.push(name);
        }
        Ok((new, renamed))
    }

    pub(super) fn tell_of_dependencies(&mut self, about: &str, missing: &[String], repeats: bool) {
        if !missing.is_empty() {
            let problem = format!("depended on {missing:?}, which is not there: it does not any more");
            self.tell(Rule::T1, about, problem);
        }
        if repeats {
            self.tell(Rule::W2, about, "listed a dependency twice: it is there once");
        }
    }
}

/// An integer that stands under a key of a JSON object.
fn integer_in(object: &str, key: &str) -> Option<i64> {
    let object: HashMap<String, &RawValue> = serde_json::from_str(object).ok()?;
    serde_json::from_str(object.get(key)?.get()).ok()
}
