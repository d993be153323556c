//! Cases of [`ObjectStore`](ork_state_api::ork::ObjectStore). Their names begin with the rule,
//! which stands at the method.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ork_state_api::ork::{
    LegacyRunId, LegacySpec, LegacyStatus, LegacyTaskStatus, MAX_RUN_ID_BYTES, MAX_TASK_NAME_BYTES,
    ObjectStore,
};
use ork_state_api::{Entity, ErrorKind, Json, Result, Text, Timestamp};

use super::child::{Role, read_all, start, write_all};
use super::{JSON, NAMES, Objects, assert_corrupt, cases, damage, damages};
use crate::cases::{assert_fails, together};

fn spec(run: &str, task: &str) -> Result<LegacySpec> {
    Ok(LegacySpec {
        run_id: run.parse()?,
        workflow_name: "nightly".parse()?,
        task_name: task.parse()?,
        attempt: 2,
        executor: "process".parse()?,
        input: Json::parse(r#"{"b": 1,  "a": -0.0}"#)?,
        upstream: BTreeMap::from([("extract".parse()?, Json::null()), ("é ✓".parse()?, Json::parse("1e2")?)]),
    })
}

fn status(word: LegacyTaskStatus) -> Result<LegacyStatus> {
    let at = |micros: i64| Timestamp::from_micros(1_767_225_600_000_000 + micros).map(Some);
    let (started_at, finished_at, heartbeat_at) = (at(1)?, at(2)?, at(3)?);
    Ok(LegacyStatus {
        status: word,
        started_at,
        finished_at,
        heartbeat_at,
        error: Some(Text::new("no\n\"✓\"")?),
    })
}

/// Asserts that a call fails for every kind of damage to the file that it reads.
async fn every_damage<T: std::fmt::Debug>(
    path: &Path,
    read: impl AsyncFn() -> Result<T>,
) -> crate::CaseResult {
    let whole = fs::read(path)?;
    for (what, bytes) in damages(&whole) {
        damage(path, &bytes)?;
        assert_corrupt(read().await, path, what)?;
        assert_eq!(fs::read(path)?, bytes, "{what}: nothing is mended by guessing");
    }
    damage(path, &whole)?;
    read().await?;
    Ok(())
}

cases! { CASES: Objects;

lo1_a_spec_comes_back_as_it_was_written(t) {
    let mut spec = spec("r", "a")?;
    t.store.write_spec(&spec).await?;
    assert_eq!(t.store.read_spec(&spec.run_id, &spec.task_name).await?, spec);
    let deepest = format!("{}1{}", "[".repeat(127), "]".repeat(127));
    for text in JSON.iter().copied().chain([deepest.as_str()]) {
        spec.input = Json::parse(text)?;
        spec.upstream.insert("deep".parse()?, Json::parse(text)?);
        t.store.write_spec(&spec).await?;
        assert_eq!(t.store.read_spec(&spec.run_id, &spec.task_name).await?, spec);
    }
    Ok(())
}

lo1_a_spec_that_was_never_written_is_not_found(t) {
    let run = "r".parse()?;
    t.store.write_status(&run, &"a".parse()?, &status(LegacyTaskStatus::Pending)?).await?;
    let error = assert_fails!(t.store.read_spec(&run, &"a".parse()?).await, ErrorKind::NotFound { entity: Entity::TaskSpec, .. });
    assert!(error.to_string().contains(&t.store.spec_path(&run, &"a".parse()?)), "{error}");
    Ok(())
}

lo2_a_status_comes_back_as_it_was_written(t) {
    let (run, task) = ("r".parse()?, "a".parse()?);
    assert_eq!(t.store.read_status(&run, &task).await?, None);
    for word in LegacyTaskStatus::ALL {
        for status in [status(*word)?, LegacyStatus::new(*word)] {
            t.store.write_status(&run, &task, &status).await?;
            assert_eq!(t.store.read_status(&run, &task).await?, Some(status));
        }
    }
    assert_eq!(t.store.read_status(&run, &"b".parse()?).await?, None);
    Ok(())
}

lo3_an_output_comes_back_to_the_byte(t) {
    let (run, task) = ("r".parse()?, "a".parse()?);
    assert_eq!(t.store.read_output(&run, &task).await?, None);
    let deepest = format!("{}1{}", "[".repeat(127), "]".repeat(127));
    let long = format!("\"{}\"", "é".repeat(4_000_000));
    for text in JSON.iter().copied().chain([deepest.as_str(), &long]) {
        t.store.write_output(&run, &task, &Json::parse(text)?).await?;
        assert_eq!(t.store.read_output(&run, &task).await?.as_ref().map(Json::as_str), Some(text));
    }
    assert_eq!(t.store.read_output(&"s".parse()?, &task).await?, None);
    Ok(())
}

lo4_no_two_tasks_share_a_place_and_no_name_leads_out(t) {
    let (long_run, long_task) = ("x".repeat(MAX_RUN_ID_BYTES), "x".repeat(MAX_TASK_NAME_BYTES));
    let runs: Vec<&str> = NAMES.iter().copied().chain([long_run.as_str()]).collect();
    let tasks: Vec<&str> = NAMES.iter().copied().chain([long_task.as_str()]).collect();
    let mut places = BTreeSet::new();
    for (number, (run, task)) in runs.iter().flat_map(|run| tasks.iter().map(move |task| (run, task))).enumerate() {
        let (run, task) = (run.parse()?, task.parse()?);
        places.insert(t.store.task_dir(&run, &task));
        // A write to disk is slow, so not all of the pairs.
        if number % 7 == 0 {
            t.store.write_output(&run, &task, &Json::from_value(&number)?).await?;
        }
    }
    assert_eq!(places.len(), runs.len() * tasks.len());
    for (number, (run, task)) in runs.iter().flat_map(|run| tasks.iter().map(move |task| (run, task))).enumerate() {
        let there = t.store.read_output(&run.parse()?, &task.parse()?).await?;
        let expected = if number % 7 == 0 { Some(Json::from_value(&number)?) } else { None };
        assert_eq!(there.as_ref().map(Json::as_str), expected.as_ref().map(Json::as_str), "{run:?} {task:?}");
    }
    let beside = fs::read_dir(t.home.path())?.map(|entry| Ok(entry?.file_name())).collect::<std::io::Result<Vec<_>>>()?;
    assert!(beside.iter().all(|name| name == "store"), "{beside:?}");
    Ok(())
}

lo4_files_are_two_levels_below_the_base(t) {
    let (run, task) = ("r".parse()?, "a".parse()?);
    let directory = t.store.task_dir(&run, &task);
    assert!(directory.ends_with("/r/a") || directory == "memory:/r/a", "{directory}");
    assert_eq!(t.store.spec_path(&run, &task), format!("{directory}/spec.json"));
    assert_eq!(t.store.output_path(&run, &task), format!("{directory}/output.json"));
    Ok(())
}

lo5_who_reads_meanwhile_has_a_whole_file(t) {
    let run: LegacyRunId = "r".parse()?;
    let write = |letter| {
        let (store, run) = (t.store.clone(), run.clone());
        async move {
            for _ in 0..5 {
                write_all(&*store, &run, letter).await.map_err(|error| error.to_string())?;
                read_all(&*store, &run).await.map_err(|error| error.to_string())?;
            }
            Ok::<_, String>(())
        }
    };
    for written in together(('a'..='f').map(write)).await? {
        written?;
    }
    assert_eq!(read_all(&*t.store, &run).await.map_err(|error| error.to_string())?.len(), 3);
    Ok(())
}

@on_disk:

lo4_paths_are_those_of_the_files(t) {
    let directory = t.directory().canonicalize()?;
    for name in NAMES {
        let spec = spec(name, name)?;
        t.store.write_spec(&spec).await?;
        t.store.write_output(&spec.run_id, &spec.task_name, &spec.input).await?;
        let place = directory.join(name).join(name);
        assert_eq!(PathBuf::from(t.store.task_dir(&spec.run_id, &spec.task_name)), place);
        assert!(Path::new(&t.store.spec_path(&spec.run_id, &spec.task_name)).is_file());
        let output = fs::read_to_string(t.store.output_path(&spec.run_id, &spec.task_name))?;
        assert_eq!(output, spec.input.as_str());
    }
    Ok(())
}

lo5_another_handle_sees_what_was_written(t) {
    let spec = spec("r", "a")?;
    t.store.write_spec(&spec).await?;
    let other = t.reopen().await?;
    assert_eq!(other.read_spec(&spec.run_id, &spec.task_name).await?, spec);
    other.write_output(&spec.run_id, &spec.task_name, &Json::null()).await?;
    assert_eq!(t.store.read_output(&spec.run_id, &spec.task_name).await?, Some(Json::null()));
    Ok(())
}

lo5_processes_that_write_one_task_leave_whole_files(t) {
    let run: LegacyRunId = "r".parse()?;
    let mut children = Vec::new();
    for letter in ['a', 'b', 'c'] {
        let role = Role::WriteFiles { run: run.clone(), letter, times: 15 };
        children.push(start(t.stores.name, &t.directory(), role)?);
    }
    for child in &mut children {
        child.line().await?;
    }
    for child in &mut children {
        child.release();
    }
    for _ in 0..30 {
        read_all(&*t.store, &run).await.map_err(|error| error.to_string())?;
    }
    for child in children {
        child.finish().await?;
    }
    assert_eq!(read_all(&*t.store, &run).await.map_err(|error| error.to_string())?.len(), 3);
    Ok(())
}

lo5_a_process_that_is_killed_leaves_whole_files(t) {
    let run: LegacyRunId = "r".parse()?;
    for times in [1, 2, 3, 5, 8, 13] {
        let mut child = start(t.stores.name, &t.directory(), Role::WriteOn { run: run.clone() })?;
        for _ in 0..times {
            child.line().await?.ok_or("the child ended")?;
        }
        child.kill().await?;
        let store: Arc<dyn ObjectStore> = t.reopen().await?;
        assert_eq!(read_all(&*store, &run).await.map_err(|error| error.to_string())?.len(), 3);
        // The staged file that it left blocks nobody, and is not kept for ever.
        write_all(&*store, &run, 'z').await.map_err(|error| error.to_string())?;
        assert_eq!(fs::read_dir(t.directory().join("r/task"))?.count(), 3);
    }
    Ok(())
}

lo6_what_cannot_be_read_is_corrupt(t) {
    let spec = spec("r", "a")?;
    let (run, task) = (&spec.run_id, &spec.task_name);
    t.store.write_spec(&spec).await?;
    t.store.write_status(run, task, &status(LegacyTaskStatus::Running)?).await?;
    t.store.write_output(run, task, &spec.input).await?;
    let place = PathBuf::from(t.store.task_dir(run, task));
    every_damage(&place.join("spec.json"), async || t.store.read_spec(run, task).await).await?;
    every_damage(&place.join("status.json"), async || t.store.read_status(run, task).await).await?;
    every_damage(&place.join("output.json"), async || t.store.read_output(run, task).await).await
}

lo6_a_spec_of_another_task_is_corrupt(t) {
    let (one, other, elsewhere) = (spec("r", "a")?, spec("r", "b")?, spec("s", "a")?);
    for spec in [&one, &other, &elsewhere] {
        t.store.write_spec(spec).await?;
    }
    let path = PathBuf::from(t.store.spec_path(&one.run_id, &one.task_name));
    for spec in [other, elsewhere] {
        fs::copy(t.store.spec_path(&spec.run_id, &spec.task_name), &path)?;
        assert_corrupt(t.store.read_spec(&one.run_id, &one.task_name).await, &path, "another's")?;
    }
    Ok(())
}

lo6_a_status_that_is_no_status_is_corrupt(t) {
    let (run, task) = ("r".parse()?, "a".parse()?);
    t.store.write_status(&run, &task, &LegacyStatus::new(LegacyTaskStatus::Running)).await?;
    let path = PathBuf::from(t.store.task_dir(&run, &task)).join("status.json");
    for text in [r#"{"status":"hello"}"#, "{}", "[]", "null", r#"{"status":"running","started_at":"hello"}"#] {
        damage(&path, text.as_bytes())?;
        assert_corrupt(t.store.read_status(&run, &task).await, &path, text)?;
    }
    Ok(())
}

}
