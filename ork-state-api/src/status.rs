//! The life of a run and of a task.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

macro_rules! status {
    ($(#[$doc:meta])* $name:ident, $what:literal { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "lowercase")]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)*
        }

        impl $name {
            /// All of them, in the order of a life.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The lower-case word that is stored and shown.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        /// Knows the stored words only: anything else is an error, never a default (rule G8).
        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self> {
                match text {
                    $($text => Ok(Self::$variant),)*
                    _ => Err(Error::invalid($what, format!("{text:?} is none of {:?}", [$($text),*]))),
                }
            }
        }
    };
}
#[cfg(feature = "ork")]
pub(crate) use status;

status!(
    /// Where a run stands.
    ///
    /// ```text
    #[doc = include_str!("../docs/run-states.txt")]
    /// ```
    RunStatus, "run status" {
        /// Created; its tasks do not exist yet.
        Pending = "pending",
        /// Its ready tasks are handed out.
        Running = "running",
        /// Hands out nothing; what is running finishes.
        Paused = "paused",
        /// Every task succeeded.
        Success = "success",
        /// All tasks ended. At least one failed, or was cancelled before the run was retried
        /// without it.
        Failed = "failed",
        /// Stopped on request.
        Cancelled = "cancelled",
    }
);

impl RunStatus {
    /// Whether the run has ended.
    #[must_use]
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Success | Self::Failed | Self::Cancelled)
    }
}

status!(
    /// Where a task stands.
    ///
    /// ```text
    #[doc = include_str!("../docs/task-states.txt")]
    /// ```
    /// A worker may skip `running`. The last three are final, unless the run is retried.
    TaskStatus, "task status" {
        /// Waits for its dependencies, for its time, or for a claimer.
        Pending = "pending",
        /// Claimed: a scheduler holds its lease.
        Dispatched = "dispatched",
        /// The scheduler said that it runs, or it waits for deferred jobs.
        Running = "running",
        /// Ended well.
        Success = "success",
        /// Ended badly with no attempt left, or something it depends on did.
        Failed = "failed",
        /// Ended with its run's cancellation.
        Cancelled = "cancelled",
    }
);

impl TaskStatus {
    /// Whether the task has ended.
    #[must_use]
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Success | Self::Failed | Self::Cancelled)
    }

    /// Whether an attempt is under way.
    #[must_use]
    pub const fn is_claimed(self) -> bool {
        matches!(self, Self::Dispatched | Self::Running)
    }
}

status!(
    /// Where a deferred job stands.
    ///
    /// ```text
    ///            claim
    /// pending ──────────► polling ──► completed | failed
    ///    └───────────────────┴──────► cancelled   (its task ended without it)
    /// ```
    /// The last three are final.
    JobStatus, "deferred job status" {
        /// Nobody has asked for it yet.
        Pending = "pending",
        /// Somebody has asked for it, at least once.
        Polling = "polling",
        /// It ended well.
        Completed = "completed",
        /// It ended badly.
        Failed = "failed",
        /// Nobody waits for it any more.
        Cancelled = "cancelled",
    }
);

impl JobStatus {
    /// Whether the job has ended.
    #[must_use]
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[test]
    fn words_parse_back() {
        for status in RunStatus::ALL {
            assert_eq!(status.as_str().parse::<RunStatus>().unwrap(), *status);
        }
        for status in TaskStatus::ALL {
            assert_eq!(status.as_str().parse::<TaskStatus>().unwrap(), *status);
        }
        for status in JobStatus::ALL {
            assert_eq!(status.as_str().parse::<JobStatus>().unwrap(), *status);
        }
    }

    #[rstest]
    #[case("")]
    #[case("Running")]
    #[case("done")]
    #[case(" pending")]
    fn unknown_words_are_errors(#[case] word: &str) {
        assert!(word.parse::<RunStatus>().is_err());
        assert!(word.parse::<TaskStatus>().is_err());
    }
}
