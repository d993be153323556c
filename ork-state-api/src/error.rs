//! One error type for every backend: a kind to act on, a context to read, a source to dig into.

use std::error::Error as StdError;
use std::fmt;
use std::str::FromStr as _;
use std::sync::Arc;

use crate::{Capability, RunStatus, TaskId};

/// The result of everything here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation failed (rule G7).
///
/// - [`kind`](Self::kind) says what to do about it; [`is_retryable`](Self::is_retryable) sums it
///   up.
/// - A failing method has changed nothing, unless [`effect`](Self::effect) says that nobody knows.
/// - `Display` is one line that says what happened and what to do next; `Debug` adds the sources.
/// - No message contains a credential or a payload.
/// - It is cheap to clone: a commit that fails answers many callers.
#[derive(Clone)]
pub struct Error(Box<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    hint: Option<String>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

/// What went wrong, by what its receiver must do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// There is no such entity: it never was, or it was deleted. Do not retry.
    #[error("no {entity} {id}")]
    NotFound {
        /// What was looked for.
        entity: Entity,
        /// Its id or name.
        id: String,
    },
    /// The name is taken. Choose another, or use what is there.
    #[error("{entity} {id:?} exists already")]
    AlreadyExists {
        /// What is there already.
        entity: Entity,
        /// The name that is taken.
        id: String,
    },
    /// The caller passed something that can never be accepted. Fix the caller.
    #[error("{what} {reason}")]
    InvalidInput {
        /// What was wrong, such as `limit` or `task name`.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The entity's status does not allow the step. Look at its status, then decide.
    #[error("{entity} {id} is {from}: it cannot become {to}")]
    InvalidTransition {
        /// Whose status it is.
        entity: Entity,
        /// Its id.
        id: String,
        /// The status it has.
        from: String,
        /// The status it would have got.
        to: String,
    },
    /// Something else stands in the way, and the reason says what. Remove it, then try again.
    #[error("conflict: {reason}")]
    Conflict {
        /// What stands in the way, with its id.
        reason: String,
    },
    /// The caller no longer holds this task. Stop working on it and drop its result.
    #[error("the lease of task {task} is lost: it lapsed, was released, or the task was taken by another")]
    LeaseLost {
        /// The task.
        task: TaskId,
    },
    /// This backend does not have the capability. Choose another backend, or do without.
    #[error("the {backend} backend does not support {capability}")]
    Unsupported {
        /// The backend's name.
        backend: &'static str,
        /// What it lacks.
        capability: Capability,
    },
    /// The store's schema is not the one this code works with. Older: call
    /// [`Maintenance::migrate`](crate::Maintenance::migrate). Newer: deploy the newer code.
    #[error("the store's schema is at version {found}, this code needs version {needed}")]
    SchemaMismatch {
        /// The version in the store; 0 when there is none yet.
        found: i64,
        /// The version this code reads and writes.
        needed: i64,
    },
    /// The store cannot be reached or is overloaded, now. Retry with a pause, if its effect allows
    /// it: see [`Error::is_retryable`].
    #[error("the store is unavailable: {reason}")]
    Unavailable {
        /// What was tried and how it failed.
        reason: String,
        /// Whether the operation may have been applied all the same.
        effect: Effect,
    },
    /// What is stored cannot be read. The rest of the store goes on; repair or delete this row.
    #[error("corrupt: {table} {id}, column {column}: {reason}")]
    Corrupt {
        /// The table, or the file.
        table: String,
        /// The row's id, or the offset in the file.
        id: String,
        /// The column or field.
        column: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A bug in the backend or in what it builds on. Report it, with the sources.
    #[error("internal error: {reason}")]
    Internal {
        /// What was not expected.
        reason: String,
    },
}

impl ErrorKind {
    /// The kind as a word for logs and metrics, such as `not_found`.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "not_found",
            Self::AlreadyExists { .. } => "already_exists",
            Self::InvalidInput { .. } => "invalid_input",
            Self::InvalidTransition { .. } => "invalid_transition",
            Self::Conflict { .. } => "conflict",
            Self::LeaseLost { .. } => "lease_lost",
            Self::Unsupported { .. } => "unsupported",
            Self::SchemaMismatch { .. } => "schema_mismatch",
            Self::Unavailable { .. } => "unavailable",
            Self::Corrupt { .. } => "corrupt",
            Self::Internal { .. } => "internal",
        }
    }

    /// What to do next where the kind alone says it, for errors without a hint of their own. It
    /// stands here so that all backends say the same.
    fn next_step(&self) -> Option<&'static str> {
        match self {
            Self::AlreadyExists { entity: Entity::Workflow, .. } => {
                Some("Take the one that is there (`find_workflow`), or choose another name")
            }
            Self::InvalidTransition { entity: Entity::Run, from, to, .. } => next_step_of_run(from, to),
            Self::Unsupported { .. } => Some(
                "`backend().capabilities` says what a store has, and its crate's README which backend to choose",
            ),
            _ => None,
        }
    }
}

/// What to call instead of the step that a run's status does not allow.
fn next_step_of_run(from: &str, to: &str) -> Option<&'static str> {
    let (from, to) = (RunStatus::from_str(from).ok()?, RunStatus::from_str(to).ok()?);
    match (from, to) {
        (RunStatus::Pending, _) => Some("It was not started yet: call `start_run`"),
        // Only a retry asks for it.
        (RunStatus::Running | RunStatus::Paused, RunStatus::Running) => {
            Some("Only a run that has ended is retried: wait for its end, or call `cancel_run`")
        }
        (RunStatus::Success | RunStatus::Failed | RunStatus::Cancelled, RunStatus::Running) => {
            Some("It has ended: `retry_run` does again what did not succeed, `create_run` makes a new run")
        }
        (RunStatus::Success | RunStatus::Failed | RunStatus::Cancelled, _) => {
            Some("It has ended: there is nothing left to stop")
        }
        _ => None,
    }
}

/// Whether a failed operation took effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Effect {
    /// It did not: nothing has changed.
    NotApplied,
    /// Nobody knows: the connection broke before the answer came. Whether the call may be repeated,
    /// and what to look at first if not, stands at the method, under "Cancel safety".
    Unknown,
}

/// What an error is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Entity {
    /// A workflow.
    Workflow,
    /// A snapshot of a DAG.
    Snapshot,
    /// A run.
    Run,
    /// A task of a run.
    Task,
    /// A deferred job of a task.
    DeferredJob,
    /// What a task was told to do: see `ork::ObjectStore`.
    TaskSpec,
}

impl fmt::Display for Entity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Workflow => "workflow",
            Self::Snapshot => "snapshot",
            Self::Run => "run",
            Self::Task => "task",
            Self::DeferredJob => "deferred job",
            Self::TaskSpec => "task spec",
        })
    }
}

impl Error {
    /// An error of this kind.
    #[must_use]
    pub fn new(kind: ErrorKind) -> Self {
        Self(Box::new(Inner { kind, hint: None, source: None }))
    }

    /// `NotFound`.
    #[must_use]
    pub fn not_found(entity: Entity, id: impl fmt::Display) -> Self {
        Self::new(ErrorKind::NotFound { entity, id: id.to_string() })
    }

    /// `AlreadyExists`.
    #[must_use]
    pub fn already_exists(entity: Entity, id: impl fmt::Display) -> Self {
        Self::new(ErrorKind::AlreadyExists { entity, id: id.to_string() })
    }

    /// `InvalidInput`: its message reads "`what` `reason`".
    #[must_use]
    pub fn invalid(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidInput { what: what.into(), reason: reason.into() })
    }

    /// `InvalidTransition`.
    #[must_use]
    pub fn invalid_transition(
        entity: Entity,
        id: impl fmt::Display,
        from: impl fmt::Display,
        to: impl fmt::Display,
    ) -> Self {
        let (id, from, to) = (id.to_string(), from.to_string(), to.to_string());
        Self::new(ErrorKind::InvalidTransition { entity, id, from, to })
    }

    /// `Conflict`.
    #[must_use]
    pub fn conflict(reason: impl Into<String>) -> Self {
        Self::new(ErrorKind::Conflict { reason: reason.into() })
    }

    /// `Unavailable` after an operation that certainly was not applied.
    #[must_use]
    pub fn unavailable(reason: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unavailable { reason: reason.into(), effect: Effect::NotApplied })
    }

    /// `Unavailable` after an operation that may have been applied.
    #[must_use]
    pub fn unknown_effect(reason: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unavailable { reason: reason.into(), effect: Effect::Unknown })
    }

    /// `Corrupt` (rule G8): which value of which row cannot be read, and why.
    #[must_use]
    pub fn corrupt(
        table: impl Into<String>,
        id: impl fmt::Display,
        column: impl Into<String>,
        reason: impl fmt::Display,
    ) -> Self {
        let (table, id, column, reason) = (table.into(), id.to_string(), column.into(), reason.to_string());
        Self::new(ErrorKind::Corrupt { table, id, column, reason })
    }

    /// `Internal`.
    #[must_use]
    pub fn internal(reason: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal { reason: reason.into() })
    }

    /// Adds what caused this error. It must not show credentials.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into().into());
        self
    }

    /// Adds what to do next, as a full sentence without its stop. It replaces what the kind says
    /// by itself.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// What to act on.
    #[must_use]
    pub fn kind(&self) -> &ErrorKind {
        &self.0.kind
    }

    /// Whether the same call may succeed later without anything else being changed.
    ///
    /// Check [`effect`](Self::effect) first. If it is [`Effect::Unknown`], repeat the call only if
    /// the method's section "Cancel safety" says that this is safe.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self.kind(), ErrorKind::Unavailable { .. })
    }

    /// Whether the operation may have been applied although it failed.
    #[must_use]
    pub fn effect(&self) -> Effect {
        match self.kind() {
            ErrorKind::Unavailable { effect, .. } => *effect,
            ErrorKind::NotFound { .. }
            | ErrorKind::AlreadyExists { .. }
            | ErrorKind::InvalidInput { .. }
            | ErrorKind::InvalidTransition { .. }
            | ErrorKind::Conflict { .. }
            | ErrorKind::LeaseLost { .. }
            | ErrorKind::Unsupported { .. }
            | ErrorKind::SchemaMismatch { .. }
            | ErrorKind::Corrupt { .. }
            | ErrorKind::Internal { .. } => Effect::NotApplied,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.kind.fmt(f)?;
        match self.0.hint.as_deref().or_else(|| self.0.kind.next_step()) {
            Some(hint) => write!(f, ". {hint}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")?;
        let mut source = self.source();
        while let Some(cause) = source {
            write!(f, "\n  because: {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    /// Every step of a run that a method refuses, with what its error tells the caller to do.
    #[rstest]
    #[case::resume_of_pending(RunStatus::Pending, RunStatus::Running, "call `start_run`")]
    #[case::pause_of_pending(RunStatus::Pending, RunStatus::Paused, "call `start_run`")]
    #[case::retry_of_running(RunStatus::Running, RunStatus::Running, "call `cancel_run`")]
    #[case::retry_of_paused(RunStatus::Paused, RunStatus::Running, "call `cancel_run`")]
    #[case::resume_of_success(RunStatus::Success, RunStatus::Running, "`retry_run`")]
    #[case::resume_of_failed(RunStatus::Failed, RunStatus::Running, "`retry_run`")]
    #[case::start_of_cancelled(RunStatus::Cancelled, RunStatus::Running, "`create_run`")]
    #[case::cancel_of_success(RunStatus::Success, RunStatus::Cancelled, "nothing left to stop")]
    #[case::cancel_of_failed(RunStatus::Failed, RunStatus::Cancelled, "nothing left to stop")]
    #[case::pause_of_cancelled(RunStatus::Cancelled, RunStatus::Paused, "nothing left to stop")]
    fn a_refused_step_of_a_run_says_what_to_call(
        #[case] from: RunStatus,
        #[case] to: RunStatus,
        #[case] says: &str,
    ) {
        let error = Error::invalid_transition(Entity::Run, "r", from, to).to_string();
        assert!(error.starts_with(&format!("run r is {from}: it cannot become {to}. ")), "{error}");
        assert!(error.contains(says), "{error}");
    }

    #[test]
    fn a_kind_says_what_to_do_next_unless_there_is_a_hint() {
        let taken = Error::already_exists(Entity::Workflow, "w");
        assert!(taken.to_string().contains("`find_workflow`"), "{taken}");
        let lacking = ErrorKind::Unsupported { backend: "b", capability: Capability::Logs };
        assert!(Error::new(lacking).to_string().contains("`backend().capabilities`"));
        let hinted = Error::already_exists(Entity::Workflow, "w").with_hint("Rename it");
        assert_eq!(hinted.to_string(), "workflow \"w\" exists already. Rename it");
        // Of these the method knows more than the kind.
        let task = Error::invalid_transition(Entity::Task, "t", "success", "deferred");
        assert_eq!(task.to_string(), "task t is success: it cannot become deferred");
    }
}
