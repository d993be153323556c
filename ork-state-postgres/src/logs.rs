//! Logs: the output of tasks, in chunks.

use async_trait::async_trait;
use ork_state_api::backend::log_cap_note;
use ork_state_api::{
    Entity, Error, LogAppended, LogChunk, LogPosition, LogRange, LogSlice, LogStore, Result, TaskId,
};
use sqlx::Row;

use crate::core::Core;
use crate::database::PostgresDatabase;
use crate::error::Access;
use crate::rows::Reader;
use crate::statement::Statement;

/// Frees the logs of deleted tasks, step by step, if any are left.
///
/// It stops where a step fails. The deletion itself is done, and the next one frees what is left.
pub(crate) async fn free(db: &Core, mut left: bool) {
    const FREE: Statement = Statement::new("SELECT {schema}.ork_free_logs() AS logs_left");
    while left {
        let row = db.row(Access::Write, || db.query(FREE)).await;
        left = row.ok().flatten().is_some_and(|row| row.try_get("logs_left").unwrap_or(false));
    }
}

#[async_trait]
impl LogStore for PostgresDatabase {
    async fn append_log(&self, task: TaskId, chunk: LogChunk<'_>) -> Result<LogAppended> {
        const APPEND: Statement =
            Statement::new("SELECT new_length, dropped FROM {schema}.ork_append_log($1, $2, $3, $4)");
        let chunk = chunk.bytes().to_vec();
        self.call(move |db| async move {
            let cap = db.max_log_bytes;
            let note = cap.map(log_cap_note).unwrap_or_default();
            let append = || {
                db.query(APPEND).bind(task.as_uuid()).bind(&chunk).bind(cap.map(signed)).bind(note.as_bytes())
            };
            let row = db.row(Access::Write, append).await?;
            let row = row.ok_or_else(|| Error::not_found(Entity::Task, task))?;
            let row = Reader::new(&row, "task_logs", task.as_uuid());
            Ok(LogAppended::new(unsigned(row, "new_length")?, unsigned(row, "dropped")?))
        })
        .await
    }

    async fn read_log(&self, task: TaskId, range: LogRange) -> Result<LogSlice> {
        // $2: an offset, or null. $3: bytes before the end, or null. $4: the most bytes to read.
        // The chunk with the first byte is the last one that begins at or before it. Chunks before
        // it and after the range are not read.
        const READ: Statement = Statement::new(
            "SELECT b.length, b.first, c.data
             FROM {schema}.tasks t
             LEFT JOIN {schema}.task_logs l ON l.task_id = t.id
             CROSS JOIN LATERAL (
                 SELECT
                     coalesce(l.length, 0) AS length,
                     CASE WHEN $3 IS NULL
                         THEN least($2, coalesce(l.length, 0))
                         ELSE greatest(coalesce(l.length, 0) - $3, 0)
                     END AS first
                 OFFSET 0
             ) b
             CROSS JOIN LATERAL (
                 SELECT string_agg(
                     substring(
                         k.data
                         FROM (greatest(b.first - k.start_offset, 0) + 1)::int
                         FOR (b.first + $4 - greatest(b.first, k.start_offset))::int
                     ),
                     ''::bytea ORDER BY k.start_offset
                 ) AS data
                 FROM {schema}.task_log_chunks k
                 WHERE k.task_id = t.id
                     AND k.start_offset < b.first + $4
                     AND k.start_offset >= (
                         SELECT max(f.start_offset)
                         FROM {schema}.task_log_chunks f
                         WHERE f.task_id = t.id AND f.start_offset <= b.first
                     )
             ) c
             WHERE t.id = $1",
        );
        self.call(move |db| async move {
            let (offset, before_end) = match range.from {
                LogPosition::Offset(offset) => (Some(signed(offset)), None),
                LogPosition::BeforeEnd(bytes) => (None, Some(signed(bytes))),
            };
            let read = || {
                db.query(READ).bind(task.as_uuid()).bind(offset).bind(before_end).bind(i64::from(range.max()))
            };
            let row = db.row(Access::Read, read).await?;
            let row = row.ok_or_else(|| Error::not_found(Entity::Task, task))?;
            let row = Reader::new(&row, "task_logs", task.as_uuid());
            let bytes: Vec<u8> = row.get::<Option<Vec<u8>>>("data")?.unwrap_or_default();
            let slice = LogSlice::new(unsigned(row, "first")?, bytes, unsigned(row, "length")?);
            let expected = (slice.length - slice.offset).min(u64::from(range.max()));
            if slice.next_offset() != slice.offset + expected {
                let reason = format!("{expected} bytes from {} on are not all there", slice.offset);
                return Err(Error::corrupt("task_log_chunks", task, "data", reason));
            }
            Ok(slice)
        })
        .await
    }
}

/// An offset beyond the largest possible log means its end.
fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

fn unsigned(row: Reader<'_>, column: &str) -> Result<u64> {
    u64::try_from(row.get::<i64>(column)?).map_err(|error| row.corrupt(column, error))
}
