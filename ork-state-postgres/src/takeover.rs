//! What of taking a database of Ork over no statement can do: keeping others out, telling what was
//! adjusted, and the content hashes of snapshots.

use std::collections::HashMap;

use ork_state_api::ork::read_dag;
use ork_state_api::{Error, Result, Rule, Violation};
use sqlx::postgres::PgConnection;
use sqlx::{Executor, Row, query};
use uuid::Uuid;

use crate::error::{Access, of_statement};
use crate::rows::Reader;
use crate::site::Site;
use crate::statement::Statement;
use crate::steps::needed;

/// Finishes a takeover, after the last step of the schema and within its transaction. Answers what
/// was adjusted.
pub(crate) async fn finish(site: &Site, connection: &mut PgConnection) -> Result<Vec<Violation>> {
    // A program of Ork that starts finds a migration that it does not know, and refuses.
    const FENCE: Statement = Statement::new(
        "INSERT INTO {schema}._sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES ($1, 'taken over by ork-state', true, '', 0)
         ON CONFLICT DO NOTHING",
    );
    let mut adjusted = read_adjusted(site, connection).await?;
    adjusted.extend(rewrite_snapshots(site, connection).await?);
    let fence = site.query(FENCE).bind(needed()).execute(connection).await;
    fence.map_err(|error| of_statement(&site.place, Access::Write, error))?;
    Ok(adjusted)
}

/// Keeps everybody else out of the tables of a database that is taken over, all at once, so that no
/// other lock comes between.
pub(crate) async fn lock_tables(site: &Site, connection: &mut PgConnection) -> Result<()> {
    // For what others do in the tables, such as processes of Ork that still run.
    const PATIENCE: &str = "SET LOCAL lock_timeout = '10s'";
    let locked = async {
        connection.execute(PATIENCE).await?;
        // The tables that every version has.
        connection
            .execute("LOCK TABLE workflows, runs, tasks, _sqlx_migrations IN ACCESS EXCLUSIVE MODE")
            .await
    };
    locked.await.map(drop).map_err(|error| {
        let error = of_statement(&site.place, Access::Read, error);
        Error::new(error.kind().clone())
            .with_hint("Stop the programs of Ork that still use the database, then migrate again")
            .with_source(error)
    })
}

/// What the last migration found in the old rows.
async fn read_adjusted(site: &Site, connection: &mut PgConnection) -> Result<Vec<Violation>> {
    // Made by that migration in this very transaction; none if another transaction applied it, as
    // by sqlx's own means.
    let read = query("SELECT rule, entity, problem FROM ork_adjusted ORDER BY rule, entity, problem");
    let rows =
        read.fetch_all(connection).await.map_err(|error| of_statement(&site.place, Access::Read, error))?;
    rows.iter()
        .map(|row| {
            let text = |column| {
                row.try_get::<String, _>(column)
                    .map_err(|source| Error::internal("an adjustment that is no text").with_source(source))
            };
            Ok(Violation::new(text("rule")?.parse()?, text("entity")?, text("problem")?))
        })
        .collect()
}

/// Gives every snapshot its canonical form and hash: the old form went through `jsonb`, which
/// rewrites numbers and the order of keys.
async fn rewrite_snapshots(site: &Site, connection: &mut PgConnection) -> Result<Vec<Violation>> {
    const SNAPSHOTS: Statement = Statement::new(
        "SELECT s.id, s.workflow_id, s.content_hash, s.tasks_json::text AS tasks_json
         FROM {schema}.workflow_snapshots s
         ORDER BY s.created_at, s.id",
    );
    // No hash is to stand in the way of another's.
    const FORGET: Statement =
        Statement::new("UPDATE {schema}.workflow_snapshots SET content_hash = 'of ' || id::text");
    const REWRITE: Statement = Statement::new(
        "UPDATE {schema}.workflow_snapshots SET content_hash = $2, tasks_json = $3::text::json WHERE id = $1",
    );
    // Into another of the same content.
    const MERGE: Statement = Statement::new(
        "WITH w AS (UPDATE {schema}.workflows SET current_snapshot_id = $2 WHERE current_snapshot_id = $1),
              r AS (UPDATE {schema}.runs SET snapshot_id = $2 WHERE snapshot_id = $1)
         DELETE FROM {schema}.workflow_snapshots WHERE id = $1",
    );
    let failed = |error| of_statement(&site.place, Access::Write, error);
    let rows = site.query(SNAPSHOTS).fetch_all(&mut *connection).await.map_err(failed)?;
    connection.execute(site.text(FORGET)).await.map_err(failed)?;
    let mut adjusted = Vec::new();
    let mut kept: HashMap<(Uuid, String), Uuid> = HashMap::new();
    for row in &rows {
        let row = Reader::of(row, "workflow_snapshots")?;
        let (id, workflow): (Uuid, Uuid) = (row.get("id")?, row.get("workflow_id")?);
        let dag = match read_dag(row.get("tasks_json")?) {
            Ok((dag, problems)) => {
                let entity = format!("snapshot {id}");
                adjusted
                    .extend(problems.into_iter().map(|problem| Violation::new(Rule::W2, &*entity, problem)));
                dag
            }
            Err(error) => {
                let problem = format!("is no DAG and cannot be run: {error}");
                adjusted.push(Violation::new(Rule::G8, format!("snapshot {id}"), problem));
                continue;
            }
        };
        let hash = dag.content_hash();
        match kept.get(&(workflow, hash.clone())) {
            Some(same) => site.query(MERGE).bind(id).bind(same).execute(&mut *connection).await,
            None => {
                kept.insert((workflow, hash.clone()), id);
                let rewrite = site.query(REWRITE);
                rewrite.bind(id).bind(hash).bind(dag.to_json().as_str()).execute(&mut *connection).await
            }
        }
        .map_err(failed)?;
    }
    Ok(adjusted)
}
