//! Ork's rows as they are read, before anything is made of them.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// JSON of any kind, as its text, in a row that is itself JSON.
mod raw {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use serde_json::value::RawValue;

    pub(super) fn serialize<S: Serializer>(text: &Option<String>, serializer: S) -> Result<S::Ok, S::Error> {
        let Some(text) = text else { return serializer.serialize_none() };
        match serde_json::from_str::<&RawValue>(text) {
            Ok(json) => json.serialize(serializer),
            Err(_) => serializer.serialize_str(text),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<String>, D::Error> {
        let raw = Option::<Box<RawValue>>::deserialize(deserializer)?;
        Ok(raw.map(|raw| Box::<str>::from(raw).into()))
    }
}

/// A workflow as Ork stored it. Texts, times and JSON are unchecked.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields are Ork's columns")]
pub struct OldWorkflow {
    pub id: Uuid,
    pub name: String,
    #[serde(default)]
    pub description: Option<String>,
    #[serde(default)]
    pub job_name: Option<String>,
    #[serde(default)]
    pub region: Option<String>,
    #[serde(default)]
    pub project: Option<String>,
    #[serde(default)]
    pub executor_type: Option<String>,
    #[serde(default, with = "raw")]
    pub task_params: Option<String>,
    #[serde(default)]
    pub schedule: Option<String>,
    #[serde(default)]
    pub schedule_enabled: bool,
    #[serde(default)]
    pub last_scheduled_at: Option<String>,
    #[serde(default)]
    pub next_scheduled_at: Option<String>,
    #[serde(default)]
    pub current_snapshot_id: Option<Uuid>,
    #[serde(default)]
    pub created_at: Option<String>,
    #[serde(default)]
    pub updated_at: Option<String>,
}

/// A snapshot of a workflow's tasks as Ork stored it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields are Ork's columns")]
pub struct OldSnapshot {
    pub id: Uuid,
    pub workflow_id: Uuid,
    #[serde(default, with = "raw")]
    pub tasks_json: Option<String>,
    #[serde(default)]
    pub created_at: Option<String>,
}

/// A task of a workflow as Ork's compiler made it: a row of `workflow_tasks`, or an item of a
/// snapshot.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields are Ork's columns")]
pub struct OldSpec {
    /// None in a snapshot.
    #[serde(default)]
    pub workflow_id: Option<Uuid>,
    #[serde(default)]
    pub task_index: i64,
    pub task_name: String,
    #[serde(default)]
    pub executor_type: Option<String>,
    /// JSON: an array of names.
    #[serde(default, with = "raw")]
    pub depends_on: Option<String>,
    /// With `max_retries` and `timeout_seconds` in it.
    #[serde(default, with = "raw")]
    pub params: Option<String>,
    #[serde(default, with = "raw")]
    pub signature: Option<String>,
}

/// A run as Ork stored it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields are Ork's columns")]
pub struct OldRun {
    pub id: Uuid,
    pub workflow_id: Uuid,
    pub status: String,
    #[serde(default)]
    pub triggered_by: Option<String>,
    #[serde(default)]
    pub snapshot_id: Option<Uuid>,
    #[serde(default)]
    pub error: Option<String>,
    #[serde(default)]
    pub created_at: Option<String>,
    #[serde(default)]
    pub started_at: Option<String>,
    #[serde(default)]
    pub finished_at: Option<String>,
}

/// A task of a run as Ork stored it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields are Ork's columns")]
pub struct OldTask {
    pub id: Uuid,
    pub run_id: Uuid,
    #[serde(default)]
    pub task_index: i64,
    #[serde(default)]
    pub task_name: Option<String>,
    #[serde(default)]
    pub executor_type: Option<String>,
    /// JSON: an array of names.
    #[serde(default, with = "raw")]
    pub depends_on: Option<String>,
    pub status: String,
    #[serde(default)]
    pub execution_name: Option<String>,
    #[serde(default, with = "raw")]
    pub params: Option<String>,
    #[serde(default, with = "raw")]
    pub output: Option<String>,
    #[serde(default)]
    pub error: Option<String>,
    /// None where the backend brings the log over by itself.
    #[serde(default)]
    pub logs: Option<String>,
    /// How many attempts failed.
    #[serde(default)]
    pub attempts: i64,
    #[serde(default)]
    pub max_retries: i64,
    #[serde(default)]
    pub timeout_seconds: Option<i64>,
    #[serde(default)]
    pub retry_at: Option<String>,
    #[serde(default)]
    pub created_at: Option<String>,
    #[serde(default)]
    pub dispatched_at: Option<String>,
    #[serde(default)]
    pub started_at: Option<String>,
    #[serde(default)]
    pub finished_at: Option<String>,
}

/// A deferred job as Ork stored it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields are Ork's columns")]
pub struct OldJob {
    pub id: Uuid,
    pub task_id: Uuid,
    #[serde(default)]
    pub service_type: Option<String>,
    #[serde(default)]
    pub job_id: Option<String>,
    #[serde(default, with = "raw")]
    pub job_data: Option<String>,
    pub status: String,
    #[serde(default)]
    pub error: Option<String>,
    #[serde(default)]
    pub created_at: Option<String>,
    #[serde(default)]
    pub started_at: Option<String>,
    #[serde(default)]
    pub last_polled_at: Option<String>,
    #[serde(default)]
    pub finished_at: Option<String>,
}
