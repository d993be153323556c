-- Runs and tasks can be paused.

ALTER TABLE runs
    DROP CONSTRAINT runs_status_check,
    ADD CONSTRAINT runs_status_check
        CHECK (status IN ('pending', 'running', 'paused', 'success', 'failed', 'cancelled'));

ALTER TABLE tasks
    DROP CONSTRAINT tasks_status_check,
    ADD CONSTRAINT tasks_status_check
        CHECK (status IN (
            'pending', 'dispatched', 'running', 'paused', 'success', 'failed', 'cancelled'
        ));
