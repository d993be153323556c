-- What hands out tasks: narrow tables beside the wide one, so that a claim reads ready tasks only, however many wait.
-- No foreign keys on them, which would cost every insert: whoever deletes a run deletes its rows here.

-- task_index is the dependency, dependent_index waits for it.
CREATE TABLE task_edges (
    run_id BLOB NOT NULL,
    task_index INTEGER NOT NULL,
    dependent_index INTEGER NOT NULL,
    PRIMARY KEY (run_id, task_index, dependent_index)
) STRICT, WITHOUT ROWID;

-- Exactly the pending tasks that wait for no other, of running runs; the order is that of handing out. A
-- ready_at to come is a retry's.
CREATE TABLE ready_tasks (
    ready_at INTEGER NOT NULL,
    run_id BLOB NOT NULL,
    task_index INTEGER NOT NULL,
    task_id BLOB NOT NULL,
    PRIMARY KEY (ready_at, run_id, task_index)
) STRICT, WITHOUT ROWID;

-- Exactly the dispatched and running tasks, but for those that wait for deferred jobs.
CREATE TABLE task_leases (
    task_id BLOB NOT NULL PRIMARY KEY,
    run_id BLOB NOT NULL,
    owner TEXT NOT NULL,
    token INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- The key follows by itself: this is the order of expiry.
CREATE INDEX idx_task_leases_expires_at ON task_leases (expires_at);

-- Exactly the running tasks that may not run for ever.
CREATE TABLE task_timeouts (
    task_id BLOB NOT NULL PRIMARY KEY,
    deadline INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX idx_task_timeouts_deadline ON task_timeouts (deadline);

CREATE INDEX idx_deferred_jobs_due ON deferred_jobs (poll_at, id) WHERE poll_at IS NOT NULL;
CREATE INDEX idx_deferred_jobs_task ON deferred_jobs (task_id);

CREATE INDEX idx_workflows_due ON workflows (next_scheduled_at, id)
    WHERE schedule IS NOT NULL AND schedule_enabled = 1 AND next_scheduled_at IS NOT NULL;
