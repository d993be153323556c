//! Other processes: a case starts this very program again, in a role.

use std::process::Stdio;
use std::sync::Arc;

use ork_state_api::copy::copy;
use ork_state_api::{
    ClaimTasks, Database, Delay, EndedRun, ErrorKind, Json, Label, LeaseTime, Limit, LogChunk, NewRun,
    NewWorkflow, Result, RunId, RunStatus, StartRun, TaskId, TaskStatus, TaskUpdate, TaskUpdates, Text,
    Timestamp, Token, WorkflowId,
};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::task::JoinSet;

use crate::ctx::{LEASE, connect, dag};

/// The variable by which a process knows that it is a child, and what to do.
const ROLE: &str = "ORK_STATE_CONFORMANCE_CHILD";

/// What a child does.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Role {
    /// Says `ready`, waits for a line, then claims in batches and completes until nothing is ready. Prints each claimed task's id.
    WorkOff {
        /// The store.
        url: String,
        /// Whose leases.
        owner: String,
        /// Tasks a claim.
        batch: usize,
    },
    /// Claims once, prints the ids, then hangs: to be killed.
    ClaimAndHang {
        /// The store.
        url: String,
        /// Tasks to claim.
        batch: usize,
    },
    /// Creates runs for ever, printing the id of each when it is acknowledged: to be killed.
    CreateRuns {
        /// The store.
        url: String,
        /// Of this workflow.
        workflow: WorkflowId,
    },
    /// Takes workflows from their creation to their deletion, for ever, telling each step as a [`Told`]: to be killed.
    LiveOn {
        /// The store.
        url: String,
        /// How many do so at the same time.
        workers: usize,
        /// Whether the store keeps logs.
        logs: bool,
    },
    /// Says `ready`, waits for a line, then appends lines of one letter to a task's log.
    AppendLog {
        /// The store.
        url: String,
        /// Whose log.
        task: TaskId,
        /// What the lines are made of.
        letter: char,
        /// How long each is, with its end.
        lengths: Vec<usize>,
    },
    /// Makes the calls that it is asked for, as [`processes`](crate::traces) has them, at this time.
    Answer {
        /// The store.
        url: String,
        /// When it is.
        now: Timestamp,
    },
    /// Copies a store, and prints a line after each page.
    Copy {
        /// What to copy.
        from: String,
        /// Where to.
        to: String,
    },
    /// Migrates and prints how many steps it applied.
    Migrate {
        /// The store.
        url: String,
    },
}

/// What a child that lives on says: each line is one of these, as JSON, printed when the store has acknowledged it.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) enum Told {
    /// A workflow was created.
    Workflow(WorkflowId),
    /// A run of it was created.
    Run(WorkflowId, RunId),
    /// The run was started.
    Started(WorkflowId, RunId),
    /// A task was claimed.
    Claimed(WorkflowId, TaskId, Token),
    /// Something was appended to a task's log, which is so long now.
    Logged(WorkflowId, TaskId, u64),
    /// An update of a task was applied, and left it there.
    Updated(WorkflowId, TaskId, TaskStatus),
    /// A run ended.
    Ended(WorkflowId, RunId, RunStatus),
    /// The workflow is about to be deleted: not yet acknowledged.
    Deleting(WorkflowId),
    /// It was deleted.
    Deleted(WorkflowId),
}

impl Told {
    /// The workflow that it is about.
    pub(crate) const fn workflow(self) -> WorkflowId {
        match self {
            Self::Workflow(workflow)
            | Self::Run(workflow, _)
            | Self::Started(workflow, _)
            | Self::Claimed(workflow, ..)
            | Self::Logged(workflow, ..)
            | Self::Updated(workflow, ..)
            | Self::Ended(workflow, ..)
            | Self::Deleting(workflow)
            | Self::Deleted(workflow) => workflow,
        }
    }
}

/// A child process; killed when dropped.
pub(crate) struct ChildProcess {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
    errors: tokio::task::JoinHandle<String>,
}

impl ChildProcess {
    /// Starts this program in a role.
    pub(crate) fn start(role: &Role) -> std::io::Result<Self> {
        Self::start_as(ROLE, role)
    }

    /// Starts this program with its role in this variable.
    pub(crate) fn start_as(variable: &str, role: &impl Serialize) -> std::io::Result<Self> {
        let mut process = Command::new(std::env::current_exe()?)
            .env(variable, serde_json::to_string(role)?)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let missing = || std::io::Error::other("the child has no pipe");
        let lines = BufReader::new(process.stdout.take().ok_or_else(missing)?).lines();
        let errors = tokio::spawn(read_all(process.stderr.take().ok_or_else(missing)?));
        Ok(Self { process, lines, errors })
    }

    /// Its next line of output, `None` at the end.
    pub(crate) async fn line(&mut self) -> std::io::Result<Option<String>> {
        self.lines.next_line().await
    }

    /// Says a line to it.
    pub(crate) async fn say(&mut self, line: &str) -> std::io::Result<()> {
        let missing = || std::io::Error::other("the child has no input");
        let input = self.process.stdin.as_mut().ok_or_else(missing)?;
        input.write_all(format!("{line}\n").as_bytes()).await?;
        input.flush().await
    }

    /// Lets a child that waits for a line go on.
    pub(crate) fn release(&mut self) {
        drop(self.process.stdin.take());
    }

    /// Kills it with SIGKILL, waits until it is gone, and gives what it had said by then and nobody had read.
    pub(crate) async fn kill(mut self) -> std::io::Result<Vec<String>> {
        self.process.kill().await?;
        let mut rest = Vec::new();
        while let Some(line) = self.lines.next_line().await? {
            rest.push(line);
        }
        Ok(rest)
    }

    /// The rest of its lines, once it has ended well.
    pub(crate) async fn finish(mut self) -> std::io::Result<Vec<String>> {
        let mut rest = Vec::new();
        while let Some(line) = self.lines.next_line().await? {
            rest.push(line);
        }
        let status = self.process.wait().await?;
        if status.success() {
            return Ok(rest);
        }
        let errors = self.errors.await.unwrap_or_default();
        Err(std::io::Error::other(format!("the child ended with {status}: {errors}")))
    }
}

async fn read_all(mut from: impl AsyncRead + Unpin) -> String {
    let mut text = Vec::new();
    // What was read before an error is still worth showing.
    let _ = tokio::io::AsyncReadExt::read_to_end(&mut from, &mut text).await;
    String::from_utf8_lossy(&text).into_owned()
}

/// If this process was started as a child, does what it is for and ends. To be called first in `main` of every program that
/// runs cases.
pub fn run_if_child() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let code = match play(&role) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{error:?}");
            1
        }
    };
    std::process::exit(code);
}

fn play(role: &str) -> PlayResult {
    let role: Role = serde_json::from_str(role)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        match role {
            Role::WorkOff { url, owner, batch } => work_off(&url, &owner, batch).await,
            Role::ClaimAndHang { url, batch } => claim_and_hang(&url, batch).await,
            Role::CreateRuns { url, workflow } => create_runs(&url, workflow).await,
            Role::LiveOn { url, workers, logs } => live_on(&url, workers, logs).await,
            Role::AppendLog { url, task, letter, lengths } => append_log(&url, task, letter, &lengths).await,
            Role::Answer { url, now } => crate::traces::answer(&url, now).await,
            Role::Copy { from, to } => {
                let (from, to) = (connect(&from).await?, connect(&to).await?);
                copy(&*from, &*to, |_| println!("page")).await?;
                Ok(())
            }
            Role::Migrate { url } => {
                println!("{}", connect(&url).await?.migrate().await?.applied.len());
                Ok(())
            }
        }
    })
}

pub(crate) type PlayResult<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

async fn work_off(url: &str, owner: &str, batch: usize) -> PlayResult {
    let db = connect(url).await?;
    db.migrate().await?;
    println!("ready");
    wait_for_release().await?;
    loop {
        let claimed = db.claim_tasks(claim_request(owner, batch)?).await?;
        if claimed.is_empty() {
            return Ok(());
        }
        for task in &claimed {
            println!("{}", task.id);
        }
        complete(&*db, claimed.iter().map(|task| TaskUpdate::succeeded(task.claim, None)).collect()).await?;
    }
}

async fn complete(db: &dyn Database, updates: Vec<TaskUpdate>) -> PlayResult {
    let tasks: Vec<_> = updates.iter().map(|update| update.claim.task).collect();
    let report = db.update_tasks(TaskUpdates::new(updates)?).await?;
    for (task, outcome) in tasks.into_iter().zip(report.outcomes) {
        outcome.into_result(task)?;
    }
    Ok(())
}

pub(crate) async fn wait_for_release() -> PlayResult {
    let mut line = String::new();
    BufReader::new(tokio::io::stdin()).read_line(&mut line).await?;
    Ok(())
}

async fn claim_and_hang(url: &str, batch: usize) -> PlayResult {
    let db = connect(url).await?;
    db.migrate().await?;
    for task in db.claim_tasks(claim_request("doomed", batch)?).await? {
        println!("{}", task.id);
    }
    println!("claimed");
    std::future::pending().await
}

async fn create_runs(url: &str, workflow: WorkflowId) -> PlayResult {
    let db = connect(url).await?;
    db.migrate().await?;
    loop {
        println!("{}", db.create_run(NewRun::new(workflow)).await?.into_run().id);
    }
}

fn tell(told: Told) -> PlayResult {
    println!("{}", serde_json::to_string(&told)?);
    Ok(())
}

async fn live_on(url: &str, workers: usize, logs: bool) -> PlayResult {
    let db = connect(url).await?;
    db.migrate().await?;
    let mut living = JoinSet::new();
    for worker in 0..workers {
        living.spawn(live(db.clone(), worker, logs));
    }
    // They live for ever: the first that ends has failed.
    living.join_next().await.ok_or("nobody lives")??
}

async fn live(db: Arc<dyn Database>, worker: usize, logs: bool) -> PlayResult {
    let dag = dag("a*1 b:a c:a d*2:b,c e f:e g:f,d h")?;
    for round in 0_u64.. {
        // Of no workflow of an earlier child.
        let name = format!("{}-{worker}-{round}", std::process::id()).try_into()?;
        let workflow = db.create_workflow(NewWorkflow::new(name, dag.clone())).await?.id;
        tell(Told::Workflow(workflow))?;
        for _ in 0..2 {
            let run = db.create_run(NewRun::new(workflow)).await?.into_run().id;
            tell(Told::Run(workflow, run))?;
            db.start_run(StartRun::pinned(run)).await?;
            tell(Told::Started(workflow, run))?;
        }
        while work(&*db, round, logs).await? {}
        // Every third is deleted: the others are there to be looked at.
        if round % 3 == 2 {
            tell(Told::Deleting(workflow))?;
            match db.delete_workflow(workflow).await {
                Ok(()) => tell(Told::Deleted(workflow))?,
                // Another worker holds a task of it still.
                Err(error) if matches!(error.kind(), ErrorKind::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

/// Claims a few tasks and brings them to all kinds of ends. Says whether there were any.
async fn work(db: &dyn Database, round: u64, logs: bool) -> PlayResult<bool> {
    let claimed = db.claim_tasks(claim_request("doomed", 3)?).await?;
    for task in &claimed {
        tell(Told::Claimed(task.workflow, task.id, task.claim.token))?;
    }
    if logs {
        for task in claimed.iter().step_by(2) {
            let appended = db.append_log(task.id, LogChunk::new(b"a line of a log\n")?).await?;
            tell(Told::Logged(task.workflow, task.id, appended.length))?;
        }
    }
    let mut updates = Vec::new();
    for task in &claimed {
        updates.push(TaskUpdate::running(task.claim));
        updates.push(match (round + u64::from(task.index)) % 7 {
            0 => TaskUpdate::failed_for_good(task.claim, Text::lossy("for good")),
            1 | 2 => TaskUpdate::failed(task.claim, Text::lossy("again"), Delay::ZERO),
            _ => TaskUpdate::succeeded(task.claim, Some(Json::from_value(&task.index)?)),
        });
    }
    let report = db.update_tasks(TaskUpdates::new(updates)?).await?;
    // Two items a task: the second tells how it stands after both.
    for (task, outcome) in claimed.iter().zip(report.outcomes.iter().skip(1).step_by(2)) {
        tell(Told::Updated(task.workflow, task.id, outcome.into_result(task.id)?))?;
    }
    for EndedRun { run, status, .. } in report.ended_runs {
        let of =
            claimed.iter().find(|task| task.run == run).ok_or("a run ended that no task was claimed of")?;
        tell(Told::Ended(of.workflow, run, status))?;
    }
    Ok(!claimed.is_empty())
}

async fn append_log(url: &str, task: TaskId, letter: char, lengths: &[usize]) -> PlayResult {
    let db = connect(url).await?;
    db.migrate().await?;
    println!("ready");
    wait_for_release().await?;
    for length in lengths {
        let line = format!("{}\n", letter.to_string().repeat(length.saturating_sub(1)));
        db.append_log(task, LogChunk::new(line.as_bytes())?).await?;
    }
    Ok(())
}

fn claim_request(owner: &str, batch: usize) -> Result<ClaimTasks> {
    Ok(ClaimTasks::new(Label::new(owner)?, LeaseTime::new(LEASE)?).with_limit(Limit::new(batch)?))
}
