//! A scheduler to copy from. This file is all of it. It needs `ork-state-api`, serde and tokio.
//!
//! It fires schedules and takes ready tasks from the store. It runs them as shell commands, polls
//! jobs that run elsewhere, and reports the results. Any number of schedulers may work on one
//! store. Any of them may die at any moment.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use ork_state_api::{
    ClaimJobs, ClaimTasks, ClaimedJob, ClaimedTask, Database, DeferTask, Delay, FireSchedule, Heartbeat,
    HeartbeatOutcome, JobUpdate, JobUpdates, Json, Label, LeaseTime, Limit, ListRuns, LogChunk,
    NewDeferredJob, RunFilter, RunStatus, StartRun, TaskName, TaskUpdate, TaskUpdates, Text, Topic,
};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::task::JoinSet;

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// A task's parameters.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Command {
    /// For `sh -c`.
    pub(crate) run: String,
    /// Where to run it.
    pub(crate) directory: String,
}

/// The executor of tasks that start a job elsewhere and wait for it.
pub(crate) const WAREHOUSE: &str = "warehouse";

/// The prefix of lines in a task's log that a scheduler wrote, not the task.
pub(crate) const MARK: &str = "--- attempt ";

/// How long a claim lasts without a heartbeat. The tasks of a dead scheduler are idle for this
/// long.
const LEASE: Duration = Duration::from_secs(2);
/// How often leases are renewed: often enough that two heartbeats may be lost.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// How often a scheduler looks for what becomes due without a hint: lapsed leases, slots, jobs to
/// poll.
const LOOK: Duration = Duration::from_millis(250);
/// The time between two polls of a job.
const POLL_AFTER: Duration = Duration::from_millis(200);
/// How long a failed task waits for its next attempt.
const RETRY_AFTER: Duration = Duration::from_millis(300);
/// How many tasks run at the same time.
const SLOTS: usize = 2;

/// Works until it is killed. If the store is unavailable for a while, it waits.
pub(crate) async fn work(db: Arc<dyn Database>, name: &str) -> Result<(), AnyError> {
    let owner = Label::new(name)?;
    let mut running = JoinSet::new();
    // Before the first look, so that nothing is missed between the look and the wait.
    let mut ready = db.watch(Topic::Ready).await?;
    loop {
        match look(&*db, &owner, SLOTS - running.len()).await {
            Ok(tasks) => {
                for task in tasks {
                    running.spawn(run_task(db.clone(), owner.clone(), task));
                }
            }
            Err(error) if error.is_retryable() => eprintln!("{owner}: {error}"),
            Err(error) => return Err(error.into()),
        }
        tokio::select! {
            Some(ended) = running.join_next() => {
                if let Err(error) = ended? {
                    // The task comes back when the lease lapses.
                    eprintln!("{owner}: a task is given up: {error}");
                }
            }
            hint = ready.changed() => hint?,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// Does what is due, and claims up to this many tasks.
async fn look(db: &dyn Database, owner: &Label, slots: usize) -> ork_state_api::Result<Vec<ClaimedTask>> {
    fire_schedules(db).await?;
    start_pending_runs(db).await?;
    poll_jobs(db, owner).await?;
    // Any scheduler that finds a lapsed lease or an overdue task takes it back, whoever held it.
    db.expire_leases(Limit::default()).await?;
    db.expire_timeouts(Limit::default()).await?;
    take(db, owner, slots).await
}

/// Fires the slots that are due. If several schedulers see a slot, only one creates the run.
async fn fire_schedules(db: &dyn Database) -> ork_state_api::Result<()> {
    for due in db.due_schedules(Limit::default()).await? {
        // A real scheduler would compute the next slot from `due.expression` with a cron library.
        // This demo runs once.
        db.fire_schedule(FireSchedule::new(due.workflow, due.slot, None)?).await?;
    }
    Ok(())
}

/// Starts runs that a schedule or a person created. That includes runs whose creator died before it
/// could start them.
async fn start_pending_runs(db: &dyn Database) -> ork_state_api::Result<()> {
    let filter = RunFilter::all().with_statuses([RunStatus::Pending]);
    for run in db
        .list_runs({
            let mut list = ListRuns::default();
            list.filter = filter;
            list
        })
        .await?
        .items
    {
        db.start_run(StartRun::pinned(run.id)).await?;
    }
    Ok(())
}

/// Polls the jobs that are due. The end of its one job ends the task.
async fn poll_jobs(db: &dyn Database, owner: &Label) -> ork_state_api::Result<()> {
    let mut updates = Vec::new();
    for ClaimedJob { claim, job, .. } in
        db.claim_jobs(ClaimJobs::new(owner.clone(), LeaseTime::new(LEASE)?)).await?
    {
        let result: PathBuf = job.job_data.to()?;
        updates.push(match tokio::fs::read_to_string(&result).await {
            Ok(output) => JobUpdate::completed(claim, Json::parse(output).ok()),
            Err(_) => JobUpdate::polled(claim, Delay::new(POLL_AFTER)?),
        });
    }
    db.update_jobs(JobUpdates::new(updates)?).await?;
    Ok(())
}

/// Claims up to this many tasks.
async fn take(db: &dyn Database, owner: &Label, slots: usize) -> ork_state_api::Result<Vec<ClaimedTask>> {
    if slots == 0 {
        return Ok(Vec::new());
    }
    let claim = ClaimTasks::new(owner.clone(), LeaseTime::new(LEASE)?);
    db.claim_tasks(claim.with_limit(Limit::new(slots)?).with_dependency_outputs()).await
}

/// Runs one task and reports its end. If the lease is lost meanwhile, the task is no longer ours.
/// Then its process is stopped and its result dropped.
async fn run_task(db: Arc<dyn Database>, owner: Label, task: ClaimedTask) -> Result<(), AnyError> {
    let execution = Label::new(format!("{owner}/{}", std::process::id()))?;
    let begins = vec![TaskUpdate::dispatched(task.claim, Some(execution)), TaskUpdate::running(task.claim)];
    report(&*db, &task, TaskUpdates::new(begins)?).await?;
    // So the log shows later who ran which attempt.
    note(&*db, &task, &format!("by {owner}")).await?;
    if *task.task.executor_type == *WAREHOUSE {
        return defer(&*db, &task).await;
    }

    let failure = tokio::select! {
        ended = execute(&*db, &task) => match ended {
            Ok((status, printed)) if status.success() => {
                let update = TaskUpdate::succeeded(task.claim, output_of(&printed));
                return report(&*db, &task, TaskUpdates::one(update)).await;
            }
            Ok((status, _)) => status.to_string(),
            Err(error) => error.to_string(),
        },
        lost = keep_lease(&*db, &task) => return lost,
    };
    note(&*db, &task, &format!("failed: {failure}")).await?;
    let update = TaskUpdate::failed(task.claim, Text::lossy(&failure), Delay::new(RETRY_AFTER)?);
    report(&*db, &task, TaskUpdates::one(update)).await
}

/// Writes a line of the scheduler into the task's log.
async fn note(db: &dyn Database, task: &ClaimedTask, what: &str) -> ork_state_api::Result<()> {
    let line = format!("{MARK}{} {what}\n", task.task.attempts);
    db.append_log(task.task.id, LogChunk::new(line.as_bytes())?).await?;
    Ok(())
}

/// Starts a job elsewhere and makes the task wait for it. From here on any scheduler may poll it,
/// even if this one dies.
async fn defer(db: &dyn Database, task: &ClaimedTask) -> Result<(), AnyError> {
    let command = command(task)?;
    let job = format!("{}-{}", task.name, task.claim.token);
    let result = Path::new(&command.directory).join(format!("{job}.json"));
    // "Elsewhere" is a separate process group, which outlives us.
    tokio::process::Command::new("sh")
        .args(["-c", &command.run])
        .current_dir(&command.directory)
        .env("RESULT", &result)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()?;
    let new = NewDeferredJob::new(WAREHOUSE.parse()?, Text::new(job)?, Json::from_value(&result)?);
    db.defer_task(DeferTask::new(task.claim, [new])?).await?;
    Ok(())
}

/// Reports a task's update to the store.
///
/// # Errors
/// Fails if the store does not apply it, most likely because the lease is lost.
async fn report(db: &dyn Database, task: &ClaimedTask, updates: TaskUpdates) -> Result<(), AnyError> {
    loop {
        match db.update_tasks(updates.clone()).await {
            Ok(report) => {
                for outcome in report.outcomes {
                    outcome.into_result(task.id)?;
                }
                return Ok(());
            }
            // A retry is safe even if the update was applied and only the answer was lost (rule
            // T7).
            Err(error) if error.is_retryable() => tokio::time::sleep(LOOK).await,
            Err(error) => return Err(error.into()),
        }
    }
}

/// Renews the lease for ever. Returns when it is lost.
async fn keep_lease(db: &dyn Database, task: &ClaimedTask) -> Result<(), AnyError> {
    loop {
        tokio::time::sleep(HEARTBEAT).await;
        match db.heartbeat(Heartbeat::new([task.claim], LeaseTime::new(LEASE)?)?).await {
            Ok(outcomes) if outcomes.contains(&HeartbeatOutcome::Lost) => return Ok(()),
            Ok(_) => {}
            // The next heartbeat shows whether the lease is still held.
            Err(error) if error.is_retryable() => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn command(task: &ClaimedTask) -> Result<Command, AnyError> {
    Ok(task.params.as_ref().ok_or("the task has no parameters")?.to()?)
}

/// Runs the task's command, and writes its output to the task's log as it comes. Returns the exit
/// status and the output.
async fn execute(db: &dyn Database, task: &ClaimedTask) -> Result<(ExitStatus, String), AnyError> {
    let command = command(task)?;
    let mut child = tokio::process::Command::new("sh")
        .args(["-c", &command.run])
        .current_dir(&command.directory)
        .env("DEPENDENCIES", dependencies(&task.dependency_outputs))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (printed, errors) = tokio::join!(copy_to_log(db, task, stdout), copy_to_log(db, task, stderr));
    errors?;
    Ok((child.wait().await?, printed?))
}

async fn copy_to_log(
    db: &dyn Database,
    task: &ClaimedTask,
    from: Option<impl AsyncRead + Unpin>,
) -> Result<String, AnyError> {
    let Some(mut from) = from else { return Ok(String::new()) };
    let (mut all, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return Ok(String::from_utf8_lossy(&all).into_owned());
        }
        all.extend_from_slice(&buffer[..length]);
        db.append_log(task.id, LogChunk::new(&buffer[..length])?).await?;
    }
}

/// A task's output: its last line, if that is JSON.
fn output_of(printed: &str) -> Option<Json> {
    Json::parse(printed.trim_end().lines().last()?.trim()).ok()
}

/// The outputs of a task's dependencies, as one `name JSON` per line.
fn dependencies(outputs: &BTreeMap<TaskName, Option<Json>>) -> String {
    let lines = outputs.iter().map(|(name, output)| match output {
        Some(json) => format!("{name} {json}\n"),
        None => format!("{name}\n"),
    });
    lines.collect()
}
