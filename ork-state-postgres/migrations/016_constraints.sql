-- What every row fulfils, and what is not needed any more. A database of Ork fulfils it once the
-- code that takes it over has brought its rows to the rules.

-- A table with foreign keys still to be checked cannot be altered.
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
