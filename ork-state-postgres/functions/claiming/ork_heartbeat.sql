-- Renews the leases that still hold, and returns a row for each of them.
CREATE FUNCTION ork_heartbeat(p_tasks uuid[], p_tokens bigint[], p_lease interval, p_now timestamptz)
RETURNS TABLE (task_id uuid, token bigint, expires_at timestamptz)
LANGUAGE plpgsql
SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_bitmapscan = off
SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz;
BEGIN
    PERFORM FROM task_leases l WHERE l.task_id = ANY (p_tasks) ORDER BY l.task_id FOR UPDATE;
    v_now := coalesce(p_now, clock_timestamp());
    RETURN QUERY
    UPDATE task_leases l
    SET expires_at = ork_later(v_now, p_lease)
    FROM (
        SELECT x.place
        FROM unnest(p_tasks, p_tokens) AS c (task_id, token)
        CROSS JOIN LATERAL (
            SELECT k.ctid AS place, k.expires_at
            FROM task_leases k
            WHERE k.task_id = c.task_id AND k.token = c.token
            OFFSET 0
        ) x
        WHERE v_now < x.expires_at
    ) held
    WHERE l.ctid = held.place
    RETURNING l.task_id, l.token, l.expires_at;
END
$$;
