-- How often a task was tried and may be tried again, when, and how long a try may take.

ALTER TABLE tasks
    ADD COLUMN attempts int NOT NULL DEFAULT 0,
    ADD COLUMN max_retries int NOT NULL DEFAULT 0,
    ADD COLUMN timeout_seconds int,
    ADD COLUMN retry_at timestamptz;
