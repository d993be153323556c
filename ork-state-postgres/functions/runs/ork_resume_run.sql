-- Resumes a paused run, and returns the run.
--
-- Waits for a concurrent change as `ork_pause_run` does. No row: no such run.
CREATE FUNCTION ork_resume_run(p_run uuid, p_now timestamptz)
RETURNS SETOF runs
LANGUAGE plpgsql
SET search_path FROM CURRENT
SET enable_seqscan = off
SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    v_status text;
    v_now timestamptz;
BEGIN
    SELECT r.status INTO v_status FROM runs r WHERE r.id = p_run FOR NO KEY UPDATE;
    IF v_status = 'paused' THEN
        v_now := coalesce(p_now, clock_timestamp());
        PERFORM ork_hint_ready(v_now);
        WITH queued AS (
            UPDATE tasks t
            -- `greatest` ignores a null retry time.
            SET ready_at = greatest(v_now, t.retry_at)
            WHERE t.run_id = p_run AND t.status = 'pending' AND t.unmet_dependencies = 0
            RETURNING t.id, t.task_index, t.ready_at
        )
        INSERT INTO ready_tasks (ready_at, run_id, task_index, task_id)
        SELECT q.ready_at, p_run, q.task_index, q.id FROM queued q
        ON CONFLICT DO NOTHING;
        UPDATE runs r SET status = 'running' WHERE r.id = p_run;
    END IF;
    RETURN QUERY SELECT * FROM runs r WHERE r.id = p_run;
END
$$;
