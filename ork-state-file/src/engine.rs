//! The thread that owns the state. Calls reach it through a queue. They are answered when what they
//! saw is on disk.
//!
//! All waiting calls are taken together: one lock, one write and one sync for all of them (group
//! commit). No call is answered before the commit, not even a read. So nothing is seen that could
//! still be lost. A caller that goes away does not stop its call (rule G9).

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use ork_state_api::{Clock, Error, ErrorKind, Found, MigrationReport, Result, Timestamp, Topic, Watch};
use tokio::sync::oneshot;

use crate::change::Change;
use crate::import::{Imported, import, is_orks};
use crate::journal::{JOURNAL, Journal, Sync, VERSION};
use crate::lock::Locked;
use crate::log_files::Logs;
use crate::state::{News, State};
use crate::transaction::Transaction;
use crate::watch::{Hints, JournalWatcher, LookSoon, Source};

/// The most calls that share a commit. This bounds how long one of them may wait.
const MAX_GROUP: usize = 256;

/// If the other calls of a group took longer than this, calls that hand out leases wait for the
/// next commit. Otherwise the leases would run out while the group is written (rule T2).
const SOON: Duration = Duration::from_millis(10);

/// What a call does with the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// It only reads.
    Read,
    /// It may change something, so other processes are locked out.
    Write,
    /// It changes something and hands out leases, whose time counts from when it runs. So its
    /// answer must not wait long.
    Lease,
}

/// The state and, unless it is in memory only, its files.
#[derive(Debug)]
pub(crate) struct Engine {
    state: State,
    logs: Logs,
    journal: Option<Journal>,
    clock: Arc<dyn Clock>,
    /// Whether there is a store to work on, as of the current group.
    open: bool,
    /// The changes of its transactions. One that fails has changed nothing.
    changes: Vec<Change>,
    hints: Arc<Hints>,
}

/// Where a store is on disk, and its settings.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) directory: PathBuf,
    pub(crate) lock_timeout: Duration,
    pub(crate) sync: Sync,
}

impl Engine {
    /// Starts the thread and makes it read the store, if there is one.
    pub(crate) async fn start(place: Option<Place>, clock: Arc<dyn Clock>) -> Result<Handle> {
        let hints = Arc::new(Hints::default());
        let (queue, calls) = channel();
        let (opened, result) = oneshot::channel();
        let news = hints.clone();
        let serve = move || match Self::open(place, clock, news) {
            Ok(engine) => {
                let directory = engine.journal.as_ref().map(|journal| journal.directory().to_owned());
                if opened.send(Ok(directory)).is_ok() {
                    engine.serve(&calls);
                }
            }
            // A caller that has stopped waiting need not know.
            Err(error) => drop(opened.send(Err(error))),
        };
        std::thread::Builder::new()
            .name("ork-state-file".into())
            .spawn(serve)
            .map_err(|source| Error::unavailable("no thread can be started").with_source(source))?;
        let directory = result.await.map_err(|_| ended())??;
        Ok(Handle { queue, hints, directory, watcher: Arc::default() })
    }

    /// Reads the store, if there is one.
    fn open(place: Option<Place>, clock: Arc<dyn Clock>, hints: Arc<Hints>) -> Result<Self> {
        let journal = place.map(|place| Journal::new(&place.directory, place.lock_timeout, place.sync));
        let journal = journal.transpose()?;
        let logs =
            journal.as_ref().map_or_else(Logs::in_memory, |journal| Logs::in_directory(journal.logs()));
        let state = State::default();
        let mut engine = Self { state, logs, journal, clock, open: false, changes: Vec::new(), hints };
        engine.prepare(Access::Read)?;
        engine.state.news = News::default();
        Ok(engine)
    }

    fn serve(mut self, calls: &Receiver<Box<dyn Call>>) {
        while let Ok(first) = calls.recv() {
            let mut group = vec![first];
            group.extend(calls.try_iter().take(MAX_GROUP - 1));
            group.sort_by_key(|call| call.access() == Access::Lease);
            while !group.is_empty() {
                let (served, result) = self.serve_group(&mut group);
                let failed = result.err();
                // Unit tests inspect what a crash leaves at exactly this point.
                #[cfg(test)]
                self.finish_fold();
                for call in group.drain(..served) {
                    call.answer(failed.as_ref());
                }
                let news = std::mem::take(&mut self.state.news);
                if failed.is_none() {
                    self.hints.publish(news);
                }
            }
        }
        self.finish_fold();
    }

    fn finish_fold(&mut self) {
        if let Some(journal) = &mut self.journal {
            journal.finish_fold();
        }
    }

    /// Runs the calls and commits their changes. If this fails, nothing has changed for any of
    /// them. Returns how many calls it ran: all of them, except perhaps those that hand out leases.
    fn serve_group(&mut self, group: &mut [Box<dyn Call>]) -> (usize, Result<()>) {
        group.iter().for_each(|call| call.taken());
        let writes = group.iter().any(|call| call.access() != Access::Read);
        let _locked = match self.prepare(if writes { Access::Write } else { Access::Read }) {
            Ok(locked) => locked,
            Err(error) => return (group.len(), Err(error)),
        };
        let (begun, mut served) = (Instant::now(), 0);
        for call in group {
            if served > 0 && call.access() == Access::Lease && begun.elapsed() > SOON {
                break;
            }
            call.run(self);
            served += 1;
        }
        (served, self.commit())
    }

    /// Brings the state up to date, and locks other processes out for a write.
    fn prepare(&mut self, access: Access) -> Result<Option<Locked>> {
        let Some(journal) = &mut self.journal else { return Ok(None) };
        let locked = match access {
            Access::Read => None,
            Access::Write | Access::Lease => Some(journal.lock_exclusive()?),
        };
        self.open = journal.exists();
        match (self.open, &locked) {
            (true, Some(_)) => journal.catch_up(&mut self.state)?,
            (true, None) => journal.catch_up_shared(&mut self.state)?,
            (false, _) => {}
        }
        Ok(locked)
    }

    fn commit(&mut self) -> Result<()> {
        let changes = std::mem::take(&mut self.changes);
        let Some(journal) = self.journal.as_mut().filter(|_| !changes.is_empty()) else { return Ok(()) };
        let synced = self.logs.sync().map_err(|source| crate::error::io("write a log", source));
        if let Err(error) = synced.and_then(|()| journal.append(&changes)) {
            // The state is ahead of the disk, so it is read again.
            journal.forget();
            self.logs.roll_back();
            return Err(error);
        }
        self.logs.clean_up();
        journal.fold_if_long(&self.state);
        Ok(())
    }

    fn check_open(&self) -> Result<()> {
        if self.open {
            return Ok(());
        }
        Err(Error::new(ErrorKind::SchemaMismatch { found: 0, needed: VERSION })
            .with_hint("Call migrate first"))
    }

    fn read<T>(&self, action: impl FnOnce(&State, &Logs, Timestamp) -> Result<T>) -> Result<T> {
        self.check_open()?;
        action(&self.state, &self.logs, self.clock.now())
    }

    fn write<T>(&mut self, action: impl FnOnce(&mut Transaction<'_>) -> Result<T>) -> Result<T> {
        self.check_open()?;
        let now = self.clock.now();
        let mut tx = Transaction { state: &mut self.state, logs: &mut self.logs, now, changes: Vec::new() };
        let result = action(&mut tx);
        let changes = tx.changes;
        debug_assert!(result.is_ok() || changes.is_empty(), "a call failed after it had changed something");
        self.changes.extend(changes);
        result
    }

    fn migrate(&mut self) -> Result<MigrationReport> {
        let (report, imported) = self.look_at_what_is_there()?;
        if report.applied.is_empty() {
            return Ok(report);
        }
        if let Some(journal) = &mut self.journal {
            // The logs come first: once the journal is there, the store exists.
            for (task, offset, bytes) in imported.logs {
                let written = self.logs.write(task, offset, &bytes);
                written.map_err(|source| crate::error::io("write a log", source))?;
            }
            self.logs.sync().map_err(|source| crate::error::io("write a log", source))?;
            journal.create(imported.state.image().changes())?;
            journal.catch_up(&mut self.state)?;
        }
        self.open = true;
        Ok(report)
    }

    fn plan_migration(&mut self) -> Result<MigrationReport> {
        Ok(self.look_at_what_is_there()?.0)
    }

    fn look_at_what_is_there(&self) -> Result<(MigrationReport, Imported)> {
        if self.open {
            return Ok((MigrationReport::nothing(VERSION), Imported::default()));
        }
        match self.journal.as_ref().filter(|journal| is_orks(journal.directory())) {
            None => {
                let mut report = MigrationReport::new(Found::Nothing, VERSION);
                report.applied.push("001_journal".to_owned());
                Ok((report, Imported::default()))
            }
            Some(journal) => {
                let mut imported = import(journal.directory(), self.clock.now())?;
                let mut report = MigrationReport::new(Found::OrkFiles, VERSION);
                report.applied = vec!["001_journal".to_owned(), "import of Ork's JSON files".to_owned()];
                report.adjusted = std::mem::take(&mut imported.adjusted);
                Ok((report, imported))
            }
        }
    }
}

/// A call in the queue.
trait Call: Send {
    fn access(&self) -> Access;
    /// It has left the queue, and has not looked at anything yet.
    fn taken(&self) {}
    /// Runs it, and keeps the result.
    fn run(&mut self, engine: &mut Engine);
    /// Sends the result to the caller, or the error with which the whole group failed.
    fn answer(self: Box<Self>, failed: Option<&Error>);
}

struct TypedCall<T, F> {
    access: Access,
    action: Option<F>,
    result: Option<Result<T>>,
    reply: oneshot::Sender<Result<T>>,
}

impl<T: Send, F: FnOnce(&mut Engine) -> Result<T> + Send> Call for TypedCall<T, F> {
    fn access(&self) -> Access {
        self.access
    }

    fn run(&mut self, engine: &mut Engine) {
        self.result = self.action.take().map(|action| action(engine));
    }

    fn answer(self: Box<Self>, failed: Option<&Error>) {
        let result = match failed {
            Some(error) => Err(error.clone()),
            None => self.result.unwrap_or_else(|| Err(Error::internal("a call was not run"))),
        };
        // A caller that went away has no use for it.
        let _ = self.reply.send(result);
    }
}

/// Reads what other processes have written, without a caller.
struct Look(Arc<AtomicBool>);

impl Call for Look {
    fn access(&self) -> Access {
        Access::Read
    }

    fn taken(&self) {
        self.0.store(false, Ordering::Release);
    }

    fn run(&mut self, _: &mut Engine) {}

    fn answer(self: Box<Self>, _: Option<&Error>) {}
}

/// The callers' end of the queue. The thread ends when the last handle is dropped.
#[derive(Clone)]
pub(crate) struct Handle {
    queue: Sender<Box<dyn Call>>,
    hints: Arc<Hints>,
    /// None for a store in memory.
    directory: Option<PathBuf>,
    /// Shared by all watches.
    watcher: Arc<Mutex<Weak<JournalWatcher>>>,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Handle")
    }
}

impl Handle {
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        action: impl FnOnce(&State, &Logs, Timestamp) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.call(Access::Read, |engine| engine.read(action)).await
    }

    pub(crate) async fn write<T: Send + 'static>(
        &self,
        action: impl FnOnce(&mut Transaction<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.call(Access::Write, |engine| engine.write(action)).await
    }

    /// A write that hands out leases.
    pub(crate) async fn lease<T: Send + 'static>(
        &self,
        action: impl FnOnce(&mut Transaction<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.call(Access::Lease, |engine| engine.write(action)).await
    }

    pub(crate) async fn migrate(&self) -> Result<MigrationReport> {
        self.call(Access::Write, Engine::migrate).await
    }

    pub(crate) async fn plan_migration(&self) -> Result<MigrationReport> {
        self.call(Access::Read, Engine::plan_migration).await
    }

    /// Returns a function that puts a look into this queue each time it is called. In a look the
    /// thread reads what other processes have written. It clears the flag when it does.
    fn look_through(queue: Sender<Box<dyn Call>>) -> LookSoon {
        // If the thread has ended, there is nothing to read.
        Arc::new(move |flag| drop(queue.send(Box::new(Look(flag)))))
    }

    pub(crate) fn watch(&self, topic: Topic) -> Result<Watch> {
        let journal =
            self.directory.as_deref().map(|directory| self.journal_watcher(directory)).transpose()?;
        Ok(Watch::new(Source {
            hints: self.hints.subscribe(topic),
            look: Self::look_through(self.queue.clone()),
            journal,
        }))
    }

    fn journal_watcher(&self, directory: &Path) -> Result<Arc<JournalWatcher>> {
        let mut shared = self.watcher.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(watcher) = shared.upgrade() {
            return Ok(watcher);
        }
        // With its own end of the queue: the watcher must not keep itself alive.
        let look = Self::look_through(self.queue.clone());
        let watcher = Arc::new(JournalWatcher::new(directory, JOURNAL, look)?);
        *shared = Arc::downgrade(&watcher);
        Ok(watcher)
    }

    async fn call<T: Send + 'static>(
        &self,
        access: Access,
        action: impl FnOnce(&mut Engine) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (reply, result) = oneshot::channel();
        let call = TypedCall { access, action: Some(action), result: None, reply };
        self.queue.send(Box::new(call)).map_err(|_| ended())?;
        result.await.map_err(|_| ended())?
    }
}

fn ended() -> Error {
    Error::internal("the store's thread has ended").with_hint("Open the store again")
}
