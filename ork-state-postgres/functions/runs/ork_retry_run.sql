-- Does tasks of an ended run again.
--
-- Those that are named with all that depends on them, or without names those that failed or were
-- cancelled. Answers `retried` with the run, or why not: `live` or `nothing` (with the run's
-- status), `unknown` (with the name), `blocked` (with a task, one that it depends on, and that
-- one's status). No row: no such run.
CREATE FUNCTION ork_retry_run(p_run uuid, p_names text[], p_now timestamptz)
RETURNS TABLE (answer text, task text, blocker text, blocker_status text, run runs)
LANGUAGE plpgsql
SET search_path FROM CURRENT
SET enable_seqscan = off
SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz;
    v_status text;
    v_again int[];
BEGIN
    SELECT r.status INTO v_status FROM runs r WHERE r.id = p_run FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    IF v_status NOT IN ('success', 'failed', 'cancelled') THEN
        RETURN QUERY SELECT 'live', NULL, NULL, v_status, NULL::runs;
        RETURN;
    END IF;

    IF p_names IS NULL THEN
        SELECT array_agg(t.task_index) INTO v_again
        FROM tasks t
        WHERE t.run_id = p_run AND t.status IN ('failed', 'cancelled');
    ELSE
        RETURN QUERY
        SELECT 'unknown', n.name, NULL, v_status, NULL::runs
        FROM unnest(p_names) AS n (name)
        WHERE NOT EXISTS (SELECT FROM tasks t WHERE t.run_id = p_run AND t.task_name = n.name)
        LIMIT 1;
        IF FOUND THEN
            RETURN;
        END IF;
        WITH RECURSIVE reached (task_index) AS (
            SELECT t.task_index FROM tasks t WHERE t.run_id = p_run AND t.task_name = ANY (p_names)
            UNION
            SELECT e.dependent_index
            FROM reached a
            JOIN task_edges e ON e.run_id = p_run AND e.task_index = a.task_index
        )
        SELECT array_agg(a.task_index) INTO v_again FROM reached a;
    END IF;
    IF v_again IS NULL THEN
        RETURN QUERY SELECT 'nothing', NULL, NULL, v_status, NULL::runs;
        RETURN;
    END IF;

    RETURN QUERY
    SELECT 'blocked', t.task_name, d.task_name, d.status, NULL::runs
    FROM task_edges e
    JOIN unnest(v_again) AS a (task_index) ON a.task_index = e.dependent_index
    LEFT JOIN unnest(v_again) AS also (task_index) ON also.task_index = e.task_index
    JOIN tasks t ON t.run_id = p_run AND t.task_index = e.dependent_index
    JOIN tasks d ON d.run_id = p_run AND d.task_index = e.task_index
    WHERE e.run_id = p_run AND also.task_index IS NULL AND d.status <> 'success'
    ORDER BY t.task_index, d.task_index
    LIMIT 1;
    IF FOUND THEN
        RETURN;
    END IF;

    v_now := coalesce(p_now, clock_timestamp());
    PERFORM ork_count_ended(ARRAY[p_run], -1);
    PERFORM ork_hint_ready(v_now);
    WITH waiting AS (
        SELECT a.task_index, count(also.task_index)::int AS unmet
        FROM unnest(v_again) AS a (task_index)
        LEFT JOIN task_edges e ON e.run_id = p_run AND e.dependent_index = a.task_index
        LEFT JOIN unnest(v_again) AS also (task_index) ON also.task_index = e.task_index
        GROUP BY a.task_index
    ),
    reset AS (
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
        FROM waiting w
        WHERE t.run_id = p_run AND t.task_index = w.task_index
        RETURNING t.id, t.task_index, t.ready_at
    )
    INSERT INTO ready_tasks (ready_at, run_id, task_index, task_id)
    SELECT t.ready_at, p_run, t.task_index, t.id FROM reset t WHERE t.ready_at IS NOT NULL;

    RETURN QUERY
    UPDATE runs r
    SET status = 'running',
        finished_at = NULL,
        tasks_unfinished = cardinality(v_again),
        tasks_failed = c.failed,
        tasks_cancelled = c.cancelled,
        error = 'task "' || c.culprit || '" failed'
    FROM (
        SELECT
            (count(*) FILTER (WHERE t.status = 'failed'))::int AS failed,
            (count(*) FILTER (WHERE t.status = 'cancelled'))::int AS cancelled,
            -- What failed because of another never had all of its dependencies met.
            (array_agg(t.task_name ORDER BY t.task_index)
                FILTER (WHERE t.status = 'failed' AND t.unmet_dependencies = 0))[1] AS culprit
        FROM tasks t
        WHERE t.run_id = p_run
    ) c
    WHERE r.id = p_run
    RETURNING 'retried', NULL, NULL, NULL, r;
END
$$;
