//! What the rows have come to.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Debug;

use ork_state_api::ork::takeover::{OldRun, OldTask, OldWorkflow};
use ork_state_api::{
    ClaimJobs, ClaimTasks, Database, Found, JobId, JobUpdate, JobUpdates, LeaseTime, Limit, ListRuns,
    ListTasks, ListWorkflows, LogPosition, LogRange, MigrationReport, Page, PageRequest, Result, RunFilter,
    RunId, RunStatus, StartRun, TaskDetail, TaskId, TaskName, TaskUpdate, TaskUpdates, Timestamp, Workflow,
    WorkflowId,
};
use uuid::Uuid;

use super::{Column, Form, OldRow, OldStore, id, task_id};
use crate::CaseResult;

/// What was found wrong.
#[derive(Default)]
struct Wrong(Vec<String>);

impl Wrong {
    #[expect(clippy::needless_pass_by_value, reason = "it reads like an assertion")]
    fn unless_equal<T: PartialEq + Debug>(&mut self, what: &str, found: T, wanted: T) {
        if found != wanted {
            self.0.push(format!("{what}: {found:?} instead of {wanted:?}"));
        }
    }
}

/// The ids that the report names, each with what it says.
type Told = BTreeMap<String, Vec<String>>;

impl OldStore {
    /// Holds a migrated store against the rows that it was made of. `kept` is what the table
    /// `ork_kept` has: entities and columns.
    ///
    /// - Everything can be read, and nothing is wrong.
    /// - What is not as it was is told by its id; what is as it was is not mentioned.
    /// - What the rules say has become of each row.
    ///
    /// # Errors
    /// All that is wrong.
    pub async fn check(
        &self,
        form: &Form<'_>,
        db: &dyn Database,
        report: &MigrationReport,
        kept: &[(String, String)],
    ) -> CaseResult {
        let mut told = Told::new();
        for line in &report.adjusted {
            told.entry(line.entity.clone()).or_default().push(line.problem.clone());
        }
        let mut wrong = Wrong::default();
        wrong.unless_equal("verify", db.verify().await?, Vec::new());
        let mut changed = BTreeSet::new();
        self.compare_workflows(form, db, &mut changed, &mut wrong).await?;
        self.compare_runs(form, db, &told, &mut changed, &mut wrong).await?;
        for entity in &changed {
            if !told.contains_key(entity) {
                wrong.0.push(format!("{entity} is not as it was, and the report does not say so"));
            }
        }
        for (entity, lines) in &told {
            // A line about a compiled task names its workflow first.
            let is_row = !entity.contains(": ")
                && ["run", "task", "workflow"].iter().any(|word| entity.starts_with(&format!("{word} ")));
            let is_orphan = lines.iter().any(|line| line.contains("not taken over"));
            let of_its_tasks =
                lines.iter().all(|line| line.contains("compiled") || line.contains("cannot be run"));
            if is_row && !is_orphan && !of_its_tasks && !changed.contains(entity) {
                wrong.0.push(format!("{entity} is as it was, and the report has {lines:?}"));
            }
        }
        self.expect(form, db, &told, &mut wrong).await?;
        if form.keeps {
            self.expect_kept(form, kept, &mut wrong);
        }
        let text = report.to_string();
        if text.contains('\u{1b}') || text.lines().any(|line| line.starts_with("run 1 is fine")) {
            wrong.0.push("a name forges a line of the report".to_owned());
        }
        if wrong.0.is_empty() { Ok(()) } else { Err(wrong.0.join("\n").into()) }
    }

    async fn compare_workflows(
        &self,
        form: &Form<'_>,
        db: &dyn Database,
        changed: &mut BTreeSet<String>,
        wrong: &mut Wrong,
    ) -> Result<()> {
        let mut there: HashMap<Uuid, Workflow> = HashMap::new();
        let mut page = PageRequest::default();
        loop {
            let Page { items, next, .. } = db.list_workflows(page.into()).await?;
            for workflow in items {
                wrong.unless_equal(
                    "a listed workflow",
                    db.get_workflow(workflow.id).await?,
                    workflow.clone(),
                );
                db.get_snapshot(workflow.snapshot).await?;
                there.insert(workflow.id.as_uuid(), workflow);
            }
            let Some(after) = next else { break };
            page = PageRequest::after(after, Limit::default());
        }
        wrong.unless_equal("workflows", there.len(), self.workflows.len());
        for old in &self.workflows {
            let Some(new) = there.get(&old.id) else {
                wrong.0.push(format!("workflow {} is lost", old.id));
                continue;
            };
            let schedule = new.schedule.as_ref();
            let time = |time: Option<Timestamp>| time.map(|time| time.to_string());
            let new = OldWorkflow {
                id: old.id,
                name: new.name.as_str().to_owned(),
                description: new.description.as_ref().map(|text| text.as_str().to_owned()),
                job_name: Some(new.target.job_name.as_str().to_owned()),
                region: Some(new.target.region.as_str().to_owned()),
                project: Some(new.target.project.as_str().to_owned()),
                executor_type: Some(new.target.executor_type.as_str().to_owned()),
                task_params: new.target.params.as_ref().map(|json| json.as_str().to_owned()),
                schedule: schedule.map(|schedule| schedule.expression.as_str().to_owned()),
                schedule_enabled: schedule.is_some_and(|schedule| schedule.enabled),
                last_scheduled_at: time(schedule.and_then(|schedule| schedule.last_at)),
                next_scheduled_at: time(schedule.and_then(|schedule| schedule.next_at)),
                // Snapshots have their own expectations.
                current_snapshot_id: old.current_snapshot_id,
                created_at: time(Some(new.created_at)),
                updated_at: time(Some(new.updated_at)),
            };
            if differs(form, old, &new) {
                changed.insert(format!("workflow {}", old.id));
            }
        }
        Ok(())
    }

    async fn compare_runs(
        &self,
        form: &Form<'_>,
        db: &dyn Database,
        told: &Told,
        changed: &mut BTreeSet<String>,
        wrong: &mut Wrong,
    ) -> Result<()> {
        let time = |time: Option<Timestamp>| time.map(|time| time.to_string());
        let mut listed = 0;
        let mut page = PageRequest::default();
        loop {
            let Page { items, next, .. } = db.list_runs(page.into()).await?;
            listed += items.len();
            let Some(after) = next else { break };
            page = PageRequest::after(after, Limit::default());
        }
        let of_a_workflow =
            |run: &&OldRun| self.workflows.iter().any(|workflow| workflow.id == run.workflow_id);
        wrong.unless_equal("runs", listed, self.runs.iter().filter(of_a_workflow).count());
        for old in self.runs.iter().filter(of_a_workflow) {
            let run = db.get_run(RunId::from_uuid(old.id)).await?;
            let new = OldRun {
                id: old.id,
                workflow_id: run.workflow.as_uuid(),
                status: run.status.as_str().to_owned(),
                triggered_by: Some(run.triggered_by.as_str().to_owned()),
                // That a snapshot is another one now is told of the snapshot.
                snapshot_id: old.snapshot_id.map(|old| {
                    let is_told = told.contains_key(&format!("snapshot {old}"));
                    if is_told { old } else { run.snapshot.as_uuid() }
                }),
                error: run.error.as_ref().map(|text| text.as_str().to_owned()),
                created_at: time(Some(run.created_at)),
                started_at: time(run.started_at),
                finished_at: time(run.finished_at),
            };
            if differs(form, old, &new) {
                changed.insert(format!("run {}", old.id));
            }
            let tasks = db.list_tasks(ListTasks::of(run.id, PageRequest::default())).await?.items;
            let of_run = self.tasks.iter().filter(|task| task.run_id == old.id);
            wrong.unless_equal(&format!("tasks of run {}", old.id), tasks.len(), of_run.clone().count());
            for old in of_run {
                let new = db.get_task(TaskId::from_uuid(old.id)).await?;
                if self.task_differs(form, db, old, &new, wrong).await? {
                    changed.insert(format!("task {}", old.id));
                }
            }
        }
        Ok(())
    }

    async fn task_differs(
        &self,
        form: &Form<'_>,
        db: &dyn Database,
        old: &OldTask,
        new: &TaskDetail,
        wrong: &mut Wrong,
    ) -> Result<bool> {
        let time = |time: Option<Timestamp>| time.map(|time| time.to_string());
        let task = &new.task;
        let names: Vec<&str> = task.depends_on.iter().map(TaskName::as_str).collect();
        let logs = match &old.logs {
            None => None,
            Some(_) => {
                let whole = LogRange::new(LogPosition::Offset(0), 16 * 1024 * 1024)?;
                let log = db.read_log(task.id, whole).await?;
                Some(String::from_utf8_lossy(&log.bytes).into_owned())
            }
        };
        for job in db.list_jobs(task.id).await? {
            let old = self.deferred_jobs.iter().find(|old| JobId::from_uuid(old.id) == job.id);
            wrong.unless_equal("the task of a job", old.map(|old| old.task_id), Some(task.id.as_uuid()));
        }
        // Ork counted the attempts that had failed.
        let has_attempts = (form.has)("tasks", "attempts");
        let is_begun = task.status.is_claimed() || task.status == ork_state_api::TaskStatus::Success;
        let attempts = i64::from(task.attempts) - i64::from(has_attempts && is_begun);
        let new = OldTask {
            id: old.id,
            run_id: task.run.as_uuid(),
            task_index: task.index.into(),
            task_name: Some(task.name.as_str().to_owned()),
            executor_type: Some(task.executor_type.as_str().to_owned()),
            depends_on: serde_json::to_string(&names).ok(),
            status: task.status.as_str().to_owned(),
            execution_name: task.execution_name.as_ref().map(|name| name.as_str().to_owned()),
            params: new.params.as_ref().map(|json| json.as_str().to_owned()),
            output: new.output.as_ref().map(|json| json.as_str().to_owned()),
            error: task.error.as_ref().map(|text| text.as_str().to_owned()),
            logs,
            attempts,
            max_retries: task.max_retries.into(),
            timeout_seconds: task.timeout_seconds.map(i64::from),
            retry_at: time(task.retry_at),
            created_at: time(Some(task.created_at)),
            dispatched_at: time(task.dispatched_at),
            started_at: time(task.started_at),
            finished_at: time(task.finished_at),
        };
        Ok(differs(form, old, &new))
    }

    /// The table of what is expected.
    async fn expect(&self, form: &Form<'_>, db: &dyn Database, told: &Told, wrong: &mut Wrong) -> Result<()> {
        let runs = [
            (1, "success: success success"),
            (2, "success: success success"),
            (3, "failed: success failed"),
            (4, "cancelled: success cancelled cancelled"),
            (5, "running: success dispatched running pending"),
            (6, "pending: "),
            (7, "failed: "),
            (8, "failed: failed"),
            (9, "running: pending"),
            (10, "success: success success success"),
            (11, "pending: "),
            (20, "running: failed failed pending"),
            (21, "running: failed failed failed pending"),
            (22, "success: success success"),
            (23, "running: failed failed failed running"),
            (24, "running: failed pending"),
            (25, "failed: failed success"),
            (30, "paused: success pending pending"),
            (31, "paused: success pending pending"),
            (40, "running: pending pending pending pending pending pending pending pending"),
        ];
        for (number, wanted) in runs {
            if !self.runs.iter().any(|run| run.id == id(number)) {
                continue;
            }
            let run = db.get_run(RunId::from_uuid(id(number))).await?;
            let tasks = db.list_tasks(ListTasks::of(run.id, PageRequest::default())).await?.items;
            let tasks: Vec<&str> = tasks.iter().map(|task| task.status.as_str()).collect();
            let found = format!("{}: {}", run.status, tasks.join(" "));
            wrong.unless_equal(&format!("run {number}"), found.as_str(), wanted);
        }
        self.expect_dags(form, db, wrong).await?;
        let has_attempts = (form.has)("tasks", "attempts");
        let attempts = [(0, 1), (1, 2), (2, 2), (3, 11), (4, 1), (5, 2), (6, 1), (7, 2), (8, 1)];
        for (index, wanted) in attempts.into_iter().filter(|_| has_attempts) {
            let task = db.get_task(TaskId::from_uuid(task_id(50, index))).await?.task;
            wrong.unless_equal(&format!("attempts of task {index}"), task.attempts, wanted);
        }
        if (form.has)("tasks", "task_name") {
            let tasks =
                db.list_tasks(ListTasks::of(RunId::from_uuid(id(40)), PageRequest::default())).await?.items;
            let names: Vec<&str> = tasks.iter().map(|task| task.name.as_str()).collect();
            let cut = "é".repeat(127);
            let wanted =
                ["a_b (2)", "task_1", "x_[2J_run 1 is fine", "same", "same (2)", &*cut, "a_b", " blank "];
            wrong.unless_equal("names of tasks", names, wanted.to_vec());
            let after: Vec<&str> = tasks[1].depends_on.iter().map(TaskName::as_str).collect();
            wrong.unless_equal("what a renamed task is called by others", after, vec!["a_b (2)"]);
        }
        let mut by_name: BTreeMap<String, u128> = BTreeMap::new();
        for workflow in db.list_workflows(ListWorkflows::default()).await?.items {
            by_name.insert(workflow.name.as_str().to_owned(), workflow.id.as_uuid().as_u128() & 0xffff);
        }
        let mut names = vec![("orders", 90), ("Orders", 91), (" nightly/eu ", 93)];
        if form.repeated_names {
            names.extend([("orders (3)", 120), ("orders (2)", 121)]);
        }
        for (name, wanted) in names {
            wrong.unless_equal(name, by_name.get(name).copied(), Some(wanted));
        }
        if form.any_text {
            let task = db.get_task(TaskId::from_uuid(task_id(73, 2))).await?.task;
            let time = task.finished_at.map(|time| time.to_string());
            wrong.unless_equal("an offset", time.as_deref(), Some("2026-02-01T06:30:00.000000Z"));
        }
        if form.orphans && form.any_text {
            for entity in [
                format!("run {}", id(80)),
                format!("task {}", task_id(80, 0)),
                format!("task {}", task_id(998, 0)),
            ] {
                if !told.contains_key(&entity) {
                    wrong.0.push(format!("{entity} has no owner, and the report does not say so"));
                }
            }
        }
        if form.orphans
            && !self.deferred_jobs.is_empty()
            && !told.contains_key(&format!("deferred job {}", id(79)))
        {
            wrong.0.push("the job of no task is not told".to_owned());
        }
        Ok(())
    }

    /// Of each workflow: its tasks, as `name*retries/timeout:dependencies`.
    async fn expect_dags(&self, form: &Form<'_>, db: &dyn Database, wrong: &mut Wrong) -> Result<()> {
        let compiled = (form.has)("workflow_tasks", "task_name");
        let orders = if compiled { "extract load*4/300:extract" } else { "task_0 task_1" };
        let dags = [
            (90, orders),
            (91, "task_0 task_1 task_2"),
            (92, "task_0 task_1 task_2 task_3 task_4"),
            (94, "cannot_run"),
            (95, "cannot_run"),
            (96, "raw_in (2) out:raw_in (2) raw_in"),
            (97, "only"),
            (100, "extract*2 load/7:extract"),
        ];
        for (number, wanted) in dags {
            if !self.workflows.iter().any(|workflow| workflow.id == id(number)) {
                continue;
            }
            let workflow = db.get_workflow(WorkflowId::from_uuid(id(number))).await?;
            let snapshot = db.get_snapshot(workflow.snapshot).await?;
            wrong.unless_equal("a content hash", snapshot.content_hash.clone(), snapshot.dag.content_hash());
            let task = |task: &ork_state_api::TaskSpec| {
                let retries =
                    if task.max_retries > 0 { format!("*{}", task.max_retries) } else { String::new() };
                let timeout = task.timeout_seconds.map_or(String::new(), |seconds| format!("/{seconds}"));
                let after: Vec<&str> = task.depends_on.iter().map(TaskName::as_str).collect();
                let after = if after.is_empty() { String::new() } else { format!(":{}", after.join(",")) };
                format!("{}{retries}{timeout}{after}", task.name)
            };
            let found: Vec<String> = snapshot.dag.tasks().iter().map(task).collect();
            wrong.unless_equal(&format!("tasks of workflow {number}"), found.join(" ").as_str(), wanted);
        }
        if (form.has)("workflow_snapshots", "id") {
            let pinned = |number| db.get_run(RunId::from_uuid(id(number)));
            let unreadable = db.get_snapshot(pinned(60).await?.snapshot).await?;
            wrong.unless_equal(
                "tasks of what is no DAG",
                unreadable.dag.tasks()[0].name.as_str(),
                "cannot_run",
            );
            wrong.unless_equal("a merged snapshot", pinned(61).await?.snapshot.as_uuid(), id(80));
            let own = db.get_workflow(WorkflowId::from_uuid(id(90))).await?.snapshot;
            wrong.unless_equal("a snapshot of another workflow", pinned(62).await?.snapshot, own);
        }
        Ok(())
    }

    fn expect_kept(&self, form: &Form<'_>, kept: &[(String, String)], wrong: &mut Wrong) {
        let mut wanted = vec![
            (format!("task {}", task_id(70, 0)), "output"),
            (format!("task {}", task_id(70, 3)), "execution_name"),
            (format!("run {}", id(70)), "triggered_by"),
        ];
        if form.large {
            wanted.push((format!("workflow {}", id(110)), "description"));
            wanted.push((format!("task {}", task_id(70, 1)), "output"));
            wanted.push((format!("task {}", task_id(70, 2)), "error"));
        }
        if (form.has)("tasks", "task_name") {
            wanted.push((format!("task {}", task_id(40, 0)), "task_name"));
            wanted.push((format!("workflow {}", id(98)), "name"));
        }
        if (form.has)("workflow_snapshots", "id") {
            wanted.push((format!("snapshot {}", id(81)), "tasks_json"));
        }
        if form.any_text {
            wanted.push((format!("task {}", task_id(74, 0)), "output"));
            wanted.push((format!("task {}", task_id(73, 1)), "started_at"));
            wanted.push((format!("run {}", id(80)), "row"));
        }
        for (entity, field) in wanted {
            if !kept.iter().any(|(of, column)| *of == entity && column == field) {
                wrong.0.push(format!("{field} of {entity} is not kept"));
            }
        }
    }

    /// Works all off as a scheduler would that takes up where Ork's left off.
    ///
    /// # Errors
    /// If a run does not come to its end that could.
    pub async fn work_off(&self, form: &Form<'_>, db: &dyn Database) -> CaseResult {
        let lease = LeaseTime::new(std::time::Duration::from_secs(60))?;
        let mut wrong = Wrong::default();
        db.expire_leases(Limit::new(1000)?).await?;
        let claim = || Ok::<_, ork_state_api::Error>(ClaimTasks::new("tester".parse()?, lease));
        for claimed in db.claim_tasks(claim()?).await? {
            wrong.unless_equal("a task of a paused run is claimed", claimed.run.as_uuid() == id(31), false);
            db.update_tasks(TaskUpdates::one(TaskUpdate::released(claimed.claim))).await?;
        }
        for run in db.list_runs(ListRuns::default()).await?.items {
            match run.status {
                RunStatus::Paused => drop(db.resume_run(run.id).await?),
                RunStatus::Pending => drop(db.start_run(StartRun::pinned(run.id)).await?),
                _ => {}
            }
        }
        let jobs = db.claim_jobs(ClaimJobs::new("poller".parse()?, lease)).await?;
        wrong.unless_equal("jobs to be polled", jobs.len(), usize::from(!self.deferred_jobs.is_empty()));
        let ended = jobs.iter().map(|job| JobUpdate::completed(job.claim, None)).collect();
        db.update_jobs(JobUpdates::new(ended)?).await?;
        loop {
            let claimed = db.claim_tasks(claim()?).await?;
            if claimed.is_empty() {
                break;
            }
            let done = claimed.iter().map(|task| TaskUpdate::succeeded(task.claim, None)).collect();
            db.update_tasks(TaskUpdates::new(done)?).await?;
        }
        let live =
            RunFilter::all().with_statuses([RunStatus::Pending, RunStatus::Running, RunStatus::Paused]);
        for run in db.list_runs(ListRuns::new(live, PageRequest::default())).await?.items {
            // One waits for a retry time that has not come.
            if run.id.as_uuid() != id(50) || !(form.has)("tasks", "attempts") {
                wrong.0.push(format!("run {} is still {}", run.id, run.status));
            }
        }
        wrong.unless_equal("verify", db.verify().await?, Vec::new());
        if wrong.0.is_empty() { Ok(()) } else { Err(wrong.0.join("\n").into()) }
    }
}

/// Whether a row has another value in a column that the old store had.
fn differs<R: OldRow>(form: &Form<'_>, old: &R, new: &R) -> bool {
    let both = old.columns().into_iter().zip(new.columns());
    both.filter(|((name, _), _)| (form.has)(R::TABLE, name))
        .any(|((_, old), (_, new))| meaning(old) != meaning(new))
}

/// A value whatever it is written like.
fn meaning(column: Column) -> Column {
    match column {
        Column::Json(Some(text)) => {
            let json = serde_json::from_str::<serde_json::Value>(&text);
            Column::Json(Some(json.map_or(text, |json| numbers(json).to_string())))
        }
        Column::Names(names) => Column::Names(Some(
            names.filter(|names| names != "null").unwrap_or("[]".to_owned()).replace(' ', ""),
        )),
        Column::Time(Some(text)) => Column::Time(Some(instant(&text).unwrap_or(text))),
        column => column,
    }
}

/// `1e2` and `100` are one number, of which `jsonb` keeps the second form.
fn numbers(json: serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    match json {
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() && float.fract() == 0.0 && float.abs() < 1e15 => {
                format!("{float:.0}").parse().map_or(Value::Number(number), |whole: i64| whole.into())
            }
            _ => Value::Number(number),
        },
        Value::Array(items) => items.into_iter().map(numbers).collect(),
        Value::Object(fields) => fields.into_iter().map(|(key, value)| (key, numbers(value))).collect(),
        other => other,
    }
}

/// Read apart from the code under test.
fn instant(text: &str) -> Option<String> {
    let (date, time) = text.split_once([' ', 'T'])?;
    let offset = time.rfind(['+', 'Z']).map_or("", |at| &time[at..]);
    let time = &time[..time.len() - offset.len()];
    let seconds = if time.matches(':').count() == 1 { ":00" } else { "" };
    let offset = if offset.is_empty() { "Z" } else { offset };
    let time: Timestamp = format!("{date}T{time}{seconds}{offset}").parse().ok()?;
    Some(time.to_string())
}

/// That a plan says what the migration then does.
///
/// # Errors
/// If it does not.
pub fn check_plan(plan: &MigrationReport, report: &MigrationReport, found: Found) -> CaseResult {
    let mut wrong = Wrong::default();
    wrong.unless_equal("found", (plan.found, report.found), (found, found));
    wrong.unless_equal("steps", &plan.applied, &report.applied);
    let entities = |report: &MigrationReport| {
        report.adjusted.iter().map(|line| (line.rule, line.entity.clone())).collect::<Vec<_>>()
    };
    wrong.unless_equal("adjusted", entities(plan), entities(report));
    if wrong.0.is_empty() { Ok(()) } else { Err(wrong.0.join("\n").into()) }
}
