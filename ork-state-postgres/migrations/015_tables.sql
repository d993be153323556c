-- The tables for workflows, runs and tasks. Beside them are narrow tables for dependencies, ready
-- tasks and claimed tasks.
--
-- JSON columns become `json`. `jsonb` rewrites numbers and drops white space, but what goes in must
-- come out equal. Names are ordered byte by byte, whatever the database's collation.
--
-- Rows of a database that Ork made stay where they are. After this step the takeover code makes
-- them follow the rules. The next step adds the constraints and drops what only the old rows
-- needed. Somebody may have dropped an index or a foreign key of Ork's.

-- The applied steps of the schema. From this one on, each step records itself here.
CREATE TABLE ork_state_migrations (
    version bigint PRIMARY KEY,
    name text NOT NULL,
    checksum bytea NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Workflows. Their tasks are those of their snapshots.

ALTER TABLE workflows
    ALTER COLUMN name TYPE text COLLATE "C",
    ALTER COLUMN task_params TYPE json USING task_params::text::json;

DROP INDEX IF EXISTS idx_workflows_executor_type;

ALTER TABLE workflow_snapshots
    ALTER COLUMN tasks_json TYPE json USING tasks_json::text::json;

-- The unique index on (workflow_id, content_hash) serves the same purpose.
DROP INDEX IF EXISTS idx_workflow_snapshots_workflow_id;

-- Runs.

-- A run's snapshot is deleted only with its workflow, after the run. With a foreign key, each
-- deletion of a snapshot would search for its runs, without an index.
ALTER TABLE runs
    DROP CONSTRAINT IF EXISTS runs_snapshot_id_fkey,
    ADD COLUMN idempotency_key text COLLATE "C",
    ADD COLUMN tasks_total int NOT NULL DEFAULT 0,
    ADD COLUMN tasks_unfinished int NOT NULL DEFAULT 0,
    ADD COLUMN tasks_failed int NOT NULL DEFAULT 0,
    ADD COLUMN tasks_cancelled int NOT NULL DEFAULT 0,
    SET (fillfactor = 80);

DROP INDEX IF EXISTS idx_runs_status;
DROP INDEX IF EXISTS idx_runs_workflow_id;

CREATE UNIQUE INDEX runs_idempotency_key ON runs (workflow_id, idempotency_key)
    WHERE idempotency_key IS NOT NULL;
-- Lists are ordered by these columns and then by the id. The id is not in the indexes. While there
-- are few runs, a plan could use such an index to look up a run by its id. That plan could then be
-- kept when there are many runs.
CREATE INDEX runs_by_age ON runs (created_at);
CREATE INDEX runs_of_workflow ON runs (workflow_id, created_at);
CREATE INDEX runs_by_status ON runs (status, created_at);
CREATE INDEX runs_ended ON runs (finished_at) WHERE finished_at IS NOT NULL;

-- How many runs have ended, and how many of their tasks, by status. So the history need not be
-- counted. Each connection adds to one of a few rows, chosen by its number. So runs that end at
-- once seldom wait for each other. The count is the sum of the rows.
CREATE TABLE ended_counts (
    slot int NOT NULL,
    kind text NOT NULL CHECK (kind IN ('run', 'task')),
    status text NOT NULL,
    number bigint NOT NULL,
    PRIMARY KEY (slot, kind, status)
) WITH (fillfactor = 50);

-- A task's log in chunks. Appending costs the same however long the log is, and listing tasks reads
-- no logs.

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

-- Not compressed, so that reading a part of a long chunk reads only that part.
ALTER TABLE task_log_chunks ALTER COLUMN data SET STORAGE EXTERNAL;

-- The logs of deleted runs are freed in steps. The deletion itself makes the first step. Freeing a
-- log of some gigabytes in one statement would take longer than a call may.
--
-- Deleted tasks whose chunks from `freed_to` on are still to be freed. Without it each step would
-- scan all the chunks freed before. That would last as long as an old transaction keeps them from
-- being vacuumed.
CREATE TABLE deleted_logs (
    task_id uuid PRIMARY KEY,
    freed_to bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);

-- Tasks.
--
-- No column of `tasks` that changes is in an index, so every update of a task can stay on its page
-- (HOT). The fillfactor leaves room for that. A batch may claim all tasks of a page at once, and
-- then needs room for all of them again, a little longer.

DROP INDEX IF EXISTS idx_tasks_run_id;
DROP INDEX IF EXISTS idx_tasks_status;
DROP INDEX IF EXISTS idx_tasks_status_run_id;
DROP INDEX IF EXISTS idx_tasks_run_status;
DROP INDEX IF EXISTS idx_tasks_execution_name;
DROP INDEX IF EXISTS idx_tasks_run_task_name;
DROP INDEX IF EXISTS idx_tasks_executor_type;

ALTER TABLE tasks
    ALTER COLUMN task_name TYPE text COLLATE "C",
    ALTER COLUMN params TYPE json USING params::text::json,
    ALTER COLUMN output TYPE json USING output::text::json,
    ADD COLUMN unmet_dependencies int NOT NULL DEFAULT 0,
    ADD COLUMN open_jobs int NOT NULL DEFAULT 0,
    ADD COLUMN token bigint NOT NULL DEFAULT 0,
    ADD COLUMN ready_at timestamptz,
    SET (fillfactor = 45);

-- None of the tables below has foreign keys, because each would slow down every insert. Whoever
-- deletes a run deletes its rows here. `verify` finds orphans.

-- The task at `task_index` must succeed before the one at `dependent_index`, whose id is here too.
-- `tasks` has three unique keys. The id is the only one that no plan can confuse with another.
CREATE TABLE task_edges (
    run_id uuid NOT NULL,
    task_index int NOT NULL,
    dependent_index int NOT NULL,
    dependent_id uuid NOT NULL,
    PRIMARY KEY (run_id, task_index, dependent_index)
);

-- The tasks of running runs that wait for nothing, except perhaps their time. `tasks.ready_at` has
-- the same value, so a task's row here is found by its key.
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

-- Without the task's id, for the reason given at the indexes of `runs`.
CREATE INDEX task_leases_by_expiry ON task_leases (expires_at);

-- The running tasks with a deadline.
CREATE TABLE task_timeouts (
    task_id uuid PRIMARY KEY,
    run_id uuid NOT NULL,
    deadline timestamptz NOT NULL
);

CREATE INDEX task_timeouts_by_deadline ON task_timeouts (deadline);

-- Rows are inserted and deleted here all the time. So vacuum after a fixed number of rows, not
-- after a fraction of a table that is often empty.
ALTER TABLE ready_tasks
    SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
ALTER TABLE task_leases
    SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
ALTER TABLE task_timeouts
    SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);

-- Deferred jobs.

-- A job is to be polled from `poll_at` on. A claim sets that to the end of the lease, so a job
-- without a report is due again by itself. `deferral` is the token of the claim under which the
-- task was deferred. It tells the jobs of one attempt from those of another.
ALTER TABLE deferred_jobs
    ALTER COLUMN job_data TYPE json USING job_data::text::json,
    ADD COLUMN run_id uuid,
    ADD COLUMN job_index int NOT NULL DEFAULT 0,
    ADD COLUMN deferral bigint NOT NULL DEFAULT 0,
    ADD COLUMN token bigint NOT NULL DEFAULT 0,
    ADD COLUMN owner text,
    ADD COLUMN poll_at timestamptz,
    ADD COLUMN output json,
    DROP CONSTRAINT IF EXISTS deferred_jobs_task_id_fkey;

DROP INDEX IF EXISTS idx_deferred_jobs_status;
DROP INDEX IF EXISTS idx_deferred_jobs_task_id;
DROP INDEX IF EXISTS idx_deferred_jobs_created_at;

CREATE INDEX deferred_jobs_of_task ON deferred_jobs (task_id);
CREATE INDEX deferred_jobs_due ON deferred_jobs (poll_at) WHERE poll_at IS NOT NULL;

-- Imports.
--
-- The records of another store are kept here, apart from everything else, until the last of them
-- has arrived. `record` is one record in its encoded form: an object with one key, the kind. The
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
