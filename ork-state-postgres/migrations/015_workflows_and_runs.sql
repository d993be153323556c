-- Workflows and runs as ork-state keeps them.
--
-- JSON columns become `json`: `jsonb` rewrites numbers and drops white space, and what goes in must come out equal.
-- Names are ordered byte by byte whatever the database's collation.

-- What is not as it was afterwards, in rows of Ork's, but for what a rule computes from it: the migration reports it.
CREATE TEMP TABLE ork_adjusted (rule text NOT NULL, entity text NOT NULL, problem text NOT NULL) ON COMMIT DROP;

-- A workflow whose tasks are not in a snapshot gets one, and so do runs from before there were any. The content hash is made good when a
-- database of Ork is taken over: no statement can work it out.
WITH made AS (
    INSERT INTO workflow_snapshots (id, workflow_id, content_hash, tasks_json, created_at)
    SELECT
        gen_random_uuid(), w.id, 'of ' || w.id::text,
        coalesce(
            (
                SELECT jsonb_agg(
                    jsonb_build_object(
                        'task_index', t.place, 'task_name', t.task_name, 'executor_type', t.executor_type,
                        'depends_on', t.depends_on, 'params', t.params, 'signature', t.signature
                    )
                    ORDER BY t.place
                )
                FROM (
                    SELECT k.*, row_number() OVER (ORDER BY k.task_index, k.id) - 1 AS place
                    FROM workflow_tasks k
                    WHERE k.workflow_id = w.id
                ) t
            ),
            '[]'
        ),
        w.updated_at
    FROM workflows w
    WHERE w.current_snapshot_id IS NULL
    RETURNING id, workflow_id
)
UPDATE workflows w SET current_snapshot_id = m.id FROM made m WHERE m.workflow_id = w.id;

UPDATE runs r
SET snapshot_id = w.current_snapshot_id
FROM workflows w
WHERE w.id = r.workflow_id AND r.snapshot_id IS NULL;

-- Changes of rows wait with the checks of foreign keys, and a table that has such waiting cannot be altered.
SET CONSTRAINTS ALL IMMEDIATE;

ALTER TABLE workflows
    ALTER COLUMN name TYPE text COLLATE "C",
    ALTER COLUMN task_params TYPE json USING task_params::text::json,
    ALTER COLUMN current_snapshot_id SET NOT NULL;

DROP INDEX idx_workflows_executor_type;

ALTER TABLE workflow_snapshots
    ALTER COLUMN tasks_json TYPE json USING tasks_json::text::json;

-- The unique index on (workflow_id, content_hash) serves as well.
DROP INDEX idx_workflow_snapshots_workflow_id;

-- A workflow's tasks are those of its snapshot.
DROP TABLE workflow_tasks;

-- A run's snapshot goes only with its workflow, after the run. A foreign key would look for runs of each snapshot that is
-- deleted, with no index to find them by.
ALTER TABLE runs
    DROP CONSTRAINT runs_snapshot_id_fkey,
    ALTER COLUMN snapshot_id SET NOT NULL,
    ADD COLUMN idempotency_key text COLLATE "C",
    ADD COLUMN tasks_total int NOT NULL DEFAULT 0,
    ADD COLUMN tasks_unfinished int NOT NULL DEFAULT 0,
    ADD COLUMN tasks_failed int NOT NULL DEFAULT 0,
    ADD COLUMN tasks_cancelled int NOT NULL DEFAULT 0,
    SET (fillfactor = 80);

DROP INDEX idx_runs_status;
DROP INDEX idx_runs_workflow_id;

CREATE UNIQUE INDEX runs_idempotency_key ON runs (workflow_id, idempotency_key)
    WHERE idempotency_key IS NOT NULL;
-- Lists are ordered by the id after these. It is not in the indexes, or else, while there are few runs, a plan could take
-- one of them to look a run up by its id, and be kept when there are many.
CREATE INDEX runs_by_age ON runs (created_at);
CREATE INDEX runs_of_workflow ON runs (workflow_id, created_at);
CREATE INDEX runs_by_status ON runs (status, created_at);
CREATE INDEX runs_ended ON runs (finished_at) WHERE finished_at IS NOT NULL;

-- How many runs have ended, and how many of their tasks, by status: so that nobody need count the history. Each connection adds to
-- one of a few rows, by its number, so that runs that end at once seldom wait for each other; their sum counts.
CREATE TABLE ended_counts (
    slot int NOT NULL,
    kind text NOT NULL CHECK (kind IN ('run', 'task')),
    status text NOT NULL,
    number bigint NOT NULL,
    PRIMARY KEY (slot, kind, status)
) WITH (fillfactor = 50);
