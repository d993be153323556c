//! Hints that something has changed, so that nobody need ask all the time (rule M5).

use std::fmt;

use async_trait::async_trait;

use crate::Result;

/// What to be told of. Every [`Watch`] gets every hint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Topic {
    /// A call made a task ready: for schedulers. Only the passing of time gives no hint.
    Ready,
    /// A run ended, even by cancelling: for whoever waits for one. The hint does not say which: ask
    /// [`get_run`](crate::RunStore::get_run).
    RunEnded,
}

/// A source of hints. See [`Maintenance::watch`](crate::Maintenance::watch).
pub struct Watch(Box<dyn WatchSource>);

/// Where a backend's hints come from.
#[async_trait]
pub trait WatchSource: Send {
    /// Waits until something has happened since the last call, or since the source was made.
    /// Several happenings are one hint.
    ///
    /// # Errors
    /// `Unavailable` when the store has gone for good.
    ///
    /// # Cancel safety
    /// A call that is dropped loses no hint.
    async fn changed(&mut self) -> Result<()>;
}

impl Watch {
    /// For backends.
    #[must_use]
    pub fn new(source: impl WatchSource + 'static) -> Self {
        Self(Box::new(source))
    }

    /// Waits until something has happened since the last call, or since the watch began. Several
    /// happenings are one hint.
    ///
    /// # Errors
    /// `Unavailable` when the store has gone for good.
    ///
    /// # Cancel safety
    /// A call that is dropped loses no hint.
    pub async fn changed(&mut self) -> Result<()> {
        self.0.changed().await
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watch")
    }
}
