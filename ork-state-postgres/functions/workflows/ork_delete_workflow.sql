-- Deletes a workflow with all its runs, unless one of them is live.
--
-- Returns `deleted`, or `live` with a run that has not ended. No row: no such workflow.
CREATE FUNCTION ork_delete_workflow(p_workflow uuid)
RETURNS TABLE (answer text, run_id uuid, run_status text)
LANGUAGE plpgsql
SET search_path FROM CURRENT
SET enable_seqscan = off
SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    v_runs uuid[];
BEGIN
    -- Blocks new runs, and waits for those that are being created.
    PERFORM FROM workflows w WHERE w.id = p_workflow FOR UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    -- Blocks retries, which would make one of them live again.
    PERFORM FROM runs r WHERE r.workflow_id = p_workflow ORDER BY r.id FOR UPDATE;
    RETURN QUERY
    SELECT 'live', r.id, r.status
    FROM runs r
    WHERE r.workflow_id = p_workflow AND r.status NOT IN ('success', 'failed', 'cancelled')
    ORDER BY r.created_at, r.id
    LIMIT 1;
    IF FOUND THEN
        RETURN;
    END IF;

    SELECT array_agg(r.id) INTO v_runs FROM runs r WHERE r.workflow_id = p_workflow;
    PERFORM ork_delete_runs(v_runs);
    -- The foreign key deletes its snapshots too.
    DELETE FROM workflows w WHERE w.id = p_workflow;
    RETURN QUERY SELECT 'deleted', NULL::uuid, NULL::text;
END
$$;
