//! Looking after a store.

use std::fmt;

use async_trait::async_trait;

use crate::{LogStore, Result, RunStore, TaskStore, WorkflowStore};

/// What [`Maintenance::migrate`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigrationReport {
    /// The version that was there before; 0 for an empty store.
    pub from: i64,
    /// The version that is there now: what this code reads and writes.
    pub to: i64,
    /// The steps that this call applied, in order. Empty if there was nothing to do, or if another
    /// process did it at the same time.
    pub applied: Vec<String>,
}

impl fmt::Display for MigrationReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.applied.is_empty() {
            return write!(f, "schema at version {}, nothing to do", self.to);
        }
        write!(f, "schema brought from version {} to {}: {}", self.from, self.to, self.applied.join(", "))
    }
}

/// Something that is stored and breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    /// The rule, such as `R3`.
    pub rule: &'static str,
    /// Which entity, by kind and id.
    pub entity: String,
    /// What is wrong with it.
    pub problem: String,
}

impl Violation {
    /// A violation.
    #[must_use]
    pub fn new(rule: &'static str, entity: impl Into<String>, problem: impl Into<String>) -> Self {
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
pub trait Maintenance: WorkflowStore + RunStore + TaskStore + LogStore {
    /// Brings the store's schema to the version that this code works with.
    ///
    /// **M1** Safe to call from many processes at once: one does the work, the others wait for it. The answer tells what
    /// was done. It is all done or nothing. A schema that is newer than this code, here and at any other method,
    /// is refused (connecting may refuse it already) and left as it is. Until a store is migrated every other method fails with `SchemaMismatch`, but for those of
    /// a capability that the backend opts out of: they are `Unsupported` before and after.
    ///
    /// Call it once when a process starts; on a store that is up to date it costs a look.
    ///
    /// # Errors
    /// `SchemaMismatch` for a newer schema; `Unavailable` when another process holds the migration lock for too long;
    /// `Conflict` for a store that was made by something else.
    ///
    /// # Cancel safety
    /// Migrated or not. Repeating it is safe.
    async fn migrate(&self) -> Result<MigrationReport>;

    /// Checks everything that is stored against the rules.
    ///
    /// **M4** Finds a terminal run with live tasks, counts that disagree with their tasks, a task that is ready
    /// and must not be or the other way round, a lease without a claim, lists out of order, and what only the backend can see, such as rows whose owner is gone. It reads the whole store
    /// page by page and changes nothing. Entities that change while it runs may be reported
    /// wrongly: ask again, or stop the schedulers first.
    ///
    /// A row that cannot be read (G8) is reported and hides as little of the rest as can be; `observe` tells what.
    ///
    /// A backend adds its own checks and calls [`observe`](crate::verify::observe), which is the default, for the rest.
    ///
    /// # Errors
    /// Only those of the [general rules](crate::Database#general-rules). A row that cannot be read is a violation (G8), not an error.
    async fn verify(&self) -> Result<Vec<Violation>> {
        crate::verify::observe(self).await
    }
}
