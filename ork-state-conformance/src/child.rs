//! Other processes. A case starts this same program again, in a role. `roles.rs` implements the
//! roles.

use std::process::Stdio;

use ork_state_api::{RunId, RunStatus, TaskId, TaskStatus, Timestamp, Token, WorkflowId};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

/// The variable that tells a process that it is a child, and what to do.
pub(crate) const ROLE: &str = "ORK_STATE_CONFORMANCE_CHILD";

/// The role of a child.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Role {
    /// Says `ready` and waits for a line. Then claims in batches and completes until nothing is
    /// ready. Prints each claimed task's id.
    WorkOff {
        /// The store.
        url: String,
        /// The owner of the leases.
        owner: String,
        /// Tasks per claim.
        batch: usize,
    },
    /// Claims once, prints the ids, then hangs until it is killed.
    ClaimAndHang {
        /// The store.
        url: String,
        /// Tasks to claim.
        batch: usize,
    },
    /// Creates runs for ever, until it is killed. Prints the id of each when it is acknowledged.
    CreateRuns {
        /// The store.
        url: String,
        /// The workflow of the runs.
        workflow: WorkflowId,
    },
    /// Takes workflows from creation to deletion, for ever, until it is killed. Prints each step as
    /// a [`Told`].
    LiveOn {
        /// The store.
        url: String,
        /// How many workers do so at the same time.
        workers: usize,
        /// Whether the store keeps logs.
        logs: bool,
    },
    /// Says `ready` and waits for a line. Then appends lines of one letter to a task's log.
    AppendLog {
        /// The store.
        url: String,
        /// The task with the log.
        task: TaskId,
        /// The letter that the lines consist of.
        letter: char,
        /// The length of each line, including its end.
        lengths: Vec<usize>,
    },
    /// Makes the calls that it is asked for, as [`processes`](crate::traces) has them, at this
    /// time.
    Answer {
        /// The store.
        url: String,
        /// The time of the calls.
        now: Timestamp,
    },
    /// Copies a store, and prints a line after each page.
    Copy {
        /// The source.
        from: String,
        /// The target.
        to: String,
    },
    /// Migrates and prints how many steps it applied.
    Migrate {
        /// The store.
        url: String,
    },
}

/// What a child in the role `LiveOn` prints. Each line is one of these, as JSON, printed when the
/// store has acknowledged it.
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
    /// Something was appended to a task's log, which now has this length.
    Logged(WorkflowId, TaskId, u64),
    /// An update of a task was applied. The task now has this status.
    Updated(WorkflowId, TaskId, TaskStatus),
    /// A run ended.
    Ended(WorkflowId, RunId, RunStatus),
    /// The workflow is about to be deleted. This is not acknowledged yet.
    Deleting(WorkflowId),
    /// It was deleted.
    Deleted(WorkflowId),
}

impl Told {
    /// The workflow that this is about.
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

    /// Sends it a line.
    pub(crate) async fn say(&mut self, line: &str) -> std::io::Result<()> {
        let missing = || std::io::Error::other("the child has no input");
        let input = self.process.stdin.as_mut().ok_or_else(missing)?;
        input.write_all(format!("{line}\n").as_bytes()).await?;
        input.flush().await
    }

    /// Releases a child that waits for a line.
    pub(crate) fn release(&mut self) {
        drop(self.process.stdin.take());
    }

    /// Kills it with SIGKILL and waits until it is gone. Returns what it had printed by then that
    /// nobody had read.
    pub(crate) async fn kill(mut self) -> std::io::Result<Vec<String>> {
        self.process.kill().await?;
        let mut rest = Vec::new();
        while let Some(line) = self.lines.next_line().await? {
            rest.push(line);
        }
        Ok(rest)
    }

    /// The rest of its lines, once it has exited successfully.
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
    // Output that was read before an error is still worth showing.
    let _ = tokio::io::AsyncReadExt::read_to_end(&mut from, &mut text).await;
    String::from_utf8_lossy(&text).into_owned()
}

/// The result of a role.
pub(crate) type PlayResult<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

pub(crate) async fn wait_for_release() -> PlayResult {
    let mut line = String::new();
    BufReader::new(tokio::io::stdin()).read_line(&mut line).await?;
    Ok(())
}
