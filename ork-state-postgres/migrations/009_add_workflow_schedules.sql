-- Workflows that start by the clock.

ALTER TABLE workflows
    ADD COLUMN schedule text,
    ADD COLUMN schedule_enabled bool NOT NULL DEFAULT false,
    ADD COLUMN last_scheduled_at timestamptz,
    ADD COLUMN next_scheduled_at timestamptz;

CREATE INDEX idx_workflows_next_scheduled ON workflows (next_scheduled_at)
    WHERE schedule_enabled;
