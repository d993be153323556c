//! Snapshots of DAGs as Ork stored them.

use std::collections::HashSet;

use serde::Deserialize;

use crate::dag::present;
use crate::{Dag, Error, Json, Label, Result, TaskName, TaskSpec};

/// A task as Ork stored it.
#[derive(Deserialize)]
struct OldTask {
    #[serde(default)]
    task_index: i64,
    task_name: TaskName,
    executor_type: Label,
    #[serde(default)]
    depends_on: Option<Vec<String>>,
    #[serde(default, deserialize_with = "present")]
    params: Option<Json>,
    #[serde(default, deserialize_with = "present")]
    signature: Option<Json>,
    #[serde(default)]
    max_retries: u32,
    #[serde(default)]
    timeout_seconds: Option<u32>,
}

/// Reads the tasks of a snapshot as Ork stored them. Besides the DAG it gives a sentence for each
/// thing that could not be kept: a dependency on a task that is not there.
///
/// The stored form is the canonical one of [`Dag::to_json`], perhaps with other white space,
/// another order of keys or of tasks, or with fields left out.
///
/// # Errors
/// `InvalidInput` for JSON that is no array of tasks, or of tasks that [`Dag::new`] refuses.
pub fn read_dag(json: &str) -> Result<(Dag, Vec<String>)> {
    let mut rows: Vec<OldTask> = serde_json::from_str(json)
        .map_err(|source| Error::invalid("DAG", "is not an array of tasks").with_source(source))?;
    rows.sort_by_key(|row| row.task_index);
    let names: HashSet<TaskName> = rows.iter().map(|row| row.task_name.clone()).collect();
    let mut problems = Vec::new();
    let specs: Vec<TaskSpec> = rows
        .into_iter()
        .map(|row| {
            let mut spec = TaskSpec::new(row.task_name, row.executor_type);
            for dependency in row.depends_on.unwrap_or_default() {
                if !names.contains(dependency.as_str()) {
                    let (name, shown) = (&spec.name, dependency.chars().take(100).collect::<String>());
                    problems.push(format!(
                        "task {name:?} depended on {shown:?}, which is not there: it does not any more"
                    ));
                } else if !spec.depends_on.iter().any(|there| **there == *dependency) {
                    spec.depends_on.extend(dependency.parse::<TaskName>().ok());
                }
            }
            spec.params = row.params;
            spec.signature = row.signature;
            spec.max_retries = row.max_retries;
            spec.timeout_seconds = row.timeout_seconds;
            spec
        })
        .collect();
    Ok((Dag::new(specs)?, problems))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orks_old_form_is_read_whatever_jsonb_made_of_it() {
        let old = r#"[{"params": {"x": 100}, "signature": null, "task_name": "b", "depends_on": ["a", "gone", "a"], "task_index": 1, "executor_type": "process"},
            {"task_index": 0, "task_name": "a", "executor_type": "cloudrun", "depends_on": null}]"#;
        let (read, problems) = read_dag(old).unwrap();
        assert_eq!(
            read.to_json().as_str(),
            r#"[{"task_index":0,"task_name":"a","executor_type":"cloudrun","depends_on":[],"params":null,"signature":null},{"task_index":1,"task_name":"b","executor_type":"process","depends_on":["a"],"params":{"x": 100},"signature":null}]"#
        );
        assert_eq!(problems.len(), 1);
        assert!(problems[0].contains("\"gone\""), "{problems:?}");
        assert!(read_dag("{}").is_err() && read_dag("[{}]").is_err());
    }
}
