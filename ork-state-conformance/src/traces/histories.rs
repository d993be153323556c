//! Histories: concurrent calls of several clients, checked against the model.
//!
//! Some [order](explain) of the calls must explain their answers.

use std::sync::{Arc, Mutex, PoisonError};

use ork_state_api::{Capability, Database, Effect, Limit, ListTasks, PageRequest};
use serde::{Deserialize, Serialize};

use super::orders::{Event, What, explain};
use super::player::{Divergence, Player};
use super::processes::{Asked, Caller};
use super::seed_of;
use super::steps::{Step, sample, sample_calls};
use crate::Fixture;
use crate::model::Call;

/// How many concurrent clients there are, and how many calls each makes. The search for an order
/// takes longer with more of them.
const CLIENTS: u64 = 3;
const CALLS: usize = 3;

/// How many bursts run over one store.
const BURSTS: u64 = 4;

/// The burst whose clients are separate processes, if the store allows several.
const OF_PROCESSES: u64 = 1;

/// How many steps are drawn for a burst. Not all of them are calls that its clients can make.
const SAMPLED: usize = 60;

/// The client that reads everything once the others have ended.
const LOOKING: u64 = CLIENTS;

/// How many histories there were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Histories {
    /// Bursts of concurrent calls, each a history.
    pub histories: u64,
    /// The calls in them.
    pub calls: u64,
    /// Calls whose callers gave up before the answer, or got an answer that leaves the effect
    /// unknown.
    pub unknown: u64,
}

impl Histories {
    /// Makes clients call a fresh store at the same time. Each uses its own handle, or its own
    /// process where several are possible. Then searches for an order of the calls that explains
    /// their answers and the final state. Random choices come from the seed, but the machine
    /// decides how the calls interleave.
    ///
    /// # Errors
    /// A message with the calls and answers that no order explains.
    pub async fn play(fixture: Arc<dyn Fixture>, seed: u64) -> Result<Self, String> {
        let failed = |divergence: Divergence| format!("{}: {divergence}", fixture.backend());
        let mut player = Player::new(fixture.clone()).await.map_err(failed)?;
        let mut done = Self::default();
        for burst in 0..BURSTS {
            let steps = sample(seed_of(seed, 2 * burst), 12);
            player.go_on(&steps).await.map_err(failed)?;
            let calls = sample_calls(seed_of(seed, 2 * burst + 1), SAMPLED);
            let unknown = done.unknown;
            let burst = match burst {
                OF_PROCESSES if is_shared(&player) => Burst::Processes,
                // A call that is given up may take effect at any time, so nothing is certain after
                // it.
                _ if burst + 1 == BURSTS => Burst::GivingUp,
                _ => Burst::Handles,
            };
            done.burst(&mut player, &calls, burst).await.map_err(failed)?;
            if done.unknown > unknown {
                return Ok(done);
            }
        }
        player.compare_all().await.map_err(failed)?;
        Ok(done)
    }

    async fn burst(
        &mut self,
        player: &mut Player,
        steps: &[(Step, Option<u8>)],
        burst: Burst,
    ) -> Result<(), Divergence> {
        let events = Arc::new(Mutex::new(Vec::new()));
        let mut calls = Vec::new();
        for (step, patience) in steps {
            // The number of runs that a prune deletes does not tell which it skipped (M2).
            let Some(call) = player.call(step)?.filter(|call| !matches!(call, Call::Prune { .. })) else {
                continue;
            };
            match burst {
                Burst::Processes => {
                    calls.extend(Asked::of(&call).map(|asked| (Wanted::Process(asked), None)));
                }
                Burst::Handles => calls.push((Wanted::Handle(call), None)),
                Burst::GivingUp => calls.push((Wanted::Handle(call), *patience)),
            }
        }
        // All callers are ready before the first begins.
        let mut callers = Vec::new();
        for _ in 0..CLIENTS {
            callers.push(match burst {
                Burst::Processes => {
                    let started = Caller::start(player.url(), player.now()).await;
                    By::Process(Box::new(
                        started.map_err(|error| Divergence::new(format!("a process: {error}")))?,
                    ))
                }
                _ => By::Handle(handle(player).await?),
            });
        }
        let clients = (0..CLIENTS).zip(callers).zip(calls.chunks(CALLS));
        let clients: Vec<_> = clients
            .map(|((client, by), calls)| tokio::spawn(make(client, by, calls.to_vec(), events.clone())))
            .collect();
        for client in clients {
            client.await.map_err(|error| Divergence::new(error.to_string()))??;
        }
        let mut events = std::mem::take(&mut *events.lock().unwrap_or_else(PoisonError::into_inner));
        for call in everything(player)? {
            events.push(Event { client: LOOKING, what: What::Called(call.clone()) });
            let answer = call.of(player.db()).await;
            events.push(Event { client: LOOKING, what: What::Answered(answer) });
        }

        self.histories += 1;
        for event in &events {
            match event.what {
                What::Called(_) => self.calls += u64::from(event.client != LOOKING),
                What::Answered(_) => {}
                What::Lost => self.unknown += 1,
            }
        }
        let explained = explain(player.model(), player.now(), &events).map_err(Divergence::new)?;
        player.follow(explained.model, &explained.answers);
        Ok(())
    }
}

impl std::ops::AddAssign for Histories {
    fn add_assign(&mut self, more: Self) {
        self.histories += more.histories;
        self.calls += more.calls;
        self.unknown += more.unknown;
    }
}

/// Who makes the calls of a burst, and whether they wait for the answers.
#[derive(Clone, Copy)]
enum Burst {
    Handles,
    Processes,
    GivingUp,
}

/// A call for a client to make.
#[derive(Clone)]
enum Wanted {
    Handle(Call),
    Process(Asked),
}

/// How a client makes its calls.
enum By {
    Handle(Arc<dyn Database>),
    Process(Box<Caller>),
}

/// Whether a store can have several handles, in any processes.
fn is_shared(player: &Player) -> bool {
    [Capability::Durable, Capability::MultiProcess].iter().all(|it| player.has(*it))
}

/// A handle for a client.
async fn handle(player: &Player) -> Result<Arc<dyn Database>, Divergence> {
    if is_shared(player) { Ok(player.another().await?) } else { Ok(player.shared_db()) }
}

async fn make(
    client: u64,
    mut by: By,
    calls: Vec<(Wanted, Option<u8>)>,
    events: Arc<Mutex<Vec<Event>>>,
) -> Result<(), Divergence> {
    let note = |what| events.lock().unwrap_or_else(PoisonError::into_inner).push(Event { client, what });
    let last = calls.len().saturating_sub(1);
    for (number, (wanted, patience)) in calls.into_iter().enumerate() {
        let call = match &wanted {
            Wanted::Handle(call) => call.clone(),
            Wanted::Process(asked) => asked.clone().call()?,
        };
        note(What::Called(call.clone()));
        // Only the last call of a client is given up, because a client with a running call makes no
        // other.
        let patience = patience.filter(|_| number == last && makes_nothing(&call));
        let answer = match (&mut by, wanted, patience) {
            (By::Process(process), Wanted::Process(asked), _) => {
                let answer = process.answer(asked, &call).await;
                Some(answer.map_err(|error| Divergence::new(format!("a process: {error}")))?)
            }
            // By turns, not by time: a timer is too coarse for calls this quick.
            (By::Handle(db), _, Some(patience)) => tokio::select! {
                biased;
                answer = call.of(&**db) => Some(answer),
                () = turns(patience) => None,
            },
            (By::Handle(db), ..) => Some(call.of(&**db).await),
            (By::Process(_), Wanted::Handle(_), _) => None,
        };
        let known = answer.filter(|it| it.error().is_none_or(|error| error.effect() != Effect::Unknown));
        let Some(answer) = known else {
            note(What::Lost);
            return Ok(());
        };
        note(What::Answered(answer));
    }
    Ok(())
}

async fn turns(number: u8) {
    for _ in 0..number {
        tokio::task::yield_now().await;
    }
}

/// Whether the store chooses nothing in a call, not even what to leave to the next call. If nobody
/// sees the answer, such a choice stays unknown.
const fn makes_nothing(call: &Call) -> bool {
    matches!(
        call,
        Call::CancelRun { .. }
            | Call::PauseRun { .. }
            | Call::ResumeRun { .. }
            | Call::RetryRun { .. }
            | Call::Heartbeat { .. }
            | Call::UpdateTasks { .. }
            | Call::UpdateJobs { .. }
            | Call::DeleteWorkflow { .. }
    )
}

/// The calls that show the whole state.
fn everything(player: &Player) -> Result<Vec<Call>, Divergence> {
    let all = Limit::MAX;
    let mut calls = vec![
        Call::ListWorkflows { list: PageRequest::first(all).into() },
        Call::ListRuns { list: PageRequest::first(all).into() },
        Call::ReadyTasks { limit: all },
    ];
    calls.extend(
        player.runs().map(|run| Call::ListTasks { list: ListTasks::of(run, PageRequest::first(all)) }),
    );
    Ok(calls)
}
