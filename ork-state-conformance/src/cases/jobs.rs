use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ork_state_api::ErrorKind::{InvalidTransition, LeaseLost, NotFound, Unsupported};
use ork_state_api::{
    Capability, Claim, ClaimJobs, ClaimedJob, ClaimedTask, Database, DeferTask, DeferredJob, Delay,
    HeartbeatOutcome, JobClaim, JobId, JobStatus, JobUpdate, JobUpdates, Json, Label, LeaseTime, Limit,
    NewDeferredJob, RetryRun, RunStatus, TaskId, TaskStatus, TaskUpdate, Text, Token, UpdateOutcome,
};

use super::{assert_fails, together};
use crate::case::case;
use crate::{Ctx, LEASE};

fn new_job(name: &str) -> ork_state_api::Result<NewDeferredJob> {
    Ok(NewDeferredJob::new("bigquery".parse()?, name.parse()?, Json::parse("{\"n\": 1.0}")?))
}

async fn defer(t: &Ctx, claim: Claim, names: &[&str]) -> ork_state_api::Result<Vec<DeferredJob>> {
    let jobs: ork_state_api::Result<Vec<_>> = names.iter().map(|name| new_job(name)).collect();
    t.db().defer_task(DeferTask::new(claim, jobs?)?).await
}

/// Claims the one ready task and defers it with these jobs.
async fn deferred(t: &Ctx, names: &[&str]) -> ork_state_api::Result<(ClaimedTask, Vec<DeferredJob>)> {
    let task = t.claim_one().await?;
    let jobs = defer(t, task.claim, names).await?;
    Ok((task, jobs))
}

fn request(owner: &str, limit: usize) -> ork_state_api::Result<ClaimJobs> {
    Ok(ClaimJobs::new(Label::new(owner)?, LeaseTime::new(LEASE)?).with_limit(Limit::new(limit)?))
}

async fn poll(t: &Ctx) -> ork_state_api::Result<Vec<ClaimedJob>> {
    t.db().claim_jobs(request("poller", 100)?).await
}

async fn update(t: &Ctx, updates: Vec<JobUpdate>) -> ork_state_api::Result<Vec<UpdateOutcome<JobStatus>>> {
    Ok(t.db().update_jobs(JobUpdates::new(updates)?).await?.outcomes)
}

case! { D1 needs [DeferredJobs], d1_a_deferred_task_runs_without_a_lease(t) {
    let run = t.start("a b:a").await?;
    let (a, jobs) = deferred(&t, &["j1", "j2"]).await?;
    let task = t.task(run.id, "a").await?;
    assert_eq!((task.status, task.open_jobs, task.lease, task.started_at), (TaskStatus::Running, 2, None, Some(t.now())));
    assert_eq!(t.heartbeat(&[a.claim]).await?, [HeartbeatOutcome::Lost]);
    assert_eq!(t.update([TaskUpdate::succeeded(a.claim, None)]).await?.outcomes, [UpdateOutcome::LeaseLost]);
    t.advance(LEASE * 1000);
    assert!(t.db().expire_leases(Limit::default()).await?.requeued.is_empty(), "no lease of it can lapse");
    assert_eq!(t.statuses(run.id).await?, "a=running b=pending");
    assert_eq!(jobs.iter().map(|job| (job.index, job.job_id.as_str())).collect::<Vec<_>>(), [(0, "j1"), (1, "j2")]);
    assert_eq!(t.db().list_jobs(a.task.id).await?, jobs);
    Ok(())
}}

case! { [D1, G5] needs [DeferredJobs], d1_a_job_comes_back_as_it_was_given(t) {
    let run = t.start("a").await?;
    let task = t.claim_one().await?;
    let new = NewDeferredJob::new("ünï".parse()?, Text::new("pro/jobs/1:€ %s")?, Json::parse("{\"big\": 12345678901234567890,\n \"z\": -0.0}")?);
    let jobs = t.db().defer_task(DeferTask::new(task.claim, [new.clone()])?).await?;
    let job = &jobs[0];
    assert_eq!((&job.service_type, &job.job_id, &job.job_data), (&new.service_type, &new.job_id, &new.job_data));
    assert_eq!((job.task, job.run, job.status, job.poll_at), (task.id, run.id, JobStatus::Pending, Some(t.now())));
    assert_eq!((job.created_at, job.started_at, job.last_polled_at, job.finished_at), (t.now(), None, None, None));
    assert_eq!((&job.owner, &job.output, &job.error), (&None, &None, &None));
    assert_eq!(t.db().list_jobs(task.id).await?, jobs);
    Ok(())
}}

case! { D1 needs [DeferredJobs], d1_a_due_job_is_given_to_one_poller(t) {
    t.start("a").await?;
    deferred(&t, &["j"]).await?;
    let claimed = poll(&t).await?;
    let [ClaimedJob { job, claim, .. }] = &claimed[..] else { return Err(format!("{claimed:?}").into()) };
    let until = t.now().saturating_add(LEASE);
    assert_eq!((job.status, job.owner.as_deref(), job.poll_at, job.started_at), (JobStatus::Polling, Some("poller"), Some(until), Some(t.now())));
    assert_eq!(claim.job, job.id);
    assert!(poll(&t).await?.is_empty());
    assert_eq!(t.db().list_jobs(job.task).await?, std::slice::from_ref(job));
    Ok(())
}}

case! { D1 needs [DeferredJobs], d1_a_job_is_due_when_its_time_has_come_longest_first(t) {
    t.start("a").await?;
    let task = t.claim_one().await?;
    let after = |name, seconds| Ok::<_, ork_state_api::Error>(new_job(name)?.with_poll_after(Delay::new(Duration::from_secs(seconds))?));
    t.db().defer_task(DeferTask::new(task.claim, [after("late", 9)?, after("soon", 5)?, after("now", 0)?])?).await?;
    let names = |jobs: Vec<ClaimedJob>| jobs.iter().map(|job| job.job.job_id.to_string()).collect::<Vec<_>>();
    assert_eq!(names(poll(&t).await?), ["now"]);
    t.advance(Duration::from_secs(5) - Duration::from_micros(1));
    assert!(poll(&t).await?.is_empty());
    t.advance(Duration::from_secs(10));
    assert_eq!(names(t.db().claim_jobs(request("p", 1)?).await?), ["soon"]);
    assert_eq!(names(poll(&t).await?), ["late"]);
    Ok(())
}}

case! { D1 needs [DeferredJobs], d1_a_recorded_poll_gives_the_job_back_until_its_next_time(t) {
    t.start("a").await?;
    deferred(&t, &["j"]).await?;
    let claim = poll(&t).await?[0].claim;
    t.advance(Duration::from_secs(1));
    let again = Delay::new(Duration::from_secs(30))?;
    assert_eq!(update(&t, vec![JobUpdate::polled(claim, again)]).await?, [UpdateOutcome::Applied { status: JobStatus::Polling }]);
    assert!(poll(&t).await?.is_empty());
    t.advance(Duration::from_secs(30));
    let next = poll(&t).await?;
    assert!(next[0].claim.token > claim.token);
    assert_eq!((next[0].job.last_polled_at.map(|at| at.saturating_add(Duration::from_secs(30)))), Some(t.now()));
    Ok(())
}}

case! { D1 needs [DeferredJobs], d1_a_dead_pollers_job_is_due_when_its_lease_lapses(t) {
    t.start("a").await?;
    deferred(&t, &["j"]).await?;
    let dead = poll(&t).await?[0].claim;
    t.advance(LEASE - Duration::from_micros(1));
    assert!(poll(&t).await?.is_empty());
    t.advance(Duration::from_micros(1));
    assert_eq!(update(&t, vec![JobUpdate::completed(dead, None)]).await?, [UpdateOutcome::LeaseLost], "its lease has lapsed though nobody took the job");
    let alive = poll(&t).await?[0].claim;
    assert_eq!(update(&t, vec![JobUpdate::completed(dead, None)]).await?, [UpdateOutcome::LeaseLost]);
    assert_eq!(update(&t, vec![JobUpdate::completed(alive, None)]).await?, [UpdateOutcome::Applied { status: JobStatus::Completed }]);
    Ok(())
}}

case! { [D1, R3] needs [DeferredJobs], d1_the_only_jobs_end_is_the_tasks(t) {
    let run = t.start("a b:a").await?;
    let (a, _) = deferred(&t, &["j"]).await?;
    let claim = poll(&t).await?[0].claim;
    t.advance(Duration::from_secs(2));
    let output = Json::parse("[1.50,\n2]")?;
    assert_eq!(update(&t, vec![JobUpdate::completed(claim, Some(output.clone()))]).await?, [UpdateOutcome::Applied { status: JobStatus::Completed }]);
    let task = t.db().get_task(a.task.id).await?;
    assert_eq!((task.status, task.open_jobs, task.finished_at), (TaskStatus::Success, 0, Some(t.now())));
    assert_eq!(task.output.as_ref(), Some(&output));
    let job = t.db().list_jobs(a.task.id).await?.remove(0);
    assert_eq!((job.status, job.poll_at, job.owner, job.finished_at, job.output), (JobStatus::Completed, None, None, Some(t.now()), Some(output)));
    assert_eq!(t.work_off().await?, 1, "its dependent is ready");
    assert_eq!(t.db().get_run(run.id).await?.status, RunStatus::Success);
    Ok(())
}}

case! { [D1, G5] needs [DeferredJobs], d1_null_is_an_output_and_none_is_none(t) {
    for (output, wanted) in [(Some(Json::parse("null")?), Some("null")), (None, None)] {
        t.start("a").await?;
        let (a, _) = deferred(&t, &["j"]).await?;
        let claim = poll(&t).await?[0].claim;
        update(&t, vec![JobUpdate::completed(claim, output)]).await?;
        assert_eq!(t.db().get_task(a.task.id).await?.output.as_ref().map(Json::as_str), wanted);
    }
    Ok(())
}}

case! { [D1, R3] needs [DeferredJobs], d1_the_task_ends_with_its_last_job_not_its_first(t) {
    let run = t.start("a").await?;
    deferred(&t, &["j1", "j2", "j3"]).await?;
    let claims: Vec<JobClaim> = poll(&t).await?.iter().map(|job| job.claim).collect();
    for (claim, left) in claims[..2].iter().zip([2, 1]) {
        update(&t, vec![JobUpdate::completed(*claim, Json::parse("1").ok())]).await?;
        let task = t.task(run.id, "a").await?;
        assert_eq!((task.status, task.open_jobs), (TaskStatus::Running, left));
    }
    let report = t.db().update_jobs(JobUpdates::one(JobUpdate::completed(claims[2], None))).await?;
    assert_eq!(report.ended_runs.iter().map(|ended| (ended.run, ended.status)).collect::<Vec<_>>(), [(run.id, RunStatus::Success)]);
    let task = t.db().get_task(t.task(run.id, "a").await?.id).await?;
    assert_eq!((task.status, task.output), (TaskStatus::Success, None), "a task of several jobs has no output");
    Ok(())
}}

case! { [D1, T5] needs [DeferredJobs], d1_one_failed_job_fails_the_task_once_all_have_ended(t) {
    let run = t.start("a b:a").await?;
    deferred(&t, &["j1", "j2", "j3"]).await?;
    let claims: Vec<JobClaim> = poll(&t).await?.iter().map(|job| job.claim).collect();
    update(&t, vec![JobUpdate::failed(claims[2], Text::lossy("quota"))]).await?;
    update(&t, vec![JobUpdate::failed(claims[1], Text::lossy("syntax"))]).await?;
    assert_eq!(t.statuses(run.id).await?, "a=running b=pending");
    update(&t, vec![JobUpdate::completed(claims[0], None)]).await?;
    assert_eq!(t.statuses(run.id).await?, "a=failed b=failed");
    assert_eq!(t.task(run.id, "a").await?.error.as_deref(), Some("syntax"), "that of the first in order");
    assert_eq!(t.db().get_run(run.id).await?.status, RunStatus::Failed);
    Ok(())
}}

case! { [D1, T5] needs [DeferredJobs], d1_a_failed_attempt_is_tried_again_with_new_jobs(t) {
    let run = t.start("a*1").await?;
    let (a, _) = deferred(&t, &["first"]).await?;
    let claim = poll(&t).await?[0].claim;
    update(&t, vec![JobUpdate::failed(claim, Text::lossy("quota"))]).await?;
    let task = t.task(run.id, "a").await?;
    assert_eq!((task.status, task.attempts, task.ready_at, task.error.as_deref()), (TaskStatus::Pending, 1, Some(t.now()), Some("quota")));
    t.advance(Duration::from_secs(1));
    let (_, second) = deferred(&t, &["second"]).await?;
    let claim = poll(&t).await?[0].claim;
    assert_eq!(claim.job, second[0].id);
    update(&t, vec![JobUpdate::completed(claim, Json::parse("2").ok())]).await?;
    let task = t.db().get_task(a.task.id).await?;
    assert_eq!((task.status, task.task.error, task.output), (TaskStatus::Success, None, Json::parse("2").ok()), "the failed job of the first attempt does not count");
    let names: Vec<_> = t.db().list_jobs(a.task.id).await?.iter().map(|job| job.job_id.to_string()).collect();
    assert_eq!(names, ["first", "second"]);
    Ok(())
}}

case! { [D1, T6] needs [DeferredJobs], d1_jobs_of_many_tasks_end_in_one_call(t) {
    let mut runs = Vec::new();
    for _ in 0..5 {
        runs.push(t.start("a b:a").await?.id);
    }
    for task in t.claim(5).await? {
        defer(&t, task.claim, &["j1", "j2"]).await?;
    }
    let claims: Vec<JobClaim> = poll(&t).await?.iter().map(|job| job.claim).collect();
    let updates = claims.iter().map(|claim| JobUpdate::completed(*claim, None)).collect();
    assert_eq!(update(&t, updates).await?, [UpdateOutcome::Applied { status: JobStatus::Completed }; 10]);
    for run in runs {
        assert_eq!(t.statuses(run).await?, "a=success b=pending");
    }
    assert_eq!(t.work_off().await?, 5);
    Ok(())
}}

case! { [D1, T6, T7] needs [DeferredJobs], d1_items_stand_for_themselves_and_repeat_without_effect(t) {
    let run = t.start("a").await?;
    deferred(&t, &["j1", "j2"]).await?;
    let claims: Vec<JobClaim> = poll(&t).await?.iter().map(|job| job.claim).collect();
    let unknown = JobClaim { job: JobId::generate(), token: Token::from_stored(1) };
    let stale = JobClaim { token: Token::from_stored(99), ..claims[1] };
    let batch = vec![JobUpdate::completed(unknown, None), JobUpdate::completed(claims[0], None), JobUpdate::completed(stale, None)];
    let done = JobStatus::Completed;
    assert_eq!(update(&t, batch.clone()).await?, [UpdateOutcome::NotFound, UpdateOutcome::Applied { status: done }, UpdateOutcome::LeaseLost]);
    assert_eq!(update(&t, batch).await?, [UpdateOutcome::NotFound, UpdateOutcome::AlreadyTerminal { status: done }, UpdateOutcome::LeaseLost]);
    assert_eq!(t.task(run.id, "a").await?.open_jobs, 1);
    let polled = JobUpdate::polled(claims[1], Delay::ZERO);
    assert_eq!(update(&t, vec![polled.clone()]).await?, [UpdateOutcome::Applied { status: JobStatus::Polling }]);
    assert_eq!(update(&t, vec![polled]).await?, [UpdateOutcome::LeaseLost], "its lease is over");
    assert!(update(&t, vec![]).await?.is_empty());
    Ok(())
}}

case! { D1 needs [DeferredJobs], d1_an_ended_job_stays_so(t) {
    t.start("a*1").await?;
    let (a, _) = deferred(&t, &["j"]).await?;
    let claim = poll(&t).await?[0].claim;
    update(&t, vec![JobUpdate::failed(claim, Text::lossy("x"))]).await?;
    let before = t.db().list_jobs(a.task.id).await?;
    let ended = UpdateOutcome::AlreadyTerminal { status: JobStatus::Failed };
    assert_eq!(update(&t, vec![JobUpdate::completed(claim, None)]).await?, [ended]);
    assert_eq!(update(&t, vec![JobUpdate::polled(claim, Delay::ZERO)]).await?, [ended]);
    assert_eq!(t.db().list_jobs(a.task.id).await?, before);
    assert!(poll(&t).await?.is_empty());
    Ok(())
}}

case! { [D1, T4] needs [DeferredJobs], d1_only_the_holder_of_a_claim_defers(t) {
    let run = t.start("a b").await?;
    let task = t.claim_one().await?;
    let stale = Claim { token: Token::from_stored(task.claim.token.get() + 1), ..task.claim };
    assert_fails!(defer(&t, stale, &["j"]).await, LeaseLost { .. });
    assert_fails!(defer(&t, Claim { task: TaskId::generate(), ..stale }, &["j"]).await, NotFound { .. });
    defer(&t, task.claim, &["j"]).await?;
    assert_fails!(defer(&t, task.claim, &["k"]).await, LeaseLost { .. });
    let other = t.claim_one().await?;
    t.succeed(&other).await?;
    assert_fails!(defer(&t, other.claim, &["j"]).await, InvalidTransition { .. });
    let lapsing = t.start("c").await?;
    let c = t.claim_one().await?;
    t.advance(LEASE);
    assert_fails!(defer(&t, c.claim, &["j"]).await, LeaseLost { .. });
    assert_eq!(t.statuses(lapsing.id).await?, "c=dispatched");
    assert_eq!(t.db().list_jobs(task.id).await?.len(), 1);
    assert_eq!(t.statuses(run.id).await?, "a=running b=success");
    Ok(())
}}

case! { [D1, R5] needs [DeferredJobs], d1_jobs_of_a_paused_run_are_polled_and_end_it(t) {
    let run = t.start("a").await?;
    deferred(&t, &["j"]).await?;
    t.db().pause_run(run.id).await?;
    let claim = poll(&t).await?[0].claim;
    update(&t, vec![JobUpdate::completed(claim, None)]).await?;
    assert_eq!(t.db().get_run(run.id).await?.status, RunStatus::Success);
    Ok(())
}}

/// Polls one job at a time until there were this many polls in all. Returns the tokens.
async fn poll_to_the_end(
    db: Arc<dyn Database>,
    name: &'static str,
    polls: i64,
) -> ork_state_api::Result<Vec<i64>> {
    let mut tokens = Vec::new();
    loop {
        for ClaimedJob { claim, job, .. } in db.claim_jobs(request(name, 1)?).await? {
            tokens.push(claim.token.get());
            let update = if claim.token.get() < polls {
                JobUpdate::polled(claim, Delay::ZERO)
            } else {
                JobUpdate::completed(claim, None)
            };
            db.update_jobs(JobUpdates::one(update)).await?.outcomes[0].into_result(job.id)?;
        }
        let open = db.stats().await?.open_jobs;
        if open.values().sum::<u64>() == 0 {
            return Ok(tokens);
        }
    }
}

case! { D1 needs [DeferredJobs], d1_two_pollers_poll_a_job_a_thousand_times_once_each(t) {
    const POLLS: i64 = 1000;
    t.start("a").await?;
    let (a, _) = deferred(&t, &["j"]).await?;
    let other = if t.backend().capabilities.has(Capability::Durable) { t.reopen().await? } else { t.db().clone() };
    let pollers = [(t.db().clone(), "one"), (other, "other")];
    let tokens = together(pollers.map(|(db, name)| poll_to_the_end(db, name, POLLS))).await?;
    let tokens: Result<Vec<Vec<i64>>, _> = tokens.into_iter().collect();
    let tokens = tokens?;
    let all: BTreeSet<i64> = tokens.iter().flatten().copied().collect();
    assert_eq!(tokens.iter().map(Vec::len).sum::<usize>(), POLLS as usize);
    assert_eq!(all, (1..=POLLS).collect());
    assert_eq!(t.db().get_task(a.task.id).await?.task.status, TaskStatus::Success);
    t.note(format!("two pollers polled a job {POLLS} times, each poll once: {:?}", tokens.iter().map(Vec::len).collect::<Vec<_>>()));
    Ok(())
}}

case! { [D1, R3] needs [DeferredJobs], d1_one_of_many_pollers_ends_the_task(t) {
    for _ in 0..5 {
        let run = t.start("a b:a").await?;
        deferred(&t, &["j1", "j2", "j3", "j4"]).await?;
        let claims: Vec<JobClaim> = poll(&t).await?.iter().map(|job| job.claim).collect();
        let ends = claims.into_iter().map(|claim| {
            let db = t.db().clone();
            async move { db.update_jobs(JobUpdates::one(JobUpdate::completed(claim, None))).await }
        });
        for report in together(ends).await? {
            assert_eq!(report?.outcomes, [UpdateOutcome::Applied { status: JobStatus::Completed }]);
        }
        assert_eq!(t.statuses(run.id).await?, "a=success b=pending");
        assert_eq!(t.work_off().await?, 1);
    }
    Ok(())
}}

case! { [D2, R4] needs [DeferredJobs], d2_cancelling_a_run_cancels_its_open_jobs(t) {
    let run = t.start("a b").await?;
    let (a, _) = deferred(&t, &["j1", "j2"]).await?;
    let claims: Vec<JobClaim> = poll(&t).await?.iter().map(|job| job.claim).collect();
    update(&t, vec![JobUpdate::completed(claims[0], None)]).await?;
    t.advance(Duration::from_secs(1));
    t.db().cancel_run(run.id).await?;
    let jobs = t.db().list_jobs(a.task.id).await?;
    assert_eq!(jobs.iter().map(|job| job.status).collect::<Vec<_>>(), [JobStatus::Completed, JobStatus::Cancelled]);
    assert_eq!((jobs[1].finished_at, jobs[1].poll_at, &jobs[1].owner), (Some(t.now()), None, &None));
    assert_eq!((t.task(run.id, "a").await?.status, t.task(run.id, "a").await?.open_jobs), (TaskStatus::Cancelled, 0));
    t.advance(LEASE * 2);
    assert!(poll(&t).await?.is_empty(), "nobody polls a cancelled job");
    Ok(())
}}

case! { [D2, G1] needs [DeferredJobs], d2_no_reader_sees_an_open_job_of_a_cancelled_run(t) {
    for _ in 0..10 {
        let run = t.start("a").await?.id;
        let (a, _) = deferred(&t, &["j1", "j2", "j3"]).await?;
        let canceller = { let t = t.clone(); tokio::spawn(async move { t.db().cancel_run(run).await }) };
        while !canceller.is_finished() {
            let status = t.db().get_run(run).await?.status;
            let jobs = t.db().list_jobs(a.task.id).await?;
            let open = jobs.iter().filter(|job| !job.status.is_terminal()).count();
            assert!(open == 0 || open == 3, "{open} of 3 jobs open");
            assert!(status == RunStatus::Running || open == 0, "{status} with {open} open jobs");
            tokio::task::yield_now().await;
        }
        canceller.await??;
    }
    Ok(())
}}

case! { [D2, R4] needs [DeferredJobs], d2_a_cancelled_job_stays_so_and_revives_nothing(t) {
    let run = t.start("a").await?;
    deferred(&t, &["j"]).await?;
    let claim = poll(&t).await?[0].claim;
    t.db().cancel_run(run.id).await?;
    let cancelled = UpdateOutcome::AlreadyTerminal { status: JobStatus::Cancelled };
    assert_eq!(update(&t, vec![JobUpdate::completed(claim, None)]).await?, [cancelled]);
    assert_eq!(t.db().get_run(run.id).await?.status, RunStatus::Cancelled);
    assert_eq!(t.statuses(run.id).await?, "a=cancelled");
    Ok(())
}}

case! { [D2, T8] needs [DeferredJobs], d2_a_timeout_cancels_the_jobs_of_the_attempt(t) {
    let spec = ork_state_api::TaskSpec::new("a".parse()?, "process".parse()?).with_timeout_seconds(10).with_max_retries(1);
    let workflow = t.workflow(ork_state_api::Dag::new([spec])?).await?;
    let run = t.db().create_run(ork_state_api::NewRun::new(workflow.id)).await?.into_run();
    t.db().start_run(ork_state_api::StartRun::pinned(run.id)).await?;
    let (a, _) = deferred(&t, &["j1", "j2"]).await?;
    t.advance(Duration::from_secs(10));
    assert_eq!(t.db().expire_timeouts(Limit::default()).await?.requeued, [a.task.id]);
    let jobs = t.db().list_jobs(a.task.id).await?;
    assert!(jobs.iter().all(|job| job.status == JobStatus::Cancelled), "{jobs:?}");
    assert_eq!(t.task(run.id, "a").await?.open_jobs, 0);
    assert!(poll(&t).await?.is_empty());
    assert_eq!(t.work_off().await?, 1);
    Ok(())
}}

case! { [D2, R6] needs [DeferredJobs], d2_a_retried_task_begins_without_jobs(t) {
    let run = t.start("a").await?;
    let (a, _) = deferred(&t, &["j"]).await?;
    t.db().cancel_run(run.id).await?;
    t.db().retry_run(RetryRun::unsuccessful(run.id)).await?;
    assert_eq!((t.task(run.id, "a").await?.open_jobs, t.db().list_jobs(a.task.id).await?.len()), (0, 1));
    assert!(poll(&t).await?.is_empty());
    assert_eq!(t.work_off().await?, 1);
    Ok(())
}}

case! { [D2, T4] needs [DeferredJobs], d2_cancelling_races_with_the_last_job(t) {
    for _ in 0..10 {
        let run = t.start("a").await?;
        deferred(&t, &["j"]).await?;
        let claim = poll(&t).await?[0].claim;
        let (one, other) = (t.db().clone(), t.db().clone());
        let cancelling = tokio::spawn(async move { one.cancel_run(run.id).await });
        let outcome = update(&t, vec![JobUpdate::completed(claim, None)]).await?[0];
        let cancelled = cancelling.await?;
        let run = other.get_run(run.id).await?;
        let expected = match outcome {
            UpdateOutcome::Applied { .. } => (RunStatus::Success, false),
            _ => (RunStatus::Cancelled, true),
        };
        assert_eq!((run.status, cancelled.is_ok()), expected);
    }
    Ok(())
}}

case! { [D2, W3] needs [DeferredJobs], d2_a_deleted_workflow_takes_its_jobs_along(t) {
    let run = t.start("a").await?;
    let (a, _) = deferred(&t, &["j"]).await?;
    t.db().cancel_run(run.id).await?;
    t.db().delete_workflow(run.workflow).await?;
    assert_fails!(t.db().list_jobs(a.task.id).await, NotFound { .. });
    Ok(())
}}

case! { [D1, G7] needs [DeferredJobs], d1_an_unknown_task_is_not_found(t) {
    assert_fails!(t.db().list_jobs(TaskId::generate()).await, NotFound { .. });
    let run = t.start("a").await?;
    let a = t.task(run.id, "a").await?;
    assert!(t.db().list_jobs(a.id).await?.is_empty());
    Ok(())
}}

case! { [D1, G2] needs [DeferredJobs, Durable], d1_jobs_are_there_after_reopening(t) {
    let run = t.start("a").await?;
    let (a, _) = deferred(&t, &["j1", "j2"]).await?;
    let claim = poll(&t).await?[1].claim;
    update(&t, vec![JobUpdate::completed(claim, Json::parse("7").ok())]).await?;
    let (jobs, task) = (t.db().list_jobs(a.task.id).await?, t.task(run.id, "a").await?);
    let db = t.reopen().await?;
    assert_eq!(db.list_jobs(a.task.id).await?, jobs);
    assert_eq!(db.get_task(a.task.id).await?.task, task);
    t.advance(LEASE);
    let again = db.claim_jobs(request("other", 10)?).await?;
    assert_eq!(db.update_jobs(JobUpdates::one(JobUpdate::completed(again[0].claim, None))).await?.ended_runs.len(), 1);
    Ok(())
}}

case! { [D1, G7] without DeferredJobs, d1_an_opt_out_is_refused_and_changes_nothing(t) {
    let run = t.start("a").await?;
    let task = t.claim_one().await?;
    assert_fails!(defer(&t, task.claim, &["j"]).await, Unsupported { capability: Capability::DeferredJobs, .. });
    assert_fails!(poll(&t).await, Unsupported { capability: Capability::DeferredJobs, .. });
    assert_fails!(update(&t, vec![]).await, Unsupported { capability: Capability::DeferredJobs, .. });
    assert_fails!(t.db().list_jobs(task.id).await, Unsupported { capability: Capability::DeferredJobs, .. });
    assert_eq!(t.task(run.id, "a").await?, task.task);
    Ok(())
}}
