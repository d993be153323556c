//! Checks of a store that need nothing but its own methods.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    DeferredJobStore, Entity, Error, ErrorKind, Limit, ListTasks, PageRequest, Result, Rule, Run, RunId,
    RunKey, RunStatus, RunStore, Task, TaskCounts, TaskId, TaskStatus, TaskStore, Timestamp, Violation,
    WorkflowStore,
};

/// How many rows are read at a time.
fn page_limit() -> Limit {
    Limit::new(1000).unwrap_or_default()
}

/// Checks every rule that shows in what the store's methods return (rule M4).
///
/// This is [`Maintenance::verify`](crate::Maintenance::verify) for a backend that has nothing to
/// add. Violations come in the order of the runs, newest first.
///
/// A row that cannot be read hides as little as can be: the runs after it are checked, but the one
/// just before it may be missing. A workflow that cannot be read hides those after it by name:
/// their keys are not known. Of a run with such a task no more is checked than that.
///
/// # Errors
/// What the store's methods fail with, but for `Corrupt`, which is a violation.
pub async fn observe<S>(store: &S) -> Result<Vec<Violation>>
where
    S: WorkflowStore + RunStore + TaskStore + DeferredJobStore + ?Sized,
{
    let mut found = Vec::new();
    check_workflows(store, &mut found).await?;

    let ready = read_ready(store, &mut found).await?;
    let mut page = PageRequest::first(page_limit());
    loop {
        let runs = match store.list_runs(page.into()).await {
            Ok(runs) => runs,
            Err(error) => {
                let violation = corruption(&error)?;
                if let Some(limit) = halved(page.limit) {
                    page.limit = limit;
                    continue;
                }
                found.push(violation);
                match past_unreadable(store, page.after, &error).await? {
                    Some(key) if page.after.is_none_or(|after| after < key) => {
                        page = PageRequest::after(key, page_limit());
                    }
                    _ => return Ok(found),
                }
                continue;
            }
        };
        if !runs.items.is_sorted_by(|a, b| RunKey::of(a) < RunKey::of(b)) {
            found.push(Violation::new(Rule::G6, "list of runs", "is out of order or repeats a run"));
        }
        for run in &runs.items {
            check_run(store, run, &ready, &mut found).await?;
        }
        match runs.next {
            // Short pages stay short: what cannot be read is close.
            Some(key) => page.after = Some(key),
            None => return Ok(found),
        }
    }
}

/// The ready tasks, as far as they show.
struct Ready {
    tasks: BTreeSet<TaskId>,
    /// Whether a task that is not among them is not ready.
    is_complete: bool,
}

async fn read_ready<S: TaskStore + ?Sized>(store: &S, found: &mut Vec<Violation>) -> Result<Ready> {
    match store.ready_tasks(Limit::MAX).await {
        Ok(ready) => {
            if !ready.is_sorted() {
                found.push(Violation::new(Rule::T2, "ready tasks", "are out of order"));
            }
            let tasks: BTreeSet<TaskId> = ready.iter().map(|task| task.task).collect();
            if tasks.len() < ready.len() {
                found.push(Violation::new(Rule::T1, "ready tasks", "have a task twice"));
            }
            Ok(Ready { tasks, is_complete: ready.len() < Limit::MAX.get() })
        }
        Err(error) => {
            found.push(corruption(&error)?);
            Ok(Ready { tasks: BTreeSet::new(), is_complete: false })
        }
    }
}

/// For a page that holds a row that cannot be read: half as long, so that the rows before it are
/// seen.
fn halved(limit: Limit) -> Option<Limit> {
    Limit::new(limit.get() / 2).ok()
}

/// The place in the list of runs just after the row that this error is about and that comes next
/// after `after`.
///
/// The error tells the run's id and not when it was created, so that is searched for: from any
/// place before the row the same error comes, from its own place or later ones another answer.
/// `None` if the error does not tell an id of a run.
async fn past_unreadable<S: RunStore + ?Sized>(
    store: &S,
    after: Option<RunKey>,
    error: &Error,
) -> Result<Option<RunKey>> {
    let ErrorKind::Corrupt { id: bad, .. } = error.kind() else { return Ok(None) };
    let Ok(id) = bad.parse::<RunId>() else { return Ok(None) };
    let mut before = after.map_or(Timestamp::MAX, |key| key.created_at).as_micros().saturating_add(1);
    let mut past = Timestamp::MIN.as_micros();
    while before - past > 1 {
        let middle = past + (before - past) / 2;
        let key = RunKey { created_at: Timestamp::from_micros(middle)?, id };
        let page = PageRequest::after(key, Limit::ONE);
        match store.list_runs(page.into()).await {
            Err(error) if matches!(error.kind(), ErrorKind::Corrupt { id, .. } if id == bad) => {
                before = middle;
            }
            Err(error) if !matches!(error.kind(), ErrorKind::Corrupt { .. }) => return Err(error),
            _ => past = middle,
        }
    }
    Ok(Some(RunKey { created_at: Timestamp::from_micros(past)?, id }))
}

/// What cannot be read is a violation; any other error ends the check.
fn corruption(error: &Error) -> Result<Violation> {
    match error.kind() {
        ErrorKind::Corrupt { table, id, column, reason } => {
            Ok(Violation::new(Rule::G8, format!("{table} {id}"), format!("column {column}: {reason}")))
        }
        _ => Err(error.clone()),
    }
}

async fn check_workflows<S: WorkflowStore + ?Sized>(store: &S, found: &mut Vec<Violation>) -> Result<()> {
    let mut page = PageRequest::first(page_limit());
    loop {
        let workflows = match store.list_workflows(page.clone().into()).await {
            Ok(workflows) => workflows,
            Err(error) => {
                let violation = corruption(&error)?;
                if let Some(limit) = halved(page.limit) {
                    page.limit = limit;
                    continue;
                }
                found.push(violation);
                return Ok(());
            }
        };
        if !workflows.items.is_sorted_by(|a, b| a.name < b.name) {
            found.push(Violation::new(Rule::G6, "list of workflows", "is out of order or repeats a name"));
        }
        for workflow in &workflows.items {
            match store.get_snapshot(workflow.snapshot).await {
                Ok(snapshot) if snapshot.workflow != workflow.id => {
                    let problem = format!("has snapshot {} of workflow {}", snapshot.id, snapshot.workflow);
                    found.push(Violation::new(Rule::W1, format!("workflow {}", workflow.id), problem));
                }
                Ok(snapshot) if snapshot.content_hash != snapshot.dag.content_hash() => {
                    let problem = "has a content hash that is not its DAG's";
                    found.push(Violation::new(Rule::W2, format!("snapshot {}", snapshot.id), problem));
                }
                Ok(_) => {}
                Err(error) if is_missing(&error, Entity::Snapshot) => {
                    let problem = format!("has snapshot {}, which is not there", workflow.snapshot);
                    found.push(Violation::new(Rule::W1, format!("workflow {}", workflow.id), problem));
                }
                Err(error) => found.push(corruption(&error)?),
            }
        }
        match workflows.next {
            Some(key) => page.after = Some(key),
            None => return Ok(()),
        }
    }
}

fn is_missing(error: &Error, wanted: Entity) -> bool {
    matches!(error.kind(), ErrorKind::NotFound { entity, .. } if *entity == wanted)
}

async fn check_run<S: TaskStore + DeferredJobStore + ?Sized>(
    store: &S,
    run: &Run,
    ready: &Ready,
    found: &mut Vec<Violation>,
) -> Result<()> {
    let tasks = match tasks_of(store, run.id).await {
        Ok(tasks) => tasks,
        // The run was deleted since it was listed.
        Err(error) if is_missing(&error, Entity::Run) => return Ok(()),
        Err(error) => {
            found.push(corruption(&error)?);
            return Ok(());
        }
    };
    let mut say =
        |rule, problem: String| found.push(Violation::new(rule, format!("run {}", run.id), problem));

    let counted = count(&tasks);
    if run.tasks != counted {
        say(Rule::R3, format!("says {:?}, its tasks are {counted:?}", run.tasks));
    }
    if tasks.iter().map(|task| task.index).ne(0..counted.total) {
        say(Rule::R2, "has tasks that are out of order or missing".into());
    }
    let expected = match run.status {
        RunStatus::Pending if counted.total > 0 => Some("pending with tasks"),
        RunStatus::Running | RunStatus::Paused if counted.unfinished == 0 => {
            Some("live with no task that is")
        }
        RunStatus::Success if tasks.iter().any(|task| task.status != TaskStatus::Success) => {
            Some("a success with a task that is not")
        }
        // One taken over from Ork may have failed for a reason of its own, and one in which a
        // cancelled task stays says so (R6).
        RunStatus::Failed if counted.failed == 0 && run.error.is_none() => {
            Some("failed with no task that is")
        }
        status if status.is_terminal() && counted.unfinished > 0 => Some("terminal with live tasks"),
        _ => None,
    };
    if let Some(problem) = expected {
        say(Rule::R3, format!("is {problem}"));
    }
    if run.status.is_terminal() != run.finished_at.is_some() {
        say(Rule::R3, format!("is {} with finished_at {:?}", run.status, run.finished_at));
    }
    check_tasks(run, &tasks, ready, found);
    for task in tasks.iter().filter(|task| task.open_jobs > 0) {
        check_jobs(store, task, found).await?;
    }
    Ok(())
}

async fn check_jobs<S: DeferredJobStore + ?Sized>(
    store: &S,
    task: &Task,
    found: &mut Vec<Violation>,
) -> Result<()> {
    match store.list_jobs(task.id).await {
        Ok(jobs) => {
            let open = jobs.iter().filter(|job| !job.status.is_terminal()).count();
            if open != task.open_jobs as usize {
                let problem = format!("waits for {} jobs, {open} are open", task.open_jobs);
                found.push(Violation::new(Rule::D1, format!("task {}", task.id), problem));
            }
        }
        Err(error) if is_missing(&error, Entity::Task) => {}
        Err(error) => found.push(corruption(&error)?),
    }
    Ok(())
}

async fn tasks_of<S: TaskStore + ?Sized>(store: &S, run: RunId) -> Result<Vec<Task>> {
    let mut all = Vec::new();
    let mut page = PageRequest::first(page_limit());
    loop {
        let tasks = store.list_tasks(ListTasks::of(run, page)).await?;
        all.extend(tasks.items);
        match tasks.next {
            Some(key) => page = PageRequest::after(key, page_limit()),
            None => return Ok(all),
        }
    }
}

fn count(tasks: &[Task]) -> TaskCounts {
    let number = |wanted: fn(&Task) -> bool| {
        u32::try_from(tasks.iter().filter(|task| wanted(task)).count()).unwrap_or(u32::MAX)
    };
    TaskCounts {
        total: number(|_| true),
        unfinished: number(|task| !task.status.is_terminal()),
        failed: number(|task| task.status == TaskStatus::Failed),
        cancelled: number(|task| task.status == TaskStatus::Cancelled),
    }
}

fn check_tasks(run: &Run, tasks: &[Task], ready: &Ready, found: &mut Vec<Violation>) {
    let status: BTreeMap<_, _> = tasks.iter().map(|task| (&task.name, task.status)).collect();
    for task in tasks {
        let mut say =
            |rule, problem: String| found.push(Violation::new(rule, format!("task {}", task.id), problem));
        let waits_for = |wanted: fn(TaskStatus) -> bool| {
            task.depends_on.iter().filter(|name| status.get(name).is_none_or(|&s| wanted(s))).count()
        };
        let unmet = waits_for(|status| status != TaskStatus::Success);
        if unmet != task.unmet_dependencies as usize {
            say(Rule::T1, format!("says it waits for {}, it waits for {unmet}", task.unmet_dependencies));
        }
        if task.status == TaskStatus::Pending && waits_for(|status| status == TaskStatus::Failed) > 0 {
            say(Rule::T5, "is pending after a dependency that failed".into());
        }
        if !matches!(task.status, TaskStatus::Pending | TaskStatus::Failed | TaskStatus::Cancelled)
            && unmet > 0
        {
            say(Rule::T1, format!("is {} with dependencies unmet", task.status));
        }
        let deferred = task.status == TaskStatus::Running && task.open_jobs > 0;
        if (task.status.is_claimed() && !deferred) != task.lease.is_some() {
            say(Rule::T2, format!("is {} with lease {:?}", task.status, task.lease));
        }
        if task.open_jobs > 0 && !deferred {
            say(Rule::D2, format!("is {} and waits for {} jobs", task.status, task.open_jobs));
        }
        if task.status.is_terminal() != task.finished_at.is_some() {
            say(Rule::T4, format!("is {} with finished_at {:?}", task.status, task.finished_at));
        }
        let queued = task.status == TaskStatus::Pending && unmet == 0 && run.status == RunStatus::Running;
        if queued != task.ready_at.is_some() {
            say(
                Rule::T1,
                format!("is {} in a {} run with ready_at {:?}", task.status, run.status, task.ready_at),
            );
        }
        let shown = ready.tasks.contains(&task.id);
        // A task whose time has not come is queued and not shown.
        let must_show = queued && task.retry_at.is_none() && ready.is_complete;
        if (shown && !queued) || (must_show && !shown) {
            let word = if shown { "is" } else { "is not" };
            say(Rule::T1, format!("{word} among the ready tasks, {} in a {} run", task.status, run.status));
        }
        if task.attempts > task.max_retries.saturating_add(1) {
            say(Rule::T5, format!("was tried {} times with {} retries", task.attempts, task.max_retries));
        }
    }
}
