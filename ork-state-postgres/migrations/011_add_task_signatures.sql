-- What a task takes and gives, as declared by the workflow.

ALTER TABLE workflow_tasks ADD COLUMN signature jsonb;
