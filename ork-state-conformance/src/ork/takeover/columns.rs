//! Rows as columns, for whoever writes them into tables.

use ork_state_api::ork::takeover::{OldJob, OldRun, OldSnapshot, OldSpec, OldTask, OldWorkflow};
use uuid::Uuid;

use super::id;

/// A value of a column of Ork's.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Column {
    Id(Option<Uuid>),
    Text(Option<String>),
    /// Any text where columns have no types.
    Json(Option<String>),
    /// The names in a JSON array.
    Names(Option<String>),
    Time(Option<String>),
    Integer(Option<i64>),
    Flag(bool),
}

/// A row of a table of Ork's.
pub trait OldRow {
    /// The table.
    const TABLE: &'static str;

    /// Its columns, of its last version.
    fn columns(&self) -> Vec<(&'static str, Column)>;
}

fn text(text: &Option<String>) -> Column {
    Column::Text(text.clone())
}

fn json(text: &Option<String>) -> Column {
    Column::Json(text.clone())
}

fn time(text: &Option<String>) -> Column {
    Column::Time(text.clone())
}

impl OldRow for OldWorkflow {
    const TABLE: &'static str = "workflows";

    fn columns(&self) -> Vec<(&'static str, Column)> {
        vec![
            ("id", Column::Id(Some(self.id))),
            ("name", Column::Text(Some(self.name.clone()))),
            ("description", text(&self.description)),
            ("job_name", text(&self.job_name)),
            ("region", text(&self.region)),
            ("project", text(&self.project)),
            ("executor_type", text(&self.executor_type)),
            ("task_params", json(&self.task_params)),
            ("schedule", text(&self.schedule)),
            ("schedule_enabled", Column::Flag(self.schedule_enabled)),
            ("last_scheduled_at", time(&self.last_scheduled_at)),
            ("next_scheduled_at", time(&self.next_scheduled_at)),
            ("created_at", time(&self.created_at)),
            ("updated_at", time(&self.updated_at)),
            ("current_snapshot_id", Column::Id(self.current_snapshot_id)),
        ]
    }
}

impl OldRow for OldSpec {
    const TABLE: &'static str = "workflow_tasks";

    fn columns(&self) -> Vec<(&'static str, Column)> {
        let workflow = self.workflow_id.unwrap_or_default();
        let place = u128::try_from(self.task_index).unwrap_or(0);
        vec![
            ("id", Column::Id(Some(id(workflow.as_u128() % 1000 * 100 + place + 1_000_000)))),
            ("workflow_id", Column::Id(self.workflow_id)),
            ("task_index", Column::Integer(Some(self.task_index))),
            ("task_name", Column::Text(Some(self.task_name.clone()))),
            ("executor_type", text(&self.executor_type)),
            ("depends_on", Column::Names(self.depends_on.clone())),
            ("params", json(&self.params)),
            ("signature", json(&self.signature)),
            ("created_at", Column::Time(Some("2026-02-01T10:00:00Z".to_owned()))),
        ]
    }
}

impl OldRow for OldSnapshot {
    const TABLE: &'static str = "workflow_snapshots";

    fn columns(&self) -> Vec<(&'static str, Column)> {
        vec![
            ("id", Column::Id(Some(self.id))),
            ("workflow_id", Column::Id(Some(self.workflow_id))),
            ("content_hash", Column::Text(Some(format!("Ork's hash of {}", self.id)))),
            ("tasks_json", json(&self.tasks_json)),
            ("created_at", time(&self.created_at)),
        ]
    }
}

impl OldRow for OldRun {
    const TABLE: &'static str = "runs";

    fn columns(&self) -> Vec<(&'static str, Column)> {
        vec![
            ("id", Column::Id(Some(self.id))),
            ("workflow_id", Column::Id(Some(self.workflow_id))),
            ("status", Column::Text(Some(self.status.clone()))),
            ("triggered_by", text(&self.triggered_by)),
            ("snapshot_id", Column::Id(self.snapshot_id)),
            ("error", text(&self.error)),
            ("created_at", time(&self.created_at)),
            ("started_at", time(&self.started_at)),
            ("finished_at", time(&self.finished_at)),
        ]
    }
}

impl OldRow for OldTask {
    const TABLE: &'static str = "tasks";

    fn columns(&self) -> Vec<(&'static str, Column)> {
        vec![
            ("id", Column::Id(Some(self.id))),
            ("run_id", Column::Id(Some(self.run_id))),
            ("task_index", Column::Integer(Some(self.task_index))),
            ("task_name", text(&self.task_name)),
            ("executor_type", text(&self.executor_type)),
            ("depends_on", Column::Names(self.depends_on.clone())),
            ("status", Column::Text(Some(self.status.clone()))),
            ("execution_name", text(&self.execution_name)),
            ("params", json(&self.params)),
            ("output", json(&self.output)),
            ("error", text(&self.error)),
            ("logs", text(&self.logs)),
            ("attempts", Column::Integer(Some(self.attempts))),
            ("max_retries", Column::Integer(Some(self.max_retries))),
            ("timeout_seconds", Column::Integer(self.timeout_seconds)),
            ("retry_at", time(&self.retry_at)),
            ("created_at", time(&self.created_at)),
            ("dispatched_at", time(&self.dispatched_at)),
            ("started_at", time(&self.started_at)),
            ("finished_at", time(&self.finished_at)),
        ]
    }
}

impl OldRow for OldJob {
    const TABLE: &'static str = "deferred_jobs";

    fn columns(&self) -> Vec<(&'static str, Column)> {
        vec![
            ("id", Column::Id(Some(self.id))),
            ("task_id", Column::Id(Some(self.task_id))),
            ("service_type", text(&self.service_type)),
            ("job_id", text(&self.job_id)),
            ("job_data", json(&self.job_data)),
            ("status", Column::Text(Some(self.status.clone()))),
            ("error", text(&self.error)),
            ("created_at", time(&self.created_at)),
            ("started_at", time(&self.started_at)),
            ("last_polled_at", time(&self.last_polled_at)),
            ("finished_at", time(&self.finished_at)),
        ]
    }
}
