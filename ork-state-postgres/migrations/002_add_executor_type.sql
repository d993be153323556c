-- A workflow says what executes its tasks.

ALTER TABLE workflows
    ADD COLUMN executor_type text NOT NULL DEFAULT 'cloudrun'
        CONSTRAINT workflows_executor_type_check
        CHECK (executor_type IN ('cloudrun', 'process'));
