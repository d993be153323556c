-- A workflow's DAG moves from its YAML text into a table, and each task has its own executor.
-- The check on executor types goes: the set is open from here on.

ALTER TABLE workflows
    DROP COLUMN workflow_yaml,
    DROP COLUMN workflow_root,
    DROP CONSTRAINT workflows_executor_type_check;

ALTER TABLE tasks ADD COLUMN executor_type text;

UPDATE tasks
SET executor_type = COALESCE(
    (
        SELECT workflows.executor_type
        FROM runs
        JOIN workflows ON workflows.id = runs.workflow_id
        WHERE runs.id = tasks.run_id
    ),
    'process'
);

ALTER TABLE tasks ALTER COLUMN executor_type SET NOT NULL;

CREATE INDEX idx_tasks_executor_type ON tasks (executor_type);

CREATE TABLE workflow_tasks (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    workflow_id uuid NOT NULL REFERENCES workflows (id) ON DELETE CASCADE,
    task_index int NOT NULL,
    task_name text NOT NULL,
    executor_type text NOT NULL,
    depends_on text[] NOT NULL DEFAULT '{}',
    params jsonb,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (workflow_id, task_name)
);

CREATE INDEX idx_workflow_tasks_workflow_id ON workflow_tasks (workflow_id);
