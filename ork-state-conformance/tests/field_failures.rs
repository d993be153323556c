//! What has gone wrong in stores of this kind that are in use, each with what would find it here:
//! cases of the suite, which hold every backend to it, or a test of the crate that alone can have
//! it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use ork_state_conformance::Case;

/// A failure seen in the field, and the cases and tests (`file::function`) that find it.
struct Seen(&'static str, &'static [&'static str]);

const SEEN: &[Seen] = &[
    // Two schedulers.
    Seen(
        "nobody claims, so each scheduler runs every task",
        &[
            "t2_a_claimed_task_is_not_given_again",
            "t2_claimers_at_once_get_disjoint_tasks",
            "t2_four_processes_claim_twenty_thousand_tasks_each_once",
        ],
    ),
    Seen(
        "both make the tasks of a run, and the loser's error marks the live run failed",
        &["r2_two_schedulers_start_it_once", "r2_two_starts_with_different_dags_make_the_tasks_of_one"],
    ),
    Seen("a due schedule fires twice", &["s1_two_schedulers_fire_a_thousand_slots_once_each"]),
    Seen("a schedule without a next time is due for ever", &["s1_without_a_next_slot_it_is_never_due"]),
    Seen("a lease that is handed out has lapsed already", &["t2_leases_are_live_under_contention"]),
    Seen(
        "a stale owner renews",
        &["t3_a_stale_owner_cannot_renew", "t3_a_lapsed_lease_is_not_renewed_though_nobody_took_the_task"],
    ),
    Seen("attempts run past their number", &["t3_attempts_never_run_past_their_number"]),
    // Ends that are not ends.
    Seen("a late success revives a cancelled run", &["r4_a_late_success_does_not_revive_the_run"]),
    Seen(
        "a batch moves an ended task back to running",
        &[
            "t4_an_end_is_final",
            "t4_a_status_never_moves_back",
            "t4_a_stale_claim_on_an_ended_task_is_told_of_the_end",
        ],
    ),
    Seen(
        "a failed dependency counts as met until the failure has spread",
        &[
            "t1_every_dependency_must_succeed_first",
            "t5_what_depends_on_a_failed_task_fails_however_far",
            "t5_a_long_chain_fails_in_the_same_call",
            "g1_no_reader_sees_a_cascade_half_done",
            "g1_a_process_that_is_killed_leaves_no_half_transaction",
        ],
    ),
    Seen("a dependency on a task that is not there", &["ork-state-api/src/dag.rs::unsound"]),
    Seen(
        "a task that waits for two jobs ends with the first",
        &["d1_the_task_ends_with_its_last_job_not_its_first"],
    ),
    Seen(
        "a scheduler restarts, and what it had claimed stays so for ever",
        &[
            "t3_an_expired_task_is_ready_again_with_an_attempt_spent",
            "t3_a_running_task_expires_as_well",
            "t3_the_tasks_of_a_killed_process_come_back",
        ],
    ),
    Seen(
        "that a job has ended is known to a process that dies, and the task waits for ever",
        &[
            "d1_a_dead_pollers_job_is_due_when_its_lease_lapses",
            "d1_jobs_are_there_after_reopening",
            "d1_the_only_jobs_end_is_the_tasks",
        ],
    ),
    Seen(
        "cancelling leaves tasks of a paused run and external jobs alive",
        &[
            "r4_cancel",
            "r4_tasks_waiting_for_a_retry_are_cancelled",
            "d2_cancelling_a_run_cancels_its_open_jobs",
        ],
    ),
    // Batches.
    Seen(
        "one unknown id throws away the rest of a batch",
        &["t6_one_unknown_id_does_not_throw_away_the_others"],
    ),
    Seen(
        "a batch is a loop of statements, or too large for one",
        &[
            "t6_forty_thousand_items_go_in_one_call",
            "t6_the_largest_batch_goes_in_one_call",
            "r2_a_dag_of_ten_thousand_tasks_starts",
        ],
    ),
    Seen(
        "one retry reads as two attempts used up, or a failure counts twice",
        &[
            "t5_one_retry_means_two_attempts",
            "t6_a_retry_twice_in_a_batch_spends_one_attempt",
            "t7_a_repeated_failure_spends_one_attempt",
        ],
    ),
    // Files.
    Seen(
        "a reader beside a writer misses the record",
        &["g1_a_workflow_and_its_snapshot_appear_together", "g1_no_reader_sees_a_run_half_started"],
    ),
    Seen(
        "appenders overwrite each other",
        &["l2_concurrent_appends_stay_whole", "l2_four_processes_append_to_one_log"],
    ),
    Seen(
        "a file that cannot be read is skipped, and its run counts as complete",
        &[
            "g8_an_unknown_task_status_is_corrupt",
            "g8_a_damaged_run_does_not_hide_others_from_verify",
            "ork-state-file/tests/journal.rs::any_flipped_bit_of_a_whole_line_is_corrupt_with_its_offset",
        ],
    ),
    Seen(
        "a name leads out of the directory",
        &[
            "ork-state-api/src/ork/mod.rs::names_stay_in_their_directory",
            "ork-state-conformance/src/ork/states.rs::ls4_no_name_leads_out_of_the_store",
            "ork-state-conformance/src/ork/objects.rs::lo4_no_two_tasks_share_a_place_and_no_name_leads_out",
        ],
    ),
    // Text, JSON, time.
    Seen("NUL in a log is an error here and a cut there", &["l2_any_bytes_come_back"]),
    Seen(
        "null as an output is a value here and none there",
        &["l1_null_is_an_output", "d1_null_is_an_output_and_none_is_none"],
    ),
    Seen("a long log loses its middle", &["l2_chunks_come_back_as_one_log", "l2_a_cap_says_so_in_the_log"]),
    Seen(
        "an append costs more the longer the log",
        &[
            "ork-state-postgres/tests/plans.rs::an_append_reads_nothing_of_the_log_it_adds_to",
            "ork-state-sqlite/src/plans.rs::statements_search_by_index",
            "ork-state-file/tests/journal.rs::an_append_writes_its_chunk_and_a_line",
        ],
    ),
    Seen(
        "times in three forms, retry times cut to seconds",
        &[
            "g3_times_are_whole_microseconds_and_come_back_equal",
            "t5_retry_times_keep_their_microseconds",
            "ork-state-sqlite/tests/takeover.rs::every_version_is_taken_over_and_nothing_is_lost",
        ],
    ),
    Seen(
        "dependencies that cannot be read are none, or break the claim for all",
        &["g8_dependencies_that_cannot_be_read_are_not_none", "g8_a_claim_passes_over_what_it_cannot_read"],
    ),
    Seen(
        "a search that knows the case of some letters only, and takes % for a pattern",
        &["g6_a_search_ignores_the_case_of_any_script", "g6_a_search_takes_its_text_literally"],
    ),
    Seen(
        "an order by a time that many rows share",
        &[
            "g6_runs_of_one_microsecond_have_one_order",
            "g6_tasks_are_listed_in_the_order_of_the_dag",
            "t2_the_order_is_ready_time_then_run_then_index",
        ],
    ),
    Seen(
        "an unknown status reads as pending",
        &["g8_an_unknown_run_status_is_corrupt", "g8_an_unknown_task_status_is_corrupt"],
    ),
    // One call, different answers.
    Seen(
        "an unknown id is an error here and silence there",
        &[
            "g7_an_unknown_workflow_is_not_found",
            "g7_an_unknown_run_is_not_found",
            "t6_each_item_gets_its_own_answer",
            "g7_random_traces_are_answered_as_the_model_does",
        ],
    ),
    Seen(
        "a name that is taken gives two rows",
        &["w1_a_taken_name_is_refused", "w1_one_of_two_callers_gets_the_name"],
    ),
    Seen(
        "a child of a parent that is not there is an orphan",
        &[
            "r1_an_unknown_workflow_is_not_found",
            "l2_an_unknown_task_is_not_found",
            "d1_an_unknown_task_is_not_found",
        ],
    ),
    Seen("a negative limit means none", &["ork-state-api/src/limits.rs::a_limit_is_one_at_least"]),
    Seen(
        "an update without an error keeps the old one, or not",
        &[
            "t4_success_keeps_the_output_and_clears_the_error",
            "t4_a_release_keeps_the_error_of_an_earlier_attempt",
        ],
    ),
    Seen(
        "of two ends the first time stays, or the second",
        &["t7_a_repeated_success_has_one_effect", "t4_an_end_is_final"],
    ),
    // Operation.
    Seen(
        "a setting that one connection of five has",
        &["ork-state-sqlite/src/options.rs::every_connection_has_every_setting"],
    ),
    Seen(
        "many indexes on the wide table, and a claim that trusts stale statistics",
        &[
            "ork-state-postgres/tests/pages.rs::updates_of_tasks_stay_on_their_pages",
            "ork-state-postgres/tests/plans.rs::a_claim_reads_the_ready_tasks_only_whatever_the_statistics",
            "t2_a_thousand_waiting_tasks_do_not_hide_a_ready_one",
        ],
    ),
    Seen(
        "an error shows the password",
        &[
            "ork-state-postgres/src/options.rs::no_error_shows_the_password",
            "ork-state-postgres/tests/schema.rs::what_keeps_from_connecting_is_told_without_the_password",
            "g7_errors_tell_the_id_and_not_the_payload",
        ],
    ),
    Seen(
        "tests that pass where no server answers",
        &["ork-state-conformance/tests/report.rs::nothing_seen_leaves_no_level"],
    ),
];

#[test]
fn every_failure_that_was_seen_in_the_field_would_be_found() {
    let cases: BTreeSet<&str> =
        Case::all().iter().filter_map(|case| case.name.split_once("::")).map(|(_, name)| name).collect();
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let missing: Vec<&str> = SEEN
        .iter()
        .flat_map(|Seen(_, finders)| *finders)
        .copied()
        .filter(|finder| match finder.split_once("::") {
            None => !cases.iter().any(|case| case.starts_with(finder)),
            Some((file, function)) => !fs::read_to_string(workspace.join(file)).is_ok_and(|text| {
                [format!("fn {function}("), format!("\n{function}(t")].iter().any(|it| text.contains(it))
            }),
        })
        .collect();
    assert!(missing.is_empty(), "there is no {missing:#?}");
    assert!(SEEN.iter().all(|Seen(failure, finders)| !failure.is_empty() && !finders.is_empty()));
}
