-- As in 020, but who pauses, resumes or cancels a run locks it whatever its status is, and then decides: looked for by its status, a run
-- that another call was just changing was not waited for, and was then refused for the status that it had got meanwhile.

CREATE OR REPLACE FUNCTION ork_pause_run(p_run uuid)
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

CREATE OR REPLACE FUNCTION ork_resume_run(p_run uuid, p_now timestamptz)
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
            -- `greatest` passes over a retry time that is not there.
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

CREATE OR REPLACE FUNCTION ork_cancel_run(p_run uuid, p_now timestamptz)
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
