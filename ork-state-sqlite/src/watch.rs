//! Hints that something has happened (rule M5).
//!
//! A watch is notified of every commit. One cheap query tells it whether the commit concerns it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ork_state_api::backend::WatchSource;
use ork_state_api::{Result, Topic};
use tokio::sync::watch::Receiver;

use crate::database::SqliteDatabase;
use crate::error;
use crate::options::Location;
use crate::signal::FileWatcher;

/// How often a watcher looks without a notification. If the system offers no watch, a hint from
/// another process can be this late.
const FALLBACK: Duration = Duration::from_secs(1);

/// How long to pause after a look that found nothing, because a busy store commits all the time.
const PAUSE: Duration = Duration::from_millis(5);

/// A caller's watch.
pub(crate) struct Source {
    db: SqliteDatabase,
    topic: Topic,
    commits: Receiver<()>,
    /// Keeps the watch on the file alive.
    _watcher: Option<Arc<FileWatcher>>,
    /// How many runs had ever ended at the last look.
    seen: i64,
    /// Whether there was a commit since.
    must_look: bool,
}

impl Source {
    pub(crate) async fn new(db: &SqliteDatabase, topic: Topic) -> Result<Self> {
        // A later commit is notified. A run that ended before is seen below.
        let commits = db.signal().subscribe();
        let watcher = db.file_watcher();
        let db = db.another();
        let seen = ever_ended(&db).await?;
        Ok(Self { db, topic, commits, _watcher: watcher, seen, must_look: false })
    }

    /// Whether there is something to report.
    async fn look(&mut self) -> Result<bool> {
        match self.topic {
            Topic::Ready => any_is_ready(&self.db).await,
            Topic::RunEnded => {
                let before = self.seen;
                self.seen = ever_ended(&self.db).await?;
                Ok(self.seen != before)
            }
        }
    }

    async fn commit(&mut self) -> Result<()> {
        let is_memory = *self.db.location() == Location::Memory;
        let told = if is_memory {
            self.commits.changed().await
        } else {
            tokio::time::timeout(FALLBACK, self.commits.changed()).await.unwrap_or(Ok(()))
        };
        told.map_err(|_| error::gone())
    }
}

#[async_trait]
impl WatchSource for Source {
    async fn changed(&mut self) -> Result<()> {
        loop {
            if !self.must_look {
                self.commit().await?;
                self.must_look = true;
            }
            match self.look().await {
                Ok(found) => {
                    self.must_look = false;
                    if found {
                        return Ok(());
                    }
                    tokio::time::sleep(PAUSE).await;
                }
                // For example, a lock that was held for too long.
                Err(error) if error.is_retryable() => tokio::time::sleep(FALLBACK).await,
                Err(error) => return Err(error),
            }
        }
    }
}

async fn any_is_ready(db: &SqliteDatabase) -> Result<bool> {
    const READY: &str = "SELECT EXISTS (SELECT 1 FROM ready_tasks WHERE ready_at <= ?1)";
    let now = db.clock().now().as_micros();
    db.read(move |connection| {
        Box::pin(async move { Ok(sqlx::query_scalar(READY).bind(now).fetch_one(connection).await?) })
    })
    .await
}

async fn ever_ended(db: &SqliteDatabase) -> Result<i64> {
    const EVER: &str = "SELECT coalesce(sum(number), 0) FROM ended_counts WHERE kind = 'ever'";
    db.read(|connection| Box::pin(async move { Ok(sqlx::query_scalar(EVER).fetch_one(connection).await?) }))
        .await
}
