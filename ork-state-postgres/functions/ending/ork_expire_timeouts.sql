-- Ends overdue attempts with their open jobs, the longest overdue first.
--
-- Returns rows as `ork_expire_leases` does.
CREATE FUNCTION ork_expire_timeouts(p_limit int, p_now timestamptz)
RETURNS TABLE (answer text, id uuid, status text)
LANGUAGE plpgsql
SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_bitmapscan = off
SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz := coalesce(p_now, clock_timestamp());
    v_candidates uuid[];
    v_runs uuid[];
    v_tasks uuid[];
    v_kinds text[];
    v_errors text[];
BEGIN
    SELECT array_agg(o.task_id), array_agg(DISTINCT o.run_id) INTO v_candidates, v_runs
    FROM (
        SELECT k.task_id, k.run_id
        FROM task_timeouts k
        WHERE k.deadline <= v_now
        ORDER BY k.deadline, k.task_id
        LIMIT p_limit
    ) o;
    IF v_candidates IS NULL THEN
        RETURN;
    END IF;
    PERFORM FROM runs r WHERE r.id = ANY (v_runs) ORDER BY r.id FOR NO KEY UPDATE;
    PERFORM FROM task_leases l WHERE l.task_id = ANY (v_candidates) ORDER BY l.task_id FOR UPDATE;
    -- A task must become ready no earlier than its transaction got its number. The beginning of the
    -- queue is derived from that.
    v_now := coalesce(p_now, clock_timestamp());
    -- A task that ended while this waited for the locks has no deadline any more. Another attempt
    -- has another deadline.
    DELETE FROM task_timeouts o WHERE o.task_id = ANY (v_candidates) AND o.deadline + interval '0' <= v_now;

    SELECT
        array_agg(t.id),
        array_agg(CASE WHEN t.attempts <= t.max_retries THEN 'retry' ELSE 'failed' END),
        array_agg(format('timed out after %s s', t.timeout_seconds))
    INTO v_tasks, v_kinds, v_errors
    FROM unnest(v_candidates) AS c (task_id)
    CROSS JOIN LATERAL (
        SELECT k.id, k.attempts, k.max_retries, k.timeout_seconds, k.started_at
        FROM tasks k
        WHERE k.id = c.task_id AND k.status = 'running'
        OFFSET 0
    ) t
    WHERE ork_later(t.started_at, make_interval(secs => t.timeout_seconds)) <= v_now;
    IF v_tasks IS NULL THEN
        RETURN;
    END IF;

    UPDATE deferred_jobs j
    SET status = 'cancelled', finished_at = v_now, poll_at = NULL, owner = NULL
    WHERE j.task_id = ANY (v_tasks) AND j.poll_at IS NOT NULL;

    RETURN QUERY
    SELECT 'ended', f.run_id, f.status
    FROM ork_finish(v_now, v_tasks, v_kinds, NULL, NULL, v_errors, NULL) f;

    RETURN QUERY
    SELECT CASE t.kind WHEN 'retry' THEN 'requeued' ELSE 'failed' END, t.task_id, NULL
    FROM unnest(v_tasks, v_kinds) AS t (task_id, kind);
END
$$;
