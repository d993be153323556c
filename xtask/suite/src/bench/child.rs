//! Other processes of a scenario: this same program, in a role. They communicate by lines.

use std::process::Stdio;
use std::time::Duration;

use ork_state_api::{Limit, TaskUpdate, TaskUpdates, Topic, WorkflowId};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::store::{claim, connect};
use super::{AnyError, handouts, memory, soak};

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Role {
    /// Says `waits`, waits for a hint, takes the task, says `has it` and completes it, for ever.
    WakeUp { url: String },
    /// Says `ready` and waits for a line. Then claims and completes until nothing is ready, and
    /// reports how many tasks that were.
    WorkOff { url: String, batch: usize },
    /// Reads a whole store in one way, and reports by how many KiB its memory grew at most.
    Memory { url: String, walk: memory::Walk },
    /// Claims and completes until all tasks have ended, and prints the answers. It may be killed at
    /// any moment.
    HandOuts { url: String },
    /// Works for this long, and reports its state each second.
    Soak { url: String, workflow: WorkflowId, seconds: u64 },
}

pub(super) async fn run(role: &str) -> Result<(), AnyError> {
    match serde_json::from_str(role)? {
        Role::WakeUp { url } => wake_up(&url).await,
        Role::WorkOff { url, batch } => work_off(&url, batch).await,
        Role::Memory { url, walk } => say(&memory::walk(&url, walk).await?.to_string()).await,
        Role::HandOuts { url } => handouts::work(&url).await,
        Role::Soak { url, workflow, seconds } => {
            soak::work(&url, workflow, Duration::from_secs(seconds)).await
        }
    }
}

pub(super) async fn say(line: &str) -> Result<(), AnyError> {
    let mut stdout = tokio::io::stdout();
    stdout.write_all(format!("{line}\n").as_bytes()).await?;
    Ok(stdout.flush().await?)
}

async fn wake_up(url: &str) -> Result<(), AnyError> {
    let db = connect(url).await?;
    let mut ready = db.watch(Topic::Ready).await?;
    loop {
        say("waits").await?;
        let task = loop {
            // Anything that comes during this look gives a hint.
            if let Some(task) = db.claim_tasks(claim("bench", Limit::ONE.get())?).await?.pop() {
                break task;
            }
            ready.changed().await?;
        };
        say("has it").await?;
        db.update_tasks(TaskUpdates::one(TaskUpdate::succeeded(task.claim, None))).await?;
    }
}

async fn work_off(url: &str, batch: usize) -> Result<(), AnyError> {
    let db = connect(url).await?;
    say("ready").await?;
    let mut go = String::new();
    BufReader::new(tokio::io::stdin()).read_line(&mut go).await?;
    let mut done = 0;
    loop {
        let claimed = db.claim_tasks(claim("bench", batch)?).await?;
        if claimed.is_empty() {
            return say(&done.to_string()).await;
        }
        done += claimed.len();
        let updates = claimed.iter().map(|task| TaskUpdate::succeeded(task.claim, None)).collect();
        super::queue::applied(&db.update_tasks(TaskUpdates::new(updates)?).await?)?;
    }
}

/// One of these processes. It is killed when this is dropped.
pub(super) struct Other {
    process: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Other {
    pub(super) fn start(role: &Role) -> Result<Self, AnyError> {
        let mut process = Command::new(std::env::current_exe()?)
            .args(["bench", "--child", &serde_json::to_string(role)?])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let (stdin, stdout) = (process.stdin.take(), process.stdout.take());
        let (stdin, stdout) = stdin.zip(stdout).ok_or("the other process has no pipes")?;
        Ok(Self { process, stdin, lines: BufReader::new(stdout).lines() })
    }

    pub(super) async fn line(&mut self) -> Result<String, AnyError> {
        Ok(self.lines.next_line().await?.ok_or("the other process has ended")?)
    }

    pub(super) async fn says(&mut self, wanted: &str) -> Result<(), AnyError> {
        match self.line().await? {
            line if line == wanted => Ok(()),
            other => Err(format!("the other process said {other:?}, not {wanted:?}").into()),
        }
    }

    /// Kills it with SIGKILL. Returns what it had printed by then that nobody had read. A pipe
    /// delivers a line of up to 4096 bytes whole or not at all.
    pub(super) async fn kill(mut self) -> Result<Vec<String>, AnyError> {
        self.process.kill().await?;
        let mut rest = Vec::new();
        while let Some(line) = self.lines.next_line().await? {
            rest.push(line);
        }
        Ok(rest)
    }

    pub(super) async fn tell(&mut self, line: &str) -> Result<(), AnyError> {
        Ok(self.stdin.write_all(format!("{line}\n").as_bytes()).await?)
    }
}
