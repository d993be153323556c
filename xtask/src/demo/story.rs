//! What happens in the store, read from outside, as events and as the tasks' states.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ork_state_api::{
    Database, ListTasks, LogPosition, LogRange, PageRequest, Result, Run, RunId, Task, TaskStatus,
};

use super::scheduler::MARK;
use super::workflow::FOLLOWED;

/// Something that happened.
pub(crate) struct Event {
    /// The time since the schedulers began.
    pub(crate) at: Duration,
    pub(crate) tone: Tone,
    pub(crate) text: String,
}

/// How an event is shown.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    Plain,
    /// A line of a task's log.
    Log,
    /// Something failed and will be retried.
    Retry,
    /// A scheduler dies.
    Kill,
    /// Another scheduler continues its tasks.
    TakeOver,
}

pub(crate) struct Story {
    begun: Instant,
    pub(crate) tasks: Vec<Task>,
    pub(crate) events: Vec<Event>,
    /// The scheduler that was killed.
    pub(crate) killed: Option<&'static str>,
    /// Who ran which attempt of which task.
    pub(crate) attempts: BTreeMap<(u32, u32), Attempt>,
    log_offset: u64,
}

/// One attempt at a task.
pub(crate) struct Attempt {
    pub(crate) by: String,
    /// Why it failed, if its scheduler lived to report it.
    pub(crate) failure: Option<String>,
}

impl Story {
    pub(crate) fn begin() -> Self {
        Self {
            begun: Instant::now(),
            tasks: Vec::new(),
            events: Vec::new(),
            killed: None,
            attempts: BTreeMap::new(),
            log_offset: 0,
        }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    pub(crate) fn task(&self, name: &str) -> Option<&Task> {
        self.tasks.iter().find(|task| task.name.as_str() == name)
    }

    /// The tasks that a scheduler holds.
    pub(crate) fn held_by(&self, scheduler: &str) -> Vec<&str> {
        let held = |task: &&Task| task.lease.as_ref().is_some_and(|lease| lease.owner.as_str() == scheduler);
        self.tasks.iter().filter(held).map(|task| task.name.as_str()).collect()
    }

    /// The scheduler that runs a task, or ran it last.
    pub(crate) fn runner(&self, task: &Task) -> Option<&str> {
        self.attempts.get(&(task.index, task.attempts)).map(|attempt| attempt.by.as_str())
    }

    pub(crate) fn say(&mut self, tone: Tone, text: impl Into<String>) {
        self.events.push(Event { at: self.begun.elapsed(), tone, text: text.into() });
    }

    pub(crate) fn has_killed(&mut self, scheduler: &'static str) {
        let held = self.held_by(scheduler).join(", ");
        self.killed = Some(scheduler);
        self.say(Tone::Kill, format!("{scheduler} is KILLED (SIGKILL) while it holds {held}"));
    }

    /// Reads the store once, and adds what is new.
    pub(crate) async fn look(&mut self, db: &dyn Database, run: RunId) -> Result<()> {
        let tasks = db.list_tasks(ListTasks::of(run, PageRequest::default())).await?.items;
        for task in &tasks {
            let owner = task.lease.as_ref().map(|lease| lease.owner.as_str());
            // A task that ended between two looks still has its scheduler's name. It stands before
            // the process's number.
            let left = task.execution_name.as_deref().and_then(|name| name.split('/').next());
            if let (1.., Some(by)) = (task.attempts, owner.or(left)) {
                let attempt = self.attempts.entry((task.index, task.attempts));
                attempt.or_insert_with(|| Attempt { by: by.to_owned(), failure: None });
            }
            self.tell(task);
        }
        if let Some(task) = tasks.iter().find(|task| task.name.as_str() == FOLLOWED) {
            let range = LogRange::new(LogPosition::Offset(self.log_offset), 64 * 1024)?;
            let log = db.read_log(task.id, range).await?;
            self.log_offset = log.next_offset();
            for line in String::from_utf8_lossy(&log.bytes).lines().filter(|line| !line.starts_with(MARK)) {
                self.say(Tone::Log, format!("{} | {line}", task.name));
            }
        }
        self.tasks = tasks;
        Ok(())
    }

    fn tell(&mut self, task: &Task) {
        let state = |task: &Task| (task.status, task.attempts, task.open_jobs > 0);
        let before = self.task(&task.name).map(state);
        if before == Some(state(task)) {
            return;
        }
        let (name, attempt) = (&task.name, task.attempts);
        let by = self.runner(task).unwrap_or("nobody");
        let error = task.error.as_deref().unwrap_or("no reason given");
        let earlier = self.attempts.get(&(task.index, attempt.saturating_sub(1)));
        let is_taken_over =
            earlier.is_some_and(|earlier| Some(earlier.by.as_str()) == self.killed && earlier.by != by);
        let (tone, text) = match task.status {
            TaskStatus::Pending if before.is_some_and(|(status, ..)| status != TaskStatus::Pending) => {
                (Tone::Retry, format!("{name} is ready again: {error}"))
            }
            TaskStatus::Pending | TaskStatus::Dispatched => return,
            // It began before the scheduler was killed, and is seen only now.
            TaskStatus::Running if Some(by) == self.killed => return,
            TaskStatus::Running if task.open_jobs > 0 => {
                (Tone::Plain, format!("{name} waits for a job elsewhere"))
            }
            TaskStatus::Running if is_taken_over => {
                (Tone::TakeOver, format!("{by} TAKES OVER {name}, attempt {attempt}"))
            }
            TaskStatus::Running => (Tone::Plain, format!("{by} runs {name}, attempt {attempt}")),
            TaskStatus::Success => (Tone::Plain, format!("{name} is done")),
            TaskStatus::Failed | TaskStatus::Cancelled => {
                (Tone::Kill, format!("{name} {}: {error}", task.status))
            }
        };
        self.say(tone, text);
    }

    /// Reads from the tasks' logs who ran which attempt. No look may have seen a short attempt.
    pub(crate) async fn read_attempts(&mut self, db: &dyn Database, run: &Run) -> Result<()> {
        self.look(db, run.id).await?;
        for task in &self.tasks {
            let range = LogRange::new(LogPosition::Offset(0), 64 * 1024)?;
            let log = db.read_log(task.id, range).await?;
            for line in String::from_utf8_lossy(&log.bytes).lines() {
                let Some((number, what)) = line.strip_prefix(MARK).and_then(|line| line.split_once(' '))
                else {
                    continue;
                };
                let Ok(number) = number.parse() else { continue };
                let key = (task.index, number);
                if let Some(by) = what.strip_prefix("by ") {
                    let attempt = Attempt { by: by.to_owned(), failure: None };
                    self.attempts.entry(key).or_insert(attempt);
                } else if let (Some(attempt), Some(failure)) =
                    (self.attempts.get_mut(&key), what.strip_prefix("failed: "))
                {
                    attempt.failure = Some(failure.to_owned());
                }
            }
        }
        Ok(())
    }
}
