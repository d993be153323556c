-- Restarts an ended run according to a plan, and returns the run.
--
-- The plan was made from the run at this version (`xmin`). It lists the tasks to repeat, by index.
-- With each comes how many of its dependencies are repeated too. It also has the run's new error
-- and counts. No row: the run has changed since, or is gone.
CREATE FUNCTION ork_retry_run(
    p_run uuid, p_version text, p_tasks int[], p_unmet int[], p_error text, p_failed int, p_cancelled int,
    p_now timestamptz
)
RETURNS SETOF runs
LANGUAGE plpgsql
SET search_path FROM CURRENT
SET enable_seqscan = off
SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    v_version text;
    v_now timestamptz;
BEGIN
    SELECT r.xmin::text INTO v_version FROM runs r WHERE r.id = p_run FOR NO KEY UPDATE;
    IF v_version IS DISTINCT FROM p_version THEN
        RETURN;
    END IF;
    v_now := coalesce(p_now, clock_timestamp());
    PERFORM ork_count_ended(ARRAY[p_run], -1);
    PERFORM ork_hint_ready(v_now);
    WITH reset AS (
        UPDATE tasks t
        SET status = 'pending',
            unmet_dependencies = w.unmet,
            open_jobs = 0,
            attempts = 0,
            execution_name = NULL,
            output = NULL,
            error = NULL,
            ready_at = CASE WHEN w.unmet = 0 THEN v_now END,
            retry_at = NULL,
            dispatched_at = NULL,
            started_at = NULL,
            finished_at = NULL
        FROM unnest(p_tasks, p_unmet) AS w (task_index, unmet)
        WHERE t.run_id = p_run AND t.task_index = w.task_index
        RETURNING t.id, t.task_index, t.ready_at
    )
    INSERT INTO ready_tasks (ready_at, run_id, task_index, task_id)
    SELECT t.ready_at, p_run, t.task_index, t.id FROM reset t WHERE t.ready_at IS NOT NULL;

    RETURN QUERY
    UPDATE runs r
    SET status = 'running',
        finished_at = NULL,
        tasks_unfinished = cardinality(p_tasks),
        tasks_failed = p_failed,
        tasks_cancelled = p_cancelled,
        error = p_error
    WHERE r.id = p_run
    RETURNING r.*;
END
$$;
