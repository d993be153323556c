//! Runs with their tasks and deferred jobs.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use uuid::Uuid;

use super::workflows::{Dependencies, read_dependencies};
use super::{OldJob, OldRun, OldTask, Record, Takeover, shown};
use crate::backend::{dependency_failed_message, task_cancelled_message, task_failed_message};
use crate::limits::{MAX_LOG_CHUNK_BYTES, MAX_RETRIES};
use crate::{
    DeferredJob, JobId, JobStatus, Json, Label, Lease, NewDeferredJob, Result, Rule, Run, RunId, RunStatus,
    SnapshotId, Task, TaskCounts, TaskDetail, TaskId, TaskName, TaskStatus, Text, Timestamp, Token,
    WorkflowId,
};

/// The status of a task that a person paused.
const PAUSED: &str = "paused";

/// A task on its way.
struct Row {
    task: Task,
    params: Option<Json>,
    output: Option<Json>,
    logs: Option<String>,
    token: Token,
    /// Why it could never run, if it waits.
    stuck: Option<String>,
    /// Whether a person paused it.
    held: bool,
    jobs: Vec<DeferredJob>,
}

impl Row {
    fn entity(&self) -> String {
        format!("task {}", self.task.id)
    }

    fn fail(&mut self, error: &str, now: Timestamp) {
        self.task.status = TaskStatus::Failed;
        self.task.error = Some(Text::lossy(error));
        self.task.finished_at = Some(now);
        self.task.retry_at = None;
    }
}

impl Takeover {
    /// A run with its tasks and their jobs, after its workflow.
    ///
    /// # Errors
    /// `Internal`, which is not known to happen.
    pub fn run(&mut self, old: &OldRun, mut tasks: Vec<OldTask>, jobs: Vec<OldJob>) -> Result<Vec<Record>> {
        let id = RunId::from_uuid(old.id);
        let entity = format!("run {id}");
        let Some(workflow) = self.workflows.get(&WorkflowId::from_uuid(old.workflow_id)) else {
            self.orphan(Rule::W3, entity, &format!("workflow {}", old.workflow_id), old);
            self.orphans(Vec::new(), tasks, jobs);
            return Ok(Vec::new());
        };
        let named = old.snapshot_id.map(SnapshotId::from_uuid);
        let there = named.and_then(|named| workflow.snapshots.get(&named));
        let snapshot = there.map_or(workflow.current, |(snapshot, _)| *snapshot);
        let expected = workflow.snapshots.get(&snapshot).map_or(0, |(_, size)| *size);
        let is_there = there.is_some();
        if let (Some(named), false) = (named, is_there) {
            let problem =
                format!("was of the snapshot {named}, which its workflow has not: it is of {snapshot}");
            self.tell(Rule::R1, &*entity, problem);
        }
        let mut run = self.run_row(id, &entity, old, snapshot);
        tasks.sort_by_key(|task| (task.task_index, task.id));
        // A run that has tasks was started.
        if run.status == RunStatus::Pending && !tasks.is_empty() {
            self.tell(Rule::R2, &*entity, "was pending and had tasks: it is running");
            run.status = RunStatus::Running;
        }
        // A task that is lost must not let its run count as a success.
        let has_gap = (0..).zip(&tasks).any(|(place, task)| task.task_index != place);
        let may_lack_a_task = self.lacks_tasks && !tasks.is_empty() && (has_gap || tasks.len() < expected);

        let mut rows = self.rows(&run, tasks)?;
        self.hold(&mut run, &rows);
        self.settle(&mut run, &mut rows, may_lack_a_task);
        self.jobs(&mut rows, jobs);
        // A claimed task that waits for no job has a lease, which has lapsed: nobody holds it as
        // far as we know.
        for row in rows.iter_mut().filter(|row| row.task.status.is_claimed()) {
            row.token = Token::from_stored(1);
            if row.task.open_jobs == 0 {
                row.task.lease = Some(Lease::new(Label::lossy("Ork before ork-state"), row.token, self.now));
            }
        }
        Ok(records(run, rows))
    }

    fn run_row(&mut self, id: RunId, entity: &str, old: &OldRun, snapshot: SnapshotId) -> Run {
        let created_at = self.time(entity, "created_at", old.created_at.as_deref());
        let created_at = self.needed_time(entity, "created_at", created_at, self.now);
        let triggered_by = self.label(entity, "triggered_by", old.triggered_by.as_deref(), "manual");
        let workflow = WorkflowId::from_uuid(old.workflow_id);
        let mut run = Run::from_stored(id, workflow, snapshot, triggered_by, created_at);
        run.status = old.status.parse().unwrap_or_else(|_| {
            self.tell(
                Rule::G8,
                entity,
                format!("had the unknown status {:?}: it has failed", shown(&old.status)),
            );
            RunStatus::Failed
        });
        run.error = old.error.as_deref().map(|error| self.text(entity, "error", error));
        run.started_at = self.time(entity, "started_at", old.started_at.as_deref());
        run.finished_at = self.time(entity, "finished_at", old.finished_at.as_deref());
        run
    }

    /// The tasks of a run by their places, with dependencies that are there.
    fn rows(&mut self, run: &Run, old: Vec<OldTask>) -> Result<Vec<Row>> {
        let name =
            |task: &'_ OldTask| task.task_name.clone().unwrap_or_else(|| format!("task_{}", task.task_index));
        let (old_names, indexes): (Vec<String>, Vec<i64>) =
            old.iter().map(|task| (name(task), task.task_index)).unzip();
        let ids: Vec<Uuid> = old.iter().map(|task| task.id).collect();
        let olds = indexes.iter().copied().zip(old_names.iter().map(String::as_str));
        let (names, renamed) = self.task_names(olds, |place| format!("task {}", ids[place]))?;
        let mut rows = Vec::with_capacity(old.len());
        for ((index, old), name) in (0_u32..).zip(old).zip(names) {
            let entity = format!("task {}", old.id);
            if old.task_index != i64::from(index) {
                let problem = format!(
                    "had the index {}: the tasks of its run are numbered without gaps now",
                    old.task_index
                );
                self.tell(Rule::R2, &*entity, problem);
            }
            let list = old.depends_on.clone();
            let mut row = self.row(run, &entity, old, index, name);
            match read_dependencies(list.as_deref(), &renamed) {
                Ok((Dependencies { names, missing }, repeats)) => {
                    self.tell_of_dependencies(&entity, &missing, repeats);
                    row.task.depends_on = names;
                    row.stuck = (!missing.is_empty())
                        .then(|| format!("depends on {missing:?}, which its run does not have"));
                }
                Err(_) => {
                    self.tell(
                        Rule::G8,
                        &*entity,
                        "had a list of dependencies that cannot be read: it has none",
                    );
                    self.keep(&*entity, "depends_on", list.unwrap_or_default());
                    row.stuck = Some("has a list of dependencies that cannot be read".to_owned());
                }
            }
            rows.push(row);
        }
        Ok(rows)
    }

    fn row(&mut self, run: &Run, entity: &str, old: OldTask, index: u32, name: TaskName) -> Row {
        let created_at = self.time(entity, "created_at", old.created_at.as_deref());
        let created_at = self.needed_time(entity, "created_at", created_at, run.created_at);
        let executor_type = self.label(entity, "executor_type", old.executor_type.as_deref(), "process");
        let mut task =
            Task::from_stored(TaskId::from_uuid(old.id), run.id, index, name, executor_type, created_at);
        let held = old.status == PAUSED;
        task.status = if held {
            TaskStatus::Pending
        } else {
            old.status.parse().unwrap_or_else(|_| {
                let problem = format!("had the unknown status {:?}: it has failed", shown(&old.status));
                self.tell(Rule::G8, entity, problem);
                TaskStatus::Failed
            })
        };
        task.execution_name = match old.execution_name.as_deref() {
            None => None,
            Some("") => {
                self.tell(Rule::G5, entity, "had an empty execution_name: it has none");
                None
            }
            some => Some(self.label(entity, "execution_name", some, "unknown")),
        };
        task.error = old.error.as_deref().map(|error| self.text(entity, "error", error));
        task.timeout_seconds = old.timeout_seconds.and_then(|seconds| self.timeout(entity, seconds));
        self.times(entity, &old, &mut task);
        self.attempts(entity, &old, &mut task);
        Row {
            task,
            params: self.json(entity, "params", old.params),
            output: self.json(entity, "output", old.output),
            logs: old.logs.filter(|logs| !logs.is_empty()),
            token: Token::from_stored(0),
            stuck: None,
            held,
            jobs: Vec::new(),
        }
    }

    /// The times as each status has them.
    fn times(&mut self, entity: &str, old: &OldTask, task: &mut Task) {
        let status = task.status;
        task.dispatched_at = self.time(entity, "dispatched_at", old.dispatched_at.as_deref());
        task.started_at = self.time(entity, "started_at", old.started_at.as_deref());
        task.finished_at = self.time(entity, "finished_at", old.finished_at.as_deref());
        task.retry_at = self.time(entity, "retry_at", old.retry_at.as_deref());
        if status.is_claimed() {
            let instead = task.started_at.unwrap_or(task.created_at);
            task.dispatched_at = Some(self.needed_time(entity, "dispatched_at", task.dispatched_at, instead));
        }
        if status == TaskStatus::Running {
            let instead = task.dispatched_at.unwrap_or(task.created_at);
            task.started_at = Some(self.needed_time(entity, "started_at", task.started_at, instead));
        }
        if status.is_terminal() {
            let instead = task.started_at.or(task.dispatched_at).unwrap_or(task.created_at);
            task.finished_at = Some(self.needed_time(entity, "finished_at", task.finished_at, instead));
        } else {
            self.emptied(entity, "finished_at", &mut task.finished_at, status);
        }
        if status != TaskStatus::Pending {
            self.emptied(entity, "retry_at", &mut task.retry_at, status);
        }
    }

    fn emptied(&mut self, entity: &str, field: &str, time: &mut Option<Timestamp>, status: TaskStatus) {
        if let Some(time) = time.take() {
            self.tell(Rule::T5, entity, format!("had the {field} {time} though it is {status}: it has none"));
        }
    }

    /// Ork counted the attempts that had failed; those that were begun count here.
    fn attempts(&mut self, entity: &str, old: &OldTask, task: &mut Task) {
        let most = i64::from(MAX_RETRIES);
        let max_retries = old.max_retries.clamp(0, most);
        if max_retries != old.max_retries {
            let problem = format!("had {} for max_retries: it is {max_retries}", old.max_retries);
            self.tell(Rule::T5, entity, problem);
        }
        let was_begun = task.dispatched_at.is_some() || task.started_at.is_some();
        let failed = old.attempts.max(0);
        let begun = match task.status {
            TaskStatus::Pending => failed,
            TaskStatus::Dispatched | TaskStatus::Running | TaskStatus::Success => failed.saturating_add(1),
            TaskStatus::Failed | TaskStatus::Cancelled => failed.max(i64::from(was_begun)),
        };
        let left = i64::from(task.status != TaskStatus::Pending);
        let attempts = begun.min(max_retries + left);
        if attempts != begun || failed != old.attempts {
            let problem = format!(
                "had {} for attempts with {max_retries} retries: it has begun {attempts}",
                old.attempts
            );
            self.tell(Rule::T5, entity, problem);
        } else if attempts != old.attempts {
            self.recounted += 1;
        }
        task.max_retries = u32::try_from(max_retries).unwrap_or(0);
        task.attempts = u32::try_from(attempts).unwrap_or(0);
    }

    /// A task that a person paused must not run: as no single task can be held, its run is.
    fn hold(&mut self, run: &mut Run, rows: &[Row]) {
        if run.status.is_terminal() {
            return;
        }
        for row in rows.iter().filter(|row| row.held) {
            let problem = match run.status {
                RunStatus::Paused => "was paused by itself: it goes on with its run when that is resumed",
                _ => "was paused by itself: its run is paused, until `resume_run`",
            };
            self.tell(Rule::R5, row.entity(), problem);
        }
        if rows.iter().any(|row| row.held) && run.status != RunStatus::Paused {
            let problem = format!("was {} with a task that was paused by itself: it is paused", run.status);
            self.tell(Rule::R5, format!("run {}", run.id), problem);
            run.status = RunStatus::Paused;
        }
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
                self.tell(Rule::R4, row.entity(), problem);
                row.task.status = TaskStatus::Cancelled;
                row.task.finished_at = Some(run.finished_at.unwrap_or(self.now));
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
        let mut dependents: Vec<Vec<usize>> = vec![Vec::new(); rows.len()];
        for (index, of) in dependencies.iter().enumerate() {
            for dependency in of {
                dependents[*dependency].push(index);
            }
        }
        let circles = in_circles(rows, dependencies, &dependents);
        for (index, row) in rows.iter_mut().enumerate() {
            let error = if circles.contains(&index) {
                "depends on itself, however indirectly".to_owned()
            } else if row.task.status == TaskStatus::Pending
                && let Some(stuck) = row.stuck.take()
            {
                stuck
            } else {
                continue;
            };
            self.tell(Rule::T1, row.entity(), format!("could never run: it {error}, and has failed"));
            row.fail(&error, self.now);
        }
        // From each that ended badly to those that wait for it, the lowest index first.
        let ended = |row: &Row| matches!(row.task.status, TaskStatus::Failed | TaskStatus::Cancelled);
        let culprits: Vec<usize> = (0..rows.len()).filter(|index| ended(&rows[*index])).collect();
        for culprit in culprits {
            let error = dependency_failed_message(&rows[culprit].task.name);
            let mut next = dependents[culprit].clone();
            while let Some(index) = next.pop() {
                if rows[index].task.status != TaskStatus::Pending {
                    continue;
                }
                let problem = "depended on a task that failed or was cancelled: it has failed";
                self.tell(Rule::T5, rows[index].entity(), problem);
                rows[index].fail(&error, self.now);
                next.extend(&dependents[index]);
            }
        }
    }

    /// A run whose tasks have all ended has ended, as they did.
    fn end_if_over(&mut self, run: &mut Run, rows: &[Row], may_lack_a_task: bool) {
        let entity = format!("run {}", run.id);
        let of_tasks = match run.tasks {
            TaskCounts { failed: 1.., .. } => RunStatus::Failed,
            _ if may_lack_a_task && !run.status.is_terminal() => {
                run.error = Some(Text::lossy("a task of it may be lost: rows of tasks could not be read"));
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
            self.tell(Rule::R3, &*entity, problem);
            run.status = of_tasks;
            let last = rows.iter().filter_map(|row| row.task.finished_at).max();
            run.finished_at = run.finished_at.or(last).or(Some(self.now));
        }
        if run.status == RunStatus::Failed && run.error.is_none() {
            let of = |status| {
                let such = rows.iter().map(|row| &row.task).filter(move |task| task.status == status);
                such.min_by_key(|task| (task.unmet_dependencies > 0, task.index))
            };
            let error = match (of(TaskStatus::Failed), of(TaskStatus::Cancelled)) {
                (Some(culprit), _) => task_failed_message(&culprit.name),
                (None, Some(culprit)) => task_cancelled_message(&culprit.name),
                (None, None) => "failed, and no task of it did".to_owned(),
            };
            self.tell(Rule::R3, &*entity, format!("had failed without an error: it has {error:?}"));
            run.error = Some(Text::lossy(&error));
        }
        if run.status == RunStatus::Pending {
            if run.started_at.take().is_some() {
                self.tell(Rule::R2, &*entity, "was pending and had a time of its start: it has none");
            }
        } else if !run.status.is_terminal() {
            run.started_at = Some(self.needed_time(&entity, "started_at", run.started_at, run.created_at));
        }
        if run.status.is_terminal() {
            let instead = run.started_at.unwrap_or(run.created_at);
            run.finished_at = Some(self.needed_time(&entity, "finished_at", run.finished_at, instead));
        } else if let Some(time) = run.finished_at.take() {
            let problem = format!("had the finished_at {time} though it is {}: it has none", run.status);
            self.tell(Rule::R3, entity, problem);
        }
    }

    /// Deferred jobs: those that are open belong to the running attempt. Of a task that does not
    /// run they are over.
    fn jobs(&mut self, rows: &mut [Row], jobs: Vec<OldJob>) {
        let mut by_task: BTreeMap<Uuid, Vec<OldJob>> = BTreeMap::new();
        for job in jobs {
            by_task.entry(job.task_id).or_default().push(job);
        }
        for row in rows {
            let mut old = by_task.remove(&row.task.id.as_uuid()).unwrap_or_default();
            old.sort_by(|a, b| (&a.created_at, a.id).cmp(&(&b.created_at, b.id)));
            row.jobs = (0_u32..).zip(old).map(|(index, old)| self.job(&row.task, index, old)).collect();
            let open = row.jobs.iter().filter(|job| !job.status.is_terminal()).count();
            row.task.open_jobs = u32::try_from(open).unwrap_or(u32::MAX);
        }
        self.orphans(Vec::new(), Vec::new(), by_task.into_values().flatten().collect());
    }

    fn job(&mut self, task: &Task, index: u32, old: OldJob) -> DeferredJob {
        let id = JobId::from_uuid(old.id);
        let entity = format!("deferred job {id}");
        let created_at = self.time(&entity, "created_at", old.created_at.as_deref());
        let created_at = self.needed_time(&entity, "created_at", created_at, task.created_at);
        let mut status = old.status.parse().unwrap_or_else(|_| {
            let problem = format!("had the unknown status {:?}: it is cancelled", shown(&old.status));
            self.tell(Rule::G8, &*entity, problem);
            JobStatus::Cancelled
        });
        if !status.is_terminal() && task.status != TaskStatus::Running {
            let problem = "was open though its task does not wait for it: it is cancelled";
            self.tell(Rule::D2, &*entity, problem);
            status = JobStatus::Cancelled;
        }
        let service_type = self.label(&entity, "service_type", old.service_type.as_deref(), "unknown");
        let job_id = self.text(&entity, "job_id", &old.job_id.unwrap_or_default());
        let job_data = self.json(&entity, "job_data", old.job_data).unwrap_or_else(Json::null);
        let new = NewDeferredJob::new(service_type, job_id, job_data);
        let mut job = DeferredJob::from_stored(id, task.id, task.run, index, new, created_at);
        job.status = status;
        job.poll_at = (!status.is_terminal()).then_some(self.now);
        job.error = old.error.as_deref().map(|error| self.text(&entity, "error", error));
        job.started_at = self.time(&entity, "started_at", old.started_at.as_deref());
        job.last_polled_at = self.time(&entity, "last_polled_at", old.last_polled_at.as_deref());
        let finished_at = self.time(&entity, "finished_at", old.finished_at.as_deref());
        if status.is_terminal() {
            let instead = job.last_polled_at.unwrap_or(created_at);
            job.finished_at = Some(self.needed_time(&entity, "finished_at", finished_at, instead));
        } else if let Some(time) = finished_at {
            self.tell(Rule::D1, entity, format!("had the finished_at {time} though it is open: it has none"));
        }
        job
    }
}

/// The tasks that wait for themselves, and what lies between two such circles.
fn in_circles(rows: &[Row], dependencies: &[Vec<usize>], dependents: &[Vec<usize>]) -> BTreeSet<usize> {
    let mut left = (0..rows.len()).filter(|index| !rows[*index].task.status.is_terminal()).collect();
    peel(&mut left, dependencies, dependents);
    peel(&mut left, dependents, dependencies);
    left
}

/// Takes away, again and again, whatever needs nothing that is left (Kahn 1962).
fn peel(left: &mut BTreeSet<usize>, needs: &[Vec<usize>], needed_by: &[Vec<usize>]) {
    let number = |index: usize| needs[index].iter().filter(|needed| left.contains(needed)).count();
    let mut numbers: HashMap<usize, usize> = left.iter().map(|index| (*index, number(*index))).collect();
    let mut free: Vec<usize> = left.iter().copied().filter(|index| numbers[index] == 0).collect();
    while let Some(index) = free.pop() {
        left.remove(&index);
        for other in &needed_by[index] {
            if let Some(number) = numbers.get_mut(other) {
                *number -= 1;
                if *number == 0 {
                    free.push(*other);
                }
            }
        }
    }
}

fn records(run: Run, rows: Vec<Row>) -> Vec<Record> {
    let mut records = vec![Record::Run(run)];
    for Row { task, params, output, logs, token, jobs, .. } in rows {
        let id = task.id;
        records.push(Record::Task { detail: TaskDetail { task, params, output }, token });
        let job = |job| Record::Job { job, deferral: token, token: Token::from_stored(0) };
        records.extend(jobs.into_iter().map(job));
        let mut offset = 0;
        for bytes in logs.iter().flat_map(|logs| logs.as_bytes().chunks(MAX_LOG_CHUNK_BYTES)) {
            records.push(Record::Log { task: id, offset, bytes: bytes.to_vec() });
            offset += bytes.len() as u64;
        }
    }
    records
}
