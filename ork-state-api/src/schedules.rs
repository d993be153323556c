//! Schedules of workflows.

use crate::backend::Plugin;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{Capability, Error, Limit, Result, Run, Text, Timestamp, Workflow, WorkflowId};

/// When a workflow is run automatically.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Schedule {
    /// The schedule as its author wrote it, such as a cron expression. The store gives it no
    /// meaning: whoever fires it works out the times.
    pub expression: Text,
    /// Whether it is in force.
    pub enabled: bool,
    /// The last slot that was fired.
    pub last_at: Option<Timestamp>,
    /// The next slot. Without one it is not due, enabled or not.
    pub next_at: Option<Timestamp>,
}

impl Schedule {
    /// A schedule in force, whose first slot is at `next_at`.
    #[must_use]
    pub const fn new(expression: Text, next_at: Option<Timestamp>) -> Self {
        Self { expression, enabled: true, last_at: None, next_at }
    }

    /// Takes it out of force.
    #[must_use]
    pub const fn disabled(mut self) -> Self {
        self.enabled = false;
        self
    }

    /// Whether it is due at this time (**S1**): in force, with a next slot that has come.
    #[must_use]
    pub fn is_due(&self, now: Timestamp) -> bool {
        self.enabled && self.next_at.is_some_and(|next_at| next_at <= now)
    }
}

/// A schedule whose next slot has come.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DueSchedule {
    /// The workflow.
    pub workflow: WorkflowId,
    /// The schedule, to work out the slot after the next from.
    pub expression: Text,
    /// The slot that is due: the `slot` of [`FireSchedule`].
    pub slot: Timestamp,
}

impl DueSchedule {
    /// The schedule of a workflow, due for this slot.
    #[must_use]
    pub const fn new(workflow: WorkflowId, expression: Text, slot: Timestamp) -> Self {
        Self { workflow, expression, slot }
    }
}

/// A slot to fire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FireSchedule {
    workflow: WorkflowId,
    slot: Timestamp,
    next: Option<Timestamp>,
}

impl FireSchedule {
    /// Fires this slot of this workflow; the schedule's next slot is then `next`, or none any more.
    ///
    /// # Errors
    /// `InvalidInput` for a next slot that is not after this one: it would be due for ever.
    pub fn new(workflow: WorkflowId, slot: Timestamp, next: Option<Timestamp>) -> Result<Self> {
        if next.is_some_and(|next| next <= slot) {
            return Err(Error::invalid("next slot", format!("must be after {slot}, the one that is fired")));
        }
        Ok(Self { workflow, slot, next })
    }

    /// Whose schedule.
    #[must_use]
    pub const fn workflow(&self) -> WorkflowId {
        self.workflow
    }

    /// The slot.
    #[must_use]
    pub const fn slot(&self) -> Timestamp {
        self.slot
    }

    /// The slot after it.
    #[must_use]
    pub const fn next(&self) -> Option<Timestamp> {
        self.next
    }
}

/// What [`ScheduleStore::fire_schedule`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FiredSchedule {
    /// It made this run.
    Fired(Run),
    /// The slot is not the one that is due: another scheduler fired it, or the schedule was
    /// changed, disabled or removed. Nothing was changed.
    NotDue,
}

/// What [`Run::triggered_by`] says of a run that a schedule made.
pub const SCHEDULE_TRIGGER: &str = "schedule";

/// Keeps schedules. The [general rules](crate::Database#general-rules) hold for every method.
///
/// A backend may opt out with [`Capability::Schedules`](crate::Capability::Schedules). All methods
/// are then `Unsupported`, which is what they answer by default.
#[async_trait]
pub trait ScheduleStore: Plugin {
    /// Gives a workflow a schedule, replaces the one it has, or takes it away.
    ///
    /// **S1** What is given is kept as it is, [`last_at`](Schedule::last_at) too, and comes with
    /// the [workflow](Workflow::schedule).
    ///
    /// # Errors
    /// `NotFound` for the workflow. `Unsupported`.
    ///
    /// # Cancel safety
    /// Set or not. Repeating it is safe, unless another caller has fired or changed the schedule
    /// meanwhile.
    async fn set_schedule(&self, workflow: WorkflowId, schedule: Option<Schedule>) -> Result<Workflow> {
        let _ = (workflow, schedule);
        Err(self.backend().lacks(Capability::Schedules))
    }

    /// The schedules that are due now, the longest due first, then by workflow id (**G6**).
    ///
    /// **S1** A schedule is due when it is enabled and its next slot has come by the store's clock
    /// (**G4**). One without a next slot is never due. The cost does not grow with the schedules
    /// that are not due.
    ///
    /// # Errors
    /// `Unsupported`.
    async fn due_schedules(&self, limit: Limit) -> Result<Vec<DueSchedule>> {
        let _ = limit;
        Err(self.backend().lacks(Capability::Schedules))
    }

    /// Fires a slot: makes a pending run and moves the schedule on.
    ///
    /// **S1** The slot is fired only if the schedule is due and this is its next slot. Then a run
    /// is created as by [`create_run`](crate::RunStore::create_run), with the trigger
    /// [`SCHEDULE_TRIGGER`]. `last_at` becomes the slot, and `next_at` the one after it. All of it
    /// is one transaction, so two schedulers never fire one slot twice. Otherwise the answer is
    /// [`NotDue`](FiredSchedule::NotDue).
    ///
    /// # Errors
    /// `NotFound` for the workflow. `Unsupported`.
    ///
    /// # Cancel safety
    /// Fired or not. Repeated after a lost answer it is `NotDue`. The run is then the newest of the
    /// workflow that the schedule made.
    ///
    /// # Example
    /// ```
    /// # use ork_state_api::*;
    /// async fn fire_what_is_due(
    ///     db: &dyn Database,
    ///     slot_after: impl Fn(&str, Timestamp) -> Option<Timestamp>,
    /// ) -> Result<()> {
    ///     for due in db.due_schedules(Limit::default()).await? {
    ///         let next = slot_after(&due.expression, due.slot);
    ///         let fire = FireSchedule::new(due.workflow, due.slot, next)?;
    ///         if let FiredSchedule::Fired(run) = db.fire_schedule(fire).await? {
    ///             db.start_run(StartRun::pinned(run.id)).await?;
    ///         }
    ///     }
    ///     Ok(())
    /// }
    /// ```
    async fn fire_schedule(&self, fire: FireSchedule) -> Result<FiredSchedule> {
        let _ = fire;
        Err(self.backend().lacks(Capability::Schedules))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn at(micros: i64) -> Timestamp {
        Timestamp::from_micros(micros).unwrap()
    }

    #[rstest]
    #[case::later(Some(11), true)]
    #[case::none(None, true)]
    #[case::the_same(Some(10), false)]
    #[case::earlier(Some(9), false)]
    fn the_next_slot_is_later(#[case] next: Option<i64>, #[case] good: bool) {
        let workflow = WorkflowId::generate();
        assert_eq!(FireSchedule::new(workflow, at(10), next.map(at)).is_ok(), good);
    }

    #[rstest]
    #[case::come(true, Some(10), true)]
    #[case::to_come(true, Some(11), false)]
    #[case::disabled(false, Some(10), false)]
    #[case::no_next(true, None, false)]
    fn schedules_are_due(#[case] enabled: bool, #[case] next: Option<i64>, #[case] due: bool) {
        let schedule = Schedule { enabled, ..Schedule::new(Text::lossy("* * * * *"), next.map(at)) };
        assert_eq!(schedule.is_due(at(10)), due);
    }
}
