use std::collections::BTreeSet;
use std::time::Instant;

use ork_state_api::ErrorKind::NotFound;
use ork_state_api::verify::observe;
use ork_state_api::{
    Database, Limit, ListRuns, ListTasks, LogPosition, LogRange, NewRun, PageRequest, RunFilter, RunStatus,
    StartRun, TaskStatus, WorkflowId,
};

use super::assert_fails;
use crate::case::case;
use crate::child::{ChildProcess, Role, Told};
use crate::{LEASE, dag, wide_dag};

/// The size that the contract's own target names: four processes, twenty thousand tasks.
const TASKS: usize = 20_000;
const PROCESSES: usize = 4;

case! { T2 needs [MultiProcess, Durable], t2_four_processes_claim_twenty_thousand_tasks_each_once(t) {
    let workflow = t.workflow(wide_dag(TASKS)?).await?;
    let run = t.db().create_run(NewRun::new(workflow.id)).await?.into_run();
    t.db().start_run(StartRun::pinned(run.id)).await?;
    let mut children = Vec::new();
    for number in 0..PROCESSES {
        let role = Role::WorkOff { url: t.url().to_owned(), owner: format!("process-{number}"), batch: 100 };
        children.push(ChildProcess::start(&role)?);
    }
    for child in &mut children {
        child.line().await?;
    }
    let begun = Instant::now();
    for child in &mut children {
        child.release();
    }
    // Read at once: one whose pipe is full would stand still.
    let children: Vec<_> = children.into_iter().map(|child| tokio::spawn(child.finish())).collect();
    let (mut all, mut shares) = (Vec::new(), Vec::new());
    for child in children {
        let mine = child.await??;
        shares.push(mine.len());
        all.extend(mine);
    }
    let seconds = begun.elapsed().as_secs_f64();
    assert_eq!((all.len(), all.iter().collect::<BTreeSet<_>>().len()), (TASKS, TASKS), "shares {shares:?}");
    let ended = t.db().get_run(run.id).await?;
    assert_eq!((ended.status, ended.tasks.unfinished), (RunStatus::Success, 0));
    t.note(format!(
        "{PROCESSES} processes claimed and completed {TASKS} tasks, each once: {:.0} tasks/s, shares {shares:?}",
        TASKS as f64 / seconds
    ));
    Ok(())
}}

case! { T3 needs [MultiProcess, Durable], t3_the_tasks_of_a_killed_process_come_back(t) {
    let workflow = t.workflow(dag(&(0..10).map(|i| format!("t{i}*1 ")).collect::<String>())?).await?;
    let run = t.db().create_run(NewRun::new(workflow.id)).await?.into_run();
    t.db().start_run(StartRun::pinned(run.id)).await?;
    let mut child = ChildProcess::start(&Role::ClaimAndHang { url: t.url().to_owned(), batch: 6 })?;
    let mut held = BTreeSet::new();
    while let Some(line) = child.line().await?.filter(|line| line != "claimed") {
        held.insert(line);
    }
    assert_eq!(held.len(), 6);
    child.kill().await?;
    assert_eq!(t.claim(100).await?.len(), 4, "what it held is held until the leases lapse");
    // The child's leases ran on real time, which this case's clock is moved past.
    t.advance(LEASE * 60 * 24 * 365 * 50);
    let expired = t.db().expire_leases(Limit::new(100)?).await?;
    let back: BTreeSet<String> = expired.requeued.iter().map(ToString::to_string).collect();
    assert!(back.is_superset(&held), "{back:?} of {held:?}");
    assert_eq!(t.work_off().await?, 10);
    assert_eq!(t.db().get_run(run.id).await?.status, RunStatus::Success);
    Ok(())
}}

case! { G2 needs [MultiProcess, Durable], g2_what_a_killed_process_was_told_is_there(t) {
    let workflow = t.workflow(dag("a")?).await?.id;
    let mut told = BTreeSet::new();
    for round in 1..=5 {
        let mut child = ChildProcess::start(&Role::CreateRuns { url: t.url().to_owned(), workflow })?;
        for _ in 0..round * 7 {
            told.insert(child.line().await?.ok_or("the child ended")?);
        }
        told.extend(child.kill().await?);
    }
    let (mut there, mut page) = (BTreeSet::new(), PageRequest::first(Limit::new(1000)?));
    let db = t.reopen().await?;
    loop {
        let found = db.list_runs(ListRuns { filter: RunFilter::of(workflow), page }).await?;
        there.extend(found.items.iter().map(|run| run.id.to_string()));
        match found.next {
            Some(key) => page = PageRequest::after(key, Limit::new(1000)?),
            None => break,
        }
    }
    assert!(there.is_superset(&told), "lost: {:?}", told.difference(&there).collect::<Vec<_>>());
    Ok(())
}}

/// Looks for the effect of one step that was acknowledged. Later steps may have gone on from it.
async fn is_there(db: &dyn Database, told: Told) -> crate::CaseResult {
    match told {
        Told::Workflow(workflow) | Told::Deleting(workflow) => drop(db.get_workflow(workflow).await?),
        Told::Run(workflow, run) => assert_eq!(db.get_run(run).await?.workflow, workflow),
        Told::Started(_, run) => {
            assert_eq!(db.get_run(run).await?.tasks.total, 8);
            assert_eq!(db.list_tasks(ListTasks::of(run, PageRequest::default())).await?.items.len(), 8);
        }
        Told::Claimed(_, task, token) => {
            let task = db.get_task(task).await?.task;
            assert!(task.attempts > 0 && task.dispatched_at.is_some(), "{task:?}");
            assert!(task.lease.is_none_or(|lease| lease.token >= token));
        }
        Told::Updated(_, task, TaskStatus::Pending) => assert!(db.get_task(task).await?.task.attempts > 0),
        Told::Updated(_, task, status) => {
            let found = db.get_task(task).await?;
            assert_eq!((found.task.status, found.output.is_some()), (status, status == TaskStatus::Success));
        }
        Told::Ended(_, run, status) => assert_eq!(db.get_run(run).await?.status, status),
        Told::Deleted(workflow) => {
            assert_fails!(db.get_workflow(workflow).await, NotFound { .. });
        }
    }
    Ok(())
}

fn workflow_of(told: Told) -> WorkflowId {
    match told {
        Told::Workflow(workflow)
        | Told::Run(workflow, _)
        | Told::Started(workflow, _)
        | Told::Claimed(workflow, ..)
        | Told::Updated(workflow, ..)
        | Told::Ended(workflow, ..)
        | Told::Deleting(workflow)
        | Told::Deleted(workflow) => workflow,
    }
}

case! { [G1, G2, R3] needs [MultiProcess, Durable], g1_a_process_that_is_killed_leaves_no_half_transaction(t) {
    let mut told = Vec::new();
    // Each is killed while it is at the step after the last that was read: after a few, after many, and where a workflow is deleted.
    for steps in [1, 4, 23, 60, 131, 190, 200, 211] {
        let mut child = ChildProcess::start(&Role::LiveOn { url: t.url().to_owned() })?;
        let mut said = Vec::new();
        while said.len() < steps {
            match child.line().await? {
                Some(line) => said.push(line),
                None => return Err(format!("the child ended: {:?}", child.finish().await).into()),
            }
        }
        said.extend(child.kill().await?);
        for line in said {
            told.push(serde_json::from_str::<Told>(&line)?);
        }
    }
    // On real time like the children: for the case's clock what they made ready is not yet.
    let real = t.connect(t.url()).await?;
    assert_eq!((real.verify().await?, observe(&*real).await?), (vec![], vec![]));
    let db = t.reopen().await?;
    // Where a deletion was asked for, its effect may be there though nobody was told.
    let leaving: BTreeSet<_> = told.iter().filter(|told| matches!(told, Told::Deleting(_))).map(|told| workflow_of(*told)).collect();
    let mut deleted = 0;
    for step in told.iter().copied() {
        let gone = matches!(step, Told::Deleted(_));
        if gone || !leaving.contains(&workflow_of(step)) {
            is_there(&*db, step).await.map_err(|error| format!("{step:?} was acknowledged: {error}"))?;
        }
        deleted += usize::from(gone);
    }
    t.note(format!("{} acknowledged steps of 8 killed processes, {deleted} deletions among them", told.len()));

    // Work goes on: what was claimed comes back, what was not started is started, and all of it ends. The children's leases ran on real
    // time, which this case's clock is moved past.
    t.advance(LEASE * 60 * 24 * 365 * 50);
    db.expire_leases(Limit::new(1000)?).await?;
    let all = ListRuns { filter: RunFilter::all(), page: PageRequest::first(Limit::new(Limit::MAX)?) };
    for run in db.list_runs(all.clone()).await?.items.iter().filter(|run| run.status == RunStatus::Pending) {
        db.start_run(StartRun::pinned(run.id)).await?;
    }
    t.work_off().await?;
    for run in db.list_runs(all).await?.items {
        assert!(run.status.is_terminal(), "{run:?}");
    }
    Ok(())
}}

case! { L2 needs [MultiProcess, Durable, Logs], l2_four_processes_append_to_one_log(t) {
    let run = t.start("a").await?.id;
    let task = t.task(run, "a").await?.id;
    let lengths: Vec<usize> = (0..60).map(|number| 1 + number * 97 % 5000).collect();
    let mut children = Vec::new();
    for letter in ['a', 'b', 'c', 'd'] {
        let role = Role::AppendLog { url: t.url().to_owned(), task, letter, lengths: lengths.clone() };
        children.push(ChildProcess::start(&role)?);
    }
    for child in &mut children {
        child.line().await?;
    }
    for child in &mut children {
        child.release();
    }
    for child in children {
        child.finish().await?;
    }
    let range = LogRange::new(LogPosition::Offset(0), 4 * 60 * 5000)?;
    let log = String::from_utf8(t.db().read_log(task, range).await?.bytes)?;
    // Each line is of one letter, and each process's lines are all there, in their order.
    let mut found = vec![Vec::new(); 4];
    let mut empty = 0;
    for line in log.split_inclusive('\n') {
        let letters = line.trim_end_matches('\n');
        let Some(first) = letters.chars().next() else { empty += 1; continue };
        assert!(letters.chars().all(|letter| letter == first) && line.ends_with('\n'), "a line is torn: {line:?}");
        found[(u32::from(first) - u32::from('a')) as usize].push(line.len());
    }
    let (short, long): (Vec<usize>, Vec<usize>) = lengths.into_iter().partition(|length| *length == 1);
    assert_eq!((found, empty), (vec![long; 4], 4 * short.len()));
    Ok(())
}}
