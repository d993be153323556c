-- The queues: narrow tables beside the wide one. With them a claim reads ready tasks only, however
-- many wait. They have no foreign keys, which would slow down every insert. Whoever deletes a run
-- deletes its rows here.

-- task_index is the dependency. dependent_index waits for it.
CREATE TABLE task_edges (
    run_id BLOB NOT NULL,
    task_index INTEGER NOT NULL,
    dependent_index INTEGER NOT NULL,
    PRIMARY KEY (run_id, task_index, dependent_index)
) STRICT, WITHOUT ROWID;

-- Exactly the pending tasks of running runs that wait for no other task, in the order of claims. A
-- ready_at in the future is a retry's.
CREATE TABLE ready_tasks (
    ready_at INTEGER NOT NULL,
    run_id BLOB NOT NULL,
    task_index INTEGER NOT NULL,
    task_id BLOB NOT NULL,
    PRIMARY KEY (ready_at, run_id, task_index)
) STRICT, WITHOUT ROWID;

-- Exactly the dispatched and running tasks, except those that wait for deferred jobs.
CREATE TABLE task_leases (
    task_id BLOB NOT NULL PRIMARY KEY,
    run_id BLOB NOT NULL,
    owner TEXT NOT NULL,
    token INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- SQLite appends the key to the index, so this is the order of expiry.
CREATE INDEX idx_task_leases_expires_at ON task_leases (expires_at);

-- Exactly the running tasks with a deadline.
CREATE TABLE task_timeouts (
    task_id BLOB NOT NULL PRIMARY KEY,
    deadline INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX idx_task_timeouts_deadline ON task_timeouts (deadline);

CREATE INDEX idx_deferred_jobs_due ON deferred_jobs (poll_at, id) WHERE poll_at IS NOT NULL;
CREATE INDEX idx_deferred_jobs_task ON deferred_jobs (task_id);

CREATE INDEX idx_workflows_due ON workflows (next_scheduled_at, id)
    WHERE schedule IS NOT NULL AND schedule_enabled = 1 AND next_scheduled_at IS NOT NULL;

-- Indexes for lists, for deletions of old runs and for counts of the whole store.

CREATE UNIQUE INDEX idx_runs_idempotency_key ON runs (workflow_id, idempotency_key)
    WHERE idempotency_key IS NOT NULL;
CREATE INDEX idx_runs_created_at ON runs (created_at, id);
CREATE INDEX idx_runs_workflow ON runs (workflow_id, created_at, id);
CREATE INDEX idx_runs_status ON runs (status, created_at, id);
CREATE INDEX idx_runs_finished_at ON runs (finished_at, id) WHERE finished_at IS NOT NULL;

-- How many runs have ended ('run') and how many of their tasks ('task'), by status. So the history
-- need not be counted. And how many runs ever ended ('ever'), including runs that are gone. It
-- tells watchers that another run ended.
CREATE TABLE ended_counts (
    kind TEXT NOT NULL CHECK (kind IN ('run', 'task', 'ever')),
    status TEXT NOT NULL,
    number INTEGER NOT NULL,
    PRIMARY KEY (kind, status)
) STRICT, WITHOUT ROWID;

-- Deleted tasks whose log chunks are still there. The chunks are freed in steps, after the
-- deletion. Freeing a gigabyte would hold the write lock for many seconds and add as much to the
-- WAL. Nothing else refers to these chunks.
CREATE TABLE deleted_logs (
    task_id BLOB NOT NULL PRIMARY KEY
) STRICT, WITHOUT ROWID;

-- The records of another store are kept here, apart from everything else, until the last of them
-- has arrived. `record` is one record in its encoded form: an object with one key, the kind. The
-- payloads in it are strings that hold JSON.

CREATE TABLE import_progress (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    records INTEGER NOT NULL,
    digest TEXT NOT NULL
) STRICT;

CREATE TABLE import_records (
    number INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    record TEXT NOT NULL
) STRICT;
