//! Compatibility with what Ork kept before this project. Feature `ork`.
//!
//! - [`StateStore`] keeps the runs and tasks of old flows, [`ObjectStore`] the files of their
//!   tasks.
//! - [`takeover`] says what the rows of Ork's databases and directories come to. For backends.
//!
//! The names in those stores become names of files. So [`LegacyRunId`] and [`LegacyTaskName`] hold
//! only text that cannot lead out of a store.
//!
//! The general rules of [`Database`](crate::Database) about payloads (G5), errors (G7), what cannot
//! be read (G8) and dropped futures (G9) hold here too.

use std::borrow::Borrow;
use std::fmt;
use std::ops::Deref;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};
use uuid::Uuid;

use crate::status::status;
use crate::text::{Check, file_name, sized, text};
use crate::{Error, Result, TaskName, Text};

mod object_store;
mod state_store;
pub mod takeover;

pub use object_store::{LegacySpec, LegacyStatus, ObjectStore};
pub use state_store::{LegacyRun, LegacyTaskRun, StateStore, newest_first};

/// Longest id of a run, in bytes: a suffix fits after it in the name of a file.
pub const MAX_RUN_ID_BYTES: usize = 200;
/// Longest name of a task, in bytes: with `.json` it is as long as the name of a file may be.
pub const MAX_TASK_NAME_BYTES: usize = 250;

text!(
    /// The id of a run: 1 to 200 bytes that can name a file: no `/` or `\`, neither `.` nor `..`,
    /// no control characters.
    LegacyRunId, "run id", run_id
);
text!(
    /// The name of a task within its run: 1 to 250 bytes that can name a file: no `/` or `\`,
    /// neither `.` nor `..`, no control characters.
    LegacyTaskName, "task name", task_name
);

impl LegacyRunId {
    /// Makes a new id. For stores: the store makes ids, its callers do not.
    ///
    /// Ids made by one process sort in the order in which they were made.
    #[must_use]
    pub fn generate() -> Self {
        Self(Uuid::now_v7().to_string().into())
    }
}

/// Of the names that a [`TaskName`] may have, those of more than 250 bytes are refused.
impl TryFrom<TaskName> for LegacyTaskName {
    type Error = Error;

    fn try_from(name: TaskName) -> Result<Self> {
        Self::new(name.as_str())
    }
}

fn run_id(text: &str) -> Check {
    sized(text, 1, MAX_RUN_ID_BYTES)?;
    file_name(text)
}

fn task_name(text: &str) -> Check {
    sized(text, 1, MAX_TASK_NAME_BYTES)?;
    file_name(text)
}

status!(
    /// Where a task of an old flow stands.
    LegacyTaskStatus, "task status" {
        /// Waits.
        Pending = "pending",
        /// Handed to its executor.
        Dispatched = "dispatched",
        /// Its executor said that it runs.
        Running = "running",
        /// Ended well.
        Success = "success",
        /// Ended badly.
        Failed = "failed",
        /// Never run, because of what it depends on.
        Skipped = "skipped",
    }
);

impl LegacyTaskStatus {
    /// Whether the task has ended.
    #[must_use]
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Success | Self::Failed | Self::Skipped)
    }
}

/// Reads an error that executors wrote, which may be any text.
fn any_text<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Option<Text>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.map(|text| Text::lossy(&text)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::uuid("0190f5a2-5b1e-7c3d-8e4f-a1b2c3d4e5f6", true)]
    #[case::any_script("nightly ✓ 2026-02-01", true)]
    #[case::dots_inside("a..b", true)]
    #[case::percent("%2e%2e", true)]
    #[case::longest(&"x".repeat(200), true)]
    #[case::too_long(&"x".repeat(251), false)]
    #[case::far_too_long(&"é".repeat(300), false)]
    #[case::empty("", false)]
    #[case::here(".", false)]
    #[case::parent("..", false)]
    #[case::escape("../x", false)]
    #[case::absolute("/etc/passwd", false)]
    #[case::nested("a/b", false)]
    #[case::backslash("..\\x", false)]
    #[case::nul("a\0b", false)]
    #[case::newline("a\nb", false)]
    fn names_stay_in_their_directory(#[case] text: &str, #[case] good: bool) {
        assert_eq!(LegacyRunId::new(text).is_ok(), good);
        assert_eq!(LegacyTaskName::new(text).is_ok(), good);
        // Reading one is making one.
        let json = serde_json::to_string(text).unwrap();
        assert_eq!(serde_json::from_str::<LegacyRunId>(&json).is_ok(), good);
        assert_eq!(serde_json::from_str::<LegacyTaskName>(&json).is_ok(), good);
    }

    #[test]
    fn a_suffix_fits_after_the_longest_name() {
        assert!(LegacyRunId::new("x".repeat(MAX_RUN_ID_BYTES + 1)).is_err());
        assert!(LegacyTaskName::new("x".repeat(MAX_TASK_NAME_BYTES)).is_ok());
        let longest: TaskName = "x".repeat(255).parse().unwrap();
        assert!(LegacyTaskName::try_from(longest).is_err());
    }

    #[test]
    fn words_parse_back() {
        for status in LegacyTaskStatus::ALL {
            assert_eq!(status.as_str().parse::<LegacyTaskStatus>().unwrap(), *status);
        }
        assert!("cancelled".parse::<LegacyTaskStatus>().is_err());
    }
}
