//! A scheduler: takes ready tasks from the store, runs them as shell commands, and reports what became of them. Any number
//! of them may work on one store, and any of them may die at any moment.

use std::collections::BTreeMap;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use ork_state_api::{
    ClaimTasks, ClaimedTask, Database, Delay, Heartbeat, HeartbeatOutcome, Json, Label, LeaseTime, Limit,
    LogChunk, TaskName, TaskUpdate, TaskUpdates, Text,
};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::task::JoinSet;

use super::workflow::Command;

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// How long a claim lasts without a heartbeat: as long as the tasks of a dead scheduler lie idle.
const LEASE: Duration = Duration::from_secs(2);
/// How often leases are renewed: often enough that two heartbeats may be lost.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// How often an idle scheduler looks for work.
const IDLE: Duration = Duration::from_millis(100);
/// How long a failed task waits for its next attempt.
const RETRY_AFTER: Duration = Duration::from_millis(300);
/// How many tasks run at the same time.
const SLOTS: usize = 2;

/// Works until it is killed. A store that is away for a while is waited for.
pub(crate) async fn work(db: Arc<dyn Database>, name: &str) -> Result<(), AnyError> {
    let owner = Label::new(name)?;
    let mut running = JoinSet::new();
    loop {
        match take(&*db, &owner, SLOTS - running.len()).await {
            Ok(tasks) => {
                for task in tasks {
                    running.spawn(run_task(db.clone(), owner.clone(), task));
                }
            }
            Err(error) if error.is_retryable() => eprintln!("{owner}: {error}"),
            Err(error) => return Err(error.into()),
        }
        match tokio::time::timeout(IDLE, running.join_next()).await {
            // A slot is free: look for work at once.
            Ok(Some(Ok(Ok(())))) => {}
            // Its task comes back when the lease lapses.
            Ok(Some(Ok(Err(error)))) => eprintln!("{owner}: a task is given up: {error}"),
            Ok(Some(Err(panicked))) => return Err(panicked.into()),
            Ok(None) => tokio::time::sleep(IDLE).await,
            Err(_idle) => {}
        }
    }
}

/// Takes up to so many tasks.
async fn take(db: &dyn Database, owner: &Label, slots: usize) -> ork_state_api::Result<Vec<ClaimedTask>> {
    // Whoever finds a lapsed lease takes the task back, whosever it was.
    db.expire_leases(Limit::default()).await?;
    if slots == 0 {
        return Ok(Vec::new());
    }
    let claim = ClaimTasks::new(owner.clone(), LeaseTime::new(LEASE)?);
    db.claim_tasks(claim.with_limit(Limit::new(slots)?).with_dependency_outputs()).await
}

/// Runs one task and reports its end. If the lease is lost on the way the task is no longer ours: its process is
/// stopped and its result dropped.
async fn run_task(db: Arc<dyn Database>, owner: Label, task: ClaimedTask) -> Result<(), AnyError> {
    let execution = Label::new(format!("{owner}/{}", std::process::id()))?;
    let begins = vec![TaskUpdate::dispatched(task.claim, Some(execution)), TaskUpdate::running(task.claim)];
    report(&*db, &task, TaskUpdates::new(begins)?).await?;

    let retry_after = Delay::new(RETRY_AFTER)?;
    let update = tokio::select! {
        ended = execute(&*db, &task) => match ended {
            Ok((status, printed)) if status.success() => TaskUpdate::succeeded(task.claim, output_of(&printed)),
            Ok((status, _)) => TaskUpdate::failed(task.claim, Text::lossy(&status.to_string()), retry_after),
            Err(error) => TaskUpdate::failed(task.claim, Text::lossy(&error.to_string()), retry_after),
        },
        lost = keep_lease(&*db, &task) => return lost,
    };
    report(&*db, &task, TaskUpdates::one(update)?).await
}

/// Tells the store about a task.
///
/// # Errors
/// If the store does not apply it: most likely the lease is lost.
async fn report(db: &dyn Database, task: &ClaimedTask, updates: TaskUpdates) -> Result<(), AnyError> {
    loop {
        match db.update_tasks(updates.clone()).await {
            Ok(report) => {
                for outcome in report.outcomes {
                    outcome.into_result(task.task.id)?;
                }
                return Ok(());
            }
            // Repeating it is safe also if it was applied and only the answer was lost (rule T7).
            Err(error) if error.is_retryable() => tokio::time::sleep(IDLE).await,
            Err(error) => return Err(error.into()),
        }
    }
}

/// Renews the lease for ever; returns when it is lost.
async fn keep_lease(db: &dyn Database, task: &ClaimedTask) -> Result<(), AnyError> {
    loop {
        tokio::time::sleep(HEARTBEAT).await;
        match db.heartbeat(Heartbeat::new([task.claim], LeaseTime::new(LEASE)?)?).await {
            Ok(outcomes) if outcomes.contains(&HeartbeatOutcome::Lost) => return Ok(()),
            Ok(_) => {}
            // The next one tells whether the lease outlasted it.
            Err(error) if error.is_retryable() => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Runs the task's command, its output going to the task's log as it comes. Gives the exit status and what it printed.
async fn execute(db: &dyn Database, task: &ClaimedTask) -> Result<(ExitStatus, String), AnyError> {
    let params = task.params.as_ref().ok_or("the task has no parameters")?;
    let command: Command = params.to()?;
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
        db.append_log(task.task.id, LogChunk::new(&buffer[..length])?).await?;
    }
}

/// What a task gives: its last line, if that is JSON.
fn output_of(printed: &str) -> Option<Json> {
    Json::parse(printed.trim_end().lines().last()?.trim()).ok()
}

/// The outputs of a task's dependencies, one `name JSON` a line.
fn dependencies(outputs: &BTreeMap<TaskName, Option<Json>>) -> String {
    let lines = outputs.iter().map(|(name, output)| match output {
        Some(json) => format!("{name} {json}\n"),
        None => format!("{name}\n"),
    });
    lines.collect()
}
