//! What ran, where and when: the head of every report.

use ork_state_api::{Clock, SystemClock, Timestamp};
use serde::{Deserialize, Serialize};

/// What ran, where and when.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Facts {
    /// The suite's version.
    pub suite: String,
    /// The version of the contract, `ork-state-api`.
    pub api: String,
    /// The compiler that built the suite.
    pub rustc: String,
    /// The operating system.
    pub os: String,
    /// The processor's architecture.
    pub arch: String,
    /// How many threads can run at the same time on this machine; 0 if unknown.
    pub cores: usize,
    /// When it began, by the machine's clock.
    pub started: Timestamp,
}

impl Facts {
    /// The facts of this machine at this moment.
    #[must_use]
    pub fn gather() -> Self {
        Self {
            suite: env!("CARGO_PKG_VERSION").to_owned(),
            api: ork_state_api::VERSION.to_owned(),
            rustc: env!("ORK_STATE_RUSTC").to_owned(),
            os: std::env::consts::OS.to_owned(),
            arch: std::env::consts::ARCH.to_owned(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            started: SystemClock::default().now(),
        }
    }

    /// Milliseconds since then.
    pub(crate) fn millis(&self) -> u64 {
        let passed = SystemClock::default().now().saturating_since(self.started);
        u64::try_from(passed.as_millis()).unwrap_or(u64::MAX)
    }
}
