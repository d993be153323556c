//! Combines updates that wait at the same moment into one batch.
//!
//! Otherwise many workers that report one task each would need a handful of statements each. Their
//! batches are concatenated and applied with one set of statements. The effect and the answers are
//! those of separate calls in sequence.

use std::mem;
use std::sync::{Arc, Mutex, PoisonError};

use ork_state_api::{Clock, Result, TaskUpdates, UpdateReport};
use tokio::sync::oneshot;

use crate::error;
use crate::updates::update;
use crate::writer::Writer;

/// The most calls, and the most items, that are combined. A larger call runs alone.
const MAX_CALLS: usize = 256;
const MAX_ITEMS: usize = 10_000;

/// A waiting call: its updates, and where its answer goes.
type Waiting = (Arc<TaskUpdates>, oneshot::Sender<Result<UpdateReport>>);

/// The waiting calls.
#[derive(Debug, Default)]
pub(crate) struct Gather(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    waiting: Vec<Waiting>,
    /// Whether a task is serving them.
    served: bool,
}

impl Gather {
    /// Applies a batch, perhaps together with others. Once polled it is applied, even if the future
    /// is dropped (rule G9).
    pub(crate) async fn update(
        self: &Arc<Self>,
        writer: &Writer,
        clock: Arc<dyn Clock>,
        updates: TaskUpdates,
    ) -> Result<UpdateReport> {
        let (reply, answer) = oneshot::channel();
        let begin = {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            state.waiting.push((Arc::new(updates), reply));
            !mem::replace(&mut state.served, true)
        };
        if begin {
            tokio::spawn(serve(Arc::clone(self), writer.clone(), clock));
        }
        answer.await.unwrap_or_else(|_| Err(error::gone()))
    }

    /// The next calls to apply together, in order of arrival. If there are none, the serving ends.
    fn next(&self) -> Vec<Waiting> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut items = 0;
        let fits = state.waiting.iter().take(MAX_CALLS).take_while(|(updates, _)| {
            items += updates.steps().len();
            items <= MAX_ITEMS
        });
        let calls = fits.count().max(1).min(state.waiting.len());
        state.served = calls > 0;
        state.waiting.drain(..calls).collect()
    }
}

/// Cleans up when the serving task ends early, with the runtime, so that no caller waits for ever.
struct Serving {
    gather: Arc<Gather>,
    done: bool,
}

impl Drop for Serving {
    fn drop(&mut self) {
        if !self.done {
            *self.gather.0.lock().unwrap_or_else(PoisonError::into_inner) = State::default();
        }
    }
}

async fn serve(gather: Arc<Gather>, writer: Writer, clock: Arc<dyn Clock>) {
    let mut serving = Serving { gather, done: false };
    loop {
        // Lets the callers that were just answered make their next call before this batch is
        // closed.
        tokio::task::yield_now().await;
        let calls = serving.gather.next();
        if calls.is_empty() {
            serving.done = true;
            return;
        }
        let (batches, replies): (Vec<_>, Vec<_>) = calls.into_iter().unzip();
        match apply(&writer, &clock, batches.clone()).await {
            Ok(reports) => {
                for (reply, report) in replies.into_iter().zip(reports) {
                    // The caller may have gone. Its update is applied all the same.
                    let _ = reply.send(Ok(report));
                }
            }
            // The fault is not in one of the calls, so each gets the error.
            Err(error) if error.is_retryable() || replies.len() == 1 => {
                for reply in replies {
                    let _ = reply.send(Err(error.clone()));
                }
            }
            // Nothing was applied. Each call is retried alone, so none pays for another's error.
            Err(_) => {
                for (reply, batch) in replies.into_iter().zip(batches) {
                    let report = apply(&writer, &clock, vec![batch]).await;
                    let _ = reply.send(report.and_then(|mut reports| reports.pop().ok_or_else(error::gone)));
                }
            }
        }
    }
}

async fn apply(
    writer: &Writer,
    clock: &Arc<dyn Clock>,
    batches: Vec<Arc<TaskUpdates>>,
) -> Result<Vec<UpdateReport>> {
    let clock = Arc::clone(clock);
    writer
        .run(move |connection| Box::pin(async move { update(connection, &batches, clock.now()).await }))
        .await
}
