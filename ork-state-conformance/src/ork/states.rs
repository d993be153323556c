//! Cases of [`StateStore`]. Their names begin with the rule, which stands at the method.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::future::Future;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use ork_state_api::ork::{
    LegacyRun, LegacyRunId, LegacyTaskName, LegacyTaskRun, LegacyTaskStatus, MAX_RUN_ID_BYTES,
    MAX_TASK_NAME_BYTES, StateStore,
};
use ork_state_api::{Clock, ErrorKind, Json, Result, RunStatus, Text};

use super::child::{Role, Told, start};
use super::{JSON, NAMES, States, assert_corrupt, cases, damage, damages};
use crate::cases::{assert_fails, together};

impl States {
    async fn run(&self) -> Result<LegacyRun> {
        self.store.create_run("nightly".parse()?).await
    }

    fn task(&self, run: &LegacyRun, name: &str) -> Result<LegacyTaskRun> {
        Ok(LegacyTaskRun::new(run.id.clone(), name.parse()?, self.clock.now()))
    }

    fn run_file(&self, run: &LegacyRun) -> std::path::PathBuf {
        self.directory().join(format!("runs/{}.json", run.id))
    }
}

/// A task with something in every field.
fn full(mut task: LegacyTaskRun) -> Result<LegacyTaskRun> {
    let at = |seconds| Some(task.created_at.saturating_add(Duration::from_secs(seconds)));
    (task.dispatched_at, task.started_at, task.finished_at) = (at(1), at(2), at(3));
    (task.status, task.attempt, task.max_retries) = (LegacyTaskStatus::Failed, 2, u32::MAX);
    task.error = Some(Text::new("exit code 1\n\"✓\"")?);
    task.output = Some(Json::parse(r#"{"rows": 12345678901234567890}"#)?);
    Ok(task)
}

/// Polls a future once, and drops it.
async fn ask_once<T>(future: impl Future<Output = T>) -> bool {
    let mut future = Box::pin(future);
    std::future::poll_fn(move |context| Poll::Ready(future.as_mut().poll(context).is_ready())).await
}

async fn names(store: &dyn StateStore, run: &LegacyRunId) -> Result<Vec<String>> {
    Ok(store.list_task_runs(run).await?.into_iter().map(|task| task.task.into()).collect())
}

cases! { CASES: States;

ls1_a_new_run_is_pending_and_was_created_now(t) {
    let run = t.run().await?;
    assert_eq!((&*run.workflow, run.status, run.created_at), ("nightly", RunStatus::Pending, t.clock.now()));
    assert_eq!((run.started_at, run.finished_at), (None, None));
    assert_eq!(t.store.list_task_runs(&run.id).await?, []);
    Ok(())
}

ls1_no_two_runs_have_one_id(t) {
    let runs = together((0..60).map(|_| { let t = t.clone(); async move { t.run().await } })).await?;
    let ids = runs.into_iter().map(|run| Ok(run?.id)).collect::<Result<BTreeSet<_>>>()?;
    assert_eq!((ids.len(), t.store.list_runs().await?.len()), (60, 60));
    Ok(())
}

ls2_a_run_is_found_by_its_id(t) {
    let (one, other) = (t.run().await?, t.run().await?);
    assert_eq!(t.store.get_run(&one.id).await?, Some(one));
    assert_eq!(t.store.get_run(&other.id).await?, Some(other));
    Ok(())
}

ls2_a_run_that_is_not_there_is_none(t) {
    let longest = "x".repeat(MAX_RUN_ID_BYTES);
    for id in NAMES.iter().copied().chain([longest.as_str()]) {
        assert_eq!(t.store.get_run(&id.parse()?).await?, None, "{id:?}");
    }
    t.run().await?;
    assert_eq!(t.store.get_run(&LegacyRunId::generate()).await?, None);
    Ok(())
}

ls3_an_empty_store_has_no_runs(t) {
    assert_eq!(t.store.list_runs().await?, []);
    Ok(())
}

ls3_the_newest_run_comes_first_and_of_one_moment_the_greatest_id(t) {
    let mut runs = Vec::new();
    for _ in 0..4 {
        for _ in 0..5 {
            runs.push(t.run().await?);
        }
        t.clock.advance(Duration::from_micros(1));
    }
    runs.sort_by(|a, b| (b.created_at, &b.id).cmp(&(a.created_at, &a.id)));
    assert_eq!(t.store.list_runs().await?, runs);
    // A change of a run does not move it.
    let moved = t.store.update_run_status(&runs[7].id, RunStatus::Running).await?;
    runs[7] = moved;
    assert_eq!(t.store.list_runs().await?, runs);
    Ok(())
}

ls4_a_task_comes_back_as_it_was_written(t) {
    let run = t.run().await?;
    let mut tasks = vec![t.task(&run, "bare")?, full(t.task(&run, "full")?)?];
    for (number, status) in LegacyTaskStatus::ALL.iter().enumerate() {
        let mut task = t.task(&run, &format!("status-{number}"))?;
        task.status = *status;
        tasks.push(task);
    }
    for task in &tasks {
        t.store.upsert_task_run(task).await?;
    }
    assert_eq!(t.store.list_task_runs(&run.id).await?, tasks);
    Ok(())
}

ls4_an_output_comes_back_to_the_byte(t) {
    let run = t.run().await?;
    let deepest = format!("{}1{}", "[".repeat(127), "]".repeat(127));
    let long = format!("\"{}\"", "é".repeat(1_000_000));
    for text in JSON.iter().copied().chain([deepest.as_str(), &long]) {
        let mut task = t.task(&run, "a")?;
        task.output = Some(Json::parse(text)?);
        t.store.upsert_task_run(&task).await?;
        let read = t.store.list_task_runs(&run.id).await?.remove(0).output;
        assert_eq!(read.as_ref().map(Json::as_str), Some(text));
    }
    // None is different from null.
    t.store.upsert_task_run(&t.task(&run, "a")?).await?;
    assert_eq!(t.store.list_task_runs(&run.id).await?[0].output, None);
    Ok(())
}

ls4_writing_again_replaces_every_field(t) {
    let run = t.run().await?;
    let (bare, full) = (t.task(&run, "a")?, full(t.task(&run, "a")?)?);
    for task in [&bare, &full, &full, &bare] {
        t.store.upsert_task_run(task).await?;
        assert_eq!(t.store.list_task_runs(&run.id).await?, std::slice::from_ref(task));
    }
    assert_eq!(t.store.get_run(&run.id).await?, Some(run));
    Ok(())
}

ls4_the_key_is_the_run_and_the_name(t) {
    let (one, other) = (t.run().await?, t.run().await?);
    let (mine, theirs) = (full(t.task(&one, "a")?)?, t.task(&other, "a")?);
    t.store.upsert_task_run(&mine).await?;
    t.store.upsert_task_run(&theirs).await?;
    assert_eq!(t.store.list_task_runs(&one.id).await?, [mine]);
    assert_eq!(t.store.list_task_runs(&other.id).await?, [theirs]);
    Ok(())
}

ls4_a_task_of_no_run_is_refused(t) {
    let run = t.run().await?;
    for id in NAMES.iter().copied().chain(["0190f5a2-5b1e-7c3d-8e4f-a1b2c3d4e5f6"]) {
        let mut task = t.task(&run, "a")?;
        task.run_id = id.parse()?;
        assert_fails!(t.store.upsert_task_run(&task).await, ErrorKind::NotFound { .. });
        assert_eq!(t.store.get_run(&task.run_id).await?, None);
    }
    assert_eq!(t.store.list_runs().await?, [run]);
    Ok(())
}

ls4_many_tasks_are_written_at_once(t) {
    let run = t.run().await?;
    let tasks = (0..40).map(|number| full(t.task(&run, &format!("{number:02}"))?)).collect::<Result<Vec<_>>>()?;
    let write = |task: LegacyTaskRun| { let t = t.clone(); async move { t.store.upsert_task_run(&task).await } };
    for written in together(tasks.clone().into_iter().map(write)).await? {
        written?;
    }
    assert_eq!(t.store.list_task_runs(&run.id).await?, tasks);
    Ok(())
}

ls4_a_task_that_many_write_at_once_is_one_of_theirs(t) {
    let run = t.run().await?;
    let write = |number: u32| {
        let t = t.clone();
        let task = t.task(&run, "a");
        async move {
            let mut task = task?;
            task.attempt = number;
            task.error = Some(Text::new(number.to_string().repeat(1000))?);
            t.store.upsert_task_run(&task).await?;
            // At every moment it is some writer's version, whole.
            Result::<_>::Ok(t.store.list_task_runs(&task.run_id).await?.remove(0))
        }
    };
    for read in together((10..50).map(write)).await? {
        let read = read?;
        assert_eq!(read.error.as_deref(), Some(&*read.attempt.to_string().repeat(1000)));
    }
    Ok(())
}

ls4_no_name_leads_out_of_the_store(t) {
    let run = t.run().await?;
    for name in ["../x", "..", ".", "/etc/x", "a/b", "a\\b", "", "a\0b", &"x".repeat(300)] {
        assert_fails!(LegacyTaskName::new(name), ErrorKind::InvalidInput { .. });
        assert_fails!(LegacyRunId::new(name), ErrorKind::InvalidInput { .. });
    }
    let longest = "x".repeat(MAX_TASK_NAME_BYTES);
    let mut all: Vec<&str> = NAMES.iter().copied().chain([longest.as_str()]).collect();
    for name in &all {
        t.store.upsert_task_run(&t.task(&run, name)?).await?;
    }
    all.sort_unstable();
    assert_eq!(names(&*t.store, &run.id).await?, all);
    let beside = fs::read_dir(t.home.path())?.map(|entry| Ok(entry?.file_name())).collect::<std::io::Result<Vec<_>>>()?;
    assert!(beside.iter().all(|name| name == "store"), "{beside:?}");
    Ok(())
}

ls5_tasks_are_listed_by_name_byte_by_byte(t) {
    let run = t.run().await?;
    for name in ["b", "B", "a10", "a2", "é", "z", "a"] {
        t.store.upsert_task_run(&t.task(&run, name)?).await?;
    }
    assert_eq!(names(&*t.store, &run.id).await?, ["B", "a", "a10", "a2", "b", "z", "é"]);
    Ok(())
}

ls5_a_run_that_is_not_there_has_no_list(t) {
    assert_fails!(t.store.list_task_runs(&LegacyRunId::generate()).await, ErrorKind::NotFound { .. });
    Ok(())
}

ls6_the_first_running_is_when_it_started(t) {
    let run = t.run().await?;
    t.clock.advance(Duration::from_secs(1));
    let started = t.clock.now();
    for status in [RunStatus::Running, RunStatus::Running, RunStatus::Paused, RunStatus::Pending, RunStatus::Running] {
        let now = t.store.update_run_status(&run.id, status).await?;
        assert_eq!(now, LegacyRun { status, started_at: Some(started), ..run.clone() });
        assert_eq!(t.store.get_run(&run.id).await?, Some(now));
        t.clock.advance(Duration::from_secs(1));
    }
    Ok(())
}

ls6_every_terminal_status_is_when_it_finished(t) {
    let run = t.run().await?;
    for status in [RunStatus::Failed, RunStatus::Cancelled, RunStatus::Success, RunStatus::Success] {
        t.clock.advance(Duration::from_secs(1));
        let now = t.store.update_run_status(&run.id, status).await?;
        // It never ran.
        assert_eq!(now, LegacyRun { status, finished_at: Some(t.clock.now()), ..run.clone() });
        assert_eq!(t.store.get_run(&run.id).await?, Some(now));
    }
    let finished = t.clock.now();
    t.clock.advance(Duration::from_secs(1));
    let again = t.store.update_run_status(&run.id, RunStatus::Running).await?;
    assert_eq!((again.started_at, again.finished_at), (Some(t.clock.now()), Some(finished)));
    Ok(())
}

ls6_tasks_and_other_runs_stay_as_they_are(t) {
    let (run, other) = (t.run().await?, t.run().await?);
    let task = full(t.task(&run, "a")?)?;
    t.store.upsert_task_run(&task).await?;
    t.store.update_run_status(&run.id, RunStatus::Cancelled).await?;
    assert_eq!(t.store.list_task_runs(&run.id).await?, [task]);
    assert_eq!(t.store.get_run(&other.id).await?, Some(other));
    Ok(())
}

ls6_a_run_that_is_not_there_gets_no_status(t) {
    let id = LegacyRunId::generate();
    assert_fails!(t.store.update_run_status(&id, RunStatus::Running).await, ErrorKind::NotFound { .. });
    assert_eq!(t.store.get_run(&id).await?, None);
    Ok(())
}

ls6_statuses_at_once_lose_no_time(t) {
    let run = t.run().await?;
    let update = |number: usize| {
        let (t, id) = (t.clone(), run.id.clone());
        let status = [RunStatus::Running, RunStatus::Success][number % 2];
        async move { t.store.update_run_status(&id, status).await }
    };
    for updated in together((0..40).map(update)).await? {
        updated?;
    }
    let run = t.store.get_run(&run.id).await?.ok_or("the run is gone")?;
    assert_eq!((run.started_at, run.finished_at), (Some(t.clock.now()), Some(t.clock.now())));
    Ok(())
}

ls8_a_call_that_is_dropped_is_whole_or_not_there(t) {
    let run = t.run().await?;
    let mut tasks = BTreeMap::new();
    for number in 0..30 {
        let task = full(t.task(&run, &format!("{number:02}"))?)?;
        let is_done = ask_once(t.store.upsert_task_run(&task)).await;
        tasks.insert(task.task.clone(), (task, is_done));
    }
    // A call that continues without its caller may end at any moment. The store must be sound at
    // each.
    for _ in 0..20 {
        let there = t.store.list_task_runs(&run.id).await?;
        assert!(there.iter().all(|task| tasks[&task.task].0 == *task));
        let must = tasks.values().filter(|(_, is_done)| *is_done).count();
        assert!(there.len() >= must);
        t.store.update_run_status(&run.id, RunStatus::Running).await?;
    }
    Ok(())
}

@on_disk:

ls7_a_run_that_cannot_be_read_is_corrupt(t) {
    let (run, other) = (t.run().await?, t.run().await?);
    let path = t.run_file(&run);
    let whole = fs::read(&path)?;
    let text = String::from_utf8(whole.clone())?;
    let mut all = damages(&whole);
    all.extend([
        ("no status", text.replace("pending", "hello").into_bytes()),
        ("no name", text.replace("nightly", "night\\nly").into_bytes()),
        ("another run's", fs::read(t.run_file(&other))?),
    ]);
    for (what, bytes) in all {
        damage(&path, &bytes)?;
        assert_corrupt(t.store.get_run(&run.id).await, &path, what)?;
        assert_corrupt(t.store.list_runs().await, &path, what)?;
        assert_corrupt(t.store.update_run_status(&run.id, RunStatus::Running).await, &path, what)?;
        assert_eq!(fs::read(&path)?, bytes, "{what}: nothing is mended by guessing");
        assert_eq!(t.store.get_run(&other.id).await?.as_ref(), Some(&other), "{what}");
    }
    damage(&path, &whole)?;
    assert_eq!(t.store.get_run(&run.id).await?, Some(run));
    Ok(())
}

ls7_a_task_that_cannot_be_read_is_corrupt_until_it_is_written_again(t) {
    let run = t.run().await?;
    let (task, other) = (full(t.task(&run, "a")?)?, full(t.task(&run, "b")?)?);
    t.store.upsert_task_run(&task).await?;
    t.store.upsert_task_run(&other).await?;
    let path = t.directory().join(format!("runs/{}/tasks/a.json", run.id));
    let whole = fs::read(&path)?;
    let mut all = damages(&whole);
    all.extend([
        ("no time", String::from_utf8(whole.clone())?.replace("2026-", "hello ").into_bytes()),
        ("another task's", fs::read(path.with_file_name("b.json"))?),
    ]);
    for (what, bytes) in all {
        damage(&path, &bytes)?;
        assert_corrupt(t.store.list_task_runs(&run.id).await, &path, what)?;
        t.store.upsert_task_run(&task).await?;
        assert_eq!(t.store.list_task_runs(&run.id).await?, [task.clone(), other.clone()], "{what}");
    }
    Ok(())
}

ls7_a_file_whose_name_is_none_is_corrupt(t) {
    let run = t.run().await?;
    t.store.upsert_task_run(&t.task(&run, "a")?).await?;
    for (directory, is_runs) in [("runs".to_owned(), true), (format!("runs/{}/tasks", run.id), false)] {
        for name in ["...json", "a\\b.json", "a\nb.json"] {
            let path = t.directory().join(&directory).join(name);
            damage(&path, b"{}")?;
            match is_runs {
                true => assert_corrupt(t.store.list_runs().await, &path, name)?,
                false => assert_corrupt(t.store.list_task_runs(&run.id).await, &path, name)?,
            }
            fs::remove_file(path)?;
        }
        // Files under other names, which others left there, are not part of the store.
        damage(&t.directory().join(&directory).join("a.json.bak"), b"hello")?;
    }
    assert_eq!((t.store.list_runs().await?.len(), names(&*t.store, &run.id).await?.len()), (1, 1));
    Ok(())
}

ls8_another_handle_sees_what_was_written(t) {
    let run = t.run().await?;
    let task = full(t.task(&run, "a")?)?;
    t.store.upsert_task_run(&task).await?;
    let other = t.reopen().await?;
    assert_eq!(other.list_runs().await?, std::slice::from_ref(&run));
    assert_eq!(other.list_task_runs(&run.id).await?, [task]);
    let now = other.update_run_status(&run.id, RunStatus::Running).await?;
    assert_eq!(t.store.get_run(&run.id).await?, Some(now));
    Ok(())
}

ls8_two_handles_take_turns(t) {
    let run = t.run().await?;
    let handles = [t.store.clone(), t.reopen().await?];
    let mut tasks = Vec::new();
    for number in 0..40 {
        tasks.push((handles[number % 2].clone(), full(t.task(&run, &format!("{number:02}"))?)?));
    }
    let work = |(store, task): (Arc<dyn StateStore>, LegacyTaskRun)| async move {
        store.upsert_task_run(&task).await?;
        store.update_run_status(&task.run_id, RunStatus::Running).await?;
        // Each sees its own, whatever the others do.
        let there = store.list_task_runs(&task.run_id).await?;
        Result::<_>::Ok(there.contains(&task))
    };
    for is_there in together(tasks.into_iter().map(work)).await? {
        assert!(is_there?);
    }
    assert_eq!(names(&*t.store, &run.id).await?.len(), 40);
    Ok(())
}

ls8_three_processes_write_the_tasks_of_one_run(t) {
    let run = t.run().await?;
    let mut children = Vec::new();
    for letter in ['a', 'b', 'c'] {
        let role = Role::Upsert { run: run.id.clone(), letter, tasks: 20 };
        children.push(start(t.stores.name, &t.directory(), role)?);
    }
    for child in &mut children {
        child.line().await?;
    }
    for child in &mut children {
        child.release();
    }
    // A reader meanwhile reads whole files.
    for _ in 0..20 {
        t.store.list_task_runs(&run.id).await?;
    }
    for child in children {
        child.finish().await?;
    }
    let there = t.store.list_task_runs(&run.id).await?;
    assert_eq!(there.len(), 3 * 20 + 1);
    for task in there {
        let letter = task.error.as_deref().and_then(|error| error.chars().next()).ok_or("no error")?;
        assert_eq!(task.error.as_deref(), Some(&*letter.to_string().repeat(5000)));
        let name = if &*task.task == "shared" { task.task.to_string() } else { format!("{letter}{}", task.attempt) };
        assert_eq!(&*task.task, name);
    }
    Ok(())
}

ls8_a_process_that_is_killed_leaves_whole_files(t) {
    let (mut runs, mut tasks) = (BTreeMap::new(), BTreeMap::new());
    for steps in [1, 2, 3, 5, 8, 13, 21, 34] {
        let mut child = start(t.stores.name, &t.directory(), Role::LiveOn)?;
        let mut said = Vec::new();
        while said.len() < steps {
            match child.line().await? {
                Some(line) => said.push(line),
                None => return Err(format!("the child ended: {:?}", child.finish().await).into()),
            }
        }
        said.extend(child.kill().await?);
        for line in said {
            match serde_json::from_str(&line)? {
                Told::Run(run) => drop(runs.insert(run.id.clone(), run)),
                Told::Task(task) => drop(tasks.insert((task.run_id.clone(), task.task.clone()), task)),
            }
        }
        // The lock is free, and every existing file can be read.
        t.run().await?;
        let store = t.reopen().await?;
        for run in store.list_runs().await? {
            let there = store.list_task_runs(&run.id).await?;
            let told = tasks.iter().filter(|((id, _), _)| *id == run.id);
            for (key, task) in told {
                let task_there = there.iter().find(|there| there.task == key.1).ok_or("an acknowledged task is gone")?;
                // It may be one step further, which nobody was told of.
                assert!(task_there == task || task_there.status > task.status, "{task_there:?} after {task:?}");
            }
        }
        for run in runs.values() {
            let there = store.get_run(&run.id).await?.ok_or("an acknowledged run is gone")?;
            assert!(there == *run || there.status > run.status, "{there:?} after {run:?}");
        }
    }
    Ok(())
}

}
