-- Every table made anew: STRICT, times as microseconds since 1970, DAGs as snapshots only, and with
-- the columns that runs, tasks and deferred jobs are counted, retried and fenced by. Foreign keys
-- are off while this runs, so nothing cascades; on a new store they may be on.
--
-- Old times are UTC text in several forms, such as 2026-02-01T11:23:51.947Z, 2026-02-01 11:23:51
-- and 2026-02-01T11:23:51.947123456+00:00: whole seconds from the first 19 characters, microseconds
-- from the next digits. What databases of Ork need beyond these casts comes with 012.

-- The steps of the schema that were applied. From this one on, each step records itself here.
CREATE TABLE ork_state_migrations (
    version INTEGER NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    checksum BLOB NOT NULL,
    applied_at INTEGER NOT NULL
) STRICT;

-- Old rows that cannot stay as they are, and that no rule computes anew: the migration reports
-- them.
CREATE TEMP TABLE IF NOT EXISTS ork_adjusted (
    rule TEXT NOT NULL, entity TEXT NOT NULL, id BLOB NOT NULL, problem TEXT NOT NULL
);

-- A workflow whose tasks are not in a snapshot gets one, and so do runs without. No statement can
-- work the content hash out: the code that takes a database of Ork over does it.
CREATE TEMP TABLE ork_made AS
SELECT w.id AS workflow_id, randomblob(16) AS id
FROM workflows AS w
WHERE w.current_snapshot_id IS NULL
    OR NOT EXISTS (SELECT 1 FROM workflow_snapshots AS s WHERE s.id = w.current_snapshot_id);
INSERT INTO workflow_snapshots (id, workflow_id, content_hash, tasks_json, created_at)
SELECT
    m.id, m.workflow_id, 'of ' || hex(m.id),
    (
        SELECT json_group_array(json(t.task))
        FROM (
            SELECT json_object(
                'task_index', row_number() OVER (ORDER BY k.task_index, k.id) - 1,
                'task_name', k.task_name,
                'executor_type', k.executor_type,
                'depends_on', json(iif(json_valid(k.depends_on), k.depends_on, '[]')),
                'params', json(iif(json_valid(k.params), k.params, 'null')),
                'signature', json(iif(json_valid(k.signature), k.signature, 'null'))
            ) AS task
            FROM workflow_tasks AS k
            WHERE k.workflow_id = m.workflow_id
            ORDER BY k.task_index, k.id
        ) AS t
    ),
    w.updated_at
FROM temp.ork_made AS m
JOIN workflows AS w ON w.id = m.workflow_id;
UPDATE workflows SET current_snapshot_id = m.id FROM temp.ork_made AS m WHERE m.workflow_id = workflows.id;
DROP TABLE temp.ork_made;
UPDATE runs SET snapshot_id = w.current_snapshot_id
FROM workflows AS w
WHERE w.id = runs.workflow_id
    AND NOT EXISTS (
        SELECT 1 FROM workflow_snapshots AS s WHERE s.id = runs.snapshot_id AND s.workflow_id = runs.workflow_id
    );

-- A name is there once in a run.
CREATE TEMP TABLE ork_doubles AS
SELECT d.id, d.task_index
FROM (
    SELECT t.id, t.task_index, row_number() OVER (PARTITION BY t.run_id, t.task_name ORDER BY t.task_index) AS place
    FROM tasks AS t
) AS d
WHERE d.place > 1;
INSERT INTO temp.ork_adjusted
SELECT 'R2', 'task', d.id, 'has another name now: another task of its run had the same' FROM temp.ork_doubles AS d;
UPDATE tasks SET task_name = task_name || ' #' || task_index WHERE id IN (SELECT d.id FROM temp.ork_doubles AS d);
DROP TABLE temp.ork_doubles;

-- Logs come out of their column before it goes.
CREATE TABLE task_logs (
    task_id BLOB NOT NULL PRIMARY KEY,
    length INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- With a rowid: chunks are large, which a table without one is not made for.
CREATE TABLE task_log_chunks (
    task_id BLOB NOT NULL,
    start_offset INTEGER NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (task_id, start_offset)
) STRICT;

INSERT INTO task_logs (task_id, length)
SELECT id, length(CAST(logs AS BLOB)) FROM tasks WHERE logs <> '';
INSERT INTO task_log_chunks (task_id, start_offset, data)
SELECT id, 0, CAST(logs AS BLOB) FROM tasks WHERE logs <> '';

CREATE TABLE workflows_new (
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

INSERT INTO workflows_new (
    id, name, description, job_name, region, project, executor_type, current_snapshot_id,
    created_at, updated_at, schedule, schedule_enabled, last_scheduled_at, next_scheduled_at, task_params
)
SELECT
    id, name, description, job_name, region, project, executor_type, current_snapshot_id,
    unixepoch(substr(created_at, 1, 19)) * 1000000
        + CAST(substr(rtrim(substr(replace(created_at, '+00:00', ''), 21), 'Z') || '000000', 1, 6) AS INTEGER),
    unixepoch(substr(updated_at, 1, 19)) * 1000000
        + CAST(substr(rtrim(substr(replace(updated_at, '+00:00', ''), 21), 'Z') || '000000', 1, 6) AS INTEGER),
    schedule, schedule_enabled,
    unixepoch(substr(last_scheduled_at, 1, 19)) * 1000000
        + CAST(substr(rtrim(substr(replace(last_scheduled_at, '+00:00', ''), 21), 'Z') || '000000', 1, 6) AS INTEGER),
    unixepoch(substr(next_scheduled_at, 1, 19)) * 1000000
        + CAST(substr(rtrim(substr(replace(next_scheduled_at, '+00:00', ''), 21), 'Z') || '000000', 1, 6) AS INTEGER),
    task_params
FROM workflows;

CREATE TABLE workflow_snapshots_new (
    id BLOB NOT NULL PRIMARY KEY,
    workflow_id BLOB NOT NULL REFERENCES workflows (id) ON DELETE CASCADE,
    content_hash TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    tasks_json TEXT NOT NULL,
    UNIQUE (workflow_id, content_hash)
) STRICT;

INSERT INTO workflow_snapshots_new (id, workflow_id, content_hash, created_at, tasks_json)
SELECT
    id, workflow_id, content_hash,
    unixepoch(substr(created_at, 1, 19)) * 1000000
        + CAST(substr(rtrim(substr(replace(created_at, '+00:00', ''), 21), 'Z') || '000000', 1, 6) AS INTEGER),
    tasks_json
FROM workflow_snapshots;

CREATE TABLE runs_new (
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

INSERT INTO runs_new (
    id, workflow_id, snapshot_id, status, triggered_by, created_at, started_at, finished_at, error
)
SELECT
    id, workflow_id, snapshot_id, status, triggered_by,
    unixepoch(substr(created_at, 1, 19)) * 1000000
        + CAST(substr(rtrim(substr(replace(created_at, '+00:00', ''), 21), 'Z') || '000000', 1, 6) AS INTEGER),
    unixepoch(substr(started_at, 1, 19)) * 1000000
        + CAST(substr(rtrim(substr(replace(started_at, '+00:00', ''), 21), 'Z') || '000000', 1, 6) AS INTEGER),
    unixepoch(substr(finished_at, 1, 19)) * 1000000
        + CAST(substr(rtrim(substr(replace(finished_at, '+00:00', ''), 21), 'Z') || '000000', 1, 6) AS INTEGER),
    error
FROM runs;

-- What is read often stands before what can be long: SQLite finds a column by passing over those
-- before it.
CREATE TABLE tasks_new (
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
    -- The last fencing token that was given.
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

INSERT INTO tasks_new (
    id, run_id, task_index, status, attempts, max_retries, timeout_seconds,
    created_at, retry_at, dispatched_at, started_at, finished_at,
    task_name, executor_type, execution_name, depends_on, error, params, output
)
SELECT
    id, run_id, task_index, iif(status = 'paused', 'pending', status), attempts, max_retries, timeout_seconds,
    unixepoch(substr(created_at, 1, 19)) * 1000000
        + CAST(substr(rtrim(substr(replace(created_at, '+00:00', ''), 21), 'Z') || '000000', 1, 6) AS INTEGER),
    unixepoch(substr(retry_at, 1, 19)) * 1000000
        + CAST(substr(rtrim(substr(replace(retry_at, '+00:00', ''), 21), 'Z') || '000000', 1, 6) AS INTEGER),
    unixepoch(substr(dispatched_at, 1, 19)) * 1000000
        + CAST(substr(rtrim(substr(replace(dispatched_at, '+00:00', ''), 21), 'Z') || '000000', 1, 6) AS INTEGER),
    unixepoch(substr(started_at, 1, 19)) * 1000000
        + CAST(substr(rtrim(substr(replace(started_at, '+00:00', ''), 21), 'Z') || '000000', 1, 6) AS INTEGER),
    unixepoch(substr(finished_at, 1, 19)) * 1000000
        + CAST(substr(rtrim(substr(replace(finished_at, '+00:00', ''), 21), 'Z') || '000000', 1, 6) AS INTEGER),
    task_name, executor_type, execution_name, depends_on, error, params, output
FROM tasks;

-- A job is to be polled from `poll_at` on, and is open while it has one. Whoever claims it sets
-- that to the end of the lease, so a job that nobody reports on is due again by itself. `deferral`
-- is the token of the claim that the task was deferred under: it tells the jobs of one attempt from
-- those of another. No foreign key: whoever deletes a run deletes its jobs.
CREATE TABLE deferred_jobs_new (
    id BLOB NOT NULL PRIMARY KEY,
    task_id BLOB NOT NULL,
    run_id BLOB NOT NULL,
    job_index INTEGER NOT NULL,
    deferral INTEGER NOT NULL,
    status TEXT NOT NULL
        CHECK (status IN ('pending', 'polling', 'completed', 'failed', 'cancelled')),
    -- The last token that it was claimed with.
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

INSERT INTO deferred_jobs_new (
    id, task_id, run_id, job_index, deferral, status, service_type, job_id, error, job_data,
    created_at, started_at, last_polled_at, finished_at
)
SELECT
    j.id, j.task_id, t.run_id,
    row_number() OVER (PARTITION BY j.task_id ORDER BY j.created_at, j.id) - 1,
    0, j.status, j.service_type, j.job_id, j.error, j.job_data,
    unixepoch(substr(j.created_at, 1, 19)) * 1000000
        + CAST(substr(rtrim(substr(replace(j.created_at, '+00:00', ''), 21), 'Z') || '000000', 1, 6) AS INTEGER),
    unixepoch(substr(j.started_at, 1, 19)) * 1000000
        + CAST(substr(rtrim(substr(replace(j.started_at, '+00:00', ''), 21), 'Z') || '000000', 1, 6) AS INTEGER),
    unixepoch(substr(j.last_polled_at, 1, 19)) * 1000000
        + CAST(substr(rtrim(substr(replace(j.last_polled_at, '+00:00', ''), 21), 'Z') || '000000', 1, 6) AS INTEGER),
    unixepoch(substr(j.finished_at, 1, 19)) * 1000000
        + CAST(substr(rtrim(substr(replace(j.finished_at, '+00:00', ''), 21), 'Z') || '000000', 1, 6) AS INTEGER)
FROM deferred_jobs AS j
JOIN tasks AS t ON t.id = j.task_id;

-- Indexes go with their tables; the ones that a query of ours uses come with the next step.
DROP TABLE deferred_jobs;
DROP TABLE workflow_tasks;
DROP TABLE tasks;
DROP TABLE runs;
DROP TABLE workflow_snapshots;
DROP TABLE workflows;

ALTER TABLE workflows_new RENAME TO workflows;
ALTER TABLE workflow_snapshots_new RENAME TO workflow_snapshots;
ALTER TABLE runs_new RENAME TO runs;
ALTER TABLE tasks_new RENAME TO tasks;
ALTER TABLE deferred_jobs_new RENAME TO deferred_jobs;
