//! What is on disk, and what becomes of it when it is damaged.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, OpenOptions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ork_state_api::copy::compare;
use ork_state_api::{
    Clock, Dag, Database, Error, ErrorKind, Json, ListRuns, ListTasks, LogChunk, LogStore, Maintenance,
    ManualClock, NewRun, NewWorkflow, PageRequest, Rule, RunStore, StartRun, TaskId, TaskSpec, TaskStore,
    TaskUpdate, TaskUpdates, Timestamp, UpdateOutcome, WorkflowId, WorkflowStore,
};
use ork_state_conformance::{LEASE, claim_request, dag};
use ork_state_file::{FileDatabase, FileOptions};
use tempfile::TempDir;

async fn open(directory: &Path) -> Result<FileDatabase, Error> {
    FileOptions::directory(directory).with_lock_timeout(Duration::from_millis(50)).connect().await
}

/// A store in which `runs` runs were created, one transaction each, and its journal.
async fn store(runs: usize) -> (TempDir, PathBuf) {
    let home = TempDir::new().unwrap();
    let db = open(home.path()).await.unwrap();
    db.migrate().await.unwrap();
    let new = NewWorkflow::new("w".parse().unwrap(), dag("a").unwrap());
    let workflow = db.create_workflow(new).await.unwrap().id;
    for _ in 0..runs {
        db.create_run(NewRun::new(workflow)).await.unwrap();
    }
    let journal = home.path().join("journal.jsonl");
    (home, journal)
}

async fn count_runs(db: &FileDatabase) -> usize {
    db.list_runs(ListRuns::default()).await.unwrap().items.len()
}

async fn refuses(directory: &Path) -> Error {
    open(directory).await.unwrap_err()
}

fn is_corrupt_at(error: &Error, offset: usize) -> bool {
    matches!(error.kind(), ErrorKind::Corrupt { id, .. } if *id == format!("offset {offset}"))
}

#[tokio::test]
async fn a_torn_last_line_is_cut_off_wherever_it_was_torn() {
    let (home, journal) = store(3).await;
    let whole = fs::read(&journal).unwrap();
    let last = whole[..whole.len() - 1].iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
    for end in last..whole.len() {
        fs::write(&journal, &whole[..end]).unwrap();
        let db = open(home.path()).await.unwrap();
        assert_eq!(count_runs(&db).await, 2, "torn at {end}");
        assert_eq!(db.verify().await.unwrap(), []);
        let workflow = db.list_workflows(PageRequest::default().into()).await.unwrap().items[0].id;
        db.create_run(NewRun::new(workflow)).await.unwrap();
        assert_eq!(
            count_runs(&open(home.path()).await.unwrap()).await,
            3,
            "written to after it was torn at {end}"
        );
    }
}

#[tokio::test]
async fn zeros_after_the_last_line_are_cut_off() {
    let (home, journal) = store(2).await;
    let mut bytes = fs::read(&journal).unwrap();
    bytes.extend([0; 300]);
    bytes.push(b'\n');
    fs::write(&journal, bytes).unwrap();
    assert_eq!(count_runs(&open(home.path()).await.unwrap()).await, 2);
}

#[tokio::test]
async fn any_flipped_bit_of_a_whole_line_is_corrupt_with_its_offset() {
    let (home, journal) = store(2).await;
    let whole = fs::read(&journal).unwrap();
    let mut start = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    while start < whole.len() {
        let length = whole[start..].iter().position(|byte| *byte == b'\n').unwrap();
        for at in (start..start + length).step_by(7) {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(&journal, &bytes).unwrap();
            let error = refuses(home.path()).await;
            assert!(is_corrupt_at(&error, start), "bit flipped at {at} of the line at {start}: {error}");
            assert_eq!(fs::read(&journal).unwrap(), bytes, "nothing is mended by guessing");
        }
        start += length + 1;
    }
}

#[tokio::test]
async fn a_missing_line_is_corrupt() {
    let (home, journal) = store(3).await;
    let text = fs::read_to_string(&journal).unwrap();
    let mut lines: Vec<&str> = text.split_inclusive('\n').collect();
    lines.remove(2);
    let offset = lines[..2].iter().map(|line| line.len()).sum();
    fs::write(&journal, lines.concat()).unwrap();
    let error = refuses(home.path()).await;
    assert!(is_corrupt_at(&error, offset) && error.to_string().contains("is missing"), "{error}");
}

#[tokio::test]
async fn a_newer_format_is_refused_and_left_as_it_is() {
    let (home, journal) = store(1).await;
    let newer =
        fs::read_to_string(&journal).unwrap().replacen("\"ork_state_file\":1", "\"ork_state_file\":2", 1);
    fs::write(&journal, &newer).unwrap();
    let error = refuses(home.path()).await;
    assert_eq!(*error.kind(), ErrorKind::SchemaMismatch { found: 2, needed: 1 });
    assert_eq!(fs::read_to_string(&journal).unwrap(), newer);
}

#[tokio::test]
async fn a_file_that_is_no_journal_is_refused() {
    let home = TempDir::new().unwrap();
    fs::write(home.path().join("journal.jsonl"), "hello\n").unwrap();
    assert!(matches!(refuses(home.path()).await.kind(), ErrorKind::Corrupt { .. }));
}

#[tokio::test]
async fn a_place_that_cannot_be_a_store_is_named() {
    let home = TempDir::new().unwrap();
    let missing = home.path().join("not/there");
    let error = refuses(&missing).await;
    assert!(error.is_retryable() && error.to_string().contains("not/there"), "{error}");
    let file = home.path().join("file");
    fs::write(&file, "").unwrap();
    let error = refuses(&file).await;
    assert!(error.to_string().contains(file.to_str().unwrap()), "{error}");
}

#[tokio::test]
async fn a_lock_that_is_held_too_long_is_unavailable_and_says_by_what() {
    let (home, _) = store(1).await;
    let db = open(home.path()).await.unwrap();
    let lock = OpenOptions::new().write(true).open(home.path().join("lock")).unwrap();
    lock.lock().unwrap();
    let workflow = db.list_workflows(PageRequest::default().into()).await.unwrap().items[0].id;
    let error = db.create_run(NewRun::new(workflow)).await.unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains("lock"), "{error}");
    lock.unlock().unwrap();
    db.create_run(NewRun::new(workflow)).await.unwrap();
    assert_eq!(count_runs(&db).await, 2);
}

#[tokio::test]
async fn everything_on_disk_is_its_owners_alone() {
    let home = TempDir::new().unwrap();
    let directory = home.path().join("store");
    let db = open(&directory).await.unwrap();
    db.migrate().await.unwrap();
    let run = started(&db).await;
    let task = db.list_tasks(ListTasks::of(run, PageRequest::default())).await.unwrap().items[0].id;
    db.append_log(task, LogChunk::new(b"x").unwrap()).await.unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&directory), mode(&directory.join("logs"))), (0o700, 0o700));
    for file in ["journal.jsonl", "lock", "turnstile", &format!("logs/{task}.log")] {
        assert_eq!(mode(&directory.join(file)), 0o600, "{file}");
    }
}

async fn started(db: &FileDatabase) -> ork_state_api::RunId {
    let new = NewWorkflow::new("w".parse().unwrap(), dag("a b c d:a").unwrap());
    let workflow = db.create_workflow(new).await.unwrap().id;
    let run = db.create_run(NewRun::new(workflow)).await.unwrap().into_run().id;
    db.start_run(StartRun::pinned(run)).await.unwrap();
    run
}

/// Writes more than the journal may hold, with tasks in every state.
async fn fill(db: &FileDatabase) -> ork_state_api::RunId {
    let run = started(db).await;
    let claimed = db.claim_tasks(claim_request("w", LEASE).unwrap()).await.unwrap();
    let output = Json::parse(format!("\"{}\"", "x".repeat(9 * 1024 * 1024))).unwrap();
    for task in &claimed[..2] {
        let update = TaskUpdate::succeeded(task.claim, Some(output.clone()));
        db.update_tasks(TaskUpdates::one(update)).await.unwrap();
    }
    run
}

/// The names in a store's directory, but for `logs` and what is locked.
fn names(home: &Path) -> Vec<String> {
    let entries = fs::read_dir(home).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| name.contains(".jsonl"));
    names.sort_unstable();
    names
}

/// Waits for a fold that is under way: it goes on beside the calls.
async fn folded(home: &Path) {
    let begun = std::time::Instant::now();
    while names(home) != ["journal.jsonl", "snapshot.jsonl"] {
        assert!(begun.elapsed().as_secs() < 30, "{:?}", names(home));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn a_long_journal_is_folded_into_a_snapshot_that_reads_the_same() {
    let (home, journal) = store(2).await;
    let watcher = open(home.path()).await.unwrap();
    let db = open(home.path()).await.unwrap();
    db.delete_workflow(db.list_workflows(PageRequest::default().into()).await.unwrap().items[0].id)
        .await
        .unwrap_err();
    for run in db.list_runs(ListRuns::default()).await.unwrap().items {
        db.cancel_run(run.id).await.unwrap();
    }
    db.delete_workflow(db.list_workflows(PageRequest::default().into()).await.unwrap().items[0].id)
        .await
        .unwrap();
    let before = fs::read(&journal).unwrap();
    let run = fill(&db).await;
    folded(home.path()).await;
    assert!(fs::metadata(&journal).unwrap().len() < before.len() as u64 + 4096, "the journal is short again");
    let tasks = db.list_tasks(ListTasks::of(run, PageRequest::default())).await.unwrap();
    for other in [&watcher, &open(home.path()).await.unwrap()] {
        assert_eq!(other.list_tasks(ListTasks::of(run, PageRequest::default())).await.unwrap(), tasks);
        assert_eq!(other.get_run(run).await.unwrap(), db.get_run(run).await.unwrap());
        assert_eq!(other.verify().await.unwrap(), []);
    }
    // Claims go on where they were: the token survives the fold.
    let d = watcher.claim_tasks(claim_request("w", LEASE).unwrap()).await.unwrap();
    assert_eq!(d.len(), 1);
    assert_eq!(db.get_task(d[0].task.id).await.unwrap().task, d[0].task);
}

#[tokio::test]
async fn a_crash_between_the_two_renames_of_a_fold_loses_and_repeats_nothing() {
    let (home, journal) = store(0).await;
    let db = open(home.path()).await.unwrap();
    db.delete_workflow(db.list_workflows(PageRequest::default().into()).await.unwrap().items[0].id)
        .await
        .unwrap();
    let run = started(&db).await;
    let claimed = db.claim_tasks(claim_request("w", LEASE).unwrap()).await.unwrap();
    let output = Json::parse(format!("\"{}\"", "x".repeat(9 * 1024 * 1024))).unwrap();
    let done =
        |index: usize| TaskUpdates::one(TaskUpdate::succeeded(claimed[index].claim, Some(output.clone())));
    db.update_tasks(done(0)).await.unwrap();
    let old = fs::read(&journal).unwrap();
    db.update_tasks(done(1)).await.unwrap();
    folded(home.path()).await;
    let tasks = db.list_tasks(ListTasks::of(run, PageRequest::default())).await.unwrap();
    drop(db);
    // The journal as it was before the fold, less its last transaction, beside the new snapshot.
    fs::write(&journal, old).unwrap();
    let db = open(home.path()).await.unwrap();
    assert_eq!(db.list_tasks(ListTasks::of(run, PageRequest::default())).await.unwrap(), tasks);
    assert_eq!(db.verify().await.unwrap(), []);
}

#[tokio::test]
async fn a_lost_snapshot_is_corrupt() {
    let (home, _) = store(0).await;
    let db = open(home.path()).await.unwrap();
    db.delete_workflow(db.list_workflows(PageRequest::default().into()).await.unwrap().items[0].id)
        .await
        .unwrap();
    fill(&db).await;
    folded(home.path()).await;
    fs::remove_file(home.path().join("snapshot.jsonl")).unwrap();
    assert!(matches!(refuses(home.path()).await.kind(), ErrorKind::Corrupt { .. }));
}

#[tokio::test]
async fn a_log_file_that_is_shorter_than_it_should_be_is_corrupt_and_verify_says_so() {
    let (home, _) = store(0).await;
    let db: Arc<dyn Database> = Arc::new(open(home.path()).await.unwrap());
    let workflow = db.list_workflows(PageRequest::default().into()).await.unwrap().items[0].id;
    let run = db.create_run(NewRun::new(workflow)).await.unwrap().into_run().id;
    db.start_run(StartRun::pinned(run)).await.unwrap();
    let task = db.list_tasks(ListTasks::of(run, PageRequest::default())).await.unwrap().items[0].id;
    db.append_log(task, LogChunk::new(b"0123456789").unwrap()).await.unwrap();
    fs::write(home.path().join(format!("logs/{task}.log")), "01234").unwrap();
    let range = ork_state_api::LogRange::new(ork_state_api::LogPosition::Offset(0), 100).unwrap();
    let error = db.read_log(task, range).await.unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::Corrupt { .. }) && error.to_string().contains(&task.to_string()),
        "{error}"
    );
    let found = db.verify().await.unwrap();
    assert!(found.iter().any(|violation| violation.rule == Rule::L2), "{found:?}");
}

/// A string of so many MiB.
fn output(mib: usize) -> Json {
    Json::parse(format!("\"{}\"", "x".repeat(mib * 1024 * 1024))).unwrap()
}

#[tokio::test]
async fn json_of_many_lines_is_one_line_that_is_still_json() {
    let (home, journal) = store(0).await;
    let db = open(home.path()).await.unwrap();
    let spec = |text| dag("a").unwrap().tasks()[0].clone().with_params(Json::parse(text).unwrap());
    let texts = ["[\n1,\r\n2]", "[\r\r1,\t2]"];
    for (name, text) in ["x", "y"].into_iter().zip(texts) {
        let dag = Dag::new([spec(text)]).unwrap();
        db.create_workflow(NewWorkflow::new(name.parse().unwrap(), dag)).await.unwrap();
    }
    let text = fs::read_to_string(&journal).unwrap();
    assert_eq!(text.lines().count(), 4);
    for line in text.lines() {
        Json::parse(line).unwrap();
    }
    assert_eq!(open(home.path()).await.unwrap().verify().await.unwrap(), []);
}

#[tokio::test]
async fn calls_that_share_a_commit_are_lost_together() {
    let (home, journal) = store(1).await;
    let db = open(home.path()).await.unwrap();
    let workflow = only_workflow(&db).await;
    let before = fs::read(&journal).unwrap().len();
    let lock = OpenOptions::new().write(true).open(home.path().join("lock")).unwrap();
    lock.lock().unwrap();
    let calls: Vec<_> = (0..20)
        .map(|_| {
            let db = db.clone();
            tokio::spawn(async move { db.create_run(NewRun::new(workflow)).await })
        })
        .collect();
    // They are in the queue when this comes round; the store's thread holds some and waits for the
    // lock.
    tokio::task::yield_now().await;
    lock.unlock().unwrap();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    let whole = fs::read(&journal).unwrap();
    let starts: Vec<usize> = (before..whole.len()).filter(|at| whole[at - 1] == b'\n').collect();
    assert!(starts.len() <= 2, "20 calls made {} lines", starts.len());
    let all = count_runs(&db).await;
    assert_eq!(all, 21);
    // Of the last write a page never got to the disk, later ones did.
    let (last, mut bytes) = (starts[starts.len() - 1], whole.clone());
    bytes[last..last + 100].fill(0);
    fs::write(&journal, bytes).unwrap();
    let left = count_runs(&open(home.path()).await.unwrap()).await;
    let first = whole[before..last].windows(5).filter(|bytes| bytes == b"\"run\"").count();
    assert_eq!(left, 1 + first, "nothing of the last write counts, all of the one before does");
}

async fn only_workflow(db: &FileDatabase) -> WorkflowId {
    db.list_workflows(PageRequest::default().into()).await.unwrap().items[0].id
}

#[tokio::test]
async fn a_snapshot_that_is_cut_short_is_corrupt() {
    let (home, _) = store(2).await;
    let db = open(home.path()).await.unwrap();
    db.delete_workflow(only_workflow(&db).await).await.unwrap_err();
    for run in db.list_runs(ListRuns::default()).await.unwrap().items {
        db.cancel_run(run.id).await.unwrap();
    }
    db.delete_workflow(only_workflow(&db).await).await.unwrap();
    fill(&db).await;
    folded(home.path()).await;
    let snapshot = home.path().join("snapshot.jsonl");
    let whole = fs::read(&snapshot).unwrap();
    let ends: Vec<usize> = (0..whole.len()).filter(|at| whole[*at] == b'\n').collect();
    assert!(ends.len() > 2);
    for end in ends {
        for end in [end, end + 1].into_iter().filter(|end| *end < whole.len()) {
            fs::write(&snapshot, &whole[..end]).unwrap();
            let error = refuses(home.path()).await;
            assert!(
                matches!(error.kind(), ErrorKind::Corrupt { table, .. } if table.ends_with("snapshot.jsonl")),
                "cut at {end}: {error}"
            );
        }
    }
    let mut zeroed = whole.clone();
    let last = whole.len() - 50;
    zeroed[last..whole.len() - 1].fill(0);
    fs::write(&snapshot, zeroed).unwrap();
    assert!(matches!(refuses(home.path()).await.kind(), ErrorKind::Corrupt { .. }));
    for more in [&b"{}\n"[..], b"{"] {
        fs::write(&snapshot, [&whole[..], more].concat()).unwrap();
        assert!(matches!(refuses(home.path()).await.kind(), ErrorKind::Corrupt { .. }));
    }
    fs::write(&snapshot, whole).unwrap();
    assert_eq!(open(home.path()).await.unwrap().verify().await.unwrap(), []);
}

#[tokio::test]
async fn a_fold_that_fails_loses_nothing_and_is_not_tried_at_once_again() {
    let (home, journal) = store(0).await;
    let db = open(home.path()).await.unwrap();
    db.delete_workflow(only_workflow(&db).await).await.unwrap();
    // The snapshot cannot have its name.
    let snapshot = home.path().join("snapshot.jsonl");
    fs::create_dir(&snapshot).unwrap();
    let run = fill(&db).await;
    // It lets this go when it has failed.
    fs::File::open(home.path().join("fold")).unwrap().lock().unwrap();
    assert!(
        !names(home.path()).iter().any(|name| name.ends_with(".new")),
        "what was written for nothing is removed"
    );
    let sealed = names(home.path()).into_iter().find(|name| name.starts_with("sealed-")).unwrap();
    assert!(fs::metadata(home.path().join(&sealed)).unwrap().len() > 16 * 1024 * 1024);
    let task = db.list_tasks(ListTasks::of(run, PageRequest::default())).await.unwrap().items[2].id;
    let claimed = db.claim_tasks(claim_request("w", LEASE).unwrap()).await.unwrap();
    assert_eq!((claimed.len(), claimed[0].task.depends_on.len()), (1, 1), "{task}");
    fs::remove_dir(&snapshot).unwrap();
    let workflow = only_workflow(&db).await;
    db.create_run(NewRun::new(workflow)).await.unwrap();
    assert!(names(home.path()).contains(&sealed) && !snapshot.exists(), "it is too early to try again");
    // Without the snapshot the store reads the same.
    assert_eq!(open(home.path()).await.unwrap().get_run(run).await.unwrap(), db.get_run(run).await.unwrap());
    let update = TaskUpdate::succeeded(claimed[0].claim, Some(output(5)));
    db.update_tasks(TaskUpdates::one(update)).await.unwrap();
    // Now it is tried.
    folded(home.path()).await;
    assert!(fs::metadata(&journal).unwrap().len() < 1024);
    assert_eq!(open(home.path()).await.unwrap().verify().await.unwrap(), []);
}

#[tokio::test]
async fn what_a_killed_process_had_staged_is_removed() {
    let (home, _) = store(0).await;
    let staged = ["snapshot.jsonl.new", "journal.jsonl.new"].map(|name| home.path().join(name));
    for path in &staged {
        fs::write(path, "half").unwrap();
    }
    let db = open(home.path()).await.unwrap();
    db.create_run(NewRun::new(only_workflow(&db).await)).await.unwrap();
    assert!(!staged.iter().any(|path| path.exists()));
}

#[tokio::test]
async fn what_another_process_is_folding_is_left_to_it() {
    let (home, _) = store(0).await;
    let fold = fs::File::create(home.path().join("fold")).unwrap();
    fold.lock().unwrap();
    let staged = home.path().join("snapshot.jsonl.new");
    fs::write(&staged, "half").unwrap();
    let db = open(home.path()).await.unwrap();
    db.delete_workflow(only_workflow(&db).await).await.unwrap();
    fill(&db).await;
    assert_eq!(fs::read(&staged).unwrap(), b"half");
    assert_eq!(names(home.path()), ["journal.jsonl", "snapshot.jsonl.new"]);
}

/// A process that was killed between the two names that a seal gives leaves a journal that is
/// sealed and goes on. Its lines count once.
#[tokio::test]
async fn a_journal_that_is_sealed_and_goes_on_reads_the_same() {
    let (home, journal) = store(2).await;
    let commits = fs::read_to_string(&journal).unwrap().lines().count() - 1;
    fs::hard_link(&journal, home.path().join(format!("sealed-{commits}.jsonl"))).unwrap();
    let db = open(home.path()).await.unwrap();
    db.create_run(NewRun::new(only_workflow(&db).await)).await.unwrap();
    assert_eq!(count_runs(&open(home.path()).await.unwrap()).await, 3);
    assert_eq!(open(home.path()).await.unwrap().verify().await.unwrap(), []);
}

/// Such as one that a backup left behind.
#[tokio::test]
async fn a_file_that_has_the_name_of_the_next_sealed_journal_costs_nothing() {
    let (home, _) = store(0).await;
    let db = open(home.path()).await.unwrap();
    db.delete_workflow(only_workflow(&db).await).await.unwrap();
    let strangers: Vec<PathBuf> =
        (1..100).map(|seq| home.path().join(format!("sealed-{seq}.jsonl"))).collect();
    for path in &strangers {
        fs::write(path, "strange").unwrap();
    }
    let run = fill(&db).await;
    let expected = db.get_run(run).await.unwrap();
    drop(db);
    for path in &strangers {
        assert_eq!(fs::read(path).unwrap(), b"strange");
        fs::remove_file(path).unwrap();
    }
    let db = open(home.path()).await.unwrap();
    assert_eq!(db.get_run(run).await.unwrap(), expected);
    assert_eq!(db.verify().await.unwrap(), []);
}

#[tokio::test]
async fn a_sealed_journal_that_is_lost_or_cut_short_is_corrupt() {
    let (home, journal) = store(2).await;
    let whole = fs::read_to_string(&journal).unwrap();
    let commits = whole.lines().count() - 1;
    let sealed = home.path().join(format!("sealed-{commits}.jsonl"));
    fs::rename(&journal, &sealed).unwrap();
    fs::write(&journal, format!("{{\"ork_state_file\":1,\"after\":{commits}}}\n")).unwrap();
    assert_eq!(count_runs(&open(home.path()).await.unwrap()).await, 2);
    let cut = whole.trim_end().rfind('\n').unwrap() + 1;
    for content in [&whole[..cut], &whole[..whole.len() - 5]] {
        fs::write(&sealed, content).unwrap();
        assert!(
            matches!(refuses(home.path()).await.kind(), ErrorKind::Corrupt { table, .. } if table.contains("sealed-"))
        );
    }
    fs::remove_file(&sealed).unwrap();
    assert!(matches!(refuses(home.path()).await.kind(), ErrorKind::Corrupt { .. }));
}

/// Neither who writes nor who reads is in the way of a fold, nor it in theirs: many of them, in two
/// stores over one directory.
#[tokio::test]
async fn calls_go_on_while_the_journal_is_folded() {
    let (home, _) = store(0).await;
    let (one, two) = (open(home.path()).await.unwrap(), open(home.path()).await.unwrap());
    one.delete_workflow(only_workflow(&one).await).await.unwrap();
    let run = started(&one).await;
    let claimed = one.claim_tasks(claim_request("w", LEASE).unwrap()).await.unwrap();
    for round in 0..40 {
        let writer = if round % 2 == 0 { &one } else { &two };
        let name = format!("{round}{}", "x".repeat(1000)).parse().unwrap();
        let update = TaskUpdate::dispatched(claimed[0].claim, Some(name));
        let report = writer.update_tasks(TaskUpdates::one(update)).await.unwrap();
        assert!(matches!(report.outcomes[0], UpdateOutcome::Applied { .. }));
        let workflow = NewWorkflow::new(
            format!("w{round}").parse().unwrap(),
            Dag::new(
                [TaskSpec::new("a".parse().unwrap(), "process".parse().unwrap()).with_params(output(1))],
            )
            .unwrap(),
        );
        writer.create_workflow(workflow).await.unwrap();
        for reader in [&one, &two] {
            let task = reader.get_task(claimed[0].task.id).await.unwrap().task;
            assert!(task.execution_name.unwrap().starts_with(&round.to_string()));
        }
    }
    folded(home.path()).await;
    let again = open(home.path()).await.unwrap();
    assert_eq!(compare(&one, &again).await.unwrap(), None);
    assert_eq!(again.get_run(run).await.unwrap(), two.get_run(run).await.unwrap());
    assert_eq!(again.verify().await.unwrap(), []);
}

/// A call gives up after `lock_timeout`, here 50 ms. The work of a fold is not thrown away as soon.
#[tokio::test]
async fn a_fold_waits_for_the_lock_longer_than_a_call() {
    let (home, _) = store(0).await;
    let db = open(home.path()).await.unwrap();
    db.delete_workflow(only_workflow(&db).await).await.unwrap();
    let lock = OpenOptions::new().write(true).open(home.path().join("lock")).unwrap();
    let turnstile = OpenOptions::new().write(true).open(home.path().join("turnstile")).unwrap();
    fill(&db).await;
    lock.lock().unwrap();
    let is_over = || home.path().join("snapshot.jsonl").exists();
    // It waits in the turnstile.
    while !is_over() && turnstile.try_lock().is_ok() {
        turnstile.unlock().unwrap();
        tokio::task::yield_now().await;
    }
    let waits = std::time::Instant::now();
    while !is_over() && waits.elapsed() < Duration::from_millis(200) {
        tokio::task::yield_now().await;
    }
    lock.unlock().unwrap();
    folded(home.path()).await;
    assert_eq!(db.verify().await.unwrap(), []);
}

#[tokio::test]
async fn connecting_does_not_block_its_callers_thread() {
    let (home, _) = store(1).await;
    let lock = OpenOptions::new().write(true).open(home.path().join("lock")).unwrap();
    lock.lock().unwrap();
    let options = FileOptions::directory(home.path()).with_lock_timeout(Duration::from_secs(1));
    let connecting = tokio::spawn(options.connect());
    // On the one thread of this runtime it comes first.
    tokio::task::yield_now().await;
    lock.unlock().unwrap();
    assert_eq!(count_runs(&connecting.await.unwrap().unwrap()).await, 1);
}

#[tokio::test]
async fn who_waits_for_the_lock_is_the_next_to_have_it() {
    let (home, _) = store(0).await;
    let db = FileOptions::directory(home.path()).connect().await.unwrap();
    let workflow = only_workflow(&db).await;
    let open = |name| OpenOptions::new().write(true).open(home.path().join(name)).unwrap();
    let (lock, turnstile) = (open("lock"), open("turnstile"));
    lock.lock().unwrap();
    let call = tokio::spawn(async move { db.create_run(NewRun::new(workflow)).await });
    // It waits in the turnstile, where it keeps others from overtaking it.
    while !call.is_finished() && turnstile.try_lock().is_ok() {
        turnstile.unlock().unwrap();
        tokio::task::yield_now().await;
    }
    lock.unlock().unwrap();
    call.await.unwrap().unwrap();
    turnstile.try_lock().unwrap();
}

/// A clock that does something when it is read for the so-manieth time: after a call has brought
/// its state up to date, and before it looks at its files.
#[derive(Default)]
struct Ambush {
    clock: ManualClock,
    readings: AtomicUsize,
    at: AtomicUsize,
    then: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl std::fmt::Debug for Ambush {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ambush")
    }
}

impl Clock for Ambush {
    fn now(&self) -> Timestamp {
        let is_due = self.readings.fetch_add(1, Ordering::SeqCst) + 1 == self.at.load(Ordering::SeqCst);
        let then = if is_due { self.then.lock().unwrap().take() } else { None };
        if let Some(then) = then {
            then();
        }
        self.clock.now()
    }
}

/// A store with a task that has a log, and a clock that has another process delete it at this
/// reading.
async fn deleted_at(reading: usize) -> (TempDir, FileDatabase, TaskId, Arc<Ambush>) {
    let (home, _) = store(0).await;
    let clock = Arc::new(Ambush::default());
    let db = FileOptions::directory(home.path()).with_clock(clock.clone()).connect().await.unwrap();
    let workflow = only_workflow(&db).await;
    let run = db.create_run(NewRun::new(workflow)).await.unwrap().into_run().id;
    db.start_run(StartRun::pinned(run)).await.unwrap();
    let task = db.list_tasks(ListTasks::of(run, PageRequest::default())).await.unwrap().items[0].id;
    db.append_log(task, LogChunk::new(b"0123456789").unwrap()).await.unwrap();
    db.cancel_run(run).await.unwrap();
    let other = open(home.path()).await.unwrap();
    let delete = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(other.delete_workflow(workflow)).unwrap();
    };
    *clock.then.lock().unwrap() = Some(Box::new(delete));
    clock.readings.store(0, Ordering::SeqCst);
    clock.at.store(reading, Ordering::SeqCst);
    (home, db, task, clock)
}

/// What is written at an append does not grow with the log (L2).
#[tokio::test]
async fn an_append_writes_its_chunk_and_a_line() {
    let (home, db, task, _) = deleted_at(usize::MAX).await;
    let size = |path: &Path| {
        fs::read_dir(path).unwrap().map(|it| it.unwrap().metadata().unwrap().len()).sum::<u64>()
    };
    let journal = || fs::metadata(home.path().join("journal.jsonl")).unwrap().len();
    for _ in 0..100 {
        let before = journal();
        db.append_log(task, LogChunk::new(&[b'x'; 10_000]).unwrap()).await.unwrap();
        assert!(journal() - before < 300, "a line of {} bytes", journal() - before);
    }
    assert_eq!(size(&home.path().join("logs")), 10 + 100 * 10_000);
}

#[tokio::test]
async fn the_log_of_a_task_that_was_just_deleted_is_not_found() {
    let (_home, db, task, _) = deleted_at(1).await;
    let range = ork_state_api::LogRange::new(ork_state_api::LogPosition::Offset(0), 100).unwrap();
    let error = db.read_log(task, range).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::NotFound { .. }), "{error}");
}

#[tokio::test]
async fn verify_passes_over_the_log_of_a_task_that_was_just_deleted() {
    let (_home, db, _, clock) = deleted_at(usize::MAX).await;
    db.verify().await.unwrap();
    // The logs are looked at last, and once more if something is wrong.
    let readings = clock.readings.load(Ordering::SeqCst);
    for reading in [readings - 1, readings] {
        let (_home, db, _, clock) = deleted_at(reading).await;
        assert_eq!(db.verify().await.unwrap(), [], "deleted at the reading {reading} of {readings}");
        assert!(clock.then.lock().unwrap().is_none(), "it was deleted");
    }
}
