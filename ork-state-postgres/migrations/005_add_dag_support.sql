-- Tasks get names and dependencies, workflows the DAG they were made from.
-- Rows from before get a name from their index, so that the column can be NOT NULL.

ALTER TABLE workflows
    ADD COLUMN workflow_yaml text,
    ADD COLUMN workflow_root text,
    DROP CONSTRAINT workflows_executor_type_check,
    ADD CONSTRAINT workflows_executor_type_check
        CHECK (executor_type IN ('cloudrun', 'process', 'python'));

ALTER TABLE tasks
    ADD COLUMN task_name text,
    ADD COLUMN depends_on text[] NOT NULL DEFAULT '{}';

UPDATE tasks SET task_name = 'task_' || task_index;

ALTER TABLE tasks ALTER COLUMN task_name SET NOT NULL;

CREATE INDEX idx_tasks_run_task_name ON tasks (run_id, task_name);
