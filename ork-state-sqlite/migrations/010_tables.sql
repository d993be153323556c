-- The tables of ork-state: STRICT, times as microseconds since 1970, and DAGs only as snapshots.
-- They have the columns for counting, retrying and fencing runs, tasks and deferred jobs. Here
-- Ork's own tables are empty, or the takeover code has set them aside.

DROP TABLE IF EXISTS deferred_jobs;
DROP TABLE IF EXISTS workflow_tasks;
DROP TABLE IF EXISTS tasks;
DROP TABLE IF EXISTS runs;
DROP TABLE IF EXISTS workflow_snapshots;
DROP TABLE IF EXISTS workflows;

-- The applied steps of the schema. From this one on, each step records itself here.
CREATE TABLE ork_state_migrations (
    version INTEGER NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    checksum BLOB NOT NULL,
    applied_at INTEGER NOT NULL
) STRICT;

CREATE TABLE task_logs (
    task_id BLOB NOT NULL PRIMARY KEY,
    length INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- With a rowid: chunks are large, and a table without a rowid is not made for that.
CREATE TABLE task_log_chunks (
    task_id BLOB NOT NULL,
    start_offset INTEGER NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (task_id, start_offset)
) STRICT;

CREATE TABLE workflows (
    id BLOB NOT NULL PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    description TEXT,
    job_name TEXT NOT NULL,
    region TEXT NOT NULL,
    project TEXT NOT NULL,
    executor_type TEXT NOT NULL,
    current_snapshot_id BLOB,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    schedule TEXT,
    schedule_enabled INTEGER NOT NULL DEFAULT 0,
    last_scheduled_at INTEGER,
    next_scheduled_at INTEGER,
    task_params TEXT
) STRICT;

CREATE TABLE workflow_snapshots (
    id BLOB NOT NULL PRIMARY KEY,
    workflow_id BLOB NOT NULL REFERENCES workflows (id) ON DELETE CASCADE,
    content_hash TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    tasks_json TEXT NOT NULL,
    UNIQUE (workflow_id, content_hash)
) STRICT;

CREATE TABLE runs (
    id BLOB NOT NULL PRIMARY KEY,
    workflow_id BLOB NOT NULL REFERENCES workflows (id),
    snapshot_id BLOB,
    status TEXT NOT NULL
        CHECK (status IN ('pending', 'running', 'paused', 'success', 'failed', 'cancelled')),
    triggered_by TEXT NOT NULL,
    idempotency_key TEXT,
    tasks_total INTEGER NOT NULL DEFAULT 0,
    tasks_unfinished INTEGER NOT NULL DEFAULT 0,
    tasks_failed INTEGER NOT NULL DEFAULT 0,
    tasks_cancelled INTEGER NOT NULL DEFAULT 0,
    created_at INTEGER NOT NULL,
    started_at INTEGER,
    finished_at INTEGER,
    error TEXT
) STRICT;

-- Columns that are read often come before those that can be long. To find a column, SQLite skips
-- over those before it.
CREATE TABLE tasks (
    id BLOB NOT NULL PRIMARY KEY,
    run_id BLOB NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    task_index INTEGER NOT NULL,
    status TEXT NOT NULL
        CHECK (status IN ('pending', 'dispatched', 'running', 'success', 'failed', 'cancelled')),
    unmet_dependencies INTEGER NOT NULL DEFAULT 0,
    open_jobs INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0,
    max_retries INTEGER NOT NULL DEFAULT 0,
    timeout_seconds INTEGER,
    -- The last fencing token that was issued.
    token INTEGER NOT NULL DEFAULT 0,
    created_at INTEGER NOT NULL,
    ready_at INTEGER,
    retry_at INTEGER,
    dispatched_at INTEGER,
    started_at INTEGER,
    finished_at INTEGER,
    task_name TEXT NOT NULL,
    executor_type TEXT NOT NULL,
    execution_name TEXT,
    depends_on TEXT NOT NULL,
    error TEXT,
    params TEXT,
    output TEXT,
    UNIQUE (run_id, task_index),
    UNIQUE (run_id, task_name)
) STRICT;

-- A job is to be polled from `poll_at` on, and is open while it has one. A claim sets that to the
-- end of the lease, so a job without a report is due again by itself. `deferral` is the token of
-- the claim under which the task was deferred. It tells the jobs of one attempt from those of
-- another. There is no foreign key: whoever deletes a run deletes its jobs.
CREATE TABLE deferred_jobs (
    id BLOB NOT NULL PRIMARY KEY,
    task_id BLOB NOT NULL,
    run_id BLOB NOT NULL,
    job_index INTEGER NOT NULL,
    deferral INTEGER NOT NULL,
    status TEXT NOT NULL
        CHECK (status IN ('pending', 'polling', 'completed', 'failed', 'cancelled')),
    -- The token of its last claim.
    token INTEGER NOT NULL DEFAULT 0,
    poll_at INTEGER,
    created_at INTEGER NOT NULL,
    started_at INTEGER,
    last_polled_at INTEGER,
    finished_at INTEGER,
    owner TEXT,
    service_type TEXT NOT NULL,
    job_id TEXT NOT NULL,
    error TEXT,
    job_data TEXT NOT NULL,
    output TEXT
) STRICT;
