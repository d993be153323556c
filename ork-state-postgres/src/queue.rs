//! Where the queue of ready tasks begins.
//!
//! A claim reads the queue from its beginning, and there lie the rows of all tasks that were
//! claimed before, until they are vacuumed, which a single old transaction anywhere on the server
//! can put off for hours. So a store remembers from where on there can be tasks at all, and claims
//! look from there.
//!
//! A task's place in the queue is the time at which it became ready, as its transaction saw it
//! after it had got its number (xid). So nothing can appear any more before a moment at which every
//! transaction then under way has ended since. What the clock of the server cannot explain (it was
//! set back, a store was imported) is found by the claims that get fewer tasks than they asked for:
//! now and then they look at all of the queue.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ork_state_api::Result;
use uuid::Uuid;

use crate::core::Core;
use crate::error::Access;
use crate::rows::{Reader, Stamp};
use crate::statement::Statement;

/// How long what was seen is used.
const TRUSTED: Duration = Duration::from_millis(100);
/// All of the queue is looked at so seldom, for what its beginning does not explain.
const LOOK_AT_ALL: Duration = Duration::from_secs(1);
/// Clocks may differ by so much, such as those of a server and of the standby that takes over.
const MARGIN: Duration = Duration::from_secs(1);

/// What is known of the queue.
#[derive(Debug, Default)]
pub(crate) struct Queue(Mutex<Known>);

#[derive(Debug, Default, Clone, Copy)]
struct Known {
    /// There is nothing before.
    from: Option<Stamp>,
    looked: Option<Instant>,
    looked_at_all: Option<Instant>,
    /// A moment, and the number that the next transaction was to get.
    mark: Option<(Stamp, i64)>,
}

fn is_recent(at: Option<Instant>, limit: Duration) -> bool {
    at.is_some_and(|at| at.elapsed() < limit)
}

impl Queue {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From where on a claim is to look.
    pub(crate) async fn start(&self, db: &Core) -> Result<Option<Stamp>> {
        const LOOK: Statement = Statement::new(
            "SELECT statement_timestamp() AS at, pg_snapshot_xmin(s)::text::bigint AS xmin,
                 pg_snapshot_xmax(s)::text::bigint AS xmax,
                 (SELECT min(q.ready_at) FROM {schema}.ready_tasks q WHERE q.ready_at >= coalesce($1, '-infinity')) AS first
             FROM pg_current_snapshot() s",
        );
        // The times of an injected clock say nothing about transactions.
        if db.now().is_some() {
            return Ok(None);
        }
        let from = {
            let mut known = self.known();
            if is_recent(known.looked, TRUSTED) {
                return Ok(known.from);
            }
            // Others need not look meanwhile.
            known.looked = Some(Instant::now());
            known.from
        };
        let look = || db.query(LOOK).bind(from);
        let Some(row) = db.row(Access::Read, look).await? else { return Ok(from) };
        let row = Reader::new(&row, "ready_tasks", Uuid::nil());
        let (at, first) = (row.get::<Stamp>("at")?, row.get::<Option<Stamp>>("first")?);
        let (xmin, xmax): (i64, i64) = (row.get("xmin")?, row.get("xmax")?);
        let mut known = self.known();
        match known.mark {
            Some((mark, number)) if xmin >= number => {
                let nothing_before = Stamp(mark.0.saturating_sub(MARGIN));
                let from = first.filter(|first| first.0 < nothing_before.0).unwrap_or(nothing_before);
                // Never back: what lies before was looked at.
                if known.from.is_none_or(|known| known.0 < from.0) {
                    known.from = Some(from);
                }
                known.mark = Some((at, xmax));
            }
            Some(_) => {}
            None => known.mark = Some((at, xmax)),
        }
        Ok(known.from)
    }

    /// There was something before what was taken for the beginning.
    pub(crate) fn forget(&self) {
        let mut known = self.known();
        (known.from, known.mark) = (None, None);
    }

    /// Whether it is time to look at all of the queue again.
    pub(crate) fn is_to_be_looked_at(&self) -> bool {
        let mut known = self.known();
        if is_recent(known.looked_at_all, LOOK_AT_ALL) {
            return false;
        }
        known.looked_at_all = Some(Instant::now());
        true
    }
}
