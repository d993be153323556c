-- Runs and tasks can be paused. SQLite cannot change a check, so both tables are made anew.
-- Old tables step aside and the child goes first: no drop cascades, no rename touches a new table.

-- An old row may name a parent that is not there. Checked at commit only, it passes: by then the
-- old copy, which counted the same fault, is gone.
PRAGMA defer_foreign_keys = ON;

ALTER TABLE tasks RENAME TO tasks_before_pause;
ALTER TABLE runs RENAME TO runs_before_pause;

CREATE TABLE runs (
    id BLOB NOT NULL PRIMARY KEY,
    workflow_id BLOB NOT NULL REFERENCES workflows (id),
    status TEXT NOT NULL
        CHECK (status IN ('pending', 'running', 'paused', 'success', 'failed', 'cancelled')),
    triggered_by TEXT NOT NULL DEFAULT 'manual',
    started_at TEXT,
    finished_at TEXT,
    error TEXT,
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
);

INSERT INTO runs (
    id, workflow_id, status, triggered_by, started_at, finished_at, error, created_at
)
SELECT
    id, workflow_id, status, triggered_by, started_at, finished_at, error, created_at
FROM runs_before_pause;

CREATE TABLE tasks (
    id BLOB NOT NULL PRIMARY KEY,
    run_id BLOB NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    task_index INTEGER NOT NULL,
    status TEXT NOT NULL
        CHECK (status IN (
            'pending', 'dispatched', 'running', 'paused', 'success', 'failed', 'cancelled'
        )),
    execution_name TEXT,
    params TEXT,
    output TEXT,
    error TEXT,
    dispatched_at TEXT,
    started_at TEXT,
    finished_at TEXT,
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    task_name TEXT NOT NULL,
    depends_on TEXT NOT NULL DEFAULT '[]',
    executor_type TEXT NOT NULL,
    logs TEXT,
    attempts INTEGER NOT NULL DEFAULT 0,
    max_retries INTEGER NOT NULL DEFAULT 0,
    timeout_seconds INTEGER,
    retry_at TEXT,
    UNIQUE (run_id, task_index)
);

INSERT INTO tasks (
    id, run_id, task_index, status, execution_name, params, output, error,
    dispatched_at, started_at, finished_at, created_at, task_name, depends_on, executor_type,
    logs, attempts, max_retries, timeout_seconds, retry_at
)
SELECT
    id, run_id, task_index, status, execution_name, params, output, error,
    dispatched_at, started_at, finished_at, created_at, task_name, depends_on, executor_type,
    logs, attempts, max_retries, timeout_seconds, retry_at
FROM tasks_before_pause;

DROP TABLE tasks_before_pause;
DROP TABLE runs_before_pause;

CREATE INDEX idx_runs_status ON runs (status);
CREATE INDEX idx_runs_workflow_id ON runs (workflow_id);
CREATE INDEX idx_tasks_run_id ON tasks (run_id);
CREATE INDEX idx_tasks_status ON tasks (status);
CREATE INDEX idx_tasks_executor_type ON tasks (executor_type);
CREATE INDEX idx_tasks_run_status ON tasks (run_id, status);
CREATE INDEX idx_tasks_run_task_name ON tasks (run_id, task_name);
