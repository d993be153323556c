//! Processes work off one store while they are killed and while leases lapse. Is a task ever handed
//! out twice, lost, or ended by a process that no longer holds it?

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use ork_state_api::{
    ClaimTasks, Label, LeaseTime, Limit, NewWorkflow, RunStatus, TaskId, TaskStatus, TaskUpdate, TaskUpdates,
    Timestamp, Token, UpdateOutcome,
};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::child::{Other, Role, say};
use super::figures::{Outcome, Verdict, Wanted};
use super::store::{self, Bench, connect};
use super::{AnyError, number};

const PROCESSES: usize = 8;
const RUN: usize = 1000;
/// Few enough for one line that a pipe delivers whole.
const BATCH: usize = 20;
const LEASE: Duration = Duration::from_millis(500);
/// A process is killed after at most this many claims.
const LIVES: u128 = 60;
/// One batch in this many is kept for longer than its leases last.
const LATE: u32 = 25;

/// What a working process reports, one per line, before it does anything else.
#[derive(Debug, Serialize, Deserialize)]
enum Told {
    /// These tasks were handed to it.
    Claimed(Vec<HandOut>),
    /// It was told that its update of this task was applied, or that it was not.
    Updated { task: TaskId, token: Token, applied: bool },
    /// It has found no unfinished task.
    Over,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct HandOut {
    task: TaskId,
    token: Token,
    at: Timestamp,
    until: Timestamp,
}

/// All reports about the tasks.
#[derive(Default)]
struct Book {
    hand_outs: HashMap<TaskId, BTreeMap<Token, HandOut>>,
    applied: HashMap<TaskId, Vec<Token>>,
    refused: usize,
    kills: usize,
}

/// The violations, by kind.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wrong {
    /// Handed out while the previous lease was live.
    twice: usize,
    /// Updates that were applied twice, or after the task had been handed to another process.
    stale: usize,
    /// Tasks that never ended, or did not end in success.
    lost: usize,
}

pub(super) async fn measure(bench: &Bench) -> Result<Option<Outcome>, AnyError> {
    // A store in memory has no other processes.
    if bench.backend() == "memory" {
        return Ok(None);
    }
    let runs = bench.size(100, 3);
    let store = bench.store().await?;
    // A lapsed lease costs an attempt.
    let dag = store::retried_chains(RUN, 10, 1000)?;
    let workflow = store.db.create_workflow(NewWorkflow::new("handouts".parse()?, dag)).await?.id;
    for _ in 0..runs {
        store::start(&*store.db, workflow).await?;
    }
    let mut book = Book::default();
    let mut working = JoinSet::new();
    for _ in 0..PROCESSES {
        working.spawn(live(store.url()));
    }
    while let Some(ended) = working.join_next().await {
        let (told, killed) = ended??;
        let over = matches!(told.last(), Some(Told::Over));
        told.into_iter().for_each(|told| book.write(told));
        book.kills += usize::from(killed);
        if !over {
            working.spawn(live(store.url()));
        }
    }
    let stats = store.db.stats().await?;
    let of = |status| usize::try_from(stats.tasks[&status]).unwrap_or(usize::MAX);
    let ended = usize::try_from(stats.runs[&RunStatus::Success])?;
    if ended != runs {
        return Err(format!("{ended} runs of {runs} ended well: {stats:?}").into());
    }
    let wrong = book.wrong(runs * RUN, of(TaskStatus::Success));
    if wrong != Wrong::default() {
        return Err(format!("{wrong:?}").into());
    }
    let again: usize = book.hand_outs.values().map(|times| times.len() - 1).sum();
    let none = |figure: &str, count: usize| Verdict::new(figure, count as f64, "", Wanted::AtMost(0.0));
    Ok(Some(Outcome {
        target: "F4",
        scenario: String::new(),
        title: "Processes claim and complete tasks in chains, are killed with SIGKILL again and again, and keep some batches longer than their leases last",
        backend: bench.backend().to_owned(),
        parameters: vec![
            ("tasks", number((runs * RUN) as f64)),
            ("processes", PROCESSES.to_string()),
            ("killed", book.kills.to_string()),
            ("handed out again after a lapsed lease", number(again as f64)),
            ("updates refused for that", number(book.refused as f64)),
        ],
        series: vec![],
        verdicts: vec![
            none("handed out twice while a lease was live", wrong.twice),
            none("updates of a stale owner that were applied", wrong.stale),
            none("tasks lost", wrong.lost),
        ],
        seconds: 0.0,
    }))
}

impl Book {
    fn write(&mut self, told: Told) {
        match told {
            Told::Claimed(hand_outs) => {
                for hand_out in hand_outs {
                    self.hand_outs.entry(hand_out.task).or_default().insert(hand_out.token, hand_out);
                }
            }
            Told::Updated { task, token, applied: true } => self.applied.entry(task).or_default().push(token),
            Told::Updated { applied: false, .. } => self.refused += 1,
            Told::Over => {}
        }
    }

    /// The violations, given how many tasks there are and how many succeeded in the store.
    fn wrong(&self, tasks: usize, succeeded: usize) -> Wrong {
        let mut wrong = Wrong { lost: tasks.abs_diff(succeeded), ..Wrong::default() };
        for times in self.hand_outs.values() {
            let pairs = times.values().zip(times.values().skip(1));
            wrong.twice += pairs.filter(|(before, after)| after.at < before.until).count();
        }
        for (task, tokens) in &self.applied {
            let latest = self.hand_outs.get(task).and_then(|times| times.keys().next_back());
            wrong.stale += tokens.iter().filter(|token| Some(*token) != latest).count();
            wrong.stale += tokens.len() - 1;
        }
        wrong
    }
}

/// One process from start to end. Returns everything it reported, and whether it was killed.
async fn live(url: String) -> Result<(Vec<Told>, bool), AnyError> {
    let mut other = Other::start(&Role::HandOuts { url })?;
    let (mut told, mut left) = (Vec::new(), Uuid::new_v4().as_u128() % LIVES);
    loop {
        let line = serde_json::from_str(&other.line().await?)?;
        let (claimed, over) = (matches!(line, Told::Claimed(_)), matches!(line, Told::Over));
        told.push(line);
        if over {
            return Ok((told, false));
        }
        if claimed && left == 0 {
            for line in other.kill().await? {
                told.push(serde_json::from_str(&line)?);
            }
            return Ok((told, true));
        }
        left -= u128::from(claimed);
    }
}

/// A working process.
pub(super) async fn work(url: &str) -> Result<(), AnyError> {
    let db = connect(url).await?;
    let owner = Label::new(std::process::id().to_string())?;
    let claim = ClaimTasks::new(owner, LeaseTime::new(LEASE)?).with_limit(Limit::new(BATCH)?);
    for round in std::process::id().. {
        db.expire_leases(Limit::default()).await?;
        let claimed = db.claim_tasks(claim.clone()).await?;
        if claimed.is_empty() {
            let tasks = db.stats().await?.tasks;
            let open = tasks.iter().filter(|(status, _)| !status.is_terminal()).map(|(_, count)| count);
            if open.sum::<u64>() == 0 {
                return tell(&Told::Over).await;
            }
            // Others hold the remaining tasks.
            tokio::time::sleep(LEASE / 10).await;
            continue;
        }
        let hand_out = |task: &ork_state_api::ClaimedTask| {
            let (at, lease) = task.task.dispatched_at.zip(task.task.lease.as_ref())?;
            Some(HandOut { task: task.claim.task, token: task.claim.token, at, until: lease.expires_at })
        };
        let hand_outs: Option<Vec<_>> = claimed.iter().map(hand_out).collect();
        tell(&Told::Claimed(hand_outs.ok_or("a claimed task has no lease")?)).await?;
        if round % LATE == 0 {
            tokio::time::sleep(LEASE * 2).await;
        }
        let updates = claimed.iter().map(|task| TaskUpdate::succeeded(task.claim, None)).collect();
        let report = db.update_tasks(TaskUpdates::new(updates)?).await?;
        for (task, outcome) in claimed.iter().zip(report.outcomes) {
            let applied = matches!(outcome, UpdateOutcome::Applied { .. });
            tell(&Told::Updated { task: task.claim.task, token: task.claim.token, applied }).await?;
        }
    }
    Ok(())
}

async fn tell(told: &Told) -> Result<(), AnyError> {
    say(&serde_json::to_string(told)?).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hand_out(task: TaskId, token: i64, at: i64, until: i64) -> Told {
        let [at, until] = [at, until].map(|micros| Timestamp::from_micros(micros).unwrap());
        Told::Claimed(vec![HandOut { task, token: Token::from_stored(token), at, until }])
    }

    fn applied(task: TaskId, token: i64) -> Told {
        Told::Updated { task, token: Token::from_stored(token), applied: true }
    }

    #[test]
    fn what_is_wrong_is_counted() {
        let task = TaskId::generate();
        let wrong = |told: Vec<Told>, succeeded| {
            let mut book = Book::default();
            told.into_iter().for_each(|told| book.write(told));
            book.wrong(1, succeeded)
        };
        let good = vec![hand_out(task, 2, 5, 9), hand_out(task, 1, 0, 5), applied(task, 2)];
        assert_eq!(wrong(good, 1), Wrong::default());
        let live = vec![hand_out(task, 1, 0, 5), hand_out(task, 2, 4, 9), applied(task, 2)];
        assert_eq!(wrong(live, 1), Wrong { twice: 1, ..Wrong::default() });
        let stale = vec![hand_out(task, 1, 0, 5), hand_out(task, 2, 5, 9), applied(task, 1)];
        assert_eq!(wrong(stale, 1), Wrong { stale: 1, ..Wrong::default() });
        let both = vec![hand_out(task, 1, 0, 5), applied(task, 1), applied(task, 1)];
        assert_eq!(wrong(both, 1), Wrong { stale: 1, ..Wrong::default() });
        assert_eq!(wrong(vec![hand_out(task, 1, 0, 5)], 0), Wrong { lost: 1, ..Wrong::default() });
    }
}
