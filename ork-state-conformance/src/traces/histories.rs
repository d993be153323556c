//! Calls of several clients at the same time, against the model.
//!
//! A store is linearizable if its answers are those of some order of the calls in which none comes before one that had ended when it began
//! ([Herlihy and Wing, 1990](https://doi.org/10.1145/78969.78972)). That order is searched for by [`LinearizabilityTester`], with the
//! model to say what each answer would have to be.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use ork_state_api::{Capability, Database, Limit, ListTasks, Outcome, PageRequest, RunId, Timestamp};
use serde::{Deserialize, Serialize};
use stateright::semantics::{ConsistencyTester as _, LinearizabilityTester, SequentialSpec};

use super::player::{Divergence, Player, shown};
use super::seed_of;
use super::steps::{Step, sample, sample_calls};
use crate::Fixture;
use crate::model::{Answer, Call, Model};

/// How many clients call at the same time, and how many calls each makes. The search for an order takes the longer the more there are.
const CLIENTS: u64 = 3;
const CALLS: usize = 3;

/// How often, over one store.
const BURSTS: u64 = 4;

/// The client that looks at everything once the others have ended.
const LOOKING: u64 = CLIENTS;

/// How many histories there were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Histories {
    /// Bursts of calls at the same time, each a history.
    pub histories: u64,
    /// The calls in them.
    pub calls: u64,
    /// Those among them whose callers gave up before the answer, or got one that tells not whether anything was done.
    pub unknown: u64,
}

impl Histories {
    /// Has clients call a fresh store at the same time, each through a handle of its own where it can be opened more than once, and searches an order of the
    /// calls that explains their answers and what is there afterwards. Where chance comes from is the seed; how the calls meet is up to the machine.
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
            let calls =
                sample_calls(seed_of(seed, 2 * burst + 1), usize::try_from(CLIENTS).unwrap_or(1) * CALLS);
            let unknown = done.unknown;
            // What is given up may have its effect whenever it likes: nothing is known for certain after it.
            done.burst(&mut player, &calls, burst + 1 == BURSTS).await.map_err(failed)?;
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
        gives_up: bool,
    ) -> Result<(), Divergence> {
        let events = Arc::new(Mutex::new(Vec::new()));
        let mut clients = Vec::new();
        for (client, steps) in (0..).zip(steps.chunks(CALLS)) {
            let db = handle(player).await?;
            let mut calls = Vec::new();
            for (step, patience) in steps {
                if let Some(call) = player.call(step)? {
                    // The last one of a client: one that has a call under way makes no other.
                    let is_last = calls.len() + 1 == steps.len();
                    calls.push((call, patience.filter(|_| gives_up && is_last)));
                }
            }
            clients.push(tokio::spawn(make(client, db, calls, events.clone())));
        }
        for client in clients {
            client.await.map_err(|error| Divergence::new(error.to_string()))?;
        }
        let mut events = std::mem::take(&mut *events.lock().unwrap_or_else(PoisonError::into_inner));
        for call in everything(player)? {
            events.push(Event { client: LOOKING, what: What::Called(call.clone()) });
            let answer = call.of(player.db()).await;
            events.push(Event { client: LOOKING, what: What::Answered(answer) });
        }

        // T2: a claim waits for nobody, and passes over what a pause or a cancellation is just at.
        player.set_busy(events.iter().filter_map(Event::unmakes_ready).collect());
        let now = player.now();
        let mut tester = LinearizabilityTester::new(Spec { model: player.model().clone(), now });
        for Event { client, what } in events.clone() {
            let known = match what {
                What::Called(call) => {
                    self.calls += u64::from(client != LOOKING);
                    tester.on_invoke(client, call).map(drop)
                }
                What::Answered(answer) => tester.on_return(client, Said(answer)).map(drop),
                What::Lost => {
                    self.unknown += 1;
                    Ok(())
                }
            };
            known.map_err(Divergence::new)?;
        }
        self.histories += 1;
        let Some(order) = tester.serialized_history() else {
            let lines: Vec<String> = events.iter().map(|event| format!("    {}", event.told())).collect();
            return Err(Divergence::new(format!(
                "no order of these calls explains their answers:\n{}",
                lines.join("\n")
            )));
        };
        for (call, Said(answer)) in order {
            player.follow(call, &answer);
        }
        player.set_busy(BTreeSet::new());
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

/// A handle for a client.
async fn handle(player: &Player) -> Result<Arc<dyn Database>, Divergence> {
    let shared = [Capability::Durable, Capability::MultiProcess].iter().all(|it| player.has(*it));
    if shared { Ok(player.another().await?) } else { Ok(player.shared_db()) }
}

/// What a client does, or learns.
#[derive(Debug, Clone)]
struct Event {
    client: u64,
    what: What,
}

#[derive(Debug, Clone)]
enum What {
    Called(Call),
    Answered(Answer),
    Lost,
}

impl Event {
    /// The run whose tasks it takes away from claimers.
    const fn unmakes_ready(&self) -> Option<RunId> {
        match self.what {
            What::Called(Call::PauseRun { id } | Call::CancelRun { id }) => Some(id),
            _ => None,
        }
    }

    fn told(&self) -> String {
        let Self { client, what } = self;
        match what {
            What::Called(call) => format!("client {client} calls {}", shown(call)),
            What::Answered(answer) => format!("client {client} is answered {}", shown(answer)),
            What::Lost => format!("client {client} is not answered"),
        }
    }
}

async fn make(
    client: u64,
    db: Arc<dyn Database>,
    calls: Vec<(Call, Option<u8>)>,
    events: Arc<Mutex<Vec<Event>>>,
) {
    let note = |what| events.lock().unwrap_or_else(PoisonError::into_inner).push(Event { client, what });
    for (call, patience) in calls {
        note(What::Called(call.clone()));
        let answer = match patience.filter(|_| makes_nothing(&call)) {
            // By turns, not by time: a timer is too coarse for calls this quick.
            Some(patience) => tokio::select! {
                biased;
                answer = call.of(&*db) => Some(answer),
                () = turns(patience) => None,
            },
            None => Some(call.of(&*db).await),
        };
        let known = answer.filter(|it| it.error().is_none_or(|error| error.outcome() != Outcome::Unknown));
        let Some(answer) = known else {
            note(What::Lost);
            // A client that has a call under way makes no other.
            return;
        };
        note(What::Answered(answer));
    }
}

async fn turns(number: u8) {
    for _ in 0..number {
        tokio::task::yield_now().await;
    }
}

/// Whether the store chooses nothing of its own in a call: what it chose could not be told from an answer that nobody saw.
const fn makes_nothing(call: &Call) -> bool {
    matches!(
        call,
        Call::CancelRun { .. }
            | Call::PauseRun { .. }
            | Call::ResumeRun { .. }
            | Call::RetryRun { .. }
            | Call::Heartbeat { .. }
            | Call::UpdateTasks { .. }
            | Call::ExpireLeases { .. }
            | Call::UpdateJobs { .. }
            | Call::DeleteWorkflow { .. }
    )
}

/// The calls that show what is there.
fn everything(player: &Player) -> Result<Vec<Call>, Divergence> {
    let all = Limit::new(Limit::MAX)?;
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

/// The model, as the tester wants it.
#[derive(Clone)]
struct Spec {
    model: Model,
    now: Timestamp,
}

/// An answer; two are equal if they say the same.
#[derive(Debug, Clone)]
struct Said(Answer);

impl PartialEq for Said {
    fn eq(&self, other: &Self) -> bool {
        self.0.is_like(&other.0)
    }
}

impl SequentialSpec for Spec {
    type Op = Call;
    type Ret = Said;

    fn invoke(&mut self, call: &Call) -> Said {
        Said(self.model.answer(self.now, call.clone(), None))
    }

    fn is_valid_step(&mut self, call: &Call, Said(seen): &Said) -> bool {
        self.model.answer(self.now, call.clone(), Some(seen)).is_like(seen)
    }
}
