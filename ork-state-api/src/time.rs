//! Points in time, and where they come from (rules G3 and G4).

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A point in time: UTC, whole microseconds, between the years 1 and 9999.
///
/// Every backend stores exactly this and gives it back equal. It shows and serialises as RFC 3339
/// with six digits: `2026-02-01T11:23:51.947000Z`, a form whose text order is its time order.
///
/// ```
/// # use ork_state_api::Timestamp;
/// let t: Timestamp = "2026-02-01T12:23:51.947123999+01:00".parse()?;
/// assert_eq!(t.to_string(), "2026-02-01T11:23:51.947123Z");
/// # Ok::<(), ork_state_api::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Timestamp(i64);

impl Timestamp {
    /// 0001-01-01T00:00:00Z.
    pub const MIN: Self = Self(-62_135_596_800_000_000);
    /// 9999-12-31T23:59:59.999999Z.
    pub const MAX: Self = Self(253_402_300_799_999_999);

    /// The time that lies this many microseconds after 1970-01-01T00:00:00Z.
    ///
    /// # Errors
    /// `InvalidInput` outside of [`MIN`](Self::MIN)..=[`MAX`](Self::MAX).
    pub fn from_micros(micros: i64) -> Result<Self> {
        if (Self::MIN.0..=Self::MAX.0).contains(&micros) {
            Ok(Self(micros))
        } else {
            Err(Error::invalid("time", format!("{micros} µs lies outside the years 1 to 9999")))
        }
    }

    /// Microseconds since 1970-01-01T00:00:00Z.
    #[must_use]
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// The same point in time as a chrono value.
    #[must_use]
    pub fn to_chrono(self) -> DateTime<Utc> {
        // In range by construction; the fallback is never taken.
        DateTime::from_timestamp_micros(self.0).unwrap_or(DateTime::<Utc>::MIN_UTC)
    }

    /// This time plus a duration cut to whole microseconds, [`MAX`](Self::MAX) at the latest.
    #[must_use]
    pub fn saturating_add(self, duration: Duration) -> Self {
        let micros = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        Self(self.0.saturating_add(micros).min(Self::MAX.0))
    }

    /// This time less a duration cut to whole microseconds, [`MIN`](Self::MIN) at the earliest.
    #[must_use]
    pub fn saturating_sub(self, duration: Duration) -> Self {
        let micros = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        Self(self.0.saturating_sub(micros).max(Self::MIN.0))
    }

    /// How long after `earlier` this is; zero if it is not after it.
    #[must_use]
    pub fn saturating_since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

/// Cuts to whole microseconds.
impl TryFrom<DateTime<Utc>> for Timestamp {
    type Error = Error;

    fn try_from(time: DateTime<Utc>) -> Result<Self> {
        Self::from_micros(time.timestamp_micros())
    }
}

impl FromStr for Timestamp {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        DateTime::parse_from_rfc3339(text)
            .map_err(|source| Error::invalid("time", "is not RFC 3339").with_source(source))?
            .to_utc()
            .try_into()
    }
}

impl TryFrom<String> for Timestamp {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Timestamp> for String {
    fn from(time: Timestamp) -> Self {
        time.to_string()
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_chrono().to_rfc3339_opts(SecondsFormat::Micros, true))
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where a store's `now` comes from when it is not the store's own clock (rule G4).
///
/// Production connects without one. A test passes a [`ManualClock`] through
/// [`ConnectOptions::with_clock`](crate::ConnectOptions::with_clock) and moves time by hand, so it
/// never sleeps.
pub trait Clock: fmt::Debug + Send + Sync {
    /// The present time.
    fn now(&self) -> Timestamp;
}

/// The clock of this machine. It never goes back within a process, also when the machine's does.
///
/// For backends that have no server whose clock they could ask.
#[derive(Debug, Default)]
pub struct SystemClock {
    latest: AtomicI64,
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        #[expect(clippy::disallowed_methods, reason = "the one place that may read the machine's clock")]
        let now: DateTime<Utc> = SystemTime::now().into();
        let micros = now.timestamp_micros().clamp(Timestamp::MIN.0, Timestamp::MAX.0);
        Timestamp(self.latest.fetch_max(micros, Ordering::Relaxed).max(micros))
    }
}

/// A clock that stands still until it is moved.
///
/// ```
/// # use ork_state_api::{Clock, ManualClock};
/// # use std::time::Duration;
/// let clock = ManualClock::default();
/// let start = clock.now();
/// clock.advance(Duration::from_secs(30));
/// assert_eq!(clock.now().saturating_since(start), Duration::from_secs(30));
/// ```
#[derive(Debug)]
pub struct ManualClock {
    micros: AtomicI64,
}

impl ManualClock {
    /// A clock that stands at `now`.
    #[must_use]
    pub const fn at(now: Timestamp) -> Self {
        Self { micros: AtomicI64::new(now.0) }
    }

    /// Moves the clock on, [`Timestamp::MAX`] at the farthest.
    pub fn advance(&self, by: Duration) {
        let moved = |micros| Some(Timestamp(micros).saturating_add(by).0);
        // Two that move it at once both do.
        let _ = self.micros.fetch_update(Ordering::SeqCst, Ordering::SeqCst, moved);
    }
}

/// Stands at 2026-01-01T00:00:00Z.
impl Default for ManualClock {
    fn default() -> Self {
        Self::at(Timestamp(1_767_225_600_000_000))
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.micros.load(Ordering::SeqCst))
    }
}
