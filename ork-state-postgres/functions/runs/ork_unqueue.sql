-- Takes all tasks of these runs out of the queue of ready tasks.
--
-- The callers have locked the runs. This waits for claims that are taking some of the tasks, so it
-- comes before any change of the tasks. The callers' settings apply here too.
CREATE FUNCTION ork_unqueue(p_runs uuid[])
RETURNS void
LANGUAGE sql
AS $$
    DELETE FROM ready_tasks
    WHERE ctid = ANY (ARRAY(
        SELECT q.place
        FROM tasks t
        CROSS JOIN LATERAL (
            SELECT k.ctid AS place
            FROM ready_tasks k
            WHERE k.ready_at = t.ready_at AND k.run_id = t.run_id AND k.task_index = t.task_index
            OFFSET 0
        ) q
        WHERE t.run_id = ANY (p_runs) AND t.ready_at IS NOT NULL
    ))
$$;
