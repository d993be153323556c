-- The first tables: workflows, their runs, and the tasks of a run.

CREATE TABLE workflows (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name text NOT NULL UNIQUE,
    description text,
    cloud_run_job_name text NOT NULL,
    cloud_run_region text NOT NULL DEFAULT 'us-central1',
    cloud_run_project text NOT NULL,
    task_params jsonb,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE runs (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    workflow_id uuid NOT NULL REFERENCES workflows (id),
    status text NOT NULL
        CONSTRAINT runs_status_check
        CHECK (status IN ('pending', 'running', 'success', 'failed', 'cancelled')),
    triggered_by text NOT NULL DEFAULT 'manual',
    started_at timestamptz,
    finished_at timestamptz,
    error text,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX idx_runs_status ON runs (status);
CREATE INDEX idx_runs_workflow_id ON runs (workflow_id);

CREATE TABLE tasks (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    run_id uuid NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    task_index int NOT NULL,
    status text NOT NULL
        CONSTRAINT tasks_status_check
        CHECK (status IN ('pending', 'dispatched', 'running', 'success', 'failed', 'cancelled')),
    cloud_run_execution_name text,
    params jsonb,
    output jsonb,
    error text,
    dispatched_at timestamptz,
    started_at timestamptz,
    finished_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (run_id, task_index)
);

CREATE INDEX idx_tasks_run_id ON tasks (run_id);
CREATE INDEX idx_tasks_status ON tasks (status);
