-- Creates a run of a workflow, or returns the existing run with its key.
--
-- No row: no such workflow.
CREATE FUNCTION ork_create_run(p_run uuid, p_workflow uuid, p_trigger text, p_key text, p_now timestamptz)
RETURNS SETOF runs
LANGUAGE plpgsql
SET search_path FROM CURRENT
SET enable_seqscan = off
SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    v_snapshot uuid;
BEGIN
    -- Blocks a deletion of the workflow until this is committed.
    SELECT w.current_snapshot_id INTO v_snapshot FROM workflows w WHERE w.id = p_workflow FOR KEY SHARE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    RETURN QUERY
    INSERT INTO runs (id, workflow_id, snapshot_id, status, triggered_by, idempotency_key, created_at)
    VALUES (
        p_run, p_workflow, v_snapshot, 'pending', p_trigger, p_key, coalesce(p_now, clock_timestamp())
    )
    -- Waits for a concurrent call with this key.
    ON CONFLICT (workflow_id, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
    RETURNING *;
    IF NOT FOUND THEN
        RETURN QUERY SELECT * FROM runs r WHERE r.workflow_id = p_workflow AND r.idempotency_key = p_key;
    END IF;
END
$$;
