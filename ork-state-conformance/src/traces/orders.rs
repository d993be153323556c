//! The order in which calls made at the same time had their effect.
//!
//! A store is linearizable if its answers are those of some order of the calls in which none comes
//! before one that had ended when it began ([Herlihy and Wing,
//! 1990](https://doi.org/10.1145/78969.78972)). That order is searched for by
//! [`LinearizabilityTester`], with the model to say what each answer would have to be. The contract
//! lets a call that takes something leave what others are at meanwhile (T2, T3, D1): the model is
//! told what that is, for each call.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ork_state_api::{RunId, Timestamp};
use stateright::semantics::{ConsistencyTester as _, LinearizabilityTester, SequentialSpec};

use super::player::shown;
use crate::model::{Answer, Call, Contention, Model};

/// What a client does, or learns.
#[derive(Debug, Clone)]
pub(super) struct Event {
    pub(super) client: u64,
    pub(super) what: What,
}

#[derive(Debug, Clone)]
pub(super) enum What {
    Called(Call),
    Answered(Answer),
    /// There will be no answer, or none that tells whether anything was done.
    Lost,
}

impl Event {
    fn told(&self) -> String {
        let Self { client, what } = self;
        match what {
            What::Called(call) => format!("client {client} calls {}", shown(call)),
            What::Answered(answer) => format!("client {client} is answered {}", shown(answer)),
            What::Lost => format!("client {client} is not answered"),
        }
    }
}

/// An order of calls, played.
pub(super) struct Explained {
    /// The store after them.
    pub(super) model: Model,
    /// What they were answered, in this order.
    pub(super) answers: Vec<Answer>,
}

/// Searches an order of the calls that explains their answers, in a store that was as this model
/// before.
///
/// # Errors
/// A message with the calls and answers that no order explains.
pub(super) fn explain(model: &Model, now: Timestamp, events: &[Event]) -> Result<Explained, String> {
    let mut store = Store { model: model.clone(), now, ready_by: BTreeMap::new() };
    let mut tester = LinearizabilityTester::new(store.clone());
    let mut made = Made::all(model, events).into_iter();
    for Event { client, what } in events {
        match what {
            What::Called(_) => {
                let Some(made) = made.next() else { break };
                tester.on_invoke(*client, made)?;
            }
            What::Answered(answer) => drop(tester.on_return(*client, Said(answer.clone()))?),
            What::Lost => {}
        }
    }
    let Some(order) = tester.serialized_history() else {
        let lines: Vec<String> = events.iter().map(|event| format!("    {}", event.told())).collect();
        return Err(format!("no order of these calls explains their answers:\n{}", lines.join("\n")));
    };
    let mut answers = Vec::new();
    for (made, Said(answer)) in order {
        store.answer(&made, Some(&answer));
        answers.push(answer);
    }
    Ok(Explained { model: store.model, answers })
}

/// A call, with what there is to know about those that were under way at the same time.
#[derive(Debug)]
struct Made {
    number: usize,
    call: Call,
    /// Their numbers.
    meanwhile: BTreeSet<usize>,
    /// What they were at.
    contention: Contention,
}

impl Made {
    /// The calls, in the order in which they began.
    fn all(model: &Model, events: &[Event]) -> Vec<Arc<Self>> {
        let spans = Span::all(events);
        let made = spans.iter().enumerate().map(|(number, span)| {
            let mut made = Self {
                number,
                call: span.call.clone(),
                meanwhile: BTreeSet::new(),
                contention: Contention::default(),
            };
            for (other, at) in
                spans.iter().enumerate().filter(|(other, at)| *other != number && span.meets(at))
            {
                made.meanwhile.insert(other);
                made.contention.add(model, at.call, at.answer);
            }
            Arc::new(made)
        });
        made.collect()
    }
}

/// When a call was under way, by the number of the events.
struct Span<'a> {
    client: u64,
    call: &'a Call,
    answer: Option<&'a Answer>,
    from: usize,
    /// None if it may go on for ever.
    until: Option<usize>,
}

impl<'a> Span<'a> {
    fn all(events: &'a [Event]) -> Vec<Self> {
        let mut spans: Vec<Self> = Vec::new();
        for (number, Event { client, what }) in events.iter().enumerate() {
            match what {
                What::Called(call) => {
                    spans.push(Self { client: *client, call, answer: None, from: number, until: None });
                }
                What::Answered(answer) => {
                    if let Some(span) = spans.iter_mut().rfind(|span| span.client == *client) {
                        (span.answer, span.until) = (Some(answer), Some(number));
                    }
                }
                What::Lost => {}
            }
        }
        spans
    }

    fn meets(&self, other: &Self) -> bool {
        let is_over = |span: &Self, at| span.until.is_some_and(|until| until < at);
        !is_over(self, other.from) && !is_over(other, self.from)
    }
}

/// The model, as the tester wants it.
#[derive(Clone)]
struct Store {
    model: Model,
    now: Timestamp,
    /// Which call made a task ready, the task known by its place in its run.
    ready_by: BTreeMap<(RunId, u32), usize>,
}

impl Store {
    fn answer(&mut self, made: &Made, seen: Option<&Answer>) -> Answer {
        self.model.contention = made.contention.clone();
        for (&(run, index), by) in &self.ready_by {
            if made.meanwhile.contains(by) {
                self.model.contention.add_ready(run, index);
            }
        }
        let before = self.ready();
        let answer = self.model.answer(self.now, made.call.clone(), seen);
        for place in self.ready().difference(&before) {
            self.ready_by.insert(*place, made.number);
        }
        self.model.contention = Contention::default();
        answer
    }

    fn ready(&self) -> BTreeSet<(RunId, u32)> {
        self.model.all_ready(self.now).iter().map(|it| (it.run, it.index)).collect()
    }
}

impl SequentialSpec for Store {
    type Op = Arc<Made>;
    type Ret = Said;

    fn invoke(&mut self, made: &Arc<Made>) -> Said {
        Said(self.answer(made, None))
    }

    fn is_valid_step(&mut self, made: &Arc<Made>, Said(seen): &Said) -> bool {
        self.answer(made, Some(seen)).is_like(seen)
    }
}

/// An answer; two are equal if they say the same.
#[derive(Debug, Clone)]
struct Said(Answer);

impl PartialEq for Said {
    fn eq(&self, other: &Self) -> bool {
        self.0.is_like(&other.0)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ork_state_api::{ClaimTasks, ExpiredTasks, LeaseTime, Limit, NewRun, NewWorkflow, Result, StartRun};

    use super::super::words;
    use super::*;

    const NOW: Timestamp = Timestamp::MIN;

    /// A store of two runs of three tasks that wait for nothing, the second of them not started.
    fn store() -> Result<(Model, RunId, RunId)> {
        let mut model = Model::default();
        model.answer(NOW, Call::Migrate {}, None);
        let new = NewWorkflow::new(words::workflow_name(0)?, words::dag(6)?);
        let Answer::CreateWorkflow(workflow) = model.answer(NOW, Call::CreateWorkflow { new }, None) else {
            unreachable!("a call has its own answer")
        };
        let new = NewRun::new(workflow?.id);
        let mut create = || match model.answer(NOW, Call::CreateRun { new: new.clone() }, None) {
            Answer::CreateRun(created) => created.map(|created| created.into_run().id),
            _ => unreachable!("a call has its own answer"),
        };
        let (started, pending) = (create()?, create()?);
        model.answer(NOW, start(started), None);
        Ok((model, started, pending))
    }

    const fn start(run: RunId) -> Call {
        Call::StartRun { start: StartRun::pinned(run) }
    }

    fn claim(limit: usize) -> Result<Call> {
        let lease = LeaseTime::new(Duration::from_secs(1))?;
        Ok(Call::ClaimTasks {
            claim: ClaimTasks::new(words::label(0)?, lease).with_limit(Limit::new(limit)?),
        })
    }

    const NOTHING: Answer = Answer::ClaimTasks(Ok(vec![]));

    fn called(client: u64, call: &Call) -> Event {
        Event { client, what: What::Called(call.clone()) }
    }

    fn answered(client: u64, answer: &Answer) -> Event {
        Event { client, what: What::Answered(answer.clone()) }
    }

    /// A look at how much of what there is, before anything else happens to the store.
    fn look(model: &Model, now: Timestamp) -> [Event; 2] {
        let stats = Call::Stats {};
        [called(9, &stats), answered(9, &model.clone().answer(now, stats.clone(), None))]
    }

    fn is_explained(model: &Model, now: Timestamp, events: &[&[Event]]) -> bool {
        explain(model, now, &events.concat()).is_ok()
    }

    #[test]
    fn a_claim_may_leave_what_another_takes_at_the_same_time() -> Result<()> {
        let (before, ..) = store()?;
        let (all, two) = (claim(100)?, claim(2)?);
        let takes_all = before.clone().answer(NOW, all.clone(), None);
        let unseen = look(&before, NOW);
        let begun = [called(1, &all), called(2, &all)];
        let lacking = [answered(2, &NOTHING)];
        assert!(is_explained(&before, NOW, &[&begun, &lacking, &unseen, &[answered(1, &takes_all)]]));

        let sooner = [called(2, &all), answered(2, &NOTHING)];
        let later = [called(1, &all), answered(1, &takes_all)];
        assert!(!is_explained(&before, NOW, &[&sooner, &unseen, &later]), "nobody else was at them");

        let takes_two = before.clone().answer(NOW, two.clone(), None);
        let begun = [called(1, &two), called(2, &all)];
        let ended = [answered(1, &takes_two)];
        assert!(
            !is_explained(&before, NOW, &[&begun, &lacking, &unseen, &ended]),
            "the third was left lying"
        );
        Ok(())
    }

    #[test]
    fn a_claim_may_leave_what_becomes_ready_meanwhile() -> Result<()> {
        let (before, _, pending) = store()?;
        let (all, start) = (claim(100)?, start(pending));
        let takes = before.clone().answer(NOW, all.clone(), None);
        let mut started = before.clone();
        let starts = started.answer(NOW, start.clone(), None);
        // The others see the start and not yet the claim, which does not see the start.
        let seen = look(&started, NOW);
        let starting = [called(2, &start), answered(2, &starts)];
        let (begun, ended) = ([called(1, &all)], [answered(1, &takes)]);
        assert!(is_explained(&before, NOW, &[&begun, &starting, &seen, &ended]));
        assert!(!is_explained(&before, NOW, &[&starting, &begun, &seen, &ended]), "it was started before");
        assert!(
            !is_explained(&before, NOW, &[&begun, &starting, &seen, &[answered(1, &NOTHING)]]),
            "the first run was ready long before"
        );
        Ok(())
    }

    #[test]
    fn a_claim_may_leave_the_tasks_of_a_run_that_is_paused_at_the_same_time() -> Result<()> {
        let (before, run, _) = store()?;
        let (all, pause) = (claim(100)?, Call::PauseRun { id: run });
        let pauses = before.clone().answer(NOW, pause.clone(), None);
        let unseen = look(&before, NOW);
        let claiming = [called(1, &all), answered(1, &NOTHING)];
        let (begun, ended) = ([called(2, &pause)], [answered(2, &pauses)]);
        assert!(is_explained(&before, NOW, &[&begun, &claiming, &unseen, &ended]));
        assert!(!is_explained(&before, NOW, &[&claiming, &unseen, &begun, &ended]), "it was not paused yet");
        Ok(())
    }

    #[test]
    fn an_expiry_may_leave_what_another_takes_back_and_count_it() -> Result<()> {
        let (mut before, ..) = store()?;
        before.answer(NOW, claim(3)?, None);
        let now = NOW.saturating_add(Duration::from_secs(1));
        let limited = |limit| Ok::<_, ork_state_api::Error>(Call::ExpireLeases { limit: Limit::new(limit)? });
        let (one, two) = (limited(1)?, limited(2)?);
        let takes_one = before.clone().answer(now, one.clone(), None);
        let unseen = look(&before, now);
        let lacking = [answered(2, &Answer::ExpireLeases(Ok(ExpiredTasks::default())))];
        let ended = [answered(1, &takes_one)];
        let begun = [called(1, &one), called(2, &one)];
        assert!(is_explained(&before, now, &[&begun, &lacking, &unseen, &ended]));
        let (sooner, later) = ([called(2, &one)], [called(1, &one)]);
        assert!(!is_explained(&before, now, &[&sooner, &lacking, &unseen, &later, &ended]), "it was alone");
        let begun = [called(1, &one), called(2, &two)];
        assert!(!is_explained(&before, now, &[&begun, &lacking, &unseen, &ended]), "it asked for two");
        Ok(())
    }
}
