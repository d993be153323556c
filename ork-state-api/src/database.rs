//! Everything a scheduler needs of a store.

use crate::backend::{Plugin, Transfer};
use crate::{DeferredJobStore, LogStore, Maintenance, RunStore, ScheduleStore, TaskStore, WorkflowStore};

/// A store of workflows, their runs and tasks: all the role traits together.
///
/// Share it as `Arc<dyn Database>`. Every method takes `&self` and may be called concurrently.
///
/// # Where the methods are
///
/// Read each signature as `async fn name(&self, …) -> Result<…>`. The longer form that is shown
/// comes from the crate `async-trait`.
///
/// | role | methods |
/// |---|---|
/// | [`WorkflowStore`] | [create](WorkflowStore::create_workflow), [get](WorkflowStore::get_workflow), [find](WorkflowStore::find_workflow), [list](WorkflowStore::list_workflows), [count](WorkflowStore::count_workflows), [update](WorkflowStore::update_workflow), [delete](WorkflowStore::delete_workflow) a workflow; [get a snapshot](WorkflowStore::get_snapshot) |
/// | [`RunStore`] | [create](RunStore::create_run), [get](RunStore::get_run), [list](RunStore::list_runs), [count](RunStore::count_runs), [start](RunStore::start_run), [pause](RunStore::pause_run), [resume](RunStore::resume_run), [cancel](RunStore::cancel_run), [retry](RunStore::retry_run) a run |
/// | [`TaskStore`] | [claim](TaskStore::claim_tasks), [heartbeat](TaskStore::heartbeat), [update](TaskStore::update_tasks); [get](TaskStore::get_task), [list](TaskStore::list_tasks), [outputs](TaskStore::task_outputs), [ready ones](TaskStore::ready_tasks); [expire leases](TaskStore::expire_leases), [expire timeouts](TaskStore::expire_timeouts) |
/// | [`LogStore`] | [append](LogStore::append_log), [read](LogStore::read_log) |
/// | [`ScheduleStore`] | [set](ScheduleStore::set_schedule), [list those due](ScheduleStore::due_schedules), [fire](ScheduleStore::fire_schedule) |
/// | [`DeferredJobStore`] | [defer a task](DeferredJobStore::defer_task), [claim](DeferredJobStore::claim_jobs), [update](DeferredJobStore::update_jobs), [list](DeferredJobStore::list_jobs) jobs |
/// | [`Maintenance`] | [migrate](Maintenance::migrate), [plan it](Maintenance::plan_migration), [prune](Maintenance::prune), [stats](Maintenance::stats), [watch](Maintenance::watch), [verify](Maintenance::verify) |
/// | [`Transfer`] | what [`copy`](crate::copy::copy) needs |
///
/// # General rules
/// They hold for every method of every role, and their methods' docs do not repeat them.
///
/// - **G1** A method is one transaction. All of it is visible and durable or none of it, even if
///   the process dies in the middle. No other call sees it half done.
/// - **G2** An acknowledged write is seen by every call that begins later, through any handle and,
///   where the store is shared, in any process. On a backend with
///   [`Capability::Durable`](crate::Capability::Durable) it survives the end of the process at any
///   later moment, and with default options loss of power. Other backends forget it with their
///   process.
/// - **G3** Ids are made by the store and never used twice; times are UTC in whole microseconds.
/// - **G4** Time is the store's: that of the server if there is one, else of the machine. No
///   caller's clock is asked. [`ConnectOptions::with_clock`](crate::ConnectOptions::with_clock)
///   replaces it, for tests.
/// - **G5** What goes in comes out equal: text of any script, JSON to the byte, logs to the byte. A
///   text may have 1 MiB, a JSON value 16 MiB, a chunk of a log 16 MiB ([all
///   limits](crate::limits)).
/// - **G6** A list has one total order, the same on every backend, whatever the database's
///   collation. Its pages neither skip nor repeat a row that stays, whatever is inserted or deleted
///   between them.
/// - **G7** A failing method has changed nothing, and says why by an
///   [`ErrorKind`](crate::ErrorKind). Only `Unavailable` may leave it open, by
///   [`Effect::Unknown`](crate::Effect::Unknown). No message shows a credential or a payload.
/// - **G8** What is stored and cannot be read is `Corrupt`, and the error names table, id and
///   column. It is never read as a default, and never left out of a list in silence. A claim passes
///   over such a task, hands out the others, and [`verify`](Maintenance::verify) reports it.
/// - **G9** A future may be dropped at any await point. The call then takes effect whole or not at
///   all, and the store goes on as if nothing had happened.
/// - **T6** Empty batches are no-ops with empty answers. Ids that do not exist and ids that come
///   twice are answered one by one, in the order asked.
///
/// Each method says under "Cancel safety" what to do after a lost answer. Reads may always be
/// repeated.
///
/// # Errors of every method
/// `Unavailable` when the store cannot be reached in time; `SchemaMismatch` until the store is
/// [migrated](Maintenance::migrate); `Corrupt`; `Internal`.
pub trait Database:
    Plugin
    + WorkflowStore
    + RunStore
    + TaskStore
    + LogStore
    + ScheduleStore
    + DeferredJobStore
    + Maintenance
    + Transfer
{
}

impl<S> Database for S where
    S: Plugin
        + WorkflowStore
        + RunStore
        + TaskStore
        + LogStore
        + ScheduleStore
        + DeferredJobStore
        + Maintenance
        + Transfer
{
}
