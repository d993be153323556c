-- Cancels a live run with all its unfinished tasks, and returns the run.
--
-- Waits for a concurrent change as `ork_pause_run` does. No row: no such run.
CREATE FUNCTION ork_cancel_run(p_run uuid, p_now timestamptz)
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
    v_tasks uuid[];
BEGIN
    SELECT r.status INTO v_status FROM runs r WHERE r.id = p_run FOR NO KEY UPDATE;
    IF v_status IN ('pending', 'running', 'paused') THEN
        PERFORM ork_unqueue(ARRAY[p_run]);
        SELECT array_agg(t.id) INTO v_tasks
        FROM tasks t
        WHERE t.run_id = p_run AND t.status NOT IN ('success', 'failed', 'cancelled');
        PERFORM FROM task_leases l WHERE l.task_id = ANY (v_tasks) ORDER BY l.task_id FOR UPDATE;
        DELETE FROM task_leases l WHERE l.task_id = ANY (v_tasks);
        v_now := coalesce(p_now, clock_timestamp());
        DELETE FROM task_timeouts o WHERE o.task_id = ANY (v_tasks);
        UPDATE deferred_jobs j
        SET status = 'cancelled', finished_at = v_now, poll_at = NULL, owner = NULL
        WHERE j.task_id = ANY (v_tasks) AND j.poll_at IS NOT NULL;
        UPDATE tasks t
        SET status = 'cancelled', finished_at = v_now, ready_at = NULL, retry_at = NULL, open_jobs = 0
        WHERE t.run_id = p_run AND t.status NOT IN ('success', 'failed', 'cancelled');
        UPDATE runs r
        SET status = 'cancelled',
            tasks_cancelled = r.tasks_cancelled + r.tasks_unfinished,
            tasks_unfinished = 0,
            finished_at = v_now
        WHERE r.id = p_run;
        PERFORM ork_count_ended(ARRAY[p_run], 1);
        PERFORM ork_hint_ended();
    END IF;
    RETURN QUERY SELECT * FROM runs r WHERE r.id = p_run;
END
$$;
