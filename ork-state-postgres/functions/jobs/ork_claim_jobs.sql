-- Hands out jobs that are due to be polled, the longest due first.
CREATE FUNCTION ork_claim_jobs(p_owner text, p_lease interval, p_limit int, p_now timestamptz)
RETURNS SETOF deferred_jobs
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
    v_jobs uuid[];
    v_due timestamptz[];
BEGIN
    -- Skips jobs that another poller is just claiming.
    SELECT array_agg(j.id), array_agg(j.poll_at) INTO v_jobs, v_due
    FROM (
        SELECT k.id, k.poll_at
        FROM deferred_jobs k
        WHERE k.poll_at <= v_now
        ORDER BY k.poll_at, k.id
        LIMIT p_limit
        FOR UPDATE SKIP LOCKED
    ) j;
    v_now := coalesce(p_now, clock_timestamp());
    RETURN QUERY
    WITH claimed AS (
        UPDATE deferred_jobs j
        SET status = 'polling',
            token = j.token + 1,
            owner = p_owner,
            poll_at = ork_later(v_now, p_lease),
            started_at = coalesce(j.started_at, v_now)
        FROM unnest(v_jobs) AS c (id)
        WHERE j.id = c.id
        RETURNING j AS job
    )
    SELECT (c.job).*
    FROM unnest(v_jobs, v_due) AS d (id, due)
    JOIN claimed c ON (c.job).id = d.id
    ORDER BY d.due, d.id;
END
$$;
