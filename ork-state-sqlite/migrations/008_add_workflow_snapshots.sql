-- Immutable copies of a workflow's DAG, one a content hash. The two references to them have
-- no foreign key: in old stores they may name a snapshot that is not there.

CREATE TABLE workflow_snapshots (
    id BLOB NOT NULL PRIMARY KEY,
    workflow_id BLOB NOT NULL REFERENCES workflows (id) ON DELETE CASCADE,
    content_hash TEXT NOT NULL,
    tasks_json TEXT NOT NULL,
    created_at TEXT NOT NULL
);

CREATE INDEX idx_workflow_snapshots_workflow_id ON workflow_snapshots (workflow_id);
CREATE UNIQUE INDEX idx_workflow_snapshots_content_hash
    ON workflow_snapshots (workflow_id, content_hash);

ALTER TABLE workflows ADD COLUMN current_snapshot_id BLOB;
ALTER TABLE runs ADD COLUMN snapshot_id BLOB;
