//! Hints that something has happened (rule M5). They use LISTEN, with one connection per topic,
//! shared by all who watch it.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use ork_state_api::backend::WatchSource;
use ork_state_api::{Error, Result, Topic, Watch};
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use sqlx::{Row, query};
use tokio::sync::{oneshot, watch};
use tokio::task::AbortHandle;

use crate::core::Core;
use crate::error::Access;
use crate::statement::Statement;

/// How long to wait before listening again after a failure. Also how often a watcher of ready tasks
/// looks without a notification. A task that becomes ready beside another one gives no
/// notification, and that other one may just have been claimed.
const PAUSE: Duration = Duration::from_secs(1);

/// The store's listeners that are in use.
#[derive(Debug, Default)]
pub(crate) struct Listeners {
    ready: Mutex<Weak<Listener>>,
    ended: Mutex<Weak<Listener>>,
}

/// Listens until dropped.
#[derive(Debug)]
struct Listener {
    hints: watch::Receiver<()>,
    task: AbortHandle,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Listeners {
    /// Watches a topic.
    pub(crate) async fn watch(&self, db: Arc<Core>, topic: Topic) -> Result<Watch> {
        let listener = listener(&db, self, topic).await?;
        Ok(Watch::new(Source { hints: listener.hints.clone(), topic, db, _listener: listener }))
    }
}

/// The listener of this topic. Starts one if there is none.
async fn listener(db: &Core, listeners: &Listeners, topic: Topic) -> Result<Arc<Listener>> {
    let shared = match topic {
        Topic::Ready => &listeners.ready,
        Topic::RunEnded => &listeners.ended,
    };
    let there = shared.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
    if let Some(listener) = there {
        return Ok(listener);
    }
    let channel = channel(db, topic).await?;
    let (told, hints) = watch::channel(());
    let (listening, is_listening) = oneshot::channel();
    let options = db.connect_options();
    let task = tokio::spawn(listen(options, channel, topic, told, listening)).abort_handle();
    let listener = Arc::new(Listener { hints, task });
    // Hints cover everything that happens after this call.
    let begun = is_listening.await.map_err(|_| Error::internal("a listener ended before it began"))?;
    begun.map_err(|error| db.cannot_connect(error))?;
    *shared.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&listener);
    Ok(listener)
}

async fn channel(db: &Core, topic: Topic) -> Result<String> {
    const CHANNEL: Statement = Statement::new("SELECT 'ork_' || $1 || '_' || md5($2)");
    let topic = match topic {
        Topic::Ready => "ready",
        Topic::RunEnded => "ended",
    };
    let name = || db.query(CHANNEL).bind(topic).bind(db.site.schema.name().to_owned());
    let row = db.row(Access::Read, name).await?.ok_or_else(|| Error::internal("no name of a channel"))?;
    row.try_get(0).map_err(|source| Error::internal("the name of a channel is no text").with_source(source))
}

/// Listens for ever, and passes on every notification. It also sends a hint whenever it starts
/// anew, because it may have missed some.
async fn listen(
    options: PgConnectOptions,
    channel: String,
    topic: Topic,
    told: watch::Sender<()>,
    listening: oneshot::Sender<Result<(), sqlx::Error>>,
) {
    let mut listening = Some(listening);
    loop {
        match begin(&options, &channel, topic).await {
            Ok(mut listener) => {
                match listening.take() {
                    Some(first) => drop(first.send(Ok(()))),
                    None => told.send_replace(()),
                }
                // An error, or the end of the stream: the connection is gone.
                while let Ok(Some(_)) = listener.try_recv().await {
                    told.send_replace(());
                }
            }
            Err(error) => {
                if let Some(first) = listening.take() {
                    drop(first.send(Err(error)));
                    return;
                }
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn begin(options: &PgConnectOptions, channel: &str, topic: Topic) -> Result<PgListener, sqlx::Error> {
    let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(options.clone());
    let mut listener = PgListener::connect_with(&pool).await?;
    listener.eager_reconnect(false);
    listener.listen(channel).await?;
    if topic == Topic::RunEnded {
        // While anybody shares this lock, ends of runs are notified: see `ork_hint_ended`.
        query("SELECT pg_advisory_lock_shared(hashtextextended($1, 0))")
            .bind(channel)
            .execute(&mut listener)
            .await?;
    }
    Ok(listener)
}

/// A caller's watch.
struct Source {
    hints: watch::Receiver<()>,
    topic: Topic,
    db: Arc<Core>,
    _listener: Arc<Listener>,
}

#[async_trait]
impl WatchSource for Source {
    async fn changed(&mut self) -> Result<()> {
        loop {
            match tokio::time::timeout(PAUSE, self.hints.changed()).await {
                Ok(told) => {
                    return told.map_err(|source| {
                        Error::unavailable("nobody listens to the server any more").with_source(source)
                    });
                }
                Err(_) if self.topic == Topic::Ready && self.is_ready().await => return Ok(()),
                Err(_) => {}
            }
        }
    }
}

impl Source {
    /// Whether a task is ready. Errors are not reported here: whoever gets the hint finds out what
    /// is wrong.
    async fn is_ready(&self) -> bool {
        const READY: Statement = Statement::new(
            "SELECT EXISTS (SELECT FROM {schema}.ready_tasks q WHERE q.ready_at <= coalesce($1, now()))",
        );
        let ready = || self.db.query(READY).bind(self.db.now());
        let row = self.db.row(Access::Read, ready).await;
        row.is_ok_and(|row| row.is_some_and(|row| row.try_get(0).unwrap_or(false)))
    }
}
