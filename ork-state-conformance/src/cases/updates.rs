use std::time::Duration;

use ork_state_api::UpdateOutcome::{AlreadyTerminal, Applied, LeaseLost, NotFound};
use ork_state_api::limits::{MAX_BATCH_ITEMS, MAX_TEXT_BYTES};
use ork_state_api::{
    Claim, Delay, Json, Label, Limit, RunStatus, TaskId, TaskStatus, TaskUpdate, Text, Token,
};

use super::together;
use crate::LEASE;
use crate::case::case;

case! { T4, t4_running_is_recorded(t) {
    let run = t.start("a").await?;
    let a = t.claim_one().await?;
    t.advance(Duration::from_secs(1));
    assert_eq!(t.update([TaskUpdate::running(a.claim)]).await?.outcomes, [Applied { status: TaskStatus::Running }]);
    let task = t.task(run.id, "a").await?;
    assert_eq!((task.status, task.started_at), (TaskStatus::Running, Some(t.now())));
    assert_eq!(task.lease, a.task.lease, "running keeps the lease as it is");
    Ok(())
}}

case! { T4, t4_dispatched_records_the_execution_name(t) {
    let run = t.start("a").await?;
    let a = t.claim_one().await?;
    let name = Some(Label::new("exec-1")?);
    assert_eq!(t.update([TaskUpdate::dispatched(a.claim, name.clone())]).await?.outcomes, [Applied { status: TaskStatus::Dispatched }]);
    assert_eq!(t.task(run.id, "a").await?.execution_name, name);
    t.update([TaskUpdate::dispatched(a.claim, None)]).await?;
    assert_eq!(t.task(run.id, "a").await?.execution_name, name, "no name leaves the name");
    Ok(())
}}

case! { T4, t4_a_status_never_moves_back(t) {
    let run = t.start("a").await?;
    let a = t.claim_one().await?;
    t.update([TaskUpdate::running(a.claim)]).await?;
    let started = t.task(run.id, "a").await?.started_at;
    t.advance(Duration::from_secs(1));
    let late = TaskUpdate::dispatched(a.claim, Some(Label::new("late")?));
    assert_eq!(t.update([late, TaskUpdate::running(a.claim)]).await?.outcomes, [Applied { status: TaskStatus::Running }; 2]);
    let task = t.task(run.id, "a").await?;
    assert_eq!((task.status, task.started_at, task.execution_name.as_deref()), (TaskStatus::Running, started, Some("late")));
    t.update([TaskUpdate::dispatched(a.claim, None)]).await?;
    assert_eq!(t.task(run.id, "a").await?, task, "also in a call of its own");
    Ok(())
}}

case! { T4, t4_success_keeps_the_output_and_clears_the_error(t) {
    let run = t.start("a*1").await?;
    t.fail(&t.claim_one().await?, Duration::ZERO).await?;
    let a = t.claim_one().await?;
    t.advance(Duration::from_secs(4));
    let output = Json::parse("{\"n\": 1}")?;
    assert_eq!(t.update([TaskUpdate::succeeded(a.claim, Some(output.clone()))]).await?.outcomes, [Applied { status: TaskStatus::Success }]);
    let detail = t.db().get_task(a.task.id).await?;
    assert_eq!((detail.output, detail.task.error, detail.task.lease), (Some(output), None, None));
    assert_eq!((detail.task.finished_at, detail.task.started_at), (Some(t.now()), Some(t.now())), "running may be skipped");
    assert_eq!(t.db().get_run(run.id).await?.status, RunStatus::Success);
    Ok(())
}}

case! { T4, t4_a_stale_token_changes_nothing(t) {
    let run = t.start("a*1").await?;
    let first = t.claim_one().await?;
    t.advance(LEASE);
    t.db().expire_leases(Limit::default()).await?;
    let second = t.claim_one().await?;
    let before = t.task(run.id, "a").await?;
    for update in [
        TaskUpdate::dispatched(first.claim, Some(Label::new("x")?)),
        TaskUpdate::running(first.claim),
        TaskUpdate::succeeded(first.claim, Some(Json::parse("1")?)),
        TaskUpdate::failed(first.claim, Text::new("x")?, Delay::ZERO),
        TaskUpdate::failed_for_good(first.claim, Text::new("x")?),
        TaskUpdate::released(first.claim),
    ] {
        assert_eq!(t.update([update]).await?.outcomes, [LeaseLost]);
        assert_eq!(t.task(run.id, "a").await?, before);
    }
    assert_eq!(t.db().get_task(second.task.id).await?.output, None);
    assert_eq!(t.succeed(&second).await?.outcomes, [Applied { status: TaskStatus::Success }]);
    Ok(())
}}

case! { T4, t4_a_lapsed_lease_changes_nothing_though_nobody_took_the_task(t) {
    let run = t.start("a*1").await?;
    let a = t.claim_one().await?;
    t.advance(LEASE);
    assert_eq!(t.succeed(&a).await?.outcomes, [LeaseLost]);
    assert_eq!(t.task(run.id, "a").await?, a.task);
    Ok(())
}}

case! { T4, t4_the_last_microsecond_of_a_lease_is_enough(t) {
    t.start("a").await?;
    let a = t.claim_one().await?;
    t.advance(LEASE - Duration::from_micros(1));
    assert_eq!(t.succeed(&a).await?.outcomes, [Applied { status: TaskStatus::Success }]);
    Ok(())
}}

case! { T4, t4_an_unclaimed_task_cannot_be_updated(t) {
    let run = t.start("a").await?;
    let task = t.task(run.id, "a").await?;
    for token in [0, 1, -1, i64::MAX] {
        let claim = Claim { task: task.id, token: Token::from_stored(token) };
        assert_eq!(t.update([TaskUpdate::succeeded(claim, None)]).await?.outcomes, [LeaseLost]);
    }
    assert_eq!(t.task(run.id, "a").await?, task);
    Ok(())
}}

case! { T4, t4_an_end_is_final(t, end: TaskStatus) {
    let run = t.start("a b").await?;
    let a = t.claim_one().await?;
    match end {
        TaskStatus::Success => t.succeed(&a).await?,
        _ => t.fail(&a, Duration::ZERO).await?,
    };
    t.advance(Duration::from_secs(1));
    let before = t.db().get_task(a.task.id).await?;
    for update in [
        TaskUpdate::dispatched(a.claim, Some(Label::new("x")?)),
        TaskUpdate::running(a.claim),
        TaskUpdate::succeeded(a.claim, Some(Json::parse("1")?)),
        TaskUpdate::failed(a.claim, Text::new("other")?, Delay::ZERO),
        TaskUpdate::released(a.claim),
    ] {
        assert_eq!(t.update([update]).await?.outcomes, [AlreadyTerminal { status: end }]);
    }
    assert_eq!(t.db().get_task(a.task.id).await?, before);
    assert_eq!(t.db().get_run(run.id).await?.tasks.unfinished, 1);
    Ok(())
}
    success => TaskStatus::Success,
    failed => TaskStatus::Failed,
}

case! { T4, t4_a_released_task_is_as_if_never_claimed(t) {
    let run = t.start("a").await?;
    let a = t.claim_one().await?;
    t.update([TaskUpdate::dispatched(a.claim, Some(Label::new("x")?)), TaskUpdate::running(a.claim)]).await?;
    t.advance(Duration::from_secs(2));
    assert_eq!(t.update([TaskUpdate::released(a.claim)]).await?.outcomes, [Applied { status: TaskStatus::Pending }]);
    let task = t.task(run.id, "a").await?;
    assert_eq!((task.status, task.attempts, task.ready_at), (TaskStatus::Pending, 0, Some(t.now())));
    assert_eq!((task.lease, task.execution_name, task.started_at, task.dispatched_at), (None, None, None, None));
    let again = t.claim_one().await?;
    assert_eq!(again.task.attempts, 1);
    assert!(again.claim.token > a.claim.token);
    Ok(())
}}

case! { T4, t4_a_release_keeps_the_error_of_an_earlier_attempt(t) {
    let run = t.start("a*1").await?;
    t.fail(&t.claim_one().await?, Duration::ZERO).await?;
    let a = t.claim_one().await?;
    t.update([TaskUpdate::released(a.claim)]).await?;
    let task = t.task(run.id, "a").await?;
    assert_eq!((task.attempts, task.error.as_deref()), (1, Some("broken")));
    Ok(())
}}

case! { T4, t4_a_new_attempt_starts_clean(t) {
    let run = t.start("a*1").await?;
    let a = t.claim_one().await?;
    t.update([TaskUpdate::dispatched(a.claim, Some(Label::new("x")?)), TaskUpdate::running(a.claim)]).await?;
    t.fail(&a, Duration::ZERO).await?;
    let task = t.claim_one().await?.task;
    assert_eq!(t.task(run.id, "a").await?, task, "what the claim brought is what is kept");
    assert_eq!((task.execution_name, task.started_at, task.retry_at), (None, None, None));
    assert_eq!(task.error.as_deref(), Some("broken"), "the latest failure is still worth reading");
    Ok(())
}}

case! { [T4, R3], t4_callers_at_once_each_get_the_answer_to_their_own_call(t) {
    let shared = t.start("a b c d e f g h").await?.id;
    for _ in 0..16 {
        t.start("a").await?;
    }
    let mut calls = Vec::new();
    for (number, task) in t.claim(100).await?.into_iter().enumerate() {
        let claim = task.claim;
        // The tasks of the shared run all fail.
        let fails = task.run == shared || number % 2 == 0;
        let (status, end) = match fails {
            true => (TaskStatus::Failed, TaskUpdate::failed_for_good(claim, Text::new("no")?)),
            false => (TaskStatus::Success, TaskUpdate::succeeded(claim, None)),
        };
        let stale = Claim { token: Token::from_stored(claim.token.get() + 1), ..claim };
        let nobody = Claim { task: TaskId::generate(), ..claim };
        // The order of the two decides what a stale claim is told.
        for (update, expected) in [
            (TaskUpdate::running(nobody), vec![NotFound]),
            (TaskUpdate::running(stale), vec![LeaseLost, AlreadyTerminal { status }]),
            (end, vec![Applied { status }]),
        ] {
            calls.push((task.task.clone(), update, expected));
        }
    }
    assert_eq!(calls.len(), 24 * 3);
    let callers = calls.into_iter().map(|(task, update, expected)| {
        let t = t.clone();
        async move { (task, expected, t.update([update]).await) }
    });
    let mut last_of_shared = Vec::new();
    for (task, expected, report) in together(callers).await? {
        let report = report?;
        assert!(matches!(&report.outcomes[..], [it] if expected.contains(it)), "{report:?} is none of {expected:?}");
        let ended: Vec<_> = report.ended_runs.iter().map(|ended| ended.run).collect();
        if task.run != shared {
            let ends = matches!(expected[..], [Applied { .. }]);
            assert_eq!(ended, if ends { vec![task.run] } else { vec![] }, "{report:?}");
        } else if !ended.is_empty() {
            assert_eq!(ended, [shared]);
            last_of_shared.push(task.name);
        }
    }
    assert_eq!(last_of_shared.len(), 1, "one call ends a run, not those of {last_of_shared:?}");
    let last = format!("task \"{}\" failed", last_of_shared[0]);
    assert_ne!(t.db().get_run(shared).await?.error.as_deref(), Some(&*last), "the first that failed is not the last");
    Ok(())
}}

case! { T6, t6_an_empty_batch_is_an_empty_answer(t) {
    let report = t.update([]).await?;
    assert_eq!((report.outcomes.len(), report.ended_runs.len()), (0, 0));
    Ok(())
}}

case! { T6, t6_one_unknown_id_does_not_throw_away_the_others(t) {
    let run = t.start(&(0..99).map(|i| format!("t{i} ")).collect::<String>()).await?;
    let claimed = t.claim(100).await?;
    let mut updates: Vec<_> = claimed.iter().map(|task| TaskUpdate::succeeded(task.claim, None)).collect();
    let nobody = Claim { task: TaskId::generate(), token: claimed[0].claim.token };
    updates.insert(50, TaskUpdate::succeeded(nobody, None));
    let report = t.update(updates).await?;
    assert_eq!((report.outcomes.len(), report.outcomes[50]), (100, NotFound));
    assert_eq!(report.outcomes.iter().filter(|o| matches!(o, Applied { .. })).count(), 99);
    assert_eq!(t.db().get_run(run.id).await?.status, RunStatus::Success);
    Ok(())
}}

case! { T6, t6_each_item_gets_its_own_answer(t) {
    t.start("done live stale free").await?;
    let claimed = t.claim(3).await?;
    t.succeed(&claimed[0]).await?;
    let stale = Claim { task: claimed[2].task.id, token: Token::from_stored(claimed[2].claim.token.get() + 5) };
    let nobody = Claim { task: TaskId::generate(), token: stale.token };
    let report = t
        .update([nobody, stale, claimed[1].claim, claimed[0].claim].map(TaskUpdate::running))
        .await?;
    let expected =
        [NotFound, LeaseLost, Applied { status: TaskStatus::Running }, AlreadyTerminal { status: TaskStatus::Success }];
    assert_eq!(report.outcomes, expected);
    Ok(())
}}

case! { T6, t6_items_about_one_task_have_the_effect_of_one_after_the_other(t) {
    let run = t.start("a").await?;
    let a = t.claim_one().await?;
    let report = t
        .update([
            TaskUpdate::dispatched(a.claim, Some(Label::new("x")?)),
            TaskUpdate::running(a.claim),
            TaskUpdate::succeeded(a.claim, Some(Json::parse("1")?)),
            TaskUpdate::failed(a.claim, Text::new("no")?, Delay::ZERO),
        ])
        .await?;
    let done = Applied { status: TaskStatus::Success };
    assert_eq!(report.outcomes, [done, done, done, AlreadyTerminal { status: TaskStatus::Success }]);
    assert_eq!(report.ended_runs.len(), 1);
    let detail = t.db().get_task(a.task.id).await?;
    assert_eq!((detail.output.as_ref().map(Json::as_str), detail.task.execution_name.as_deref()), (Some("1"), Some("x")));
    assert_eq!(t.db().get_run(run.id).await?.tasks.unfinished, 0);
    Ok(())
}}

case! { T6, t6_the_same_end_twice_in_a_batch_counts_once(t) {
    let run = t.start("a b c:a").await?;
    let a = t.claim_one().await?;
    let report = t.update([TaskUpdate::succeeded(a.claim, None), TaskUpdate::succeeded(a.claim, None)]).await?;
    assert_eq!(report.outcomes, [Applied { status: TaskStatus::Success }, AlreadyTerminal { status: TaskStatus::Success }]);
    assert_eq!((t.db().get_run(run.id).await?.tasks.unfinished, t.task(run.id, "c").await?.unmet_dependencies), (2, 0));
    Ok(())
}}

case! { T6, t6_a_retry_twice_in_a_batch_spends_one_attempt(t) {
    let run = t.start("a*5").await?;
    let a = t.claim_one().await?;
    let fail = TaskUpdate::failed(a.claim, Text::new("x")?, Delay::ZERO);
    assert_eq!(t.update([fail.clone(), fail]).await?.outcomes, [Applied { status: TaskStatus::Pending }, LeaseLost]);
    assert_eq!(t.task(run.id, "a").await?.attempts, 1);
    Ok(())
}}

case! { T6, t6_a_stale_item_and_a_live_one_about_one_task_stand_apart(t) {
    t.start("a*1").await?;
    let first = t.claim_one().await?;
    t.update([TaskUpdate::released(first.claim)]).await?;
    let second = t.claim_one().await?;
    let report = t
        .update([
            TaskUpdate::failed_for_good(first.claim, Text::new("stale")?),
            TaskUpdate::succeeded(second.claim, None),
            TaskUpdate::running(first.claim),
        ])
        .await?;
    // Both stale items stand in the place of the first, before the live one.
    assert_eq!(report.outcomes, [LeaseLost, Applied { status: TaskStatus::Success }, LeaseLost]);
    assert_eq!(t.db().get_task(first.task.id).await?.task.error, None);
    Ok(())
}}

case! { T6, t6_a_stale_item_after_the_end_finds_the_end(t) {
    t.start("a*1").await?;
    let first = t.claim_one().await?;
    t.update([TaskUpdate::released(first.claim)]).await?;
    let second = t.claim_one().await?;
    let report = t
        .update([TaskUpdate::running(second.claim), TaskUpdate::running(first.claim), TaskUpdate::succeeded(second.claim, None)])
        .await?;
    let status = TaskStatus::Success;
    assert_eq!(report.outcomes, [Applied { status }, AlreadyTerminal { status }, Applied { status }]);
    Ok(())
}}

case! { T4, t4_a_stale_claim_on_an_ended_task_is_told_of_the_end(t) {
    let run = t.start("a*1 b").await?;
    let stale = t.claim_one().await?;
    t.advance(LEASE);
    t.db().expire_leases(Limit::default()).await?;
    let a = t.claim(10).await?.into_iter().find(|task| task.id == stale.task.id).ok_or("it is ready again")?;
    t.succeed(&a).await?;
    let before = t.task(run.id, "a").await?;
    let invented = Claim { task: a.task.id, token: Token::from_stored(i64::MAX) };
    for claim in [stale.claim, invented] {
        let report = t.update([TaskUpdate::failed_for_good(claim, Text::new("late")?)]).await?;
        assert_eq!(report.outcomes, [AlreadyTerminal { status: TaskStatus::Success }]);
    }
    assert_eq!(t.task(run.id, "a").await?, before);
    Ok(())
}}

case! { T6, t6_the_largest_batch_goes_in_one_call(t) {
    t.start("a b").await?;
    let claimed = t.claim(2).await?;
    let nobody = |_| TaskUpdate::running(Claim { task: TaskId::generate(), token: Token::from_stored(1) });
    let mut updates: Vec<_> = (0..MAX_BATCH_ITEMS - 2).map(nobody).collect();
    updates.insert(50_000, TaskUpdate::succeeded(claimed[0].claim, None));
    updates.push(TaskUpdate::succeeded(claimed[1].claim, None));
    let report = t.update(updates).await?;
    let done = Applied { status: TaskStatus::Success };
    assert_eq!((report.outcomes.len(), report.ended_runs.len()), (MAX_BATCH_ITEMS, 1));
    assert_eq!((report.outcomes[50_000], report.outcomes[MAX_BATCH_ITEMS - 1]), (done, done));
    assert_eq!(report.outcomes.iter().filter(|o| **o == NotFound).count(), MAX_BATCH_ITEMS - 2);
    Ok(())
}}

case! { [T4, G5], t4_an_error_as_long_as_the_limit_comes_back(t) {
    let run = t.start("a b:a").await?;
    let long = "é".repeat(MAX_TEXT_BYTES / 2);
    let a = t.claim_one().await?;
    t.update([TaskUpdate::failed_for_good(a.claim, Text::new(long.as_str())?)]).await?;
    assert!(t.task(run.id, "a").await?.error.as_deref() == Some(long.as_str()), "the error came back otherwise");
    assert_eq!(t.statuses(run.id).await?, "a=failed b=failed");
    Ok(())
}}

case! { T6, t6_forty_thousand_items_go_in_one_call(t) {
    let workflow = t.workflow(crate::wide_dag(2000)?).await?;
    let run = t.db().create_run(ork_state_api::NewRun::new(workflow.id)).await?.into_run();
    t.db().start_run(ork_state_api::StartRun::pinned(run.id)).await?;
    let claimed = t.claim(2000).await?;
    let nobody = (0..38_000).map(|_| TaskUpdate::running(Claim { task: TaskId::generate(), token: Token::from_stored(1) }));
    let report = t.update(claimed.iter().map(|task| TaskUpdate::succeeded(task.claim, None)).chain(nobody)).await?;
    assert_eq!(report.outcomes.iter().filter(|o| matches!(o, Applied { .. })).count(), 2000);
    assert_eq!(report.outcomes.iter().filter(|o| **o == NotFound).count(), 38_000);
    assert_eq!(t.db().get_run(run.id).await?.status, RunStatus::Success);
    Ok(())
}}

case! { T7, t7_a_repeated_success_has_one_effect(t) {
    let run = t.start("a b:a c:a").await?;
    let a = t.claim_one().await?;
    let update = TaskUpdate::succeeded(a.claim, Some(Json::parse("1")?));
    t.update([update.clone()]).await?;
    let (before, tasks) = (t.db().get_run(run.id).await?, t.tasks(run.id).await?);
    t.advance(Duration::from_secs(1));
    let report = t.update([update]).await?;
    assert_eq!(report.outcomes, [AlreadyTerminal { status: TaskStatus::Success }]);
    assert_eq!((t.db().get_run(run.id).await?, t.tasks(run.id).await?), (before, tasks));
    Ok(())
}}

case! { T7, t7_a_repeated_failure_spends_one_attempt(t) {
    let run = t.start("a*3").await?;
    let a = t.claim_one().await?;
    t.fail(&a, Duration::from_secs(5)).await?;
    let before = t.tasks(run.id).await?;
    assert_eq!(t.fail(&a, Duration::from_secs(50)).await?.outcomes, [LeaseLost]);
    assert_eq!(t.tasks(run.id).await?, before);
    Ok(())
}}

case! { T7, t7_a_repeated_release_takes_one_attempt_back(t) {
    let run = t.start("a*3").await?;
    t.fail(&t.claim_one().await?, Duration::ZERO).await?;
    let a = t.claim_one().await?;
    t.update([TaskUpdate::released(a.claim)]).await?;
    assert_eq!(t.update([TaskUpdate::released(a.claim)]).await?.outcomes, [LeaseLost]);
    assert_eq!(t.task(run.id, "a").await?.attempts, 1);
    Ok(())
}}

case! { T7, t7_a_batch_repeated_at_the_same_moment_has_one_effect(t) {
    for _ in 0..10 {
        let run = t.start("a b c:a,b").await?;
        let claimed = t.claim(2).await?;
        let updates: Vec<_> = claimed.iter().map(|task| TaskUpdate::succeeded(task.claim, None)).collect();
        let callers = (0..4).map(|_| {
            let (t, updates) = (t.clone(), updates.clone());
            async move { t.update(updates).await }
        });
        let mut applied = 0;
        for report in together(callers).await? {
            applied += report?.outcomes.iter().filter(|outcome| matches!(outcome, Applied { .. })).count();
        }
        assert_eq!(applied, 2);
        assert_eq!((t.task(run.id, "c").await?.unmet_dependencies, t.db().get_run(run.id).await?.tasks.unfinished), (0, 1));
        t.work_off().await?;
    }
    Ok(())
}}

case! { T4, t4_batches_over_the_same_tasks_in_any_order_do_not_deadlock(t) {
    for _ in 0..5 {
        let mut runs = Vec::new();
        for _ in 0..8 {
            runs.push(t.start("a b c d").await?.id);
        }
        let claimed = t.claim(100).await?;
        let callers = (0..6_usize).map(|caller| {
            let (t, mut claims) = (t.clone(), claimed.iter().map(|task| task.claim).collect::<Vec<_>>());
            let middle = caller * 5 % claims.len();
            claims.rotate_left(middle);
            if caller % 2 == 0 {
                claims.reverse();
            }
            async move {
                let change = if caller < 3 { |claim| TaskUpdate::running(claim) } else { |claim| TaskUpdate::succeeded(claim, None) };
                t.update(claims.into_iter().map(change)).await
            }
        });
        for report in together(callers).await? {
            report?;
        }
        for run in runs {
            assert_eq!(t.db().get_run(run).await?.status, RunStatus::Success);
        }
    }
    Ok(())
}}
