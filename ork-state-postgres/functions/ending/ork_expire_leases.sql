-- Takes lapsed claims back, the longest lapsed first.
--
-- Returns a row per task (`requeued` or `failed`) and a row per run that ended (`ended`, with its
-- status).
CREATE FUNCTION ork_expire_leases(p_limit int, p_now timestamptz)
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
    v_owners text[];
    v_kinds text[];
BEGIN
    -- Not locked yet: the runs must be locked first.
    SELECT array_agg(l.task_id), array_agg(DISTINCT l.run_id) INTO v_candidates, v_runs
    FROM (
        SELECT k.task_id, k.run_id
        FROM task_leases k
        WHERE k.expires_at <= v_now
        ORDER BY k.expires_at, k.task_id
        LIMIT p_limit
    ) l;
    IF v_candidates IS NULL THEN
        RETURN;
    END IF;
    PERFORM FROM runs r WHERE r.id = ANY (v_runs) ORDER BY r.id FOR NO KEY UPDATE;
    v_now := coalesce(p_now, clock_timestamp());
    -- Skips a lease that is being renewed, or that ended while this waited for the runs.
    SELECT array_agg(l.task_id), array_agg(l.owner) INTO v_tasks, v_owners
    FROM (
        SELECT k.task_id, k.owner
        FROM task_leases k
        -- The sum keeps the planner from using the index on the times here.
        WHERE k.task_id = ANY (v_candidates) AND k.expires_at + interval '0' <= v_now
        ORDER BY k.task_id
        FOR UPDATE SKIP LOCKED
    ) l;
    IF v_tasks IS NULL THEN
        RETURN;
    END IF;

    -- Leases of deleted tasks are removed too. Otherwise they would stay first in line for ever.
    DELETE FROM task_leases l WHERE l.task_id = ANY (v_tasks);

    SELECT
        array_agg(l.task_id), array_agg(l.owner),
        array_agg(CASE WHEN t.attempts <= t.max_retries THEN 'retry' ELSE 'failed' END)
    INTO v_tasks, v_owners, v_kinds
    FROM unnest(v_tasks, v_owners) AS l (task_id, owner)
    CROSS JOIN LATERAL (SELECT k.attempts, k.max_retries FROM tasks k WHERE k.id = l.task_id OFFSET 0) t;
    IF v_tasks IS NULL THEN
        RETURN;
    END IF;

    RETURN QUERY
    SELECT 'ended', f.run_id, f.status
    FROM ork_finish(
        v_now, v_tasks, v_kinds, NULL, NULL,
        (SELECT array_agg(format('the lease of "%s" lapsed', o.owner) ORDER BY o.place)
            FROM unnest(v_owners) WITH ORDINALITY AS o (owner, place)),
        NULL
    ) f;

    RETURN QUERY
    SELECT CASE t.kind WHEN 'retry' THEN 'requeued' ELSE 'failed' END, t.task_id, NULL
    FROM unnest(v_tasks, v_kinds) AS t (task_id, kind);
END
$$;
