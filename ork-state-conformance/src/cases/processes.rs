use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use ork_state_api::{Limit, LogPosition, LogRange, NewRun, RunFilter, RunStatus, StartRun};

use crate::case::case;
use crate::child::{ChildProcess, Role};
use crate::crashes::{Crashes, Death, Survivor, all_runs};
use crate::{LEASE, dag, wide_dag};

/// The size in the contract's own target: four processes, twenty thousand tasks.
const TASKS: usize = 20_000;
const PROCESSES: usize = 4;

case! { T2 heavy needs [MultiProcess, Durable], t2_four_processes_claim_twenty_thousand_tasks_each_once(t) {
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
    // All are read at once, because a child whose pipe is full would block.
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
    // The child's leases ran on real time. This case's clock is moved past them.
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
    let there = all_runs(&*t.reopen().await?, RunFilter::of(workflow)).await?;
    let there: BTreeSet<_> = there.into_iter().map(|run| run.id.to_string()).collect();
    assert!(there.is_superset(&told), "lost: {:?}", told.difference(&there).collect::<Vec<_>>());
    Ok(())
}}

case! { [G1, G2, R3] needs [MultiProcess, Durable], g1_a_process_that_is_killed_leaves_no_half_transaction(t) {
    let mut survivor = Survivor::new(&t);
    // Each process is killed at the step after the last one that was read: after a few, after many,
    // and where a workflow is deleted.
    for steps in [1, 4, 23, 60, 131, 190, 200, 211] {
        survivor.outlive(Death { workers: 1, steps, pause: Duration::ZERO, failure: None }).await?;
    }
    survivor.check().await?;
    let Crashes { kills, acknowledged, deletions, .. } = survivor.finish().await?;
    t.note(format!("{acknowledged} acknowledged steps of {kills} killed processes, {deletions} deletions among them"));
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
    // Each line has one letter only, and each process's lines are all there, in order.
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
