//! Some calls must cost the same however much is stored. That takes indexes: these tests check the
//! query plans.

use ork_state_api::Maintenance as _;
use rstest::rstest;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Row as _};

use crate::{SqliteOptions, claims, deferred_jobs, logs, maintenance, runs, schedules, updates};

async fn plan(statement: &str) -> Vec<String> {
    let directory = tempfile::tempdir().unwrap();
    let options = SqliteOptions::new(directory.path().join("ork.db")).unwrap();
    options.clone().connect().await.unwrap().migrate().await.unwrap();
    let mut connection = options.reader().connect().await.unwrap();
    let explain = AssertSqlSafe(format!("EXPLAIN QUERY PLAN {statement}"));
    let plan = sqlx::query(explain).fetch_all(&mut connection).await.unwrap();
    plan.iter().map(|row| row.get("detail")).collect()
}

#[rstest]
#[case::claim(claims::FIRST_READY, "q USING PRIMARY KEY (ready_at<?)")]
#[case::runs(runs::LIST, "runs USING INDEX idx_runs_created_at (created_at>? AND (created_at,id)<(?,?))")]
#[case::runs_of_workflow(
    runs::LIST_OF_WORKFLOW,
    "runs USING INDEX idx_runs_workflow (workflow_id=? AND created_at>? AND (created_at,id)<(?,?))"
)]
#[case::runs_of_statuses(
    runs::LIST_OF_STATUSES,
    "runs USING INDEX idx_runs_status (status=? AND created_at>? AND (created_at,id)<(?,?))"
)]
#[case::live_runs(maintenance::LIVE, "runs USING INDEX idx_runs_status (status=?)")]
#[case::ended_runs(maintenance::ENDED, "runs USING COVERING INDEX idx_runs_finished_at (finished_at<?)")]
#[case::due_schedules(schedules::DUE, "workflows USING INDEX idx_workflows_due (next_scheduled_at<?)")]
#[case::due_jobs(
    deferred_jobs::DUE,
    "deferred_jobs USING INDEX idx_deferred_jobs_due ((poll_at,id)>(?,?) AND poll_at<?)"
)]
#[case::log_length(logs::LENGTH, "g USING PRIMARY KEY (task_id=?) LEFT-JOIN")]
#[case::lapsed(
    updates::LAPSED,
    "l USING INDEX idx_task_leases_expires_at ((expires_at,task_id)>(?,?) AND expires_at<?)"
)]
#[case::overdue(
    updates::OVERDUE,
    "o USING COVERING INDEX idx_task_timeouts_deadline ((deadline,task_id)>(?,?) AND deadline<?)"
)]
#[tokio::test]
async fn statements_search_by_index(#[case] statement: &str, #[case] search: &str) {
    let plan = plan(statement).await;
    assert!(plan.iter().any(|step| *step == format!("SEARCH {search}")), "{plan:#?}");
    only_searches(&plan);
}

#[tokio::test]
async fn runs_are_deleted_by_index() {
    for statement in maintenance::DELETES {
        only_searches(&plan(statement).await);
    }
}

/// The list of deleted logs is read from its beginning.
#[tokio::test]
async fn deleted_logs_are_freed_by_index() {
    let search = "SEARCH c USING INDEX sqlite_autoindex_task_log_chunks_1 (task_id=?) LEFT-JOIN";
    assert_eq!(plan(logs::DELETED).await, ["SCAN d", search]);
}

/// Allows scans only of batches, which are read in the order given.
fn only_searches(plan: &[String]) {
    for step in plan {
        let is_batch = step.contains("VIRTUAL TABLE");
        assert!(!step.starts_with("SCAN ") || is_batch, "{plan:#?}");
    }
}

/// A sort covers no more than one page per status.
#[tokio::test]
async fn lists_come_in_order_out_of_their_index() {
    for statement in
        [runs::LIST, runs::LIST_OF_WORKFLOW, schedules::DUE, deferred_jobs::DUE, maintenance::ENDED]
    {
        let plan = plan(statement).await;
        assert!(plan.iter().all(|step| !step.contains("TEMP B-TREE")), "{plan:#?}");
    }
}
