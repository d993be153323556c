//! Logs: the output of tasks, in chunks.

use async_trait::async_trait;
use ork_state_api::backend::{CappedAppend, log_cap_note};
use ork_state_api::{Entity, Error, LogAppended, LogChunk, LogRange, LogSlice, LogStore, Result, TaskId};
use serde_json::Value;
use sqlx::Row as _;
use sqlx::sqlite::SqliteConnection;

use crate::batch;
use crate::database::SqliteDatabase;
use crate::error::Attempt;
use crate::rows::{Cells, bytes, hex};

#[async_trait]
impl LogStore for SqliteDatabase {
    async fn append_log(&self, task: TaskId, chunk: LogChunk<'_>) -> Result<LogAppended> {
        let (chunk, cap) = (chunk.bytes().to_vec(), self.max_log_bytes());
        self.write(move |connection| Box::pin(append(connection, task, chunk, cap))).await
    }

    async fn read_log(&self, task: TaskId, range: LogRange) -> Result<LogSlice> {
        self.read_one_state(move |connection| Box::pin(read(connection, task, range))).await
    }
}

/// The length of a task's log, 0 before its first chunk. It is stored, so an append reads no chunk
/// (L2).
pub(crate) const LENGTH: &str = "SELECT t.id, coalesce(g.length, 0) AS length
     FROM tasks AS t LEFT JOIN task_logs AS g ON g.task_id = t.id WHERE t.id = ?1";

async fn length(connection: &mut SqliteConnection, task: TaskId) -> Attempt<u64> {
    let row = sqlx::query(LENGTH).bind(bytes(task.as_uuid())).fetch_optional(connection).await?;
    let row = row.ok_or_else(|| Error::not_found(Entity::Task, task))?;
    Ok(Cells::new(&row, "task_logs").number("length")?)
}

/// The most bytes that are freed in one transaction. A single chunk may be longer.
const FREED_AT_ONCE: i64 = 4 << 20;

/// Chunks of deleted logs, with their tasks.
pub(crate) const DELETED: &str = "SELECT d.task_id, c.rowid AS chunk, length(c.data) AS bytes
     FROM deleted_logs AS d LEFT JOIN task_log_chunks AS c ON c.task_id = d.task_id
     LIMIT 4000";

impl SqliteDatabase {
    /// Frees the logs of deleted tasks, step by step, so that others can write in between and the
    /// WAL stays short. It stops where a step fails. The deletion itself is done, and the next one
    /// frees what is left.
    pub(crate) async fn free_deleted_logs(&self) {
        // Mostly there is nothing to free, and so no reason to wait for the write lock.
        let mut left = self.read(|connection| Box::pin(any_deleted(connection))).await;
        while let Ok(true) = left {
            left = self.write(|connection| Box::pin(free_some(connection))).await;
        }
    }
}

/// Whether there is anything to free.
async fn any_deleted(connection: &mut SqliteConnection) -> Attempt<bool> {
    const ANY: &str = "SELECT EXISTS (SELECT 1 FROM deleted_logs)";
    Ok(sqlx::query_scalar(ANY).fetch_one(connection).await?)
}

/// Frees a part of the deleted logs. Returns whether there is more.
async fn free_some(connection: &mut SqliteConnection) -> Attempt<bool> {
    const FREE: &str = "DELETE FROM task_log_chunks WHERE rowid IN (SELECT value FROM json_each(?1))";
    const FORGET: &str = "DELETE FROM deleted_logs WHERE task_id IN (SELECT unhex(value) FROM json_each(?1))
         AND NOT EXISTS (SELECT 1 FROM task_log_chunks AS c WHERE c.task_id = deleted_logs.task_id)";
    let (mut tasks, mut chunks, mut freed) = (Vec::new(), Vec::new(), 0);
    for row in sqlx::query(DELETED).fetch_all(&mut *connection).await? {
        let cells = Cells::new(&row, "deleted_logs").identified_by("task_id");
        let task = Value::from(hex(cells.uuid("task_id")?));
        if tasks.last() != Some(&task) {
            tasks.push(task);
        }
        let Some(chunk) = cells.optional::<i64>("chunk")? else { continue };
        chunks.push(Value::from(chunk));
        freed += cells.required::<i64>("bytes")?;
        if freed >= FREED_AT_ONCE {
            break;
        }
    }
    if !chunks.is_empty() {
        sqlx::query(FREE).bind(batch::json(&chunks)?).execute(&mut *connection).await?;
    }
    sqlx::query(FORGET).bind(batch::json(&tasks)?).execute(&mut *connection).await?;
    any_deleted(connection).await
}

async fn append(
    connection: &mut SqliteConnection,
    task: TaskId,
    mut chunk: Vec<u8>,
    cap: Option<u64>,
) -> Attempt<LogAppended> {
    const GROW: &str = "INSERT INTO task_logs (task_id, length) VALUES (?1, ?2)
         ON CONFLICT (task_id) DO UPDATE SET length = excluded.length";
    const CHUNK: &str = "INSERT INTO task_log_chunks (task_id, start_offset, data) VALUES (?1, ?2, ?3)";
    let start = length(connection, task).await?;
    let CappedAppend { keep, note } = CappedAppend::new(start, chunk.len(), cap);
    let dropped = to_u64(chunk.len() - keep);
    chunk.truncate(keep);
    if note {
        chunk.extend_from_slice(log_cap_note(cap.unwrap_or_default()).as_bytes());
    }
    let length = start + to_u64(chunk.len());
    if !chunk.is_empty() {
        let task = bytes(task.as_uuid());
        sqlx::query(GROW).bind(task.clone()).bind(to_i64(length)).execute(&mut *connection).await?;
        let keep_prepared = batch::is_small(chunk.len());
        sqlx::query(CHUNK)
            .bind(task)
            .bind(to_i64(start))
            .bind(chunk)
            .persistent(keep_prepared)
            .execute(connection)
            .await?;
    }
    Ok(LogAppended::new(length, dropped))
}

async fn read(connection: &mut SqliteConnection, task: TaskId, range: LogRange) -> Attempt<LogSlice> {
    // From the chunk that holds the first byte to the one that holds the last.
    const CHUNKS: &str = "SELECT task_id, start_offset, data FROM task_log_chunks
         WHERE task_id = ?1 AND start_offset < ?3 AND start_offset >= (
             SELECT max(start_offset) FROM task_log_chunks WHERE task_id = ?1 AND start_offset <= ?2)
         ORDER BY start_offset";
    let length = length(connection, task).await?;
    let start = range.start_in(length);
    let end = length.min(start.saturating_add(u64::from(range.max())));
    let mut slice = LogSlice::new(start, Vec::new(), length);
    if start == end {
        return Ok(slice);
    }
    let chunks = sqlx::query(CHUNKS)
        .bind(bytes(task.as_uuid()))
        .bind(to_i64(start))
        .bind(to_i64(end))
        .fetch_all(connection)
        .await?;
    for row in &chunks {
        let cells = Cells::new(row, "task_log_chunks").identified_by("task_id");
        let chunk_start: u64 = cells.number("start_offset")?;
        let data: &[u8] = row.try_get("data")?;
        let next = slice.next_offset();
        // The first chunk may begin before the range. Every other one begins where the last ended.
        let skip = next.checked_sub(chunk_start).and_then(|skip| usize::try_from(skip).ok());
        let Some(data) = skip.and_then(|skip| data.get(skip..)) else {
            return Err(cells.corrupt("start_offset", "leaves a gap in the log").into());
        };
        let room = usize::try_from(end - next).unwrap_or(usize::MAX);
        slice.bytes.extend_from_slice(data.get(..room).unwrap_or(data));
    }
    if slice.next_offset() != end {
        let reason = format!("has no bytes from {} on, the log has {length}", slice.next_offset());
        return Err(Error::corrupt("task_log_chunks", task, "data", reason).into());
    }
    Ok(slice)
}

/// Lengths of things in memory always fit.
fn to_u64(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

/// No log gets this long.
fn to_i64(offset: u64) -> i64 {
    i64::try_from(offset).unwrap_or(i64::MAX)
}
