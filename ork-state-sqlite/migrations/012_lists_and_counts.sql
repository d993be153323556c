-- What lists, deletions of old runs and counts of the whole store read.

CREATE UNIQUE INDEX idx_runs_idempotency_key ON runs (workflow_id, idempotency_key)
    WHERE idempotency_key IS NOT NULL;
CREATE INDEX idx_runs_created_at ON runs (created_at, id);
CREATE INDEX idx_runs_workflow ON runs (workflow_id, created_at, id);
CREATE INDEX idx_runs_status ON runs (status, created_at, id);
CREATE INDEX idx_runs_finished_at ON runs (finished_at, id) WHERE finished_at IS NOT NULL;

-- How many runs have ended ('run') and how many of their tasks ('task'), by status, so that nobody need count the history. And how
-- many ends there ever were ('ever', of runs that are gone too): it tells those who watch that there was another.
CREATE TABLE ended_counts (
    kind TEXT NOT NULL CHECK (kind IN ('run', 'task', 'ever')),
    status TEXT NOT NULL,
    number INTEGER NOT NULL,
    PRIMARY KEY (kind, status)
) STRICT, WITHOUT ROWID;
