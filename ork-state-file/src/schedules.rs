use async_trait::async_trait;
use ork_state_api::{
    DueSchedule, FireSchedule, FiredSchedule, Label, Limit, NewRun, Result, SCHEDULE_TRIGGER, Schedule,
    ScheduleStore, Workflow, WorkflowId,
};

use crate::change::Change;
use crate::database::FileDatabase;
use crate::runs;
use crate::transaction::Transaction;

#[async_trait]
impl ScheduleStore for FileDatabase {
    async fn set_schedule(&self, workflow: WorkflowId, schedule: Option<Schedule>) -> Result<Workflow> {
        self.write(move |tx| {
            let mut workflow = tx.state.workflow(workflow)?.clone();
            workflow.schedule = schedule;
            workflow.updated_at = tx.now;
            tx.apply(Change::Workflow(workflow.clone()))?;
            Ok(workflow)
        })
        .await
    }

    async fn due_schedules(&self, limit: Limit) -> Result<Vec<DueSchedule>> {
        self.read(move |state, now| {
            let due = state.slots.iter().take_while(|(slot, _)| *slot <= now).take(limit.get());
            due.map(|&(slot, workflow)| {
                let schedule = state.workflow(workflow)?.schedule.as_ref();
                let expression = schedule.map(|schedule| schedule.expression.clone());
                let missing = || ork_state_api::Error::internal("a slot without a schedule");
                Ok(DueSchedule::new(workflow, expression.ok_or_else(missing)?, slot))
            })
            .collect()
        })
        .await
    }

    async fn fire_schedule(&self, fire: FireSchedule) -> Result<FiredSchedule> {
        self.write(move |tx| fire_schedule(tx, fire)).await
    }
}

fn fire_schedule(tx: &mut Transaction<'_>, fire: FireSchedule) -> Result<FiredSchedule> {
    let workflow = tx.state.workflow(fire.workflow())?;
    let due = workflow.schedule.as_ref().filter(|schedule| schedule.is_due(tx.now));
    let Some(schedule) = due.filter(|schedule| schedule.next_at == Some(fire.slot())) else {
        return Ok(FiredSchedule::NotDue);
    };
    let mut schedule = schedule.clone();
    schedule.last_at = Some(fire.slot());
    schedule.next_at = fire.next();
    let new = NewRun::new(fire.workflow()).with_trigger(Label::new(SCHEDULE_TRIGGER)?);
    tx.apply(Change::Schedule { workflow: fire.workflow(), schedule: Some(schedule) })?;
    Ok(FiredSchedule::Fired(runs::create(tx, new)?.into_run()))
}
