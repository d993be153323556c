//! Deep runs: traces, histories and crashes for as long as you like.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use ork_state_api::Capability;
use proptest::prelude::*;
use serde::{Deserialize, Serialize};

use crate::crashes::{Crashes, Death, Survivor};
use crate::facts::Facts;
use crate::run::{guarded, panic_message};
use crate::runtime::block_on;
use crate::traces::{Histories, Traces, drawn, seed_of};
use crate::{Ctx, Fixture, ServerFailure};

/// The most steps in a short trace. Short traces start often from a fresh store, and a failing one
/// is soon reduced. One trace in [`ONE_IN`] is long, and in it a store grows old.
const SHORT: usize = 150;
const LONG: usize = 2000;
const ONE_IN: u64 = 4;

/// How many processes die over one store.
const DEATHS: usize = 10;

/// Seeds have this many bits. Parsers that read JSON as JavaScript does would round more.
const SEEDS: u64 = (1 << 53) - 1;

/// A piece that takes longer has hung. Pieces take seconds, except one that is being reduced to its
/// shortest form.
const PATIENCE: Duration = Duration::from_secs(15 * 60);

/// The parts of a deep run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeepKind {
    /// Random traces, over all backends at once. All must answer as the model does.
    Traces,
    /// Concurrent calls, which some order must explain.
    Histories,
    /// Processes that die while they write.
    Crashes,
}

impl DeepKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Traces, Self::Histories, Self::Crashes];

    /// Its name, in one word.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Traces => "traces",
            Self::Histories => "histories",
            Self::Crashes => "crashes",
        }
    }
}

/// What to run, and for how long.
#[derive(Debug, Clone)]
pub struct Deep {
    /// The seed of all random choices. Each piece of a run has its own seed. The first piece's is
    /// this one.
    pub seed: u64,
    /// No new piece begins after this time. But there is at least one of each kind and backend.
    pub time: Duration,
    /// How many pieces run at the same time.
    pub threads: usize,
    /// The kinds of pieces.
    pub kinds: Vec<DeepKind>,
    /// The command that runs one piece again, by its kind, its seed, and its backend unless it is
    /// about all.
    pub replay: fn(kind: DeepKind, backend: Option<&str>, seed: u64) -> String,
}

/// How much was done, and what was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeepReport {
    /// The seed of the whole run.
    pub seed: u64,
    /// How long it took, in milliseconds.
    pub millis: u64,
    /// The counts of each backend, in the given order.
    pub backends: Vec<DeepCounts>,
    /// What went wrong.
    pub findings: Vec<Finding>,
}

impl DeepReport {
    /// Whether anything ran over any backend.
    #[must_use]
    pub fn did_something(&self) -> bool {
        self.backends.iter().any(|it| it.traces + it.histories.histories + it.crashes.kills > 0)
    }
}

/// How much was done over one backend.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DeepCounts {
    /// The plugin's name.
    pub backend: String,
    /// Why nothing was done, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unavailable: Option<String>,
    /// Random traces.
    pub traces: u64,
    /// The calls in these traces.
    #[serde(default)]
    pub trace_calls: u64,
    /// Histories of concurrent calls.
    pub histories: Histories,
    /// Crashes.
    pub crashes: Crashes,
}

/// Something that went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The kind of the piece.
    pub kind: DeepKind,
    /// The backend; all of them if none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// The seed of the piece.
    pub seed: u64,
    /// What happened.
    pub message: String,
    /// The command that runs the piece again. If the failure depends on how processes interleave,
    /// several runs may be needed.
    pub replay: String,
}

/// An event in a deep run.
#[derive(Debug)]
pub enum DeepEvent<'a> {
    /// How much is done so far.
    Progress(&'a [DeepCounts]),
    /// Something went wrong.
    Found(&'a Finding),
}

/// A part of a run, with its own seed.
#[derive(Debug, Clone, Copy)]
enum Piece {
    Trace,
    /// For the backend at this position.
    Histories(usize),
    Crashes(usize),
}

/// What a run shares between its threads.
struct Run<'a> {
    deep: &'a Deep,
    /// The fixtures that have stores, with their positions among the counts.
    fixtures: Vec<(usize, Arc<dyn Fixture>)>,
    round: Vec<Piece>,
    next: AtomicU64,
    counts: Mutex<Vec<DeepCounts>>,
    findings: Mutex<Vec<Finding>>,
    /// A failing server fails for everybody. So it may fail only when nobody else uses it.
    servers: RwLock<()>,
    on_event: &'a (dyn Fn(DeepEvent<'_>) + Sync),
}

impl Deep {
    /// Runs pieces over these fixtures until the time is over, and reports as it goes. A finding
    /// does not end it.
    pub fn run(
        &self,
        fixtures: &[Arc<dyn Fixture>],
        on_event: &(dyn Fn(DeepEvent<'_>) + Sync),
    ) -> DeepReport {
        let facts = Facts::gather();
        let deadline = Instant::now() + self.time;
        let counts: Vec<DeepCounts> = fixtures
            .iter()
            .map(|fixture| DeepCounts {
                backend: fixture.backend().to_owned(),
                unavailable: block_on(fixture.unavailable()),
                ..DeepCounts::default()
            })
            .collect();
        let there: Vec<_> = fixtures
            .iter()
            .cloned()
            .enumerate()
            .filter(|(place, _)| counts[*place].unavailable.is_none())
            .collect();
        let run = Run {
            deep: self,
            round: self.round(&there),
            fixtures: there,
            next: AtomicU64::new(0),
            counts: Mutex::new(counts),
            findings: Mutex::default(),
            servers: RwLock::new(()),
            on_event,
        };
        if !run.round.is_empty() {
            std::thread::scope(|scope| {
                for _ in 0..self.threads.max(1) {
                    scope.spawn(|| run.pieces(deadline));
                }
            });
        }
        for (_, fixture) in &run.fixtures {
            block_on(fixture.finish());
        }
        let counts = run.counts.into_inner().unwrap_or_else(PoisonError::into_inner);
        let findings = run.findings.into_inner().unwrap_or_else(PoisonError::into_inner);
        DeepReport { seed: self.seed, millis: facts.millis(), backends: counts, findings }
    }

    /// One piece of each possible kind and backend.
    fn round(&self, fixtures: &[(usize, Arc<dyn Fixture>)]) -> Vec<Piece> {
        let mut round = Vec::new();
        let wants = |kind| self.kinds.contains(&kind);
        if wants(DeepKind::Traces) && !fixtures.is_empty() {
            round.push(Piece::Trace);
        }
        for (place, (_, fixture)) in fixtures.iter().enumerate() {
            if wants(DeepKind::Histories) {
                round.push(Piece::Histories(place));
            }
            let shared = fixture.plugin().is_ok_and(|backend| {
                [Capability::Durable, Capability::MultiProcess].iter().all(|it| backend.capabilities.has(*it))
            });
            if wants(DeepKind::Crashes) && shared {
                round.push(Piece::Crashes(place));
            }
        }
        round
    }
}

impl Run<'_> {
    fn pieces(&self, deadline: Instant) {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let length = self.round.len() as u64;
            if number >= length && Instant::now() >= deadline {
                return;
            }
            // The remainder is a position in the round.
            let Some(piece) = self.round.get(usize::try_from(number % length).unwrap_or(0)) else { return };
            self.piece(*piece, seed_of(self.deep.seed, number) & SEEDS);
        }
    }

    fn piece(&self, piece: Piece, seed: u64) {
        let deaths = if let Piece::Crashes(_) = piece { drawn_deaths(seed) } else { vec![] };
        let (_shared, _alone);
        if deaths.iter().any(|death| death.failure.is_some()) {
            _alone = self.servers.write().unwrap_or_else(PoisonError::into_inner);
        } else {
            _shared = self.servers.read().unwrap_or_else(PoisonError::into_inner);
        }
        let (kind, backend, played) = match piece {
            Piece::Trace => {
                let fixtures: Vec<_> = self.fixtures.iter().map(|(_, fixture)| fixture.clone()).collect();
                let length = if seed.is_multiple_of(ONE_IN) { LONG } else { SHORT };
                let traces = Traces { seed, count: 1, length, shrinks: true };
                let played = guarded(PATIENCE, traces.play(fixtures)).map(|calls| {
                    self.count(|counts| {
                        for (place, _) in &self.fixtures {
                            counts[*place].traces += 1;
                            counts[*place].trace_calls += calls;
                        }
                    });
                });
                (DeepKind::Traces, None, played)
            }
            Piece::Histories(place) => {
                let (counted, fixture) = &self.fixtures[place];
                let played = guarded(PATIENCE, Histories::play(fixture.clone(), seed));
                let played = played.map(|done| self.count(|counts| counts[*counted].histories += done));
                (DeepKind::Histories, Some(fixture.backend()), played)
            }
            Piece::Crashes(place) => {
                let (counted, fixture) = &self.fixtures[place];
                let played = guarded(PATIENCE, outlive(fixture.clone(), seed, deaths));
                let played = played.map(|done| self.count(|counts| counts[*counted].crashes += done));
                (DeepKind::Crashes, Some(fixture.backend()), played)
            }
        };
        if let Err(message) = played {
            let replay = (self.deep.replay)(kind, backend, seed);
            let finding = Finding { kind, backend: backend.map(str::to_owned), seed, message, replay };
            (self.on_event)(DeepEvent::Found(&finding));
            self.findings.lock().unwrap_or_else(PoisonError::into_inner).push(finding);
        }
    }

    fn count(&self, done: impl FnOnce(&mut [DeepCounts])) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        done(&mut counts);
        (self.on_event)(DeepEvent::Progress(&counts));
    }
}

/// Lets processes die over one store, and checks it after each.
async fn outlive(fixture: Arc<dyn Fixture>, seed: u64, deaths: Vec<Death>) -> Result<Crashes, String> {
    let failed = |error: &dyn std::fmt::Debug| format!("{error:?}");
    let store = fixture.migrated().await.map_err(|error| failed(&error))?;
    let t = Ctx::open(fixture, store.clone(), seed, true).await.map_err(|error| failed(&error))?;
    // In its own task, so that the store is kept even if a check panics.
    let ended = tokio::spawn(async move {
        let mut survivor = Survivor::new(&t);
        for death in deaths {
            let at = |error| format!("{death:?}: {error}");
            survivor.outlive(death).await.map_err(at)?;
            survivor.check().await.map_err(at)?;
        }
        survivor.finish().await.map_err(|error| error.to_string())
    });
    let ended = match ended.await {
        Ok(ended) => ended,
        Err(error) => Err(panic_message(&error)),
    };
    ended.map_err(|message| match store.keep() {
        Some(place) => format!("{message}\nthe store is kept at {place}"),
        None => message,
    })
}

/// How processes die over one store. In three of ten stores, the last process has its server fail,
/// where there is one.
fn drawn_deaths(seed: u64) -> Vec<Death> {
    let failure = proptest::sample::select(vec![
        ServerFailure::Crash,
        ServerFailure::ConnectionsCut,
        ServerFailure::Failover,
    ]);
    let death = (1..=4_usize, 0..200_usize, 0..4000_u64).prop_map(|(workers, steps, micros)| Death {
        workers,
        steps,
        pause: Duration::from_micros(micros),
        failure: None,
    });
    let deaths = proptest::collection::vec(death, DEATHS);
    let drawn = drawn(seed, &(deaths, proptest::option::weighted(0.3, failure)));
    let Some((mut deaths, failure)) = drawn else { return vec![] };
    if let (Some(failure), Some(last)) = (failure, deaths.last_mut()) {
        last.failure = Some(failure);
    }
    deaths
}
