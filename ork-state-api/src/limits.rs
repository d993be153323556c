//! Size limits, the same for every backend. They are checked where the input types are made, so a
//! backend never sees a value beyond them.

use std::num::NonZeroU32;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Longest workflow or task name, in bytes of UTF-8.
pub const MAX_NAME_BYTES: usize = 255;
/// Longest label (owner, idempotency key, executor type, ...), in bytes.
pub const MAX_LABEL_BYTES: usize = 1024;
/// Longest free text (description, error, ...), in bytes.
pub const MAX_TEXT_BYTES: usize = 1024 * 1024;
/// Longest JSON value, in bytes of its text.
pub const MAX_JSON_BYTES: usize = 16 * 1024 * 1024;
/// Deepest JSON nesting: what `serde_json` parses without further options.
pub const MAX_JSON_DEPTH: usize = 127;
/// Longest chunk in one append to a log, and the most that one read of a log returns, in bytes.
pub const MAX_LOG_CHUNK_BYTES: usize = 16 * 1024 * 1024;
/// Most tasks in a DAG.
pub const MAX_DAG_TASKS: usize = 100_000;
/// Most dependencies in a DAG, all tasks taken together.
pub const MAX_DAG_EDGES: usize = 1_000_000;
/// Largest DAG, in bytes of its [canonical form](crate::Dag::to_json).
pub const MAX_DAG_BYTES: usize = 64 * 1024 * 1024;
/// Most retries a task may ask for.
pub const MAX_RETRIES: u32 = 1_000_000;
/// Most items in one batch.
pub const MAX_BATCH_ITEMS: usize = 100_000;
/// Most bytes of text and JSON in one batch, all items taken together.
pub const MAX_BATCH_BYTES: usize = 256 * 1024 * 1024;

/// How many rows a call may return or take: 1 to 10,000.
///
/// ```
/// # use ork_state_api::Limit;
/// assert_eq!(Limit::new(500)?.get(), 500);
/// assert!(Limit::new(0).is_err());
/// assert!(Limit::new(usize::MAX).is_err());
/// assert_eq!(Limit::default().get(), 100);
/// # Ok::<(), ork_state_api::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "usize", into = "usize")]
pub struct Limit(NonZeroU32);

impl Limit {
    /// One row.
    pub const ONE: Self = Self(NonZeroU32::MIN);
    /// The most that one call returns.
    pub const MAX: Self = Self(NonZeroU32::MIN.saturating_add(9_999));

    /// # Errors
    /// `InvalidInput` for 0 (it would ask for nothing) and for more than [`MAX`](Self::MAX).
    pub fn new(rows: usize) -> Result<Self> {
        u32::try_from(rows)
            .ok()
            .filter(|_| rows <= Self::MAX.get())
            .and_then(NonZeroU32::new)
            .map(Self)
            .ok_or_else(|| Error::invalid("limit", format!("is {rows}, it must be 1 to {}", Self::MAX.get())))
    }

    /// The number, as a count of rows in memory.
    #[must_use]
    pub const fn get(self) -> usize {
        self.0.get() as usize
    }
}

/// A hundred rows: the batch at which a store hands out tasks fastest.
impl Default for Limit {
    fn default() -> Self {
        Self(NonZeroU32::MIN.saturating_add(99))
    }
}

impl TryFrom<usize> for Limit {
    type Error = Error;

    fn try_from(rows: usize) -> Result<Self> {
        Self::new(rows)
    }
}

impl From<Limit> for usize {
    fn from(limit: Limit) -> Self {
        limit.get()
    }
}

/// How long a lease lasts from the moment it is given or renewed: 100 milliseconds to 7 days. A
/// shorter one could lapse while the store writes it down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LeaseTime(Duration);

impl LeaseTime {
    /// The shortest lease.
    pub const MIN: Self = Self(Duration::from_millis(100));
    /// The longest lease.
    pub const MAX: Self = Self(Duration::from_secs(7 * 24 * 3600));

    /// # Errors
    /// `InvalidInput` outside of [`MIN`](Self::MIN)..=[`MAX`](Self::MAX).
    pub fn new(duration: Duration) -> Result<Self> {
        if (Self::MIN.0..=Self::MAX.0).contains(&duration) {
            Ok(Self(duration))
        } else {
            Err(Error::invalid("lease time", format!("is {duration:?}, it must be 100 ms to 7 days")))
        }
    }

    /// The duration.
    #[must_use]
    pub const fn get(self) -> Duration {
        self.0
    }
}

/// How long a task waits before its next attempt: 0 to 366 days.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Delay(Duration);

impl Delay {
    /// At once.
    pub const ZERO: Self = Self(Duration::ZERO);
    /// The longest delay.
    pub const MAX: Self = Self(Duration::from_secs(366 * 24 * 3600));

    /// # Errors
    /// `InvalidInput` for more than [`MAX`](Self::MAX).
    pub fn new(duration: Duration) -> Result<Self> {
        if duration <= Self::MAX.0 {
            Ok(Self(duration))
        } else {
            Err(Error::invalid("delay", format!("is {duration:?}, it must be at most 366 days")))
        }
    }

    /// The duration.
    #[must_use]
    pub const fn get(self) -> Duration {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_one_at_least() {
        for wrong in [0, Limit::MAX.get() + 1, usize::MAX] {
            let error = Limit::new(wrong).unwrap_err();
            assert!(error.to_string().contains(&wrong.to_string()), "{error}");
        }
        for limit in [Limit::ONE, Limit::MAX] {
            assert_eq!(Limit::new(limit.get()).unwrap(), limit);
        }
        assert_eq!((Limit::ONE.get(), Limit::MAX.get()), (1, 10_000));
    }

    #[test]
    fn durations_are_bounded() {
        let more = |duration: Duration| duration + Duration::from_nanos(1);
        let less = |duration: Duration| duration.checked_sub(Duration::from_nanos(1)).unwrap();
        for lease in [LeaseTime::MIN, LeaseTime::MAX] {
            assert_eq!(LeaseTime::new(lease.get()).unwrap(), lease);
        }
        assert!(LeaseTime::new(less(LeaseTime::MIN.get())).is_err());
        assert!(LeaseTime::new(more(LeaseTime::MAX.get())).is_err());
        for delay in [Delay::ZERO, Delay::MAX] {
            assert_eq!(Delay::new(delay.get()).unwrap(), delay);
        }
        assert!(Delay::new(more(Delay::MAX.get())).is_err());
    }
}
