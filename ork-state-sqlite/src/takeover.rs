//! What of taking a database of Ork over no statement can do: telling what was adjusted, and the
//! content hashes of snapshots.

use std::collections::HashMap;

use ork_state_api::ork::read_dag;
use ork_state_api::{Rule, Violation};
use sqlx::sqlite::SqliteConnection;
use uuid::Uuid;

use crate::error::Attempt;

/// Finishes a takeover, after the last step of the schema and within its transaction. Answers what
/// was adjusted.
pub(crate) async fn finish(connection: &mut SqliteConnection, version: i64) -> Attempt<Vec<Violation>> {
    // A program of Ork that starts finds a migration that it does not know, and refuses.
    const FENCE: &str =
        "INSERT OR IGNORE INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (?1, 'taken over by ork-state', TRUE, x'', 0)";
    let mut adjusted = read_adjusted(connection).await?;
    adjusted.extend(rewrite_snapshots(connection).await?);
    sqlx::query(FENCE).bind(version).execute(connection).await?;
    Ok(adjusted)
}

async fn read_adjusted(connection: &mut SqliteConnection) -> Attempt<Vec<Violation>> {
    const ADJUSTED: &str =
        "SELECT rule, entity, id, problem FROM temp.ork_adjusted ORDER BY rule, entity, id, problem";
    let rows: Vec<(String, String, Vec<u8>, String)> = sqlx::query_as(ADJUSTED).fetch_all(connection).await?;
    let told = |(rule, entity, id, problem): (String, String, Vec<u8>, String)| {
        let id = Uuid::from_slice(&id).map_or_else(|_| format!("{id:02x?}"), |id| id.to_string());
        Ok(Violation::new(rule.parse()?, format!("{entity} {id}"), problem))
    };
    rows.into_iter().map(told).collect()
}

/// Gives every snapshot its canonical form and hash. Few statements by nature: a workflow has a
/// handful of snapshots.
async fn rewrite_snapshots(connection: &mut SqliteConnection) -> Attempt<Vec<Violation>> {
    const SNAPSHOTS: &str =
        "SELECT id, workflow_id, tasks_json FROM workflow_snapshots ORDER BY created_at, id";
    // No hash is to stand in the way of another's.
    const FORGET: &str = "UPDATE workflow_snapshots SET content_hash = 'of ' || hex(id)";
    const REWRITE: &str = "UPDATE workflow_snapshots SET content_hash = ?2, tasks_json = ?3 WHERE id = ?1";
    // Into another of the same content.
    const MERGE: [&str; 3] = [
        "UPDATE workflows SET current_snapshot_id = ?2 WHERE current_snapshot_id = ?1",
        "UPDATE runs SET snapshot_id = ?2 WHERE snapshot_id = ?1",
        "DELETE FROM workflow_snapshots WHERE id = ?1 AND ?2 IS NOT NULL",
    ];
    let rows: Vec<(Vec<u8>, Vec<u8>, String)> = sqlx::query_as(SNAPSHOTS).fetch_all(&mut *connection).await?;
    sqlx::query(FORGET).execute(&mut *connection).await?;
    let mut adjusted = Vec::new();
    let mut kept: HashMap<(Vec<u8>, String), Vec<u8>> = HashMap::new();
    for (id, workflow, tasks) in rows {
        let entity = Uuid::from_slice(&id).map_or_else(|_| format!("{id:02x?}"), |id| id.to_string());
        let entity = format!("snapshot {entity}");
        let dag = match read_dag(&tasks) {
            Ok((dag, problems)) => {
                adjusted
                    .extend(problems.into_iter().map(|problem| Violation::new(Rule::W2, &*entity, problem)));
                dag
            }
            Err(error) => {
                adjusted.push(Violation::new(
                    Rule::G8,
                    entity,
                    format!("is no DAG and cannot be run: {error}"),
                ));
                continue;
            }
        };
        let hash = dag.content_hash();
        if let Some(same) = kept.get(&(workflow.clone(), hash.clone())) {
            for statement in MERGE {
                sqlx::query(statement).bind(&id).bind(same).execute(&mut *connection).await?;
            }
            continue;
        }
        kept.insert((workflow, hash.clone()), id.clone());
        let rewrite = sqlx::query(REWRITE).bind(&id).bind(hash).bind(dag.to_json().as_str());
        rewrite.execute(&mut *connection).await?;
    }
    Ok(adjusted)
}
