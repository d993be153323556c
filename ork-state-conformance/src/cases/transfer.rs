use std::sync::Arc;
use std::time::Duration;

use ork_state_api::ErrorKind::{Conflict, LeaseLost, NotFound, Unsupported};
use ork_state_api::backend::{ImportPage, ImportProgress, Record};
use ork_state_api::copy::{compare, copy};
use ork_state_api::{
    Capability, Claim, ClaimJobs, ConnectOptions, CreatedRun, Database, DeferTask, Delay, JobUpdate,
    JobUpdates, Json, Label, LeaseTime, Limit, ListRuns, ListWorkflows, LogChunk, NewDeferredJob, NewRun,
    NewWorkflow, PageRequest, RetryRun, RunFilter, RunId, RunStatus, Schedule, StartRun, TaskUpdate,
    TaskUpdates, Text, UpdateWorkflow, WorkflowFilter,
};

use super::assert_fails;
use crate::case::case;
use crate::child::{ChildProcess, Role};
use crate::ctx::work_off;
use crate::{Ctx, LEASE, TestStore, dag};

/// A second store, empty and migrated, with the clock of the first.
struct Other {
    db: Arc<dyn Database>,
    /// Keeps the store alive.
    store: Arc<dyn TestStore>,
}

impl Other {
    async fn new(t: &Ctx) -> ork_state_api::Result<Self> {
        let store = t.fixture().migrated().await?;
        let db = t.fixture().connect(ConnectOptions::new(&store.url())?.with_clock(t.clock())).await?;
        db.migrate().await?;
        Ok(Self { db, store })
    }
}

/// What was put into a store that has some of everything.
struct Content {
    /// A live claim.
    claim: Claim,
    paused: RunId,
    failed: RunId,
    pending: RunId,
    keyed: NewRun,
}

/// Puts some of everything into a store.
async fn fill(t: &Ctx) -> Result<Content, Box<dyn std::error::Error + Send + Sync>> {
    let db = t.db();
    let has = |capability| t.backend().capabilities.has(capability);
    // Ended in every way, with awkward outputs.
    let run = t.start("a b:a c*1:b").await?;
    let a = t.claim_one().await?;
    let output = Json::parse(r#"{"n": -0.0, "big": 1e400, "é\u0000": [ null ]}"#)?;
    t.update([TaskUpdate::running(a.claim), TaskUpdate::succeeded(a.claim, Some(output))]).await?;
    let b = t.claim_one().await?;
    t.update([TaskUpdate::succeeded(b.claim, Some(Json::null()))]).await?;
    t.advance(Duration::from_micros(1));
    let c = t.claim_one().await?;
    t.fail(&c, Duration::ZERO).await?;
    t.succeed(&t.claim_one().await?).await?;
    assert_eq!(db.get_run(run.id).await?.status, RunStatus::Success);
    let failed = t.start("a b:a").await?.id;
    t.update([TaskUpdate::failed_for_good(
        t.claim_one().await?.claim,
        Text::lossy("it's \"broken\"\u{2028}"),
    )])
    .await?;
    let cancelled = t.start("a b").await?.id;
    db.cancel_run(cancelled).await?;
    // Older DAGs, one of them still used by a run.
    let pending = t.pending_run("old").await?;
    db.update_workflow(UpdateWorkflow::new(pending.workflow).with_dag(dag("new:newer newer")?)).await?;
    if has(Capability::Schedules) {
        let schedule =
            Schedule::new(Text::lossy("* * * * *"), Some(t.now().saturating_add(Duration::from_secs(60))));
        db.set_schedule(pending.workflow, Some(schedule)).await?;
    }
    let keyed = NewRun::new(pending.workflow).with_idempotency_key(Label::new("only once")?);
    db.create_run(keyed.clone()).await?;
    // Tasks in many states: claimed, released and so claimed before, waiting for a retry, waiting
    // for others, paused.
    let live = t.start("a*3 b*3 c*3 d:a,b,c").await?;
    let claimed = t.claim(3).await?;
    t.update([TaskUpdate::running(claimed[0].claim), TaskUpdate::released(claimed[1].claim)]).await?;
    t.fail(&claimed[2], LEASE * 10).await?;
    let paused = t.start("p q:p").await?.id;
    db.pause_run(paused).await?;
    if has(Capability::Logs) {
        let task = t.task(live.id, "a").await?.id;
        db.append_log(task, LogChunk::new(b"\0\xff not \xc3\x28 UTF-8\n")?).await?;
        db.append_log(task, LogChunk::new(&vec![b'x'; 1_300_000])?).await?;
    }
    if has(Capability::DeferredJobs) {
        defer(t).await?;
    }
    Ok(Content { claim: claimed[0].claim, paused, failed, pending: pending.id, keyed })
}

/// A task that was deferred twice. It waits for two jobs, and one of them is being polled.
async fn defer(t: &Ctx) -> crate::CaseResult {
    t.start("waits*2").await?;
    let waits = loop {
        let claimed = t.claim_one().await?;
        if claimed.name.as_str() == "waits" {
            break claimed;
        }
        // The released task comes first.
        t.update([TaskUpdate::failed(claimed.claim, Text::lossy("later"), Delay::new(LEASE * 10)?)]).await?;
    };
    let job = |name: &str| -> ork_state_api::Result<NewDeferredJob> {
        Ok(NewDeferredJob::new(Label::new("bigquery")?, Text::lossy(name), Json::parse(r#"{"x":  1e3}"#)?))
    };
    t.db().defer_task(DeferTask::new(waits.claim, vec![job("first")?])?).await?;
    let poll = || -> ork_state_api::Result<ClaimJobs> {
        Ok(ClaimJobs::new(Label::new("poller")?, LeaseTime::new(LEASE)?))
    };
    let polled = t.db().claim_jobs(poll()?).await?;
    let broken = JobUpdate::failed(polled[0].claim, Text::lossy("quota"));
    t.db().update_jobs(JobUpdates::new(vec![broken])?).await?;
    // A failed deferral is a failed attempt.
    t.advance(Duration::from_micros(1));
    let again = loop {
        let claimed = t.claim_one().await?;
        if claimed.name.as_str() == "waits" {
            break claimed;
        }
        t.update([TaskUpdate::failed(claimed.claim, Text::lossy("later"), Delay::new(LEASE * 10)?)]).await?;
    };
    t.db().defer_task(DeferTask::new(again.claim, vec![job("one")?, job("two")?])?).await?;
    t.db().claim_jobs(poll()?.with_limit(Limit::ONE)).await?;
    Ok(())
}

async fn is_empty(db: &dyn Database) -> ork_state_api::Result<bool> {
    let (workflows, runs) =
        (db.count_workflows(WorkflowFilter::default()).await?, db.count_runs(RunFilter::all()).await?);
    Ok(workflows + runs == 0 && db.ready_tasks(Limit::ONE).await?.is_empty())
}

/// Begins an import of these workflows, with this many records, without finishing it. Returns its
/// progress.
async fn begin(
    t: &Ctx,
    to: &dyn Database,
    records: usize,
) -> Result<ImportProgress, Box<dyn std::error::Error + Send + Sync>> {
    let mut page = ImportPage::new(ImportProgress::default());
    let workflows = t.db().list_workflows(ListWorkflows::default()).await?.items;
    let mut pushed = 0;
    for workflow in workflows {
        for record in
            [Record::Snapshot(t.db().get_snapshot(workflow.snapshot).await?), Record::Workflow(workflow)]
        {
            if pushed < records {
                page.push(&record)?;
                pushed += 1;
            }
        }
    }
    let progress = page.to().clone();
    to.import(page).await?;
    Ok(progress)
}

case! { [M6, G5] needs [Transfer], m6_a_copy_is_equal_to_what_it_is_of(t) {
    fill(&t).await?;
    let other = Other::new(&t).await?;
    let copied = copy(&**t.db(), &*other.db, |_| ()).await?;
    assert_eq!(compare(&**t.db(), &*other.db).await?, None);
    assert_eq!((copied.workflows, copied.runs), (t.db().count_workflows(WorkflowFilter::default()).await?, t.db().count_runs(RunFilter::all()).await?));
    let (then, now) = (t.db().stats().await?, other.db.stats().await?);
    assert_eq!(then, now);
    assert_eq!(other.db.verify().await?, vec![]);
    let limit = Limit::new(100)?;
    assert_eq!(t.db().ready_tasks(limit).await?, other.db.ready_tasks(limit).await?);
    assert_eq!(other.db.import_progress().await?, None);
    Ok(())
}}

case! { [M6, T4] needs [Transfer], m6_claims_hold_in_the_copy_and_work_goes_on(t) {
    let content = fill(&t).await?;
    let Other { db, store: _store } = Other::new(&t).await?;
    copy(&**t.db(), &*db, |_| ()).await?;
    // The live claim holds for its task. A claim that was released before does not hold for what is
    // claimed now.
    let updates = TaskUpdates::new(vec![TaskUpdate::succeeded(content.claim, None)])?;
    assert!(db.update_tasks(updates).await?.outcomes[0].into_result(content.claim.task).is_ok());
    db.resume_run(content.paused).await?;
    db.retry_run(RetryRun::unsuccessful(content.failed)).await?;
    db.start_run(StartRun::pinned(content.pending)).await?;
    assert!(matches!(db.create_run(content.keyed.clone()).await?, CreatedRun::Existing(_)));
    t.advance(LEASE * 11);
    db.expire_leases(Limit::new(100)?).await?;
    if t.backend().capabilities.has(Capability::DeferredJobs) {
        let polled = db.claim_jobs(ClaimJobs::new(Label::new("poller")?, LeaseTime::new(LEASE)?)).await?;
        assert_eq!(polled.len(), 2, "the one that was polled is due again");
        let done = polled.iter().map(|job| JobUpdate::completed(job.claim, None)).collect();
        assert_eq!(db.update_jobs(JobUpdates::new(done)?).await?.ended_runs.len(), 1);
    }
    work_off(&*db).await?;
    let all = ListRuns::new(RunFilter::all(), PageRequest::default());
    for run in db.list_runs(all).await?.items {
        let never_started = run.idempotency_key.is_some();
        assert!(run.status.is_terminal() || never_started, "{run:?}");
    }
    assert_eq!(db.verify().await?, vec![]);
    Ok(())
}}

case! { [M6, T4] needs [Transfer], m6_a_claim_that_was_given_up_before_the_copy_stays_so(t) {
    t.start("a*5").await?;
    let mut stale = Vec::new();
    for _ in 0..3 {
        let claimed = t.claim_one().await?;
        t.update([TaskUpdate::released(claimed.claim)]).await?;
        stale.push(claimed.claim);
    }
    let Other { db, store: _store } = Other::new(&t).await?;
    copy(&**t.db(), &*db, |_| ()).await?;
    let now = db.claim_tasks(crate::claim_request("new", LEASE)?).await?;
    for claim in stale {
        assert!(now[0].claim.token > claim.token, "{:?} after {:?}", now[0].claim.token, claim.token);
        let late = TaskUpdates::new(vec![TaskUpdate::succeeded(claim, None)])?;
        assert_fails!(db.update_tasks(late).await?.outcomes[0].into_result(claim.task), LeaseLost { .. });
    }
    Ok(())
}}

case! { [M6, G7] needs [Transfer], m6_a_store_that_holds_something_takes_nothing_in(t) {
    t.workflow(dag("a")?).await?;
    let other = Other::new(&t).await?;
    begin(&t, &*other.db, 1).await?;
    assert_fails!(copy(&*other.db, &**t.db(), |_| ()).await, Conflict { .. });
    assert_eq!(t.db().import_progress().await?, None);
    // Nor can one that received something after the import began.
    other.db.create_workflow(NewWorkflow::new("there".parse()?, dag("a")?)).await?;
    assert_fails!(other.db.finish_import().await, Conflict { .. });
    assert_fails!(copy(&**t.db(), &*other.db, |_| ()).await, Conflict { .. });
    assert_eq!(other.db.count_workflows(WorkflowFilter::default()).await?, 1);
    Ok(())
}}

case! { [M6, G1] needs [Transfer], m6_what_is_not_finished_is_seen_by_nobody(t) {
    t.start("a b").await?;
    let other = Other::new(&t).await?;
    let progress = begin(&t, &*other.db, 2).await?;
    assert!(is_empty(&*other.db).await?);
    assert_eq!(other.db.stats().await?.workflows, 0);
    assert_eq!(other.db.verify().await?, vec![]);
    assert_eq!(other.db.import_progress().await?, Some(progress));
    let name = t.db().list_workflows(ListWorkflows::default()).await?.items[0].name.clone();
    assert_fails!(other.db.find_workflow(&name).await, NotFound { .. });
    other.db.finish_import().await?;
    assert_eq!(other.db.find_workflow(&name).await?.name, name);
    Ok(())
}}

case! { [M6, G1] needs [Transfer], m6_no_reader_sees_an_import_half_finished(t) {
    for _ in 0..5 {
        t.start("a b").await?;
    }
    let (runs, mut looks) = (t.db().count_runs(RunFilter::all()).await?, 0);
    for _ in 0..5 {
        let other = Other::new(&t).await?;
        let copier = { let (t, to) = (t.clone(), other.db.clone()); tokio::spawn(async move { copy(&**t.db(), &*to, |_| ()).await }) };
        while !copier.is_finished() {
            let workflows = other.db.count_workflows(WorkflowFilter::default()).await?;
            let (seen, ready) = (other.db.count_runs(RunFilter::all()).await?, other.db.ready_tasks(Limit::new(100)?).await?.len());
            looks += 1;
            // It may be finished between two reads, but a store with workflows has everything that
            // belongs to them.
            assert!(workflows == 0 || (seen, ready) == (runs, 10), "{workflows} workflows, {seen} runs, {ready} ready tasks");
            assert!((seen == 0 || seen == runs) && (ready == 0 || ready == 10), "{seen} runs, {ready} ready tasks");
            tokio::task::yield_now().await;
        }
        copier.await??;
    }
    assert!(looks > 0, "nobody looked while a store was copied");
    Ok(())
}}

case! { M6 needs [Transfer], m6_a_copy_goes_on_where_it_stopped(t) {
    fill(&t).await?;
    let other = Other::new(&t).await?;
    begin(&t, &*other.db, 3).await?;
    let copied = copy(&**t.db(), &*other.db, |_| ()).await?;
    assert_eq!(copied.resumed_at, 3);
    assert_eq!(compare(&**t.db(), &*other.db).await?, None);
    Ok(())
}}

case! { [M6, G2] needs [Transfer, Durable], m6_what_was_imported_survives_reopening(t) {
    t.start("a b").await?;
    let other = Other::new(&t).await?;
    let progress = begin(&t, &*other.db, 1).await?;
    let again = t.fixture().connect(ConnectOptions::new(&other.store.url())?.with_clock(t.clock())).await?;
    assert_eq!(again.import_progress().await?, Some(progress));
    copy(&**t.db(), &*again, |_| ()).await?;
    let third = t.fixture().connect(ConnectOptions::new(&other.store.url())?.with_clock(t.clock())).await?;
    assert_eq!(compare(&**t.db(), &*third).await?, None);
    Ok(())
}}

case! { [M6, G2] heavy needs [Transfer, Durable, MultiProcess], m6_a_copy_goes_on_after_its_process_was_killed(t) {
    for _ in 0..3 {
        t.start(&(0..1200).map(|number| format!("t{number} ")).collect::<String>()).await?;
    }
    for pages in 1..=3 {
        let other = Other::new(&t).await?;
        let role = Role::Copy { from: t.url().to_owned(), to: other.store.url() };
        let mut child = ChildProcess::start(&role)?;
        for _ in 0..pages {
            child.line().await?.ok_or("the child ended")?;
        }
        child.kill().await?;
        // If killed after its last page, it may have finished all the same.
        if is_empty(&*other.db).await? {
            let copied = copy(&**t.db(), &*other.db, |_| ()).await?;
            assert!(copied.resumed_at >= pages * 1000, "{copied}");
        }
        assert_eq!(compare(&**t.db(), &*other.db).await?, None);
        assert_eq!(other.db.verify().await?, vec![]);
    }
    Ok(())
}}

case! { [M6, G7] needs [Transfer], m6_a_source_that_has_changed_is_noticed(t) {
    let workflow = t.workflow(dag("a")?).await?;
    t.workflow(dag("b")?).await?;
    let other = Other::new(&t).await?;
    let progress = begin(&t, &*other.db, 3).await?;
    let changed = UpdateWorkflow::new(workflow.id).with_description(Some(Text::lossy("changed")));
    t.db().update_workflow(changed).await?;
    assert_fails!(copy(&**t.db(), &*other.db, |_| ()).await, Conflict { .. });
    assert_eq!(other.db.import_progress().await?, Some(progress));
    assert!(is_empty(&*other.db).await?);
    other.db.abandon_import().await?;
    copy(&**t.db(), &*other.db, |_| ()).await?;
    assert_eq!(compare(&**t.db(), &*other.db).await?, None);
    Ok(())
}}

case! { [M6, G7] needs [Transfer], m6_a_source_that_has_shrunk_is_noticed(t) {
    t.workflow(dag("a")?).await?;
    let last = t.workflow(dag("b")?).await?;
    let other = Other::new(&t).await?;
    begin(&t, &*other.db, 4).await?;
    t.db().delete_workflow(last.id).await?;
    assert_fails!(copy(&**t.db(), &*other.db, |_| ()).await, Conflict { .. });
    assert!(is_empty(&*other.db).await?);
    Ok(())
}}

case! { [M6, G7] needs [Transfer], m6_a_page_that_does_not_follow_is_refused(t) {
    t.workflow(dag("a")?).await?;
    let other = Other::new(&t).await?;
    let progress = begin(&t, &*other.db, 1).await?;
    // The same page again, as after a lost answer, and one that begins further on.
    let mut again = ImportPage::new(ImportProgress::default());
    let first = t.db().list_workflows(ListWorkflows::default()).await?.items.remove(0);
    again.push(&Record::Snapshot(t.db().get_snapshot(first.snapshot).await?))?;
    assert_eq!(*again.to(), progress);
    assert_fails!(other.db.import(again).await, Conflict { .. });
    let further = ImportPage::new(progress.then("something else"));
    assert_fails!(other.db.import(further).await, Conflict { .. });
    assert_eq!(other.db.import_progress().await?, Some(progress));
    Ok(())
}}

case! { M6 needs [Transfer], m6_an_abandoned_import_leaves_nothing(t) {
    fill(&t).await?;
    let other = Other::new(&t).await?;
    other.db.abandon_import().await?;
    begin(&t, &*other.db, 4).await?;
    other.db.abandon_import().await?;
    assert_eq!(other.db.import_progress().await?, None);
    assert!(is_empty(&*other.db).await?);
    assert_fails!(other.db.finish_import().await, Conflict { .. });
    let copied = copy(&**t.db(), &*other.db, |_| ()).await?;
    assert_eq!(copied.resumed_at, 0);
    assert_eq!(compare(&**t.db(), &*other.db).await?, None);
    Ok(())
}}

case! { M6 needs [Transfer], m6_an_empty_store_is_copied(t) {
    let other = Other::new(&t).await?;
    copy(&**t.db(), &*other.db, |_| ()).await?;
    assert!(is_empty(&*other.db).await?);
    assert_eq!(other.db.import_progress().await?, None);
    Ok(())
}}

case! { M6 needs [Transfer], m6_a_difference_is_told_by_id(t) {
    let run = t.start("a b:a").await?;
    let other = Other::new(&t).await?;
    copy(&**t.db(), &*other.db, |_| ()).await?;
    let task = t.claim_one().await?.task.id;
    // The counts of its run are unchanged.
    let told = compare(&**t.db(), &*other.db).await?.ok_or("no difference")?.to_string();
    assert!(told.contains(&task.to_string()), "{told}");
    t.db().cancel_run(run.id).await?;
    let told = compare(&**t.db(), &*other.db).await?.ok_or("no difference")?.to_string();
    assert!(told.contains(&run.id.to_string()), "{told}");
    let new = t.workflow(dag("z")?).await?;
    let told = compare(&*other.db, &**t.db()).await?.ok_or("no difference")?.to_string();
    assert!(told.contains(&new.snapshot.to_string()), "{told}");
    Ok(())
}}

case! { M6 without Transfer, m6_without_it_importing_is_refused(t) {
    assert_fails!(t.db().import_progress().await, Unsupported { .. });
    assert_fails!(t.db().import(ImportPage::new(ImportProgress::default())).await, Unsupported { .. });
    assert_fails!(t.db().finish_import().await, Unsupported { .. });
    assert_fails!(t.db().abandon_import().await, Unsupported { .. });
    Ok(())
}}
