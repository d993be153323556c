//! Looking after a store.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;

use crate::{
    Capability, DeferredJobStore, JobStatus, Limit, LogStore, Result, Rule, RunStatus, RunStore,
    ScheduleStore, TaskStatus, TaskStore, Timestamp, Topic, Watch, WorkflowStore,
};

/// What [`Maintenance::migrate`] did, or what it would do.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MigrationReport {
    /// What was there before.
    pub found: Found,
    /// The version that is there after it: what this code reads and writes.
    pub to: i64,
    /// The steps that were applied, in order. Empty if there was nothing to do, or if another
    /// process did it at the same time.
    pub applied: Vec<String>,
    /// What could not be taken over as it was, by id, and what became of it. Nothing was dropped:
    /// what a store has no room for is kept aside, in the table `ork_kept` or in the old file.
    pub adjusted: Vec<Violation>,
}

impl MigrationReport {
    /// Nothing was to be done: the store was found at this version.
    #[must_use]
    pub const fn nothing(version: i64) -> Self {
        Self::new(Found::OrkState(version), version)
    }

    /// From what was found to this version. Backends add the steps, and what was adjusted.
    #[must_use]
    pub const fn new(found: Found, to: i64) -> Self {
        Self { found, to, applied: Vec::new(), adjusted: Vec::new() }
    }
}

/// What a store was made by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Found {
    /// Nothing: it is empty.
    Nothing,
    /// This project, at this version of the schema.
    OrkState(i64),
    /// Ork before this project, at this version of its own.
    Ork(i64),
    /// Ork before this project, as a directory of JSON files, which have no version.
    OrkFiles,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("an empty store"),
            Self::OrkState(version) => write!(f, "a store at version {version}"),
            Self::Ork(version) => write!(f, "a database of Ork at its version {version}"),
            Self::OrkFiles => f.write_str("a directory of Ork's JSON files"),
        }
    }
}

/// What happened in one line. If something could not be taken over as it was: how many things by
/// rule, then a line for each.
impl fmt::Display for MigrationReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.applied.is_empty() {
            return write!(f, "schema at version {}, nothing to do", self.to);
        }
        write!(f, "{} brought to version {}: {}", self.found, self.to, self.applied.join(", "))?;
        if self.adjusted.is_empty() {
            return Ok(());
        }
        let mut by_rule: BTreeMap<Rule, usize> = BTreeMap::new();
        for adjusted in &self.adjusted {
            *by_rule.entry(adjusted.rule).or_default() += 1;
        }
        write!(f, "\n{} things are not as they were:", self.adjusted.len())?;
        by_rule
            .iter()
            .try_for_each(|(rule, number)| write!(f, "\n  {number} of {rule}, {}", rule.title()))?;
        self.adjusted.iter().try_for_each(|adjusted| write!(f, "\n  {adjusted}"))
    }
}

/// Which runs to delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Prune {
    /// Only those that ended longer ago than this, by the store's clock.
    pub older_than: Duration,
    /// At most so many runs.
    pub limit: Limit,
}

impl Prune {
    /// Up to a hundred runs that ended longer ago than this.
    #[must_use]
    pub fn older_than(age: Duration) -> Self {
        Self { older_than: age, limit: Limit::default() }
    }

    /// Sets how many.
    #[must_use]
    pub const fn with_limit(mut self, limit: Limit) -> Self {
        self.limit = limit;
        self
    }
}

/// What [`Maintenance::prune`] deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Pruned {
    /// How many runs were deleted. Call again until it is 0.
    pub runs: u64,
    /// How many tasks they had.
    pub tasks: u64,
}

impl Pruned {
    /// So many runs with so many tasks.
    #[must_use]
    pub const fn new(runs: u64, tasks: u64) -> Self {
        Self { runs, tasks }
    }
}

/// Counts of workflows, runs, tasks and jobs, as of one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Stats {
    /// All workflows.
    pub workflows: u64,
    /// Runs by status; every status is there.
    pub runs: BTreeMap<RunStatus, u64>,
    /// Tasks by status; every status is there.
    pub tasks: BTreeMap<TaskStatus, u64>,
    /// Deferred jobs that have not ended, by status; both of these statuses are there.
    pub open_jobs: BTreeMap<JobStatus, u64>,
    /// Since when the task that is next in the queue is ready; `None` if no task is ready now. How
    /// far it lies back is how far the schedulers are behind.
    pub oldest_ready_at: Option<Timestamp>,
}

impl Stats {
    /// All zero. For backends.
    #[must_use]
    pub fn none() -> Self {
        Self {
            workflows: 0,
            runs: RunStatus::ALL.iter().map(|status| (*status, 0)).collect(),
            tasks: TaskStatus::ALL.iter().map(|status| (*status, 0)).collect(),
            open_jobs: JobStatus::ALL
                .iter()
                .filter(|status| !status.is_terminal())
                .map(|status| (*status, 0))
                .collect(),
            oldest_ready_at: None,
        }
    }
}

/// Something that is stored and breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct Violation {
    /// The rule that it breaks.
    pub rule: Rule,
    /// Which entity, by kind and id.
    pub entity: String,
    /// What is wrong with it.
    pub problem: String,
}

impl Violation {
    /// A violation.
    #[must_use]
    pub fn new(rule: Rule, entity: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { rule, entity: entity.into(), problem: problem.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.rule, self.entity, self.problem)
    }
}

/// Looks after a store. The [general rules](crate::Database#general-rules) hold for every method.
#[async_trait]
pub trait Maintenance:
    WorkflowStore + RunStore + TaskStore + LogStore + ScheduleStore + DeferredJobStore
{
    /// Brings the store's schema to the version that this code works with.
    ///
    /// **M1**
    /// - Safe to call from many processes at once: one does the work, the others wait for it. The
    ///   answer tells what was done. It is all done or nothing.
    /// - A schema that is newer than this code is refused and left as it is, here and by every
    ///   other method. Connecting may refuse it already.
    /// - Until a store is migrated, every other method fails with `SchemaMismatch`. Methods of a
    ///   capability that the backend lacks are `Unsupported` before and after.
    ///
    /// Call it once when a process starts. On a store that is up to date it costs a look.
    ///
    /// # Errors
    /// `SchemaMismatch` for a newer schema. `Unavailable` when another process holds the migration
    /// lock for too long. `Conflict` for a store that something else made.
    ///
    /// # Cancel safety
    /// Migrated or not. Repeating it is safe.
    async fn migrate(&self) -> Result<MigrationReport>;

    /// Says what [`migrate`](Self::migrate) would find and do now, and changes nothing.
    ///
    /// **M1** Where the database can, the migration is done and rolled back. So the answer has
    /// everything that would be adjusted, and tells whether it would succeed. It then takes the
    /// same time and the same locks. On a store in use, try it on a copy.
    ///
    /// # Errors
    /// Those of `migrate`.
    async fn plan_migration(&self) -> Result<MigrationReport>;

    /// Deletes ended runs with all that is theirs, the longest ended first, then by run id.
    ///
    /// **M2**
    /// - One call deletes at most `limit` runs, so that it holds nothing up for long. Call it until
    ///   it deletes none.
    /// - Live runs stay, and so do those that ended more recently than asked. A run that another
    ///   call holds may be passed over.
    /// - The idempotency keys of deleted runs are free again.
    /// - The space of long logs may be freed in steps after their runs are gone, while others
    ///   write. If a call is dropped or killed before that is done, the next one goes on.
    ///
    /// # Errors
    /// Only those of the [general rules](crate::Database#general-rules).
    ///
    /// # Cancel safety
    /// Everything that the call would delete is gone, or nothing of it. Repeating it is safe.
    async fn prune(&self, prune: Prune) -> Result<Pruned>;

    /// How much there is of what.
    ///
    /// **M3** Exact, as of one moment. The cost does not grow with the history. It may grow with
    /// the live runs and the claimed tasks.
    ///
    /// # Errors
    /// Only those of the [general rules](crate::Database#general-rules).
    async fn stats(&self) -> Result<Stats>;

    /// Gives hints that something has happened, in other processes too, so that idle schedulers
    /// need not poll all the time.
    ///
    /// **M5** Subscribe first, then check, then wait. What happens after this returns is hinted at.
    /// Hints may be spurious, merged or missing, so also poll every few seconds: a missed hint
    /// costs latency, never work. While the connection to a server is away no hint comes, and one
    /// comes when it is back. Time gives no hint: a retry time that comes, a lease that lapses, a
    /// slot that is due.
    ///
    /// # Errors
    /// `Unsupported`, which is the default.
    ///
    /// # Example
    /// ```
    /// # use ork_state_api::*;
    /// async fn wait_for(db: &dyn Database, run: RunId) -> Result<Run> {
    ///     let mut ended = db.watch(Topic::RunEnded).await?;
    ///     loop {
    ///         let run = db.get_run(run).await?;
    ///         if run.status.is_terminal() {
    ///             return Ok(run);
    ///         }
    ///         // With a runtime at hand: `tokio::time::timeout(Duration::from_secs(5), ended.changed())`.
    ///         ended.changed().await?;
    ///     }
    /// }
    /// ```
    async fn watch(&self, topic: Topic) -> Result<Watch> {
        let _ = topic;
        Err(self.backend().lacks(Capability::Notifications))
    }

    /// Checks everything that is stored against the rules.
    ///
    /// **M4** It finds, for example:
    /// - a terminal run with live tasks,
    /// - counts that disagree with their tasks,
    /// - a task that is ready and must not be, or the reverse,
    /// - a lease without a claim,
    /// - lists out of order,
    /// - what only the backend can see, such as rows whose owner is gone.
    ///
    /// It reads the whole store page by page and changes nothing. Entities that change while it
    /// runs may be reported wrongly: ask again, or stop the schedulers first. A row that cannot be
    /// read (G8) is a violation too, and hides as little of the rest as possible.
    ///
    /// A backend adds its own checks to [`observe`](crate::verify::observe), which is the default.
    ///
    /// # Errors
    /// Only those of the [general rules](crate::Database#general-rules).
    async fn verify(&self) -> Result<Vec<Violation>> {
        crate::verify::observe(self).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_counts_before_it_lists() {
        let mut report = MigrationReport::new(Found::Ork(9), 11);
        report.applied.push("010_tables".to_owned());
        assert_eq!(
            report.to_string(),
            "a database of Ork at its version 9 brought to version 11: 010_tables"
        );
        for task in ["task 1", "task 2"] {
            report.adjusted.push(Violation::new(Rule::T5, task, "had no end"));
        }
        report.adjusted.push(Violation::new(Rule::W1, "workflow 3", "was called \"a\\n\""));
        let text = report.to_string();
        let lines: Vec<&str> = text.lines().skip(1).collect();
        assert_eq!(lines[0], "3 things are not as they were:");
        assert!(lines[1].starts_with("  1 of W1, ") && lines[2].starts_with("  2 of T5, "), "{text}");
        assert_eq!(
            lines[3..],
            ["  T5 task 1: had no end", "  T5 task 2: had no end", "  W1 workflow 3: was called \"a\\n\"",]
        );
    }
}
