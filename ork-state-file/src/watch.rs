//! Hints that something has happened (rule M5).
//!
//! The engine's thread knows what every transaction did: its own, and those that it reads from
//! other processes. The file system reports that there are such. The journal is watched, and when
//! it has grown, a look is put into the engine's queue.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use notify::{RecursiveMode, Watcher};
use ork_state_api::backend::WatchSource;
use ork_state_api::{Error, Result, Topic};
use tokio::sync::watch::{Receiver, Sender};

use crate::state::News;

/// How often a watcher looks without a hint from the file system. There are no such hints of
/// writers on other machines, for example on NFS.
const FALLBACK: Duration = Duration::from_secs(1);

/// Where the engine announces what has happened.
#[derive(Debug, Default)]
pub(crate) struct Hints {
    ready: Sender<()>,
    ended: Sender<()>,
}

impl Hints {
    pub(crate) fn publish(&self, news: News) {
        if news.ready {
            self.ready.send_replace(());
        }
        if news.ended {
            self.ended.send_replace(());
        }
    }

    pub(crate) fn subscribe(&self, topic: Topic) -> Receiver<()> {
        match topic {
            Topic::Ready => self.ready.subscribe(),
            Topic::RunEnded => self.ended.subscribe(),
        }
    }
}

/// Puts a look at the journal into the engine's queue. The flag is cleared when the look is done.
pub(crate) type LookSoon = Arc<dyn Fn(Arc<AtomicBool>) + Send + Sync>;

/// Makes the engine look when the journal changes, for as long as this lives.
pub(crate) struct JournalWatcher(
    #[expect(dead_code, reason = "it watches until it is dropped")] notify::RecommendedWatcher,
);

impl JournalWatcher {
    pub(crate) fn new(directory: &Path, journal: &'static str, look: LookSoon) -> Result<Self> {
        let failed = |source| {
            Error::unavailable("the directory cannot be watched")
                .with_hint("The system may be out of watches: see fs.inotify.max_user_instances")
                .with_source(source)
        };
        let path: PathBuf = directory.join(journal);
        let looking = Arc::new(AtomicBool::new(false));
        let changed = move |event: notify::Result<notify::Event>| {
            let concerns = |event: notify::Event| !event.kind.is_access() && event.paths.contains(&path);
            // An error, such as a queue overflow, may hide a change.
            if event.map_or(true, concerns) && !looking.swap(true, Ordering::AcqRel) {
                look(looking.clone());
            }
        };
        let mut watcher = notify::recommended_watcher(changed).map_err(failed)?;
        watcher.watch(directory, RecursiveMode::NonRecursive).map_err(failed)?;
        Ok(Self(watcher))
    }
}

impl std::fmt::Debug for JournalWatcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JournalWatcher")
    }
}

/// A caller's watch.
pub(crate) struct Source {
    pub(crate) hints: Receiver<()>,
    pub(crate) look: LookSoon,
    /// None for a store in memory.
    pub(crate) journal: Option<Arc<JournalWatcher>>,
}

#[async_trait]
impl WatchSource for Source {
    async fn changed(&mut self) -> Result<()> {
        let ended = |source| Error::unavailable("the store's thread has ended").with_source(source);
        if self.journal.is_none() {
            return self.hints.changed().await.map_err(ended);
        }
        loop {
            match tokio::time::timeout(FALLBACK, self.hints.changed()).await {
                Ok(changed) => return changed.map_err(ended),
                Err(_) => (self.look)(Arc::default()),
            }
        }
    }
}
