//! Remembers where the queue of ready tasks begins.
//!
//! A claim reads the queue from its beginning. The dead rows of all tasks claimed before lie there
//! until they are vacuumed. A single old transaction anywhere on the server can delay that for
//! hours. So a store remembers the first position that can hold tasks, and claims start there.
//!
//! A task's position in the queue is the time at which it became ready. Its transaction read that
//! time after it had got its number (xid). Take a moment, and wait until every transaction that was
//! then under way has ended. From then on no task can appear before that moment. The server's clock
//! does not explain every row: it may have been set back, or a store may have been imported. Claims
//! that get fewer tasks than they asked for find such rows, because now and then they scan the
//! whole queue.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ork_state_api::Result;
use uuid::Uuid;

use crate::core::Core;
use crate::error::Access;
use crate::rows::{Reader, Stamp};
use crate::statement::Statement;

/// How long an observation is used.
const TRUSTED: Duration = Duration::from_millis(100);
/// How often the whole queue is scanned, for tasks that appear before the known beginning.
const LOOK_AT_ALL: Duration = Duration::from_secs(1);
/// How much clocks may differ, such as those of a server and of the standby that takes over.
const MARGIN: Duration = Duration::from_secs(1);

/// What is known of the queue.
#[derive(Debug, Default)]
pub(crate) struct Queue(Mutex<Known>);

#[derive(Debug, Default, Clone, Copy)]
struct Known {
    /// No task lies before this.
    from: Option<Stamp>,
    looked: Option<Instant>,
    looked_at_all: Option<Instant>,
    /// A moment, and the number that the next transaction was to get at that moment.
    mark: Option<(Stamp, i64)>,
}

fn is_recent(at: Option<Instant>, limit: Duration) -> bool {
    at.is_some_and(|at| at.elapsed() < limit)
}

impl Queue {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a claim starts to read.
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
            // Other calls need not look meanwhile.
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
                // Never moves back: everything before was scanned.
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

    /// Drops the known beginning, because a task was found before it.
    pub(crate) fn forget(&self) {
        let mut known = self.known();
        (known.from, known.mark) = (None, None);
    }

    /// Whether it is time to scan the whole queue again.
    pub(crate) fn is_to_be_looked_at(&self) -> bool {
        let mut known = self.known();
        if is_recent(known.looked_at_all, LOOK_AT_ALL) {
            return false;
        }
        known.looked_at_all = Some(Instant::now());
        true
    }
}
