//! Schedules of workflows.

use async_trait::async_trait;
use ork_state_api::{
    DueSchedule, Entity, Error, FireSchedule, FiredSchedule, Limit, Result, RunId, SCHEDULE_TRIGGER,
    Schedule, ScheduleStore, Workflow, WorkflowId,
};
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::database::PostgresDatabase;
use crate::error::Access;
use crate::rows::{self, Reader, Stamp, int_limit};
use crate::statement::Statement;

#[async_trait]
impl ScheduleStore for PostgresDatabase {
    async fn set_schedule(&self, workflow: WorkflowId, schedule: Option<Schedule>) -> Result<Workflow> {
        const SET: Statement = Statement::new(
            "UPDATE {schema}.workflows w
             SET schedule = $2, schedule_enabled = $3, last_scheduled_at = $4, next_scheduled_at = $5,
                 updated_at = coalesce($6, clock_timestamp())
             WHERE w.id = $1
             RETURNING {workflow}",
        );
        self.call(move |db| async move {
            let set = || {
                let schedule = schedule.as_ref();
                db.query(SET)
                    .bind(workflow.as_uuid())
                    .bind(schedule.map(|schedule| schedule.expression.as_str()))
                    .bind(schedule.is_some_and(|schedule| schedule.enabled))
                    .bind(schedule.and_then(|schedule| schedule.last_at).map(Stamp))
                    .bind(schedule.and_then(|schedule| schedule.next_at).map(Stamp))
                    .bind(db.now())
            };
            let row = db.row(Access::Write, set).await?;
            rows::workflow(&row.ok_or_else(|| Error::not_found(Entity::Workflow, workflow))?)
        })
        .await
    }

    async fn due_schedules(&self, limit: Limit) -> Result<Vec<DueSchedule>> {
        // `now()`, not `clock_timestamp()`: an index cannot be searched by the latter.
        const DUE: Statement = Statement::new(
            "SELECT w.id, w.schedule, w.next_scheduled_at
             FROM {schema}.workflows w
             WHERE w.schedule_enabled AND w.next_scheduled_at <= coalesce($1, now()) AND w.schedule IS NOT NULL
             ORDER BY w.next_scheduled_at, w.id
             LIMIT $2",
        );
        self.call(move |db| async move {
            let due = || db.query(DUE).bind(db.now()).bind(int_limit(limit));
            db.rows(Access::Read, due).await?.iter().map(due_schedule).collect()
        })
        .await
    }

    async fn fire_schedule(&self, fire: FireSchedule) -> Result<FiredSchedule> {
        const FIRE: Statement = Statement::new(
            "SELECT x.answer, {run}
             FROM {schema}.ork_fire_schedule($1, $2, $3, $4, $5, $6) x
             CROSS JOIN LATERAL (SELECT (x.run).*) r",
        );
        self.call(move |db| async move {
            let id = RunId::generate();
            let statement = || {
                db.query(FIRE)
                    .bind(id.as_uuid())
                    .bind(fire.workflow().as_uuid())
                    .bind(SCHEDULE_TRIGGER)
                    .bind(Stamp(fire.slot()))
                    .bind(fire.next().map(Stamp))
                    .bind(db.now())
            };
            let row = db.row(Access::Write, statement).await?;
            let row = row.ok_or_else(|| Error::not_found(Entity::Workflow, fire.workflow()))?;
            match Reader::new(&row, "workflows", fire.workflow().as_uuid()).get("answer")? {
                "fired" => Ok(FiredSchedule::Fired(rows::run(&row)?)),
                _ => Ok(FiredSchedule::NotDue),
            }
        })
        .await
    }
}

fn due_schedule(row: &PgRow) -> Result<DueSchedule> {
    let row = Reader::of(row, "workflows")?;
    Ok(DueSchedule::new(
        WorkflowId::from_uuid(row.get::<Uuid>("id")?),
        row.text("schedule")?,
        row.time("next_scheduled_at")?,
    ))
}
