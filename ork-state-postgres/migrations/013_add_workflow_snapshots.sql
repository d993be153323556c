-- Immutable copies of a workflow's DAG, one a content hash. A workflow names its current one,
-- a run the one it was started from.

CREATE TABLE workflow_snapshots (
    id uuid PRIMARY KEY,
    workflow_id uuid NOT NULL REFERENCES workflows (id) ON DELETE CASCADE,
    content_hash text NOT NULL,
    tasks_json jsonb NOT NULL,
    created_at timestamptz NOT NULL
);

CREATE INDEX idx_workflow_snapshots_workflow_id ON workflow_snapshots (workflow_id);
CREATE UNIQUE INDEX idx_workflow_snapshots_content_hash
    ON workflow_snapshots (workflow_id, content_hash);

ALTER TABLE workflows
    ADD COLUMN current_snapshot_id uuid REFERENCES workflow_snapshots (id);

ALTER TABLE runs
    ADD COLUMN snapshot_id uuid REFERENCES workflow_snapshots (id);
