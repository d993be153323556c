//! The model as a store, correct or with a fault. The suite is tested on it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use ork_state_api::backend::{Backend, Capabilities, OptionInfo, WatchSource};
use ork_state_api::{
    Capability, Clock, ConnectOptions, Database, Error, ErrorKind, Result, Timestamp, Topic, Watch,
};
use tokio::sync::watch;

use super::{Answer, Answers, Call, Calls, Model};
use crate::{Damage, Fixture, TestStore};

/// The model's description of itself. It is not a plugin: only [`ModelFixture`] opens it.
pub static MODEL: Backend = Backend {
    name: "model",
    package: "ork_state_conformance",
    schemes: &["model"],
    example: "model:name",
    // Its stores live as long as their fixture. They can be opened again, but not from another
    // process.
    capabilities: Capabilities::all().without(Capability::MultiProcess),
    options: &[OptionInfo { name: "max_log_bytes", help: "cap of each task's log in bytes; default none" }],
    connect: |options| {
        Box::pin(async move {
            let handle = Handle::open(&options, Arc::default(), Tamper::NONE)?;
            Ok(Arc::new(Calls(handle)) as Arc<dyn Database>)
        })
    },
};

/// The description of a backend that opts out of everything it may.
pub(crate) static LESSER: Backend = Backend {
    capabilities: MODEL
        .capabilities
        .without(Capability::Logs)
        .without(Capability::Schedules)
        .without(Capability::DeferredJobs)
        .without(Capability::Notifications)
        .without(Capability::Transfer),
    ..MODEL
};

/// How a store breaks the rules.
#[derive(Debug, Clone, Copy)]
pub struct Tamper {
    /// Answers a call.
    pub answer: fn(&mut Turn<'_>) -> Answer,
    /// What happens to the state when the store is opened again, if anything. The second model is
    /// the state before the latest change.
    pub reopen: Option<fn(&mut Model, Model)>,
    /// Whether a call that may have changed something gives a hint.
    pub hints: fn(&Call) -> bool,
    /// The description of the backend.
    pub plugin: &'static Backend,
    /// Capabilities that it has although it says that it has not.
    pub also: &'static [Capability],
}

impl Tamper {
    /// It breaks no rule.
    pub const NONE: Self =
        Self { answer: |turn| turn.honest(), reopen: None, hints: Call::writes, plugin: &MODEL, also: &[] };

    fn lacks(&self, capability: Capability) -> bool {
        !self.plugin.capabilities.has(capability) && !self.also.contains(&capability)
    }
}

/// A part of a call's work, done after the rest of it.
type Later = Box<dyn FnOnce(&mut Model) + Send>;

/// One call of a store, to be answered.
pub struct Turn<'a> {
    /// The store's state.
    pub model: &'a mut Model,
    /// The current time.
    pub now: Timestamp,
    /// The call.
    pub call: Call,
    tamper: Tamper,
    later: Vec<Later>,
}

impl std::fmt::Debug for Turn<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Turn").field("now", &self.now).field("call", &self.call).finish_non_exhaustive()
    }
}

impl Turn<'_> {
    /// The answer that the rules require.
    pub fn honest(&mut self) -> Answer {
        self.instead(self.call.clone())
    }

    /// The answer that the rules require to another call at this moment.
    pub fn instead(&mut self, call: Call) -> Answer {
        match call.needs().filter(|needed| self.tamper.lacks(*needed)) {
            Some(capability) => {
                call.fails(Error::new(ErrorKind::Unsupported { backend: MODEL.name, capability }))
            }
            None => self.model.answer(self.now, call, None),
        }
    }

    /// Does something before the call is answered, but not in one step with the rest. Others may
    /// read in between. If nobody waits for the answer any more, it is not done at all.
    pub fn later(&mut self, rest: impl FnOnce(&mut Model) + Send + 'static) {
        self.later.push(Box::new(rest));
    }
}

/// A store's state, shared by its handles.
#[derive(Debug)]
struct Shared {
    /// The current state, and the one before the latest change.
    state: Mutex<(Model, Model)>,
    hints: watch::Sender<()>,
}

impl Default for Shared {
    fn default() -> Self {
        Self { state: Mutex::default(), hints: watch::Sender::new(()) }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, (Model, Model)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A handle of a store that is the model.
pub type ModelStore = Calls<Handle>;

/// The inner part of a [`ModelStore`].
#[derive(Debug)]
pub struct Handle {
    shared: Arc<Shared>,
    clock: Arc<dyn Clock>,
    max_log_bytes: Option<u64>,
    tamper: Tamper,
}

impl Handle {
    fn open(options: &ConnectOptions, shared: Arc<Shared>, tamper: Tamper) -> Result<Self> {
        let parameters = options.url().parameters(tamper.plugin)?;
        let max_log_bytes = parameters.number("max_log_bytes", 0..=u64::MAX)?;
        if let Some(reopen) = tamper.reopen {
            let (state, before) = &mut *shared.lock();
            reopen(state, before.clone());
        }
        Ok(Self { shared, clock: options.clock_or_system(), max_log_bytes, tamper })
    }
}

#[async_trait]
impl Answers for Handle {
    fn backend(&self) -> &'static Backend {
        self.tamper.plugin
    }

    /// Runs under one lock and, except for faults, without an await. So it is one transaction (G1),
    /// and nothing cuts it short (G9).
    async fn answer(&self, call: Call) -> Answer {
        // Nothing here waits for anything. Without this, a case that loops for ever could not be
        // stopped.
        tokio::task::coop::consume_budget().await;
        let (writes, is_told) = (call.writes(), (self.tamper.hints)(&call));
        let (answer, later) = {
            let (model, before) = &mut *self.shared.lock();
            if writes && self.tamper.reopen.is_some() {
                before.clone_from(model);
            }
            model.max_log_bytes = self.max_log_bytes;
            let (now, tamper) = (self.clock.now(), self.tamper);
            let mut turn = Turn { model, now, call, tamper, later: Vec::new() };
            let answer = (tamper.answer)(&mut turn);
            (answer, turn.later)
        };
        for rest in later {
            // Twice, because a scheduler may resume the task that yielded last.
            for _ in 0..2 {
                tokio::task::yield_now().await;
            }
            rest(&mut self.shared.lock().0);
        }
        if writes && is_told {
            // A hint may be needless (M5).
            self.shared.hints.send_replace(());
        }
        answer
    }

    async fn watch(&self, _: Topic) -> Result<Watch> {
        let capability = Capability::Notifications;
        if self.tamper.lacks(capability) {
            return Err(Error::new(ErrorKind::Unsupported { backend: MODEL.name, capability }));
        }
        Ok(Watch::new(Hints(self.shared.hints.subscribe())))
    }
}

struct Hints(watch::Receiver<()>);

#[async_trait]
impl WatchSource for Hints {
    async fn changed(&mut self) -> Result<()> {
        self.0.changed().await.map_err(|_| Error::unavailable("the store is gone"))
    }
}

/// Stores that are the model, with or without a fault.
#[derive(Debug)]
pub struct ModelFixture {
    tamper: Tamper,
    stores: Mutex<BTreeMap<String, Arc<Shared>>>,
}

impl ModelFixture {
    /// Stores that keep the rules.
    #[must_use]
    pub const fn honest() -> Self {
        Self::tampered(Tamper::NONE)
    }

    /// Stores that break them.
    #[must_use]
    pub const fn tampered(tamper: Tamper) -> Self {
        Self { tamper, stores: Mutex::new(BTreeMap::new()) }
    }

    fn stores(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Shared>>> {
        self.stores.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Fixture for ModelFixture {
    fn backend(&self) -> &'static str {
        MODEL.name
    }

    fn plugin(&self) -> std::result::Result<&'static Backend, String> {
        Ok(self.tamper.plugin)
    }

    async fn empty(&self) -> Result<Arc<dyn TestStore>> {
        let mut stores = self.stores();
        let name = stores.len().to_string();
        let shared: Arc<Shared> = stores.entry(name.clone()).or_default().clone();
        Ok(Arc::new(ModelTestStore { url: format!("model:{name}"), shared }))
    }

    async fn connect(&self, options: ConnectOptions) -> Result<Arc<dyn Database>> {
        let shared = self.stores().entry(options.url().location().to_owned()).or_default().clone();
        Ok(Arc::new(Calls(Handle::open(&options, shared, self.tamper)?)))
    }
}

struct ModelTestStore {
    url: String,
    shared: Arc<Shared>,
}

#[async_trait]
impl TestStore for ModelTestStore {
    fn url(&self) -> String {
        self.url.clone()
    }

    async fn damage(&self, damage: Damage) -> Result<bool> {
        self.shared.lock().0.damage(damage);
        Ok(true)
    }
}
