-- Tasks, and beside them narrow tables for what depends on what, what is ready and what is claimed.
--
-- No column of `tasks` that changes stands in an index, so that every update of a task can stay on its page (HOT). The
-- fillfactor leaves room for that: a batch may claim all tasks of a page at once, and then needs room for all of them again,
-- a little longer.

UPDATE tasks SET status = 'pending' WHERE status = 'paused';

-- A name is there once in a run.
CREATE TEMP TABLE IF NOT EXISTS ork_adjusted (rule text NOT NULL, entity text NOT NULL, problem text NOT NULL) ON COMMIT DROP;
WITH renamed AS (
    UPDATE tasks t
    SET task_name = t.task_name || ' #' || t.task_index
    FROM (
        SELECT k.id, row_number() OVER (PARTITION BY k.run_id, k.task_name ORDER BY k.task_index) AS place FROM tasks k
    ) p
    WHERE p.id = t.id AND p.place > 1
    RETURNING t.id, t.task_name
)
INSERT INTO ork_adjusted
SELECT 'R2', 'task ' || r.id, format('is called %L now: another task of its run has its name', r.task_name) FROM renamed r;

DROP INDEX idx_tasks_run_id;
DROP INDEX idx_tasks_status;
DROP INDEX idx_tasks_status_run_id;
DROP INDEX idx_tasks_run_status;
DROP INDEX idx_tasks_execution_name;
DROP INDEX idx_tasks_run_task_name;
DROP INDEX idx_tasks_executor_type;

ALTER TABLE tasks
    ALTER COLUMN task_name TYPE text COLLATE "C",
    ALTER COLUMN params TYPE json USING params::text::json,
    ALTER COLUMN output TYPE json USING output::text::json,
    ADD COLUMN unmet_dependencies int NOT NULL DEFAULT 0,
    ADD COLUMN open_jobs int NOT NULL DEFAULT 0,
    ADD COLUMN token bigint NOT NULL DEFAULT 0,
    ADD COLUMN ready_at timestamptz,
    ADD UNIQUE (run_id, task_name),
    DROP CONSTRAINT tasks_status_check,
    ADD CONSTRAINT tasks_status_check
        CHECK (status IN ('pending', 'dispatched', 'running', 'success', 'failed', 'cancelled')),
    SET (fillfactor = 45);

-- None of the tables below has foreign keys: each would cost every insert. Whoever deletes a run deletes its rows here;
-- `verify` finds orphans.

-- The task at `task_index` must succeed before the one at `dependent_index`, whose id is here too: of the three unique keys of
-- `tasks` the id is the one that no plan can mistake for another.
CREATE TABLE task_edges (
    run_id uuid NOT NULL,
    task_index int NOT NULL,
    dependent_index int NOT NULL,
    dependent_id uuid NOT NULL,
    PRIMARY KEY (run_id, task_index, dependent_index)
);

-- The tasks of running runs that wait for nothing but, perhaps, their time. `tasks.ready_at` has the same value, so that
-- a task's row is found by its key.
CREATE TABLE ready_tasks (
    ready_at timestamptz NOT NULL,
    run_id uuid NOT NULL,
    task_index int NOT NULL,
    task_id uuid NOT NULL,
    PRIMARY KEY (ready_at, run_id, task_index)
);

-- The claimed tasks.
CREATE TABLE task_leases (
    task_id uuid PRIMARY KEY,
    run_id uuid NOT NULL,
    owner text NOT NULL,
    token bigint NOT NULL,
    expires_at timestamptz NOT NULL
);

-- Without the task's id, for the reason told of the indexes of `runs`.
CREATE INDEX task_leases_by_expiry ON task_leases (expires_at);

-- The running tasks that may not run for ever.
CREATE TABLE task_timeouts (
    task_id uuid PRIMARY KEY,
    run_id uuid NOT NULL,
    deadline timestamptz NOT NULL
);

CREATE INDEX task_timeouts_by_deadline ON task_timeouts (deadline);

-- Rows come and go here all the time: vacuum by their number, not by a share of a table that is often empty.
ALTER TABLE ready_tasks SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
ALTER TABLE task_leases SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
ALTER TABLE task_timeouts SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
