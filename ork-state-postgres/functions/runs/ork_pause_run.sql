-- Pauses a running run, and returns the run.
--
-- Locks the run whatever its status is, and then decides. So it waits for a concurrent change
-- instead of failing. No row: no such run.
CREATE FUNCTION ork_pause_run(p_run uuid)
RETURNS SETOF runs
LANGUAGE plpgsql
SET search_path FROM CURRENT
SET enable_seqscan = off
SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    v_status text;
BEGIN
    SELECT r.status INTO v_status FROM runs r WHERE r.id = p_run FOR NO KEY UPDATE;
    IF v_status = 'running' THEN
        PERFORM ork_unqueue(ARRAY[p_run]);
        UPDATE tasks t SET ready_at = NULL WHERE t.run_id = p_run AND t.ready_at IS NOT NULL;
        UPDATE runs r SET status = 'paused' WHERE r.id = p_run;
    END IF;
    RETURN QUERY SELECT * FROM runs r WHERE r.id = p_run;
END
$$;
