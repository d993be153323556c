//! Schedules of workflows.

use async_trait::async_trait;
use ork_state_api::{
    DueSchedule, Entity, Error, FireSchedule, FiredSchedule, Label, Limit, NewRun, Result, SCHEDULE_TRIGGER,
    Schedule, ScheduleStore, Timestamp, Workflow, WorkflowId,
};
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use crate::database::SqliteDatabase;
use crate::error::Attempt;
use crate::rows::{self, Cells, bytes, workflow_columns};
use crate::{runs, workflows};

#[async_trait]
impl ScheduleStore for SqliteDatabase {
    async fn set_schedule(&self, workflow: WorkflowId, schedule: Option<Schedule>) -> Result<Workflow> {
        const SET: &str = concat!(
            "UPDATE workflows SET schedule = ?2, schedule_enabled = ?3, last_scheduled_at = ?4,
                 next_scheduled_at = ?5, updated_at = ?6
             WHERE id = ?1
             RETURNING ",
            workflow_columns!()
        );
        let clock = self.clock();
        self.write(move |connection| {
            Box::pin(async move {
                let schedule = schedule.as_ref();
                let micros = |time: Option<Timestamp>| time.map(Timestamp::as_micros);
                let row = sqlx::query(SET)
                    .bind(bytes(workflow.as_uuid()))
                    .bind(schedule.map(|schedule| schedule.expression.to_string()))
                    .bind(schedule.is_some_and(|schedule| schedule.enabled))
                    .bind(micros(schedule.and_then(|schedule| schedule.last_at)))
                    .bind(micros(schedule.and_then(|schedule| schedule.next_at)))
                    .bind(clock.now().as_micros())
                    .fetch_optional(connection)
                    .await?;
                let row = row.ok_or_else(|| Error::not_found(Entity::Workflow, workflow))?;
                Ok(rows::workflow(&row)?)
            })
        })
        .await
    }

    async fn due_schedules(&self, limit: Limit) -> Result<Vec<DueSchedule>> {
        let clock = self.clock();
        self.read(move |connection| {
            Box::pin(async move {
                let found = sqlx::query(DUE)
                    .bind(clock.now().as_micros())
                    .bind(i64::try_from(limit.get()).unwrap_or(i64::MAX))
                    .fetch_all(connection)
                    .await?;
                Ok(found.iter().map(due).collect::<Result<_>>()?)
            })
        })
        .await
    }

    async fn fire_schedule(&self, fire: FireSchedule) -> Result<FiredSchedule> {
        let new = NewRun::new(fire.workflow()).with_trigger(Label::new(SCHEDULE_TRIGGER)?);
        let clock = self.clock();
        self.write(move |connection| {
            Box::pin(async move {
                let now = clock.now();
                if !move_on(connection, fire, now).await? {
                    workflows::require(connection, fire.workflow()).await?;
                    return Ok(FiredSchedule::NotDue);
                }
                Ok(FiredSchedule::Fired(runs::create(connection, &new, now).await?.into_run()))
            })
        })
        .await
    }
}

/// Reads the index of due schedules. The cost does not grow with the others.
pub(crate) const DUE: &str = "SELECT id, schedule, next_scheduled_at FROM workflows
     WHERE schedule IS NOT NULL AND schedule_enabled = 1 AND next_scheduled_at <= ?1
     ORDER BY next_scheduled_at, id LIMIT ?2";

fn due(row: &SqliteRow) -> Result<DueSchedule> {
    let cells = Cells::new(row, "workflows");
    Ok(DueSchedule::new(
        WorkflowId::from_uuid(cells.uuid("id")?),
        cells.text("schedule")?,
        cells.time("next_scheduled_at")?,
    ))
}

/// Advances a schedule if this slot is its next one and is due. Returns whether it did.
async fn move_on(connection: &mut SqliteConnection, fire: FireSchedule, now: Timestamp) -> Attempt<bool> {
    const MOVE_ON: &str = "UPDATE workflows SET last_scheduled_at = ?2, next_scheduled_at = ?3
         WHERE id = ?1 AND schedule IS NOT NULL AND schedule_enabled = 1 AND next_scheduled_at = ?2
             AND next_scheduled_at <= ?4";
    let moved = sqlx::query(MOVE_ON)
        .bind(bytes(fire.workflow().as_uuid()))
        .bind(fire.slot().as_micros())
        .bind(fire.next().map(Timestamp::as_micros))
        .bind(now.as_micros())
        .execute(connection)
        .await?;
    Ok(moved.rows_affected() > 0)
}
