use ork_state_api::ErrorKind::{NotFound, Unsupported};
use ork_state_api::backend::log_cap_note;
use ork_state_api::{
    Capability, Entity, ListTasks, LogAppended, LogChunk, LogPosition, LogRange, LogSlice, TaskId,
};

use super::{assert_fails, together};
use crate::Ctx;
use crate::case::case;

async fn append(t: &Ctx, task: TaskId, bytes: &[u8]) -> ork_state_api::Result<LogAppended> {
    t.db().append_log(task, LogChunk::new(bytes)?).await
}

async fn read(t: &Ctx, task: TaskId, from: LogPosition, max: usize) -> ork_state_api::Result<LogSlice> {
    t.db().read_log(task, LogRange::new(from, max)?).await
}

async fn whole(t: &Ctx, task: TaskId) -> ork_state_api::Result<Vec<u8>> {
    let mut all = Vec::new();
    loop {
        let slice = read(t, task, LogPosition::Offset(all.len() as u64), 1 << 20).await?;
        all.extend(&slice.bytes);
        if slice.is_at_end() {
            return Ok(all);
        }
    }
}

async fn a_task(t: &Ctx) -> ork_state_api::Result<TaskId> {
    let run = t.start("a").await?;
    Ok(t.task(run.id, "a").await?.id)
}

case! { L2 needs [Logs], l2_a_log_begins_empty(t) {
    let task = a_task(&t).await?;
    assert_eq!(read(&t, task, LogPosition::Offset(0), 100).await?, LogSlice::new(0, vec![], 0));
    assert_eq!(read(&t, task, LogPosition::BeforeEnd(100), 100).await?.length, 0);
    Ok(())
}}

case! { L2 needs [Logs], l2_chunks_come_back_as_one_log(t) {
    let task = a_task(&t).await?;
    assert_eq!(append(&t, task, b"hello ").await?, LogAppended::new(6, 0));
    assert_eq!(append(&t, task, b"world\n").await?, LogAppended::new(12, 0));
    assert_eq!(whole(&t, task).await?, b"hello world\n");
    Ok(())
}}

case! { [L2, G5] needs [Logs], l2_any_bytes_come_back(t, bytes: &[u8]) {
    let task = a_task(&t).await?;
    append(&t, task, b"before|").await?;
    append(&t, task, bytes).await?;
    append(&t, task, b"|after").await?;
    assert_eq!(whole(&t, task).await?, [b"before|", bytes, b"|after"].concat());
    Ok(())
}
    nul => b"a\0b",
    only_nul => b"\0",
    broken_utf8 => b"\xff\xfe\xc3",
    crlf => b"one\r\ntwo\r\n",
    quotes_and_escapes => b"'\"\\ \\x00 \\\\",
    copy_end_marker => b"\\.\n",
    emoji => "\u{1F600}".as_bytes(),
}

case! { L2 needs [Logs], l2_ranges_cut_anywhere(t) {
    let task = a_task(&t).await?;
    for chunk in [&b"0123"[..], b"4", b"56789", b"abcdefghij"] {
        append(&t, task, chunk).await?;
    }
    let all = b"0123456789abcdefghij";
    for from in 0..=20_usize {
        for max in [1, 2, 5, 100] {
            let slice = read(&t, task, LogPosition::Offset(from as u64), max).await?;
            assert_eq!((slice.offset, slice.length), (from as u64, 20));
            assert_eq!(slice.bytes, &all[from..(from + max).min(20)], "{max} bytes from {from}");
        }
    }
    Ok(())
}}

case! { L2 needs [Logs], l2_the_end_of_a_log_is_read_from_behind(t) {
    let task = a_task(&t).await?;
    for chunk in [b"aaaa", b"bbbb", b"cccc"] {
        append(&t, task, chunk).await?;
    }
    assert_eq!(read(&t, task, LogPosition::BeforeEnd(6), 100).await?, LogSlice::new(6, b"bbcccc".to_vec(), 12));
    assert_eq!(read(&t, task, LogPosition::BeforeEnd(6), 3).await?.bytes, b"bbc");
    assert_eq!(read(&t, task, LogPosition::BeforeEnd(u64::MAX), 5).await?.bytes, b"aaaab");
    assert_eq!(read(&t, task, LogPosition::BeforeEnd(0), 5).await?.bytes, b"");
    Ok(())
}}

case! { L2 needs [Logs], l2_reading_beyond_the_end_is_empty(t) {
    let task = a_task(&t).await?;
    append(&t, task, b"abc").await?;
    for offset in [3, 4, 1 << 40, u64::MAX] {
        assert_eq!(read(&t, task, LogPosition::Offset(offset), 10).await?, LogSlice::new(3, vec![], 3));
    }
    Ok(())
}}

case! { L2 needs [Logs], l2_a_log_is_tailed_from_where_it_was_left(t) {
    let task = a_task(&t).await?;
    let (mut seen, mut next) = (Vec::new(), 0);
    for round in 0..10 {
        append(&t, task, format!("line {round}\n").as_bytes()).await?;
        let slice = read(&t, task, LogPosition::Offset(next), 4096).await?;
        next = slice.next_offset();
        seen.extend(slice.bytes);
    }
    assert_eq!(seen, whole(&t, task).await?);
    Ok(())
}}

case! { L2 needs [Logs], l2_concurrent_appends_stay_whole(t) {
    let task = a_task(&t).await?;
    let writers = (0..8_u8).map(|writer| {
        let t = t.clone();
        async move {
            for _ in 0..25 {
                append(&t, task, &[b'a' + writer; 40]).await?;
            }
            Ok::<_, ork_state_api::Error>(())
        }
    });
    for written in together(writers).await? {
        written?;
    }
    let log = whole(&t, task).await?;
    assert_eq!(log.len(), 8 * 25 * 40);
    for chunk in log.chunks(40) {
        assert!(chunk.iter().all(|byte| *byte == chunk[0]), "a chunk is torn: {chunk:?}");
    }
    for writer in 0..8_u8 {
        assert_eq!(log.iter().filter(|byte| **byte == b'a' + writer).count(), 25 * 40, "chunks are lost");
    }
    Ok(())
}}

case! { L2 needs [Logs], l2_the_largest_chunk_fits(t) {
    let task = a_task(&t).await?;
    let chunk: Vec<u8> = (0..ork_state_api::limits::MAX_LOG_CHUNK_BYTES).map(|index| (index * 31 % 251) as u8).collect();
    append(&t, task, &chunk).await?;
    append(&t, task, b"end").await?;
    assert_eq!(read(&t, task, LogPosition::BeforeEnd(5), 5).await?.bytes, [&chunk[chunk.len() - 2..], b"end"].concat());
    let middle = read(&t, task, LogPosition::Offset(9_999_999), 7).await?;
    assert_eq!(middle.bytes, &chunk[9_999_999..10_000_006]);
    Ok(())
}}

case! { L2 needs [Logs], l2_a_log_goes_on_over_attempts_and_after_the_end(t) {
    let run = t.start("a*1").await?;
    let a = t.claim_one().await?;
    append(&t, a.task.id, b"first ").await?;
    t.fail(&a, std::time::Duration::ZERO).await?;
    let a = t.claim_one().await?;
    append(&t, a.task.id, b"second ").await?;
    t.succeed(&a).await?;
    append(&t, a.task.id, b"late").await?;
    assert_eq!(whole(&t, t.task(run.id, "a").await?.id).await?, b"first second late");
    Ok(())
}}

case! { L2 needs [Logs], l2_tasks_have_logs_of_their_own(t) {
    let (run, other) = (t.start("a b").await?, t.start("a").await?);
    let (a, b) = (t.task(run.id, "a").await?.id, t.task(run.id, "b").await?.id);
    let namesake = t.task(other.id, "a").await?.id;
    append(&t, a, b"of a").await?;
    append(&t, b, b"of b").await?;
    assert_eq!((whole(&t, a).await?, whole(&t, b).await?), (b"of a".to_vec(), b"of b".to_vec()));
    assert_eq!(whole(&t, namesake).await?, b"", "a task of this name in another run has another log");
    Ok(())
}}

case! { [L2, G7] needs [Logs], l2_an_unknown_task_is_not_found(t) {
    let id = TaskId::generate();
    assert_fails!(append(&t, id, b"x").await, NotFound { entity: Entity::Task, .. });
    assert_fails!(read(&t, id, LogPosition::Offset(0), 1).await, NotFound { entity: Entity::Task, .. });
    Ok(())
}}

case! { [L2, W3] needs [Logs], l2_a_deleted_workflow_takes_its_logs_along(t) {
    let run = t.start("a").await?;
    let task = t.task(run.id, "a").await?.id;
    append(&t, task, b"x").await?;
    t.work_off().await?;
    t.db().delete_workflow(run.workflow).await?;
    assert_fails!(read(&t, task, LogPosition::Offset(0), 1).await, NotFound { entity: Entity::Task, .. });
    assert_fails!(append(&t, task, b"x").await, NotFound { entity: Entity::Task, .. });
    Ok(())
}}

case! { L2 needs [Logs], l2_a_cap_says_so_in_the_log(t) {
    let store = t.fixture().migrated().await?;
    let separator = if store.url().contains('?') { '&' } else { '?' };
    let db = t.connect(&format!("{}{separator}max_log_bytes=10", store.url())).await?;
    db.migrate().await?;
    let workflow = db.create_workflow(ork_state_api::NewWorkflow::new("w".parse()?, crate::dag("a")?)).await?;
    let run = db.create_run(ork_state_api::NewRun::new(workflow.id)).await?.into_run();
    db.start_run(ork_state_api::StartRun::pinned(run.id)).await?;
    let task = db.list_tasks(ListTasks::of(run.id, ork_state_api::PageRequest::default())).await?.items[0].id;
    let note = log_cap_note(10);
    let length = 10 + note.len() as u64;
    assert_eq!(db.append_log(task, LogChunk::new(b"12345678")?).await?, LogAppended::new(8, 0));
    assert_eq!(db.append_log(task, LogChunk::new(b"90abc")?).await?, LogAppended::new(length, 3));
    assert_eq!(db.append_log(task, LogChunk::new(b"more")?).await?, LogAppended::new(length, 4));
    let all = db.read_log(task, LogRange::new(LogPosition::Offset(0), 1000)?).await?.bytes;
    assert_eq!(all, [b"1234567890", note.as_bytes()].concat());
    Ok(())
}}

case! { L2 needs [Durable, Logs], l2_a_log_that_is_longer_than_a_lowered_cap_is_left_as_it_is(t) {
    let task = a_task(&t).await?;
    append(&t, task, b"longer than ten").await?;
    let separator = if t.url().contains('?') { '&' } else { '?' };
    let capped = t.connect(&format!("{}{separator}max_log_bytes=10", t.url())).await?;
    let unchanged = |dropped| LogAppended::new(15, dropped);
    assert_eq!(capped.append_log(task, LogChunk::new(b"more")?).await?, unchanged(4));
    assert_eq!(capped.append_log(task, LogChunk::new(b"!")?).await?, unchanged(1));
    assert_eq!(whole(&t, task).await?, b"longer than ten");
    Ok(())
}}

case! { [L2, W3] needs [Logs], l2_an_append_races_with_the_deletion(t) {
    for _ in 0..10 {
        let run = t.start("a").await?;
        let task = t.task(run.id, "a").await?.id;
        t.work_off().await?;
        let (first, second) = (t.clone(), t.clone());
        let appending = tokio::spawn(async move { append(&first, task, b"late").await });
        let deleting = tokio::spawn(async move { second.db().delete_workflow(run.workflow).await });
        deleting.await??;
        if let Err(error) = appending.await? {
            assert!(matches!(error.kind(), NotFound { entity: Entity::Task, .. }), "{error:?}");
        }
        assert_fails!(read(&t, task, LogPosition::Offset(0), 1).await, NotFound { entity: Entity::Task, .. });
    }
    // The verification checks that no part of a log is left behind.
    Ok(())
}}

case! { [L2, G7] without Logs, l2_an_opt_out_is_refused_and_changes_nothing(t) {
    let run = t.start("a").await?;
    let before = t.task(run.id, "a").await?;
    assert_fails!(append(&t, before.id, b"x").await, Unsupported { capability: Capability::Logs, .. });
    assert_fails!(read(&t, before.id, LogPosition::Offset(0), 1).await, Unsupported { capability: Capability::Logs, .. });
    assert_eq!(t.task(run.id, "a").await?, before);
    Ok(())
}}
