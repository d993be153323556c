-- Deletes runs that ended long enough ago, the longest ended first.
--
-- Skips runs that another call has locked.
CREATE FUNCTION ork_prune(p_ended_before interval, p_limit int, p_now timestamptz)
RETURNS TABLE (runs bigint, tasks bigint)
LANGUAGE plpgsql
SET search_path FROM CURRENT
SET enable_seqscan = off
SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    v_runs uuid[];
BEGIN
    SELECT array_agg(r.id) INTO v_runs
    FROM (
        SELECT k.id
        FROM runs k
        WHERE k.finished_at < coalesce(p_now, clock_timestamp()) - p_ended_before
        ORDER BY k.finished_at, k.id
        LIMIT p_limit
        FOR UPDATE SKIP LOCKED
    ) r;
    RETURN QUERY
    SELECT coalesce(cardinality(v_runs), 0)::bigint, CASE WHEN v_runs IS NULL THEN 0 ELSE ork_delete_runs(v_runs) END;
END
$$;
