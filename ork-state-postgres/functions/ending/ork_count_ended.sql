-- Adds ended runs to the counts of ended runs and tasks, or subtracts them (-1).
--
-- The callers have locked the runs.
CREATE FUNCTION ork_count_ended(p_runs uuid[], p_sign int)
RETURNS void
LANGUAGE sql
AS $$
    INSERT INTO ended_counts AS c (slot, kind, status, number)
    SELECT pg_backend_pid() % 16, n.kind, n.status, p_sign * sum(n.number)
    FROM runs r
    CROSS JOIN LATERAL (
        VALUES
            ('run', r.status, 1),
            ('task', 'success', r.tasks_total - r.tasks_failed - r.tasks_cancelled),
            ('task', 'failed', r.tasks_failed),
            ('task', 'cancelled', r.tasks_cancelled)
    ) n (kind, status, number)
    WHERE r.id = ANY (p_runs) AND n.number <> 0
    GROUP BY n.kind, n.status
    -- In a fixed order, and after all other locks, so that connections that share a slot do not
    -- deadlock.
    ORDER BY n.kind, n.status
    ON CONFLICT (slot, kind, status) DO UPDATE SET number = c.number + excluded.number
$$;
