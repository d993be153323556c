//! One thread that owns the state: calls come to it through a queue and are answered when what they saw
//! is on disk.
//!
//! All calls that are waiting are taken together: one lock, one write, one sync for all of them (group
//! commit). None is answered before the commit, readers included, so nothing is seen that could still be
//! lost. A caller that goes away does not stop its call (rule G9).

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use ork_state_api::{Clock, Error, ErrorKind, MigrationReport, Result, Timestamp};
use tokio::sync::oneshot;

use crate::change::Change;
use crate::journal::{Journal, Locked, VERSION};
use crate::logs::Logs;
use crate::state::State;
use crate::transaction::Transaction;

/// Most calls that share a commit: what one of them may have to wait for.
const MAX_GROUP: usize = 256;

/// When the other calls of a group took longer, what hands out leases waits for the next commit: else the leases would run out
/// while the group is written (rule T2).
const SOON: Duration = Duration::from_millis(10);

/// What a call does with the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// It looks.
    Read,
    /// It may change something: other processes are kept out.
    Write,
    /// It changes something and hands out leases, which are counted from when it runs: its answer must not wait long.
    Lease,
}

/// The state and, unless it is in memory only, its files.
#[derive(Debug)]
pub(crate) struct Engine {
    state: State,
    logs: Logs,
    journal: Option<Journal>,
    clock: Arc<dyn Clock>,
    /// Whether there is a store to work on, as of the group that is under way.
    open: bool,
    /// The transactions of that group.
    group: Vec<Vec<Change>>,
}

impl Engine {
    /// Reads the store, if there is one, and starts the thread.
    pub(crate) fn start(journal: Option<Journal>, clock: Arc<dyn Clock>) -> Result<Handle> {
        let logs =
            journal.as_ref().map_or_else(Logs::in_memory, |journal| Logs::in_directory(journal.logs()));
        let mut engine =
            Self { state: State::default(), logs, journal, clock, open: false, group: Vec::new() };
        engine.prepare(Access::Read)?;
        let (sender, receiver) = channel();
        std::thread::Builder::new()
            .name("ork-state-file".into())
            .spawn(move || engine.serve(&receiver))
            .map_err(|source| Error::unavailable("no thread can be started").with_source(source))?;
        Ok(Handle(sender))
    }

    fn serve(mut self, calls: &Receiver<Box<dyn Call>>) {
        while let Ok(first) = calls.recv() {
            let mut group = vec![first];
            group.extend(calls.try_iter().take(MAX_GROUP - 1));
            group.sort_by_key(|call| call.access() == Access::Lease);
            while !group.is_empty() {
                let (served, result) = self.serve_group(&mut group);
                let failed = result.err();
                for call in group.drain(..served) {
                    call.answer(failed.as_ref());
                }
            }
        }
    }

    /// Runs the calls and commits what they changed. If it fails nothing has changed, for any of them. Says how many calls that were:
    /// all of them, but perhaps those that hand out leases.
    fn serve_group(&mut self, group: &mut [Box<dyn Call>]) -> (usize, Result<()>) {
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

    /// Brings the state up to date, and keeps other processes out for a writer.
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
        let group = std::mem::take(&mut self.group);
        let Some(journal) = self.journal.as_mut().filter(|_| !group.is_empty()) else { return Ok(()) };
        let synced = self.logs.sync().map_err(|source| crate::error::io("write a log", source));
        if let Err(error) = synced.and_then(|()| journal.append(&group)) {
            // The state is ahead of the disk: it is read anew.
            journal.forget();
            self.logs.roll_back();
            return Err(error);
        }
        self.logs.clean_up();
        if journal.is_long() && journal.compact(&self.state).is_err() {
            // The journal stands as it was, only longer than it need be; the next commit tries again.
            journal.forget();
        }
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
        if !changes.is_empty() {
            self.group.push(changes);
        }
        result
    }

    fn migrate(&mut self) -> Result<MigrationReport> {
        let created = match &mut self.journal {
            Some(journal) => {
                let created = journal.create()?;
                journal.catch_up(&mut self.state)?;
                created
            }
            None => !self.open,
        };
        self.open = true;
        let (from, applied) = if created { (0, vec!["001_journal".to_owned()]) } else { (VERSION, vec![]) };
        Ok(MigrationReport { from, to: VERSION, applied })
    }
}

/// A call that waits in the queue.
trait Call: Send {
    fn access(&self) -> Access;
    /// Does it, and keeps the result.
    fn run(&mut self, engine: &mut Engine);
    /// Gives the result to the caller, or the error with which the whole group failed.
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

/// The callers' end of the queue. The thread ends when the last one is dropped.
#[derive(Clone)]
pub(crate) struct Handle(Sender<Box<dyn Call>>);

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

    async fn call<T: Send + 'static>(
        &self,
        access: Access,
        action: impl FnOnce(&mut Engine) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let ended = || Error::internal("the store's thread has ended").with_hint("Open the store again");
        let (reply, result) = oneshot::channel();
        let call = TypedCall { access, action: Some(action), result: None, reply };
        self.0.send(Box::new(call)).map_err(|_| ended())?;
        result.await.map_err(|_| ended())?
    }
}
