-- One snapshot for each (workflow_id, content_hash): the newest stays and takes the references.
-- Times stand in several forms; without the T and the Z their text sorts by time in all of them.

DROP INDEX IF EXISTS idx_workflow_snapshots_content_hash;

UPDATE workflows
SET current_snapshot_id = merged.kept_id
FROM (
    SELECT
        id,
        first_value(id) OVER (
            PARTITION BY workflow_id, content_hash
            ORDER BY replace(rtrim(created_at, 'Z'), 'T', ' ') DESC, id DESC
        ) AS kept_id
    FROM workflow_snapshots
) AS merged
WHERE workflows.current_snapshot_id = merged.id
    AND merged.id <> merged.kept_id;

UPDATE runs
SET snapshot_id = merged.kept_id
FROM (
    SELECT
        id,
        first_value(id) OVER (
            PARTITION BY workflow_id, content_hash
            ORDER BY replace(rtrim(created_at, 'Z'), 'T', ' ') DESC, id DESC
        ) AS kept_id
    FROM workflow_snapshots
) AS merged
WHERE runs.snapshot_id = merged.id
    AND merged.id <> merged.kept_id;

DELETE FROM workflow_snapshots
WHERE id IN (
    SELECT id
    FROM (
        SELECT
            id,
            first_value(id) OVER (
                PARTITION BY workflow_id, content_hash
                ORDER BY replace(rtrim(created_at, 'Z'), 'T', ' ') DESC, id DESC
            ) AS kept_id
        FROM workflow_snapshots
    )
    WHERE id <> kept_id
);

CREATE UNIQUE INDEX idx_workflow_snapshots_content_hash
    ON workflow_snapshots (workflow_id, content_hash);
