-- Adds the constraints on every row, and drops what is not needed any more. A database of Ork meets
-- the constraints once the takeover code has adjusted its rows.

-- A table with pending checks of foreign keys cannot be altered.
SET CONSTRAINTS ALL IMMEDIATE;

ALTER TABLE workflows ALTER COLUMN current_snapshot_id SET NOT NULL;

ALTER TABLE runs ALTER COLUMN snapshot_id SET NOT NULL;

ALTER TABLE tasks
    DROP COLUMN logs,
    ADD UNIQUE (run_id, task_name),
    DROP CONSTRAINT IF EXISTS tasks_status_check,
    ADD CONSTRAINT tasks_status_check
        CHECK (status IN ('pending', 'dispatched', 'running', 'success', 'failed', 'cancelled'));

ALTER TABLE deferred_jobs ALTER COLUMN run_id SET NOT NULL;

DROP TABLE workflow_tasks;
