//! Updates of one task each that wait at the same moment are sent to the server in one statement.
//!
//! Otherwise many workers that report one task each would each pay for a statement, a transaction
//! and a sync of the server's log. No call is delayed for this. A call waits only if enough others
//! are under way. When one of those is done, all waiting calls go together.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ork_state_api::backend::UpdateStep;
use ork_state_api::{Error, Result, TaskChange, TaskUpdates, UpdateReport};
use tokio::sync::oneshot;

use crate::core::Core;
use crate::updates::{apply, apply_alone};

/// How many statements may be under way at once. If it were one, it could block all the others
/// whenever it waits itself, for example for a run that is just being cancelled.
const AT_ONCE: usize = 4;
/// The most calls that are combined, and the most bytes of payload. With more, the small calls
/// would wait for the large ones.
const MAX_CALLS: usize = 256;
const MAX_BYTES: usize = 256 * 1024;

/// A waiting call: its one step, and where its answer goes.
struct Waiting {
    updates: TaskUpdates,
    reply: oneshot::Sender<Result<UpdateReport>>,
}

/// The waiting calls.
#[derive(Default)]
pub(crate) struct Gather(Mutex<State>);

#[derive(Default)]
struct State {
    waiting: VecDeque<Waiting>,
    /// How many tasks serve them.
    serving: usize,
}

impl State {
    /// The next calls to send together, in order of arrival. Each is about a different task, so
    /// their order does not matter.
    fn next(&mut self) -> Vec<Waiting> {
        let (mut tasks, mut bytes) = (HashSet::new(), 0);
        let fits = self.waiting.iter().take(MAX_CALLS).take_while(|call| {
            call.updates.steps().iter().all(|step| {
                bytes += payload(step);
                tasks.insert(step.claim.task) && (bytes <= MAX_BYTES || tasks.len() == 1)
            })
        });
        let calls = fits.count();
        self.waiting.drain(..calls).collect()
    }
}

fn payload(step: &UpdateStep) -> usize {
    match &step.end {
        Some(TaskChange::Succeeded { output: Some(output) }) => output.as_str().len(),
        Some(TaskChange::Failed { error, .. }) => error.len(),
        _ => 0,
    }
}

impl Gather {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies an update of one task, perhaps together with others.
    pub(crate) async fn update(self: Arc<Self>, db: Arc<Core>, updates: TaskUpdates) -> Result<UpdateReport> {
        let (reply, answer) = oneshot::channel();
        let begin = {
            let mut state = self.state();
            state.waiting.push_back(Waiting { updates, reply });
            let begin = state.serving < AT_ONCE;
            state.serving += usize::from(begin);
            begin
        };
        if begin {
            tokio::spawn(serve(Serving { db, gather: self, done: false }));
        }
        answer.await.unwrap_or_else(|_| {
            Err(Error::unknown_effect("the store was closed before it answered")
                .with_hint("Keep the tokio runtime that the call was made on until it has answered"))
        })
    }
}

/// Cleans up when the serving task ends early, with the runtime, so that no caller waits for ever.
struct Serving {
    db: Arc<Core>,
    gather: Arc<Gather>,
    done: bool,
}

impl Serving {
    /// If there are none, the serving ends.
    fn next(&mut self) -> Vec<Waiting> {
        let mut state = self.gather.state();
        let calls = state.next();
        if calls.is_empty() {
            state.serving -= 1;
            self.done = true;
        }
        calls
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if !self.done {
            let mut state = self.gather.state();
            state.serving -= 1;
            if state.serving == 0 {
                for call in state.waiting.drain(..) {
                    let _ = call
                        .reply
                        .send(Err(Error::unavailable("the runtime that served the store is shutting down")));
                }
            }
        }
    }
}

async fn serve(mut serving: Serving) {
    loop {
        // Lets the callers that were just answered make their next call before this batch is
        // closed.
        tokio::task::yield_now().await;
        let calls = serving.next();
        if calls.is_empty() {
            return;
        }
        let (batches, replies): (Vec<_>, Vec<_>) =
            calls.into_iter().map(|call| (call.updates, call.reply)).unzip();
        let batches: Vec<&TaskUpdates> = batches.iter().collect();
        match apply(&serving.db, &batches).await {
            Ok(reports) => {
                for (reply, report) in replies.into_iter().zip(reports) {
                    // The caller may have gone. Its update is applied all the same.
                    let _ = reply.send(report);
                }
            }
            // Three cases: only one call, the fault is not in one of the calls, or it may have been
            // applied.
            Err(error) if replies.len() == 1 || error.is_retryable() => {
                for reply in replies {
                    let _ = reply.send(Err(error.clone()));
                }
            }
            // Nothing was applied. Each call is retried alone, so none pays for another's error.
            Err(_) => {
                for (reply, batch) in replies.into_iter().zip(batches) {
                    let report = apply_alone(&serving.db, batch).await;
                    let _ = reply.send(report);
                }
            }
        }
    }
}
