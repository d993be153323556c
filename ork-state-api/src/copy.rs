//! Copying a store into another, of any backend, and comparing two.
//!
//! ```no_run
//! # async fn example() -> ork_state_api::Result<()> {
//! let (from, to) = (ork_state_api::connect("file:old").await?, ork_state_api::connect("sqlite:new.db").await?);
//! to.migrate().await?;
//! let copied = ork_state_api::copy::copy(&*from, &*to, |so_far| println!("{so_far}")).await?;
//! assert_eq!(ork_state_api::copy::compare(&*from, &*to).await?, None);
//! # Ok(()) }
//! ```

use std::collections::{HashSet, VecDeque};
use std::fmt;

use futures_util::future::join_all;

use crate::backend::{ImportPage, ImportProgress, Record};
use crate::{
    Capability, Database, DeferredJob, Error, Limit, ListTasks, ListWorkflows, LogPosition, LogRange,
    PageRequest, Result, Run, RunKey, SnapshotId, Task, TaskId, Timestamp, Token, WorkflowName,
};

/// At most so many records are imported at a time, and no more once they have so many bytes.
const PAGE: (usize, usize) = (1000, 4 * 1024 * 1024);

/// At most so many bytes of a log in one record.
const LOG_PART: usize = 512 * 1024;

/// So many tasks are read at the same time.
const AT_ONCE: usize = 16;

/// What was copied so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Copied {
    /// Workflows.
    pub workflows: u64,
    /// Snapshots: those that a workflow or a run refers to.
    pub snapshots: u64,
    /// Runs.
    pub runs: u64,
    /// Tasks.
    pub tasks: u64,
    /// Deferred jobs.
    pub jobs: u64,
    /// Bytes of logs.
    pub log_bytes: u64,
    /// How many records an earlier copy, that did not come to its end, had brought over already.
    pub resumed_at: u64,
}

impl Copied {
    const fn count(&mut self, record: &Record) {
        match record {
            Record::Workflow(_) => self.workflows += 1,
            Record::Snapshot(_) => self.snapshots += 1,
            Record::Run(_) => self.runs += 1,
            Record::Task { .. } => self.tasks += 1,
            Record::Job { .. } => self.jobs += 1,
            Record::Log { bytes, .. } => self.log_bytes += bytes.len() as u64,
        }
    }
}

impl fmt::Display for Copied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { workflows, snapshots, runs, tasks, jobs, log_bytes, resumed_at } = self;
        write!(
            f,
            "{workflows} workflows, {snapshots} snapshots, {runs} runs, {tasks} tasks, {jobs} deferred jobs, {log_bytes} bytes of logs"
        )?;
        if *resumed_at > 0 {
            write!(f, " (gone on after {resumed_at} records)")?;
        }
        Ok(())
    }
}

/// Copies everything that `from` holds into `to`, which must be migrated and empty (rule M6), and
/// says what that was; `on_page` is told after each page.
///
/// Nobody may work on either store meanwhile: stop the schedulers first, and [`compare`]
/// afterwards. `to` shows nothing of it until the end. If it does not come to its end, the same
/// call again goes on where it stopped, as long as `from` is what it was.
///
/// What the copy keeps: ids, times, claims with their leases and fencing tokens, idempotency keys,
/// logs, deferred jobs, schedules. A deferred job that is being polled is due again when its
/// poller's lease lapses. Snapshots that no workflow and no run refers to are left out.
///
/// # Errors
/// Those of reading `from`; those of [`Transfer`](crate::backend::Transfer); `Conflict` if `from`
/// is not any more what it was when the copy began:
/// [`abandon_import`](crate::backend::Transfer::abandon_import) then begins anew.
///
/// # Cancel safety
/// `to` shows all of it or nothing, and the same call again goes on.
pub async fn copy(
    from: &dyn Database,
    to: &dyn Database,
    on_page: impl Fn(&Copied) + Send,
) -> Result<Copied> {
    let there = to.import_progress().await?;
    let known = there.clone().unwrap_or_default();
    let mut copied = Copied { resumed_at: known.records, ..Copied::default() };
    let mut records = Records::of(from);
    let mut page = ImportPage::new(ImportProgress::default());
    while let Some(record) = records.next().await? {
        copied.count(&record);
        page.push(&record)?;
        let reached = page.to().records;
        let is_full = page.records().len() >= PAGE.0 || page.bytes() >= PAGE.1;
        if reached <= known.records {
            if reached == known.records && *page.to() != known {
                return Err(changed());
            }
            // They are there already.
            if reached == known.records || is_full {
                page = ImportPage::new(page.to().clone());
            }
        } else if is_full {
            let next = ImportPage::new(page.to().clone());
            to.import(std::mem::replace(&mut page, next)).await?;
            on_page(&copied);
        }
    }
    if page.to().records < known.records {
        return Err(changed());
    }
    // An empty store is copied as well.
    if !page.records().is_empty() || page.to().records == 0 {
        to.import(page).await?;
    }
    to.finish_import().await?;
    on_page(&copied);
    Ok(copied)
}

fn changed() -> Error {
    Error::conflict("the store that is copied is not any more what it was when the copy began")
        .with_hint("Abandon the import and begin again, with nobody at work on either store")
}

/// Where two stores are not the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// One has this where the other has something else or nothing: what it is, and its id.
    At {
        /// What it is, and its id, in the first store, if anything.
        first: Option<String>,
        /// The same in the second.
        second: Option<String>,
    },
    /// Both have this, with something else in it: what it is, and its id.
    In(String),
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::In(what) => write!(f, "{what} is not the same in both"),
            Self::At { first, second } => {
                let word = |what: &Option<String>| what.clone().unwrap_or_else(|| "nothing more".to_owned());
                write!(f, "the first has {} where the second has {}", word(first), word(second))
            }
        }
    }
}

/// Compares all that two stores answer, and says where they first differ.
///
/// # Errors
/// Those of reading.
pub async fn compare(first: &dyn Database, second: &dyn Database) -> Result<Option<Difference>> {
    let (mut first, mut second) = (Records::of(first), Records::of(second));
    loop {
        match (first.next().await?, second.next().await?) {
            (None, None) => return Ok(None),
            (Some(a), Some(b)) if a == b => {}
            (a, b) => {
                let (first, second) = (a.as_ref().map(named), b.as_ref().map(named));
                return Ok(Some(match first {
                    Some(what) if first == second => Difference::In(what),
                    first => Difference::At { first, second },
                }));
            }
        }
    }
}

/// What it is, and its id.
fn named(record: &Record) -> String {
    match record {
        Record::Snapshot(snapshot) => format!("snapshot {}", snapshot.id),
        Record::Workflow(workflow) => format!("workflow {}", workflow.id),
        Record::Run(run) => format!("run {}", run.id),
        Record::Task { detail, .. } => format!("task {}", detail.task.id),
        Record::Job { job, .. } => format!("deferred job {}", job.id),
        Record::Log { task, offset, .. } => format!("the log of task {task} at {offset}"),
    }
}

/// What comes next of a store.
#[expect(clippy::large_enum_variant, reason = "nearly all are records")]
enum Part {
    Record(Record),
    /// The log of a task from this offset on.
    Log(TaskId, u64),
}

/// Everything that a store holds, in one order: workflows by name, then runs from the newest, each
/// with its tasks, and each of these with its jobs and its log.
struct Records<'a> {
    from: &'a dyn Database,
    ready: VecDeque<Part>,
    snapshots: HashSet<SnapshotId>,
    tasks: VecDeque<Task>,
    task_page: Option<ListTasks>,
    runs: VecDeque<Run>,
    run_page: Option<PageRequest<RunKey>>,
    workflow_page: Option<PageRequest<WorkflowName>>,
}

impl<'a> Records<'a> {
    fn of(from: &'a dyn Database) -> Self {
        Self {
            from,
            ready: VecDeque::new(),
            snapshots: HashSet::new(),
            tasks: VecDeque::new(),
            task_page: None,
            runs: VecDeque::new(),
            run_page: Some(PageRequest::first(page_limit())),
            workflow_page: Some(PageRequest::first(page_limit())),
        }
    }

    async fn next(&mut self) -> Result<Option<Record>> {
        loop {
            // The innermost that is not at its end goes on.
            match self.ready.pop_front() {
                Some(Part::Record(record)) => return Ok(Some(record)),
                Some(Part::Log(task, offset)) => {
                    for part in self.read_log(task, offset).await?.into_iter().rev() {
                        self.ready.push_front(part);
                    }
                    continue;
                }
                None => {}
            }
            if !self.tasks.is_empty() {
                let tasks: Vec<Task> = self.tasks.drain(..self.tasks.len().min(AT_ONCE)).collect();
                for parts in join_all(tasks.into_iter().map(|task| self.read_task(task))).await {
                    self.ready.extend(parts?);
                }
            } else if let Some(page) = self.task_page.take() {
                let run = page.run;
                let tasks = self.from.list_tasks(page).await?;
                self.tasks = tasks.items.into();
                let rest = |last| ListTasks::of(run, PageRequest::after(last, page_limit()));
                self.task_page = tasks.next.map(rest);
            } else if let Some(page) = self.workflow_page.take() {
                let workflows = self.from.list_workflows(ListWorkflows::from(page)).await?;
                self.workflow_page = workflows.next.map(|last| PageRequest::after(last, page_limit()));
                for workflow in workflows.items {
                    self.read_snapshot(workflow.snapshot).await?;
                    self.ready.push_back(Part::Record(Record::Workflow(workflow)));
                }
            } else if let Some(run) = self.runs.pop_front() {
                self.read_snapshot(run.snapshot).await?;
                self.task_page = Some(ListTasks::of(run.id, PageRequest::first(page_limit())));
                self.ready.push_back(Part::Record(Record::Run(run)));
            } else if let Some(page) = self.run_page.take() {
                let runs = self.from.list_runs(page.into()).await?;
                self.run_page = runs.next.map(|last| PageRequest::after(last, page_limit()));
                self.runs = runs.items.into();
            } else {
                return Ok(None);
            }
        }
    }

    fn has(&self, capability: Capability) -> bool {
        self.from.backend().capabilities.has(capability)
    }

    async fn read_snapshot(&mut self, id: SnapshotId) -> Result<()> {
        if self.snapshots.insert(id) {
            self.ready.push_back(Part::Record(Record::Snapshot(self.from.get_snapshot(id).await?)));
        }
        Ok(())
    }

    async fn read_task(&self, task: Task) -> Result<Vec<Part>> {
        let id = task.id;
        let detail = self.from.get_task(id).await?;
        // A token that is not shown is of no claim that holds: any that is greater than all that
        // were given will do.
        let token = match &detail.task.lease {
            Some(lease) => lease.token,
            None => beyond(detail.task.created_at),
        };
        let waits = detail.task.open_jobs > 0;
        let jobs = if self.has(Capability::DeferredJobs) { self.from.list_jobs(id).await? } else { vec![] };
        let mut parts = vec![Part::Record(Record::Task { detail, token })];
        parts.extend(numbered(jobs, waits.then_some(token)).into_iter().map(Part::Record));
        if self.has(Capability::Logs) {
            parts.extend(self.read_log(id, 0).await?);
        }
        Ok(parts)
    }

    async fn read_log(&self, task: TaskId, offset: u64) -> Result<Vec<Part>> {
        let slice = self.from.read_log(task, LogRange::new(LogPosition::Offset(offset), LOG_PART)?).await?;
        let rest = (!slice.is_at_end()).then_some(Part::Log(task, slice.next_offset()));
        let part = Record::Log { task, offset: slice.offset, bytes: slice.bytes };
        let is_something = matches!(&part, Record::Log { bytes, .. } if !bytes.is_empty());
        Ok(is_something.then_some(Part::Record(part)).into_iter().chain(rest).collect())
    }
}

/// Jobs with the numbers of their deferrals, of which each begins with one of index 0. The last has
/// the number that is given.
fn numbered(jobs: Vec<DeferredJob>, last: Option<Token>) -> Vec<Record> {
    let deferrals = jobs.iter().filter(|job| job.index == 0).count();
    let mut deferral = 0;
    jobs.into_iter()
        .map(|job| {
            deferral += usize::from(job.index == 0);
            let number = Token::from_stored(i64::try_from(deferral).unwrap_or(i64::MAX));
            let token = beyond(job.created_at);
            Record::Job { deferral: last.filter(|_| deferral == deferrals).unwrap_or(number), job, token }
        })
        .collect()
}

/// A token greater than any that was given since this time, or in the first four milliard claims.
fn beyond(time: Timestamp) -> Token {
    Token::from_stored(time.as_micros().max(1 << 32))
}

fn page_limit() -> Limit {
    Limit::new(1000).unwrap_or_default()
}
