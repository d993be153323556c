//! Finds the order in which concurrent calls took effect.
//!
//! A store is linearizable if some order of the calls explains its answers. In that order, no call
//! may come before one that had ended when it began ([Herlihy and Wing,
//! 1990](https://doi.org/10.1145/78969.78972)). That order is [searched for](Search). The model
//! says what each answer would have to be. The contract allows a call that takes something to skip
//! what others are working on meanwhile (T2, T3, D1). So the model is told what that is, for each
//! call.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ork_state_api::{RunId, Timestamp};

use super::player::shown;
use crate::model::{Answer, Call, Contention, Model};

/// A call of a client, or its answer.
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

/// An order of the calls that explains them.
pub(super) struct Explained {
    /// The state after them.
    pub(super) model: Model,
    /// The calls' answers, in this order.
    pub(super) answers: Vec<Answer>,
}

/// Searches for an order of the calls that explains their answers. Before them the store was in the
/// state of this model.
///
/// # Errors
/// A message with the calls and answers that no order explains.
pub(super) fn explain(model: &Model, now: Timestamp, events: &[Event]) -> Result<Explained, String> {
    let calls = Made::all(model, events);
    let mut search = Search::new(&calls);
    let before = Store { model: model.clone(), now, ready_by: BTreeMap::new() };
    let Some(after) = search.go_on(before) else {
        let lines: Vec<String> = events.iter().map(|event| format!("    {}", event.told())).collect();
        return Err(format!("no order of these calls explains their answers:\n{}", lines.join("\n")));
    };
    Ok(Explained { model: after.model, answers: search.answers })
}

/// A search for an order, after [Wing and Gong, 1993](https://doi.org/10.1006/jpdc.1993.1015). The
/// next call may be any that no other call must precede. If the model gives it another answer than
/// the store did, another call is tried instead. The same happens if no order of the rest works.
///
/// With the addition of [Lowe, 2017](https://doi.org/10.1002/cpe.3928), nothing is searched twice.
/// The rest of a search depends only on which calls are done and on the state after them.
struct Search<'a> {
    /// In the order in which they ended, followed by those that did not end. Most often this is
    /// close to the right order.
    calls: Vec<&'a Made<'a>>,
    /// Which of them are placed in the order, by number.
    done: Vec<bool>,
    /// The answers to those, in the order so far.
    answers: Vec<Answer>,
    /// States from which the rest failed, by the set of placed calls.
    dead_ends: HashMap<Vec<bool>, Vec<Store>>,
}

impl<'a> Search<'a> {
    fn new(calls: &'a [Made<'a>]) -> Self {
        let done = vec![false; calls.len()];
        let mut calls: Vec<&Made<'_>> = calls.iter().collect();
        calls.sort_by_key(|call| (call.until.is_none(), call.until));
        Self { calls, done, answers: vec![], dead_ends: HashMap::new() }
    }

    /// The state after an order that begins with the placed calls, which have led to this state.
    fn go_on(&mut self, store: Store) -> Option<Store> {
        // A call without an answer may never have taken effect.
        if self.left().all(|call| call.answer.is_none()) {
            return Some(store);
        }
        if self.dead_ends.get(&self.done).is_some_and(|stores| stores.contains(&store)) {
            return None;
        }
        for place in 0..self.calls.len() {
            let call = self.calls[place];
            if self.done[call.number] || self.left().any(|other| other.is_over_before(call)) {
                continue;
            }
            let mut next = store.clone();
            let answer = next.answer(call);
            if call.answer.is_some_and(|seen| !answer.is_like(seen)) {
                continue;
            }
            self.done[call.number] = true;
            self.answers.push(call.answer.cloned().unwrap_or(answer));
            if let Some(after) = self.go_on(next) {
                return Some(after);
            }
            self.done[call.number] = false;
            self.answers.pop();
        }
        self.dead_ends.entry(self.done.clone()).or_default().push(store);
        None
    }

    /// The calls that are not yet placed in the order.
    fn left(&self) -> impl Iterator<Item = &'a Made<'a>> {
        self.calls.iter().copied().filter(|call| !self.done[call.number])
    }
}

/// A call, the time when it was running, and what is known about concurrent calls.
struct Made<'a> {
    number: usize,
    client: u64,
    call: &'a Call,
    answer: Option<&'a Answer>,
    /// As the number of an event.
    from: usize,
    /// None if it may continue for ever.
    until: Option<usize>,
    /// The numbers of the concurrent calls.
    meanwhile: BTreeSet<usize>,
    /// What those calls were working on.
    contention: Contention,
}

impl<'a> Made<'a> {
    /// The calls, in the order in which they began.
    fn all(model: &Model, events: &'a [Event]) -> Vec<Self> {
        let mut all: Vec<Self> = Vec::new();
        for (at, Event { client, what }) in events.iter().enumerate() {
            match what {
                What::Called(call) => all.push(Self {
                    number: all.len(),
                    client: *client,
                    call,
                    answer: None,
                    from: at,
                    until: None,
                    meanwhile: BTreeSet::new(),
                    contention: Contention::default(),
                }),
                What::Answered(answer) => {
                    if let Some(made) = all.iter_mut().rfind(|made| made.client == *client) {
                        (made.answer, made.until) = (Some(answer), Some(at));
                    }
                }
                What::Lost => {}
            }
        }
        for number in 0..all.len() {
            let (mut meanwhile, mut contention) = (BTreeSet::new(), Contention::default());
            for other in all.iter().filter(|other| other.number != number && other.meets(&all[number])) {
                meanwhile.insert(other.number);
                contention.add(model, other.call, other.answer);
            }
            (all[number].meanwhile, all[number].contention) = (meanwhile, contention);
        }
        all
    }

    fn is_over_before(&self, other: &Self) -> bool {
        self.until.is_some_and(|until| until < other.from)
    }

    fn meets(&self, other: &Self) -> bool {
        !self.is_over_before(other) && !other.is_over_before(self)
    }
}

/// The model, and what it does not show.
#[derive(Clone, PartialEq)]
struct Store {
    model: Model,
    now: Timestamp,
    /// Which call made a task ready. The key is the task's position in its run.
    ready_by: BTreeMap<(RunId, u32), usize>,
}

impl Store {
    fn answer(&mut self, made: &Made<'_>) -> Answer {
        self.model.contention = made.contention.clone();
        for (&(run, index), by) in &self.ready_by {
            if made.meanwhile.contains(by) {
                self.model.contention.add_ready(run, index);
            }
        }
        let before = self.ready();
        let answer = self.model.answer(self.now, made.call.clone(), made.answer);
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ork_state_api::{ClaimTasks, ExpiredTasks, LeaseTime, Limit, NewRun, NewWorkflow, Result, StartRun};

    use super::super::words;
    use super::*;

    const NOW: Timestamp = Timestamp::MIN;

    /// A store of two runs with three independent tasks each. The second run is not started.
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

    /// A read of the counts, before anything else happens to the store.
    fn look(model: &Model, now: Timestamp) -> [Event; 2] {
        let stats = Call::Stats {};
        [called(9, &stats), answered(9, &model.clone().answer(now, stats.clone(), None))]
    }

    /// A read of a run, answered as this model does.
    fn look_at_run(model: &Model, id: RunId) -> [Event; 2] {
        let get = Call::GetRun { id };
        [called(9, &get), answered(9, &model.clone().answer(NOW, get.clone(), None))]
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
        // The others see the start and not yet the claim. The claim does not see the start.
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

    #[test]
    fn another_order_is_tried_where_one_does_not_go_on() -> Result<()> {
        let (running, run, _) = store()?;
        let (pause, resume) = (Call::PauseRun { id: run }, Call::ResumeRun { id: run });
        let mut paused = running.clone();
        let pauses = paused.answer(NOW, pause.clone(), None);
        let resumes = paused.clone().answer(NOW, resume.clone(), None);
        // Judging by their answers, either may be the first. Only the final state tells which it
        // was.
        let begun = [called(1, &pause), called(2, &resume)];
        let ended = [answered(1, &pauses), answered(2, &resumes)];
        for after in [&running, &paused] {
            assert!(is_explained(&running, NOW, &[&begun, &ended, &look_at_run(after, run)]));
        }
        let in_turn = [&begun[..1], &ended[..1], &begun[1..], &ended[1..]].concat();
        assert!(is_explained(&running, NOW, &[&in_turn, &look_at_run(&running, run)]));
        assert!(
            !is_explained(&running, NOW, &[&in_turn, &look_at_run(&paused, run)]),
            "it was resumed after it was paused"
        );
        Ok(())
    }

    #[test]
    fn a_call_without_an_answer_may_have_its_effect_later_or_never() -> Result<()> {
        let (running, run, _) = store()?;
        let pause = Call::PauseRun { id: run };
        let mut paused = running.clone();
        paused.answer(NOW, pause.clone(), None);
        let given_up = [called(1, &pause), Event { client: 1, what: What::Lost }];
        let (still_running, is_paused) = (look_at_run(&running, run), look_at_run(&paused, run));
        assert!(is_explained(&running, NOW, &[&given_up, &still_running]), "never");
        assert!(is_explained(&running, NOW, &[&given_up, &is_paused]), "at once");
        assert!(is_explained(&running, NOW, &[&given_up, &still_running, &is_paused]), "later");
        assert!(!is_explained(&running, NOW, &[&given_up, &is_paused, &still_running]), "and undone");
        assert!(!is_explained(&running, NOW, &[&is_paused, &given_up]), "before it began");
        Ok(())
    }

    #[test]
    fn nothing_is_searched_twice() -> Result<()> {
        let (running, run, _) = store()?;
        let mut paused = running.clone();
        paused.answer(NOW, Call::PauseRun { id: run }, None);
        // Six clients read at the same time. No order of the reads leads to a paused run.
        let [call, answer] = look_at_run(&running, run);
        let by = |event: &Event| (1..=6).map(|client| Event { client, ..event.clone() }).collect::<Vec<_>>();
        let events = [by(&call), by(&answer), look_at_run(&paused, run).to_vec()].concat();
        let calls = Made::all(&running, &events);
        let mut search = Search::new(&calls);
        assert!(search.go_on(Store { model: running, now: NOW, ready_by: BTreeMap::new() }).is_none());
        let dead_ends: usize = search.dead_ends.values().map(Vec::len).sum();
        assert_eq!(dead_ends, 1 << 6, "as many as there are sets of six calls");
        Ok(())
    }
}
