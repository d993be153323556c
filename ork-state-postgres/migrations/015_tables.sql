-- Workflows, runs and tasks as ork-state keeps them, and beside them narrow tables for what depends
-- on what, what is ready and what is claimed.
--
-- JSON columns become `json`: `jsonb` rewrites numbers and drops white space, and what goes in must
-- come out equal. Names are ordered byte by byte whatever the database's collation.

-- The steps of the schema that were applied. From this one on, each step records itself here.
CREATE TABLE ork_state_migrations (
    version bigint PRIMARY KEY,
    name text NOT NULL,
    checksum bytea NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Old rows that cannot stay as they are, and that no rule computes anew: the migration reports
-- them.
CREATE TEMP TABLE ork_adjusted (rule text NOT NULL, entity text NOT NULL, problem text NOT NULL)
    ON COMMIT DROP;

-- Old rows, as far as the tables below need them changed. The next step does the rest.

-- A workflow whose tasks are not in a snapshot gets one, and so do runs from before there were any.
-- No statement can work the content hash out: the code that takes a database of Ork over does it.
WITH made AS (
    INSERT INTO workflow_snapshots (id, workflow_id, content_hash, tasks_json, created_at)
    SELECT
        gen_random_uuid(), w.id, 'of ' || w.id::text,
        coalesce(
            (
                SELECT jsonb_agg(
                    jsonb_build_object(
                        'task_index', t.place, 'task_name', t.task_name,
                        'executor_type', t.executor_type, 'depends_on', t.depends_on,
                        'params', t.params, 'signature', t.signature
                    )
                    ORDER BY t.place
                )
                FROM (
                    SELECT k.*, row_number() OVER (ORDER BY k.task_index, k.id) - 1 AS place
                    FROM workflow_tasks k
                    WHERE k.workflow_id = w.id
                ) t
            ),
            '[]'
        ),
        w.updated_at
    FROM workflows w
    WHERE w.current_snapshot_id IS NULL
    RETURNING id, workflow_id
)
UPDATE workflows w SET current_snapshot_id = m.id FROM made m WHERE m.workflow_id = w.id;

UPDATE runs r
SET snapshot_id = w.current_snapshot_id
FROM workflows w
WHERE w.id = r.workflow_id AND r.snapshot_id IS NULL;

UPDATE tasks SET status = 'pending' WHERE status = 'paused';

-- A name is there once in a run.
WITH renamed AS (
    UPDATE tasks t
    SET task_name = t.task_name || ' #' || t.task_index
    FROM (
        SELECT k.id, row_number() OVER (PARTITION BY k.run_id, k.task_name ORDER BY k.task_index) AS place
        FROM tasks k
    ) p
    WHERE p.id = t.id AND p.place > 1
    RETURNING t.id, t.task_name
)
INSERT INTO ork_adjusted
SELECT 'R2', 'task ' || r.id, format('is called %L now: another task of its run has its name', r.task_name)
FROM renamed r;

-- Changes of rows wait with the checks of foreign keys, and a table that has such waiting cannot be
-- altered.
SET CONSTRAINTS ALL IMMEDIATE;

-- Workflows. Their tasks are those of their snapshots.

ALTER TABLE workflows
    ALTER COLUMN name TYPE text COLLATE "C",
    ALTER COLUMN task_params TYPE json USING task_params::text::json,
    ALTER COLUMN current_snapshot_id SET NOT NULL;

DROP INDEX idx_workflows_executor_type;

ALTER TABLE workflow_snapshots
    ALTER COLUMN tasks_json TYPE json USING tasks_json::text::json;

-- The unique index on (workflow_id, content_hash) serves as well.
DROP INDEX idx_workflow_snapshots_workflow_id;

DROP TABLE workflow_tasks;

-- Runs.

-- A run's snapshot goes only with its workflow, after the run. A foreign key would look for runs of
-- each snapshot that is deleted, with no index to find them by.
ALTER TABLE runs
    DROP CONSTRAINT runs_snapshot_id_fkey,
    ALTER COLUMN snapshot_id SET NOT NULL,
    ADD COLUMN idempotency_key text COLLATE "C",
    ADD COLUMN tasks_total int NOT NULL DEFAULT 0,
    ADD COLUMN tasks_unfinished int NOT NULL DEFAULT 0,
    ADD COLUMN tasks_failed int NOT NULL DEFAULT 0,
    ADD COLUMN tasks_cancelled int NOT NULL DEFAULT 0,
    SET (fillfactor = 80);

DROP INDEX idx_runs_status;
DROP INDEX idx_runs_workflow_id;

CREATE UNIQUE INDEX runs_idempotency_key ON runs (workflow_id, idempotency_key)
    WHERE idempotency_key IS NOT NULL;
-- Lists are ordered by the id after these. It is not in the indexes: while there are few runs, a
-- plan could take one of them to look a run up by its id, and be kept when there are many.
CREATE INDEX runs_by_age ON runs (created_at);
CREATE INDEX runs_of_workflow ON runs (workflow_id, created_at);
CREATE INDEX runs_by_status ON runs (status, created_at);
CREATE INDEX runs_ended ON runs (finished_at) WHERE finished_at IS NOT NULL;

-- How many runs have ended, and how many of their tasks, by status: so that nobody need count the
-- history. Each connection adds to one of a few rows, by its number, so that runs that end at once
-- seldom wait for each other; their sum counts.
CREATE TABLE ended_counts (
    slot int NOT NULL,
    kind text NOT NULL CHECK (kind IN ('run', 'task')),
    status text NOT NULL,
    number bigint NOT NULL,
    PRIMARY KEY (slot, kind, status)
) WITH (fillfactor = 50);

-- A task's log in chunks: appending costs the same however long the log is, and listing tasks drags
-- no log along.

CREATE TABLE task_logs (
    task_id uuid PRIMARY KEY,
    length bigint NOT NULL
) WITH (fillfactor = 50);

CREATE TABLE task_log_chunks (
    task_id uuid NOT NULL,
    start_offset bigint NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (task_id, start_offset)
);

-- Not compressed: of a long chunk only the part that is asked for is read.
ALTER TABLE task_log_chunks ALTER COLUMN data SET STORAGE EXTERNAL;

INSERT INTO task_logs (task_id, length)
SELECT id, octet_length(convert_to(logs, 'UTF8')) FROM tasks WHERE logs <> '';

INSERT INTO task_log_chunks (task_id, start_offset, data)
SELECT id, 0, convert_to(logs, 'UTF8') FROM tasks WHERE logs <> '';

-- What the tasks of deleted runs printed is freed in steps, of which the deletion itself makes the
-- first: to free a log of some gigabytes in one statement would take longer than a call may.
--
-- Tasks that are gone and whose chunks from `freed_to` on are still to be freed. Without it each
-- step would look at all chunks that were freed before, as long as any old transaction keeps them
-- from being vacuumed.
CREATE TABLE deleted_logs (
    task_id uuid PRIMARY KEY,
    freed_to bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);

-- Tasks.
--
-- No column of `tasks` that changes stands in an index, so that every update of a task can stay on
-- its page (HOT). The fillfactor leaves room for that: a batch may claim all tasks of a page at
-- once, and then needs room for all of them again, a little longer.

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
    DROP COLUMN logs,
    ADD COLUMN unmet_dependencies int NOT NULL DEFAULT 0,
    ADD COLUMN open_jobs int NOT NULL DEFAULT 0,
    ADD COLUMN token bigint NOT NULL DEFAULT 0,
    ADD COLUMN ready_at timestamptz,
    ADD UNIQUE (run_id, task_name),
    DROP CONSTRAINT tasks_status_check,
    ADD CONSTRAINT tasks_status_check
        CHECK (status IN ('pending', 'dispatched', 'running', 'success', 'failed', 'cancelled')),
    SET (fillfactor = 45);

-- None of the tables below has foreign keys: each would cost every insert. Whoever deletes a run
-- deletes its rows here; `verify` finds orphans.

-- The task at `task_index` must succeed before the one at `dependent_index`, whose id is here too:
-- of the three unique keys of `tasks` the id is the one that no plan can mistake for another.
CREATE TABLE task_edges (
    run_id uuid NOT NULL,
    task_index int NOT NULL,
    dependent_index int NOT NULL,
    dependent_id uuid NOT NULL,
    PRIMARY KEY (run_id, task_index, dependent_index)
);

-- The tasks of running runs that wait for nothing but, perhaps, their time. `tasks.ready_at` has
-- the same value, so that a task's row is found by its key.
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

-- Rows come and go here all the time: vacuum by their number, not by a share of a table that is
-- often empty.
ALTER TABLE ready_tasks
    SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
ALTER TABLE task_leases
    SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
ALTER TABLE task_timeouts
    SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);

-- Deferred jobs.

-- A job is to be polled from `poll_at` on. Whoever claims it sets that to the end of the lease, so
-- a job that nobody reports on is due again by itself. `deferral` is the token of the claim that
-- the task was deferred under: it tells the jobs of one attempt from those of another.
ALTER TABLE deferred_jobs
    ALTER COLUMN job_data TYPE json USING job_data::text::json,
    ADD COLUMN run_id uuid,
    ADD COLUMN job_index int NOT NULL DEFAULT 0,
    ADD COLUMN deferral bigint NOT NULL DEFAULT 0,
    ADD COLUMN token bigint NOT NULL DEFAULT 0,
    ADD COLUMN owner text,
    ADD COLUMN poll_at timestamptz,
    ADD COLUMN output json,
    DROP CONSTRAINT deferred_jobs_task_id_fkey;

UPDATE deferred_jobs j SET run_id = t.run_id FROM tasks t WHERE t.id = j.task_id;

ALTER TABLE deferred_jobs ALTER COLUMN run_id SET NOT NULL;

DROP INDEX idx_deferred_jobs_status;
DROP INDEX idx_deferred_jobs_task_id;
DROP INDEX idx_deferred_jobs_created_at;

CREATE INDEX deferred_jobs_of_task ON deferred_jobs (task_id);
CREATE INDEX deferred_jobs_due ON deferred_jobs (poll_at) WHERE poll_at IS NOT NULL;

-- Imports.
--
-- What another store holds comes as records, which are kept here, apart from all else, until the
-- last of them has come. `record` is one in its encoded form: an object with one key, the kind; the
-- payloads in it are strings that hold JSON.

CREATE TABLE import_progress (
    id int PRIMARY KEY DEFAULT 1 CHECK (id = 1),
    records bigint NOT NULL,
    digest text NOT NULL
);

CREATE TABLE import_records (
    number bigint PRIMARY KEY,
    kind text NOT NULL,
    record json NOT NULL
);
