//! How a case ends.

/// How a case ends. A panic, such as a failed assertion, is a failure too.
pub type CaseResult = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// The error with which a case says that it does not apply to a store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("does not apply: {0}")]
pub struct NotApplicable(pub String);
