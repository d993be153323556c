-- Tasks that were deleted while chunks of their logs are still there: those are freed in steps, after the deletion, because to free a
-- gigabyte takes the write lock for many seconds and as much of the WAL. Nothing else refers to them.
CREATE TABLE deleted_logs (
    task_id BLOB NOT NULL PRIMARY KEY
) STRICT, WITHOUT ROWID;
