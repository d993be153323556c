use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use ork_state_api::copy::compare;
use ork_state_api::*;
use tempfile::TempDir;

use crate::journal::stage;
use crate::{FileDatabase, FileOptions};

/// A disk that keeps only what was synced.
pub(super) mod forgetful {
    use std::collections::{BTreeMap, BTreeSet};
    use std::fs::{self, File};
    use std::io;
    use std::os::unix::fs::MetadataExt;
    use std::path::{Path, PathBuf};
    use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

    /// What is on disk below a directory.
    #[derive(Default)]
    pub(super) struct Disk {
        /// By inode: the contents of the file when it was last synced.
        contents: BTreeMap<u64, Vec<u8>>,
        /// By path below the directory: the inode when the parent directory was last synced; `None`
        /// for a directory.
        names: BTreeMap<PathBuf, Option<u64>>,
        /// Called before each sync. Its error makes the sync fail.
        pub(super) before: Option<Box<dyn FnMut() -> io::Result<()> + Send>>,
    }

    static WATCHED: Mutex<Vec<(PathBuf, Arc<Mutex<Disk>>)>> = Mutex::new(Vec::new());

    fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records all syncs below a directory from now on.
    pub(super) fn watch(root: &Path) -> Arc<Mutex<Disk>> {
        let disk: Arc<Mutex<Disk>> = Arc::default();
        locked(&WATCHED).push((root.canonicalize().unwrap(), disk.clone()));
        disk
    }

    /// The files and directories below a directory, with their inodes.
    fn everything(root: &Path) -> io::Result<BTreeMap<PathBuf, Option<u64>>> {
        let (mut found, mut open) = (BTreeMap::new(), vec![root.to_owned()]);
        while let Some(directory) = open.pop() {
            for entry in fs::read_dir(directory)? {
                let (path, metadata) = {
                    let entry = entry?;
                    (entry.path(), entry.metadata()?)
                };
                let inode = (!metadata.is_dir()).then(|| metadata.ino());
                found.insert(path.strip_prefix(root).unwrap().to_owned(), inode);
                if metadata.is_dir() {
                    open.push(path);
                }
            }
        }
        Ok(found)
    }

    /// The watched directory that has a file with this inode, and the path within it.
    fn find(inode: u64) -> Option<(PathBuf, PathBuf, Arc<Mutex<Disk>>)> {
        let watched = locked(&WATCHED).clone();
        watched.into_iter().find_map(|(root, disk)| {
            let there = everything(&root).ok()?;
            let path = there.into_iter().find(|(_, it)| *it == Some(inode))?.0;
            Some((root, path, disk))
        })
    }

    pub(in super::super) fn before(file: &File) -> io::Result<()> {
        let metadata = file.metadata()?;
        let watched = locked(&WATCHED).clone();
        for (root, disk) in watched {
            let is_it = |path: &Path| fs::metadata(path).is_ok_and(|it| it.ino() == metadata.ino());
            let is_here =
                is_it(&root) || everything(&root).is_ok_and(|all| all.keys().any(|it| is_it(&root.join(it))));
            if is_here {
                let before = locked(&disk).before.take();
                if let Some(mut before) = before {
                    let answer = before();
                    locked(&disk).before.get_or_insert(before);
                    answer?;
                }
            }
        }
        Ok(())
    }

    pub(in super::super) fn keep_content(file: &File) -> io::Result<()> {
        let inode = file.metadata()?.ino();
        if let Some((root, path, disk)) = find(inode) {
            let content = fs::read(root.join(path))?;
            locked(&disk).contents.insert(inode, content);
        }
        Ok(())
    }

    pub(in super::super) fn keep_names(directory: &Path) -> io::Result<()> {
        let directory = directory.canonicalize()?;
        let watched = locked(&WATCHED).clone();
        for (root, disk) in watched {
            let Ok(below) = directory.strip_prefix(&root) else { continue };
            let is_in = |path: &Path| path.parent() == Some(below);
            let mut disk = locked(&disk);
            disk.names.retain(|path, _| !is_in(path));
            disk.names.extend(everything(&root)?.into_iter().filter(|(path, _)| is_in(path)));
        }
        Ok(())
    }

    /// Builds, in a new directory, what a loss of power might leave. Any part of what was not
    /// synced may be there too: `chance` decides about each part.
    pub(super) fn image(root: &Path, disk: &Mutex<Disk>, to: &Path, mut chance: impl FnMut() -> u64) {
        let root = root.canonicalize().unwrap();
        let disk = locked(disk);
        let now = everything(&root).unwrap();
        let mut names = disk.names.clone();
        for path in now.keys().chain(disk.names.keys()).collect::<BTreeSet<_>>() {
            // A name that was not synced may be there. A name that was removed or given to another
            // file may still be there.
            if chance().is_multiple_of(2) {
                match now.get(path) {
                    Some(inode) => drop(names.insert(path.clone(), *inode)),
                    None => drop(names.remove(path)),
                }
            }
        }
        let path_of =
            |inode: u64| now.iter().find(|(_, it)| **it == Some(inode)).map(|(path, _)| root.join(path));
        // Directories come before their contents.
        for (path, inode) in &names {
            let to = to.join(path);
            let Some(inode) = inode else {
                if to.parent().is_some_and(Path::exists) {
                    fs::create_dir(&to).unwrap();
                }
                continue;
            };
            let synced = disk.contents.get(inode).cloned().unwrap_or_default();
            let written = path_of(*inode).map_or_else(|| synced.clone(), |path| fs::read(path).unwrap());
            let content = match written.strip_prefix(synced.as_slice()) {
                // Unsynced appended bytes are there up to some byte.
                Some(more) if !more.is_empty() => {
                    let length = usize::try_from(chance() % (more.len() as u64 + 1)).unwrap();
                    [synced.as_slice(), &more[..length]].concat()
                }
                _ => synced,
            };
            if to.parent().is_some_and(Path::exists) {
                fs::write(&to, content).unwrap();
            }
        }
    }
}

/// The generator splitmix64 (Steele, Lea, Flood 2014). It gives a few random bits that are the same
/// in every run.
fn chance(mut state: u64) -> impl FnMut() -> u64 {
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

struct Rig {
    root: TempDir,
    disk: Arc<Mutex<forgetful::Disk>>,
    db: FileDatabase,
}

fn store(root: &Path) -> PathBuf {
    root.join("store")
}

async fn rig() -> Rig {
    let root = tempfile::tempdir().unwrap();
    let disk = forgetful::watch(root.path());
    let db = FileOptions::directory(store(root.path())).connect().await.unwrap();
    db.migrate().await.unwrap();
    Rig { root, disk, db }
}

/// What a loss of power leaves, as another process finds it.
async fn after_power_loss(root: &Path, disk: &Mutex<forgetful::Disk>, seed: u64) -> (TempDir, FileDatabase) {
    let image = tempfile::tempdir().unwrap();
    forgetful::image(root, disk, image.path(), chance(seed));
    let db = FileOptions::directory(store(image.path())).connect().await.unwrap();
    (image, db)
}

/// Makes calls of every kind that writes, one after the other. `done` is called after each.
async fn live(db: &FileDatabase, mut done: impl AsyncFnMut(&str)) {
    // A journal in tests is folded after few bytes. Each output fills a good part of that.
    let big = Json::from_value(&"x".repeat(20_000)).unwrap();
    let dag =
        |text: &str| {
            Dag::new(text.split(' ').map(|name| {
                TaskSpec::new(name.parse().unwrap(), "process".parse().unwrap()).with_max_retries(1)
            }))
            .unwrap()
        };
    let claim = || {
        ClaimTasks::new("me".parse().unwrap(), LeaseTime::new(std::time::Duration::from_secs(3600)).unwrap())
    };
    for round in 0..5 {
        let name = format!("w{round}").parse().unwrap();
        let workflow = db.create_workflow(NewWorkflow::new(name, dag("a b c"))).await.unwrap().id;
        done("create_workflow").await;
        db.update_workflow(UpdateWorkflow::new(workflow).with_dag(dag("d e"))).await.unwrap();
        done("update_workflow").await;
        let run = db.create_run(NewRun::new(workflow)).await.unwrap().into_run().id;
        done("create_run").await;
        db.start_run(StartRun::pinned(run)).await.unwrap();
        done("start_run").await;
        let claimed = db.claim_tasks(claim()).await.unwrap();
        done("claim_tasks").await;
        for task in &claimed {
            db.append_log(task.task.id, LogChunk::new(b"a line\n").unwrap()).await.unwrap();
            done("append_log").await;
            let update = TaskUpdate::succeeded(task.claim, Some(big.clone()));
            db.update_tasks(TaskUpdates::one(update)).await.unwrap();
            done("update_tasks").await;
        }
        if round == 1 {
            db.delete_workflow(workflow).await.unwrap();
            done("delete_workflow").await;
        }
    }
    db.prune(Prune::older_than(std::time::Duration::ZERO).with_limit(Limit::new(100).unwrap()))
        .await
        .unwrap();
    done("prune").await;
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_the_power_was_gone() {
    let Rig { root, disk, db } = rig().await;
    let (mut call, other, mut snapshots) = (0, db.clone(), BTreeSet::new());
    live(&db, async |name| {
        call += 1;
        // Its first line names the commit that it was made after.
        let snapshot = std::fs::read_to_string(store(root.path()).join("snapshot.jsonl")).unwrap_or_default();
        snapshots.extend(snapshot.lines().next().map(str::to_owned));
        // No call is under way. Whatever part of the unsynced data is there, the store has not
        // changed.
        for seed in 0..4 {
            let (_image, found) = after_power_loss(root.path(), &disk, call * 10 + seed).await;
            assert_eq!(
                compare(&other, &found).await.unwrap(),
                None,
                "after {name}, call {call}, seed {seed}"
            );
            assert_eq!(found.verify().await.unwrap(), vec![], "after {name}, call {call}, seed {seed}");
        }
    })
    .await;
    assert!(snapshots.len() > 1, "a snapshot has followed another: {snapshots:?}");
}

/// Makes an image before every sync: what may be there if the power fails just then.
fn images_before_syncs(rig: &Rig, seed: u64) -> Arc<Mutex<Vec<TempDir>>> {
    let images: Arc<Mutex<Vec<TempDir>>> = Arc::default();
    let (made, root, disk) = (images.clone(), rig.root.path().to_owned(), rig.disk.clone());
    let mut number = seed;
    rig.disk.lock().unwrap().before = Some(Box::new(move || {
        let image = tempfile::tempdir().unwrap();
        number += 1;
        forgetful::image(&root, &disk, image.path(), chance(number));
        made.lock().unwrap().push(image);
        Ok(())
    }));
    images
}

#[tokio::test]
async fn what_was_under_way_is_there_whole_or_not_at_all_after_the_power_was_gone() {
    for seed in [1_000, 2_000, 3_000] {
        let rig = rig().await;
        let images = images_before_syncs(&rig, seed);
        let (_before, mut before) = after_power_loss(rig.root.path(), &rig.disk, 0).await;
        let mut kept = Vec::new();
        let mut looked = 0;
        live(&rig.db, async |name| {
            let made = std::mem::take(&mut *images.lock().unwrap());
            for image in made {
                let found = FileOptions::directory(store(image.path())).connect().await.unwrap();
                let is_there = compare(&rig.db, &found).await.unwrap();
                let is_not = compare(&before, &found).await.unwrap();
                assert!(is_there.is_none() || is_not.is_none(), "in {name}: {is_there:?}, {is_not:?}");
                assert_eq!(found.verify().await.unwrap(), vec![], "in {name}");
                looked += 1;
            }
            let (image, found) = after_power_loss(rig.root.path(), &rig.disk, 0).await;
            before = found;
            kept.push(image);
        })
        .await;
        assert!(looked > 30, "{looked} looks");
    }
}

#[tokio::test]
async fn a_sync_that_fails_is_an_error_and_what_was_there_stays() {
    let rig = rig().await;
    let dag = Dag::new([TaskSpec::new("a".parse().unwrap(), "process".parse().unwrap())]).unwrap();
    let new = |name: &str| NewWorkflow::new(name.parse().unwrap(), dag.clone());
    rig.db.create_workflow(new("before")).await.unwrap();
    rig.disk.lock().unwrap().before = Some(Box::new(|| Err(std::io::ErrorKind::StorageFull.into())));
    let error = rig.db.create_workflow(new("lost")).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Unavailable { .. }), "{error:?}");
    rig.disk.lock().unwrap().before = None;
    // It may be rolled back or not, but from now on everybody sees the same.
    rig.db.create_workflow(new("after")).await.unwrap();
    let names: Vec<String> = rig
        .db
        .list_workflows(ListWorkflows::default())
        .await
        .unwrap()
        .items
        .into_iter()
        .map(|it| it.name.to_string())
        .collect();
    assert!(names.contains(&"before".to_owned()) && names.contains(&"after".to_owned()), "{names:?}");
    let another = FileOptions::directory(store(rig.root.path())).connect().await.unwrap();
    assert_eq!(compare(&rig.db, &another).await.unwrap(), None);
    for seed in 0..8 {
        let (_image, found) = after_power_loss(rig.root.path(), &rig.disk, seed).await;
        assert_eq!(compare(&rig.db, &found).await.unwrap(), None, "seed {seed}");
    }
}

/// The cost of a call on disk: syncs, and bytes of the journal.
#[tokio::test]
async fn a_commit_is_one_sync_and_as_many_bytes_however_much_there_is() {
    let rig = rig().await;
    let syncs = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = syncs.clone();
    rig.disk.lock().unwrap().before = Some(Box::new(move || {
        counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    }));
    let spec = |number| TaskSpec::new(format!("t{number:02}").parse().unwrap(), "process".parse().unwrap());
    let new = NewWorkflow::new("w".parse().unwrap(), Dag::new((0..40).map(spec)).unwrap());
    let workflow = rig.db.create_workflow(new).await.unwrap().id;
    let start = async || {
        let run = rig.db.create_run(NewRun::new(workflow)).await.unwrap().into_run().id;
        rig.db.start_run(StartRun::pinned(run)).await.unwrap();
    };
    let journal = store(rig.root.path()).join("journal.jsonl");
    let costs = async || {
        let begin = std::fs::metadata(&journal).unwrap().len();
        syncs.store(0, std::sync::atomic::Ordering::Relaxed);
        let lease = LeaseTime::new(std::time::Duration::from_secs(3600)).unwrap();
        let claim = ClaimTasks::new("me".parse().unwrap(), lease).with_limit(Limit::new(10).unwrap());
        let claimed = rig.db.claim_tasks(claim).await.unwrap();
        let updates = claimed.iter().map(|task| TaskUpdate::succeeded(task.claim, None)).collect();
        rig.db.update_tasks(TaskUpdates::new(updates).unwrap()).await.unwrap();
        let bytes = std::fs::metadata(&journal).unwrap().len() - begin;
        (syncs.load(std::sync::atomic::Ordering::Relaxed), bytes)
    };
    start().await;
    let (syncs_of_few, few) = costs().await;
    assert_eq!(syncs_of_few, 2, "a claim and an update");
    // Few enough that the journal is not folded meanwhile.
    for _ in 0..5 {
        start().await;
    }
    let (syncs_of_many, many) = costs().await;
    assert_eq!(syncs_of_many, 2);
    assert!(few.abs_diff(many) < 50, "{few} and {many} bytes");
    assert!(few < 20 * 600, "{} bytes a task and step", few / 20);
}

/// A large file is synced bit by bit while it is written, however large the pieces are. What is
/// left for the last sync delays other syncs.
#[test]
fn what_is_staged_is_synced_as_it_is_written() {
    let root = tempfile::tempdir().unwrap();
    let disk = forgetful::watch(root.path());
    let syncs = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counted = syncs.clone();
    disk.lock().unwrap().before = Some(Box::new(move || {
        counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    }));
    // No line fills a whole number of buffers.
    let (line, lines) = (vec![b'.'; 40_001], 100);
    stage(root.path(), "large", |file| (0..lines).try_for_each(|_| file.write_all(&line))).unwrap();
    let syncs = syncs.load(std::sync::atomic::Ordering::Relaxed);
    assert!(syncs >= 4_000_000 / (2 * 256 * 1024), "{syncs} syncs");
}
