//! Updates that wait at the same moment are applied as one batch.
//!
//! Many workers that report one task each would take a handful of statements each. Their batches
//! are put one after the other and applied by one set of statements, with the effect and the
//! answers of one call after the other.

use std::mem;
use std::sync::{Arc, Mutex, PoisonError};

use ork_state_api::{Clock, Result, TaskUpdates, UpdateReport};
use tokio::sync::oneshot;

use crate::error;
use crate::updates::update;
use crate::writer::Writer;

/// Most calls, and most items, that are put together. A larger call goes by itself.
const MAX_CALLS: usize = 256;
const MAX_ITEMS: usize = 10_000;

/// A call that waits: what it asks for, and where its answer goes.
type Waiting = (Arc<TaskUpdates>, oneshot::Sender<Result<UpdateReport>>);

/// The calls that wait.
#[derive(Debug, Default)]
pub(crate) struct Gather(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    waiting: Vec<Waiting>,
    /// Whether a task is serving them.
    served: bool,
}

impl Gather {
    /// Applies a batch, perhaps together with others. Once this was polled it is applied, also if
    /// the future is dropped (rule G9).
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

    /// The next calls to be applied together, in the order in which they came. With none the
    /// serving ends.
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

/// Clears up when the serving ends before its time, with the runtime: nobody waits for ever.
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
        // Those who were just answered get to ask for the next before the doors close.
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
                    // The caller may have gone: what it asked for is done all the same.
                    let _ = reply.send(Ok(report));
                }
            }
            // What is wrong is not in one of the calls, so each has the error.
            Err(error) if error.is_retryable() || replies.len() == 1 => {
                for reply in replies {
                    let _ = reply.send(Err(error.clone()));
                }
            }
            // Nothing was applied. Each is tried by itself, so that none pays for another's error.
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
