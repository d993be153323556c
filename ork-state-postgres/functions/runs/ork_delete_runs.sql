-- Deletes ended runs with everything that belongs to them, and returns how many tasks they had.
--
-- The callers have locked the runs; the callers' settings apply here too. The chunks of the logs
-- are left to `ork_free_logs`.
CREATE FUNCTION ork_delete_runs(p_runs uuid[])
RETURNS bigint
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
DECLARE
    v_tasks uuid[];
BEGIN
    PERFORM ork_count_ended(p_runs, -1);
    -- Ended runs have no ready, claimed or timed tasks, unless they were damaged.
    PERFORM ork_unqueue(p_runs);
    DELETE FROM task_edges e WHERE e.run_id = ANY (p_runs);
    WITH gone AS (DELETE FROM tasks t WHERE t.run_id = ANY (p_runs) RETURNING t.id)
    SELECT array_agg(g.id) INTO v_tasks FROM gone g;
    DELETE FROM task_leases l WHERE l.task_id = ANY (v_tasks);
    DELETE FROM task_timeouts o WHERE o.task_id = ANY (v_tasks);
    DELETE FROM deferred_jobs j WHERE j.task_id = ANY (v_tasks);
    -- In this order: see `ork_append_log`.
    DELETE FROM task_logs l WHERE l.task_id = ANY (v_tasks);
    INSERT INTO deleted_logs (task_id)
    SELECT u.task_id
    FROM unnest(v_tasks) AS u (task_id)
    WHERE EXISTS (SELECT FROM task_log_chunks c WHERE c.task_id = u.task_id OFFSET 0);
    DELETE FROM runs r WHERE r.id = ANY (p_runs);
    RETURN coalesce(cardinality(v_tasks), 0);
END
$$;
