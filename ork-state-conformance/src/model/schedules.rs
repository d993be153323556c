use ork_state_api::{
    DueSchedule, FireSchedule, FiredSchedule, Label, Limit, Schedule, Timestamp, Workflow, WorkflowId,
};

use super::{Expected, Model};

use crate::ctx::with;

impl Model {
    /// S1
    pub(super) fn set_schedule(
        &mut self,
        now: Timestamp,
        workflow: WorkflowId,
        schedule: Option<Schedule>,
    ) -> Expected<Workflow> {
        let workflow = with(self.get_workflow(workflow)?, |workflow| {
            workflow.schedule = schedule;
            workflow.updated_at = now;
        });
        self.workflows.insert(workflow.id, workflow.clone());
        Ok(workflow)
    }

    /// S1
    pub(super) fn due_schedules(&self, now: Timestamp, limit: Limit) -> Vec<DueSchedule> {
        let mut due = Vec::new();
        for workflow in self.workflows.values() {
            let Some(schedule) = &workflow.schedule else { continue };
            let Some(slot) = schedule.next_at.filter(|slot| schedule.enabled && *slot <= now) else {
                continue;
            };
            due.push(DueSchedule::new(workflow.id, schedule.expression.clone(), slot));
        }
        due.sort_by_key(|it| (it.slot, it.workflow));
        due.truncate(limit.get());
        due
    }

    /// S1
    pub(super) fn fire_schedule(
        &mut self,
        now: Timestamp,
        fire: FireSchedule,
        seen: Option<&FiredSchedule>,
    ) -> Expected<FiredSchedule> {
        let mut workflow = self.get_workflow(fire.workflow())?;
        let Some(schedule) = &mut workflow.schedule else { return Ok(FiredSchedule::NotDue) };
        if !schedule.enabled || schedule.next_at != Some(fire.slot()) || fire.slot() > now {
            return Ok(FiredSchedule::NotDue);
        }
        (schedule.last_at, schedule.next_at) = (Some(fire.slot()), fire.next());
        self.workflows.insert(workflow.id, workflow.clone());
        let seen = seen.and_then(|fired| match fired {
            FiredSchedule::Fired(run) => Some(run.id),
            FiredSchedule::NotDue => None,
        });
        let run = self.new_run(now, &workflow, Label::lossy("schedule"), None, seen);
        Ok(FiredSchedule::Fired(run))
    }
}
