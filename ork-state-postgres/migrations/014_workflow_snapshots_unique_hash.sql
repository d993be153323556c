-- One snapshot for each (workflow_id, content_hash): the newest stays and takes the references.
-- Some stores hold duplicates, so the index is made anew once they are gone.

DROP INDEX IF EXISTS idx_workflow_snapshots_content_hash;

UPDATE workflows
SET current_snapshot_id = merged.kept_id
FROM (
    SELECT
        id,
        first_value(id) OVER (
            PARTITION BY workflow_id, content_hash
            ORDER BY created_at DESC, id DESC
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
            ORDER BY created_at DESC, id DESC
        ) AS kept_id
    FROM workflow_snapshots
) AS merged
WHERE runs.snapshot_id = merged.id
    AND merged.id <> merged.kept_id;

DELETE FROM workflow_snapshots
USING (
    SELECT
        id,
        first_value(id) OVER (
            PARTITION BY workflow_id, content_hash
            ORDER BY created_at DESC, id DESC
        ) AS kept_id
    FROM workflow_snapshots
) AS merged
WHERE workflow_snapshots.id = merged.id
    AND merged.id <> merged.kept_id;

CREATE UNIQUE INDEX idx_workflow_snapshots_content_hash
    ON workflow_snapshots (workflow_id, content_hash);
