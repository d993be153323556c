//! What a backend says about itself.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use crate::{ConnectOptions, Database, Error, ErrorKind, Result};

/// The future that [`Backend::connect`] returns.
pub type Connecting = Pin<Box<dyn Future<Output = Result<Arc<dyn Database>>> + Send>>;

/// A storage plugin. Make it a `static` and register it with
/// [`register_backend!`](crate::register_backend).
#[derive(Debug)]
pub struct Backend {
    /// What it is called in reports and options, such as `sqlite`. Unique among the linked plugins.
    pub name: &'static str,
    /// The crate it comes from, for hints.
    pub package: &'static str,
    /// The URL schemes it answers to, lower case. Unique among the linked plugins.
    pub schemes: &'static [&'static str],
    /// A URL as an example, for error messages.
    pub example: &'static str,
    /// What it can do.
    pub capabilities: Capabilities,
    /// The URL query parameters it knows.
    pub options: &'static [OptionInfo],
    /// Opens a store. It does not migrate.
    pub connect: fn(ConnectOptions) -> Connecting,
}

/// A URL query parameter that a plugin knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionInfo {
    /// Its name.
    pub name: &'static str,
    /// What it does, its unit, values and default, in a few words.
    pub help: &'static str,
}

impl Backend {
    /// The error of a method that belongs to a capability which this backend lacks.
    #[must_use]
    pub fn lacks(&self, capability: Capability) -> Error {
        Error::new(ErrorKind::Unsupported { backend: self.name, capability })
    }
}

/// What every store answers: which backend it is of.
pub trait Plugin: fmt::Debug + Send + Sync {
    /// The backend: its name and what it can do.
    fn backend(&self) -> &'static Backend;
}

/// Something that a backend may lack. All are on unless a plugin opts out; what is opted out of
/// must be refused with `Unsupported` and change nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Capability {
    /// What is acknowledged is still there after the process has ended and the store is opened
    /// again.
    Durable,
    /// Several processes may work on one store at the same time.
    MultiProcess,
    /// The methods of [`LogStore`](crate::LogStore).
    Logs,
    /// The methods of [`ScheduleStore`](crate::ScheduleStore).
    Schedules,
    /// The methods of [`DeferredJobStore`](crate::DeferredJobStore).
    DeferredJobs,
    /// [`Maintenance::watch`](crate::Maintenance::watch).
    Notifications,
    /// The methods of [`Transfer`](crate::backend::Transfer).
    Transfer,
}

impl Capability {
    /// All of them.
    pub const ALL: &'static [Self] = &[
        Self::Durable,
        Self::MultiProcess,
        Self::Logs,
        Self::Schedules,
        Self::DeferredJobs,
        Self::Notifications,
        Self::Transfer,
    ];
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Durable => "durable storage",
            Self::MultiProcess => "several processes on one store",
            Self::Logs => "task logs",
            Self::Schedules => "schedules",
            Self::DeferredJobs => "deferred jobs",
            Self::Notifications => "notifications",
            Self::Transfer => "copies of other stores",
        })
    }
}

/// What a backend can do: everything, less what it opts out of.
///
/// ```
/// # use ork_state_api::backend::{Capabilities};
/// # use ork_state_api::{Capability};
/// const IN_MEMORY: Capabilities = Capabilities::all().without(Capability::Durable);
/// assert!(!IN_MEMORY.has(Capability::Durable));
/// assert!(IN_MEMORY.has(Capability::Logs));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    lacking: u32,
}

impl Capabilities {
    /// Everything.
    #[must_use]
    pub const fn all() -> Self {
        Self { lacking: 0 }
    }

    /// Opts out of one.
    #[must_use]
    pub const fn without(self, capability: Capability) -> Self {
        Self { lacking: self.lacking | 1 << capability as u32 }
    }

    /// Whether it is there.
    #[must_use]
    pub const fn has(self, capability: Capability) -> bool {
        self.lacking & (1 << capability as u32) == 0
    }
}
