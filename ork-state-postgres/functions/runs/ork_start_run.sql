-- Starts a pending run with these tasks, and returns the run.
--
-- The tasks come as arrays by index, the dependencies of each as the text of an array. The edges
-- come as two arrays. No row: no such run.
CREATE FUNCTION ork_start_run(
    p_run uuid, p_ids uuid[], p_names text[], p_executors text[], p_depends_on text[], p_params text[],
    p_retries int[], p_timeouts int[], p_unmet int[], p_dependencies int[], p_dependents int[], p_now timestamptz
)
RETURNS SETOF runs
LANGUAGE plpgsql
SET search_path FROM CURRENT
SET enable_seqscan = off
SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz;
BEGIN
    PERFORM FROM runs r WHERE r.id = p_run AND r.status = 'pending' FOR NO KEY UPDATE;
    IF FOUND THEN
        v_now := coalesce(p_now, clock_timestamp());
        PERFORM ork_hint_ready(v_now);
        WITH made AS (
            INSERT INTO tasks (
                id, run_id, task_index, task_name, executor_type, depends_on, params, max_retries,
                timeout_seconds, unmet_dependencies, status, created_at, ready_at
            )
            SELECT
                t.id, p_run, t.number::int - 1, t.name, t.executor, t.depends_on::text[], t.params::json, t.retries,
                t.timeout, t.unmet, 'pending', v_now, CASE WHEN t.unmet = 0 THEN v_now END
            FROM unnest(p_ids, p_names, p_executors, p_depends_on, p_params, p_retries, p_timeouts, p_unmet)
                WITH ORDINALITY AS t (id, name, executor, depends_on, params, retries, timeout, unmet, number)
            RETURNING tasks.id, tasks.task_index, tasks.ready_at
        )
        INSERT INTO ready_tasks (ready_at, run_id, task_index, task_id)
        SELECT m.ready_at, p_run, m.task_index, m.id FROM made m WHERE m.ready_at IS NOT NULL;

        INSERT INTO task_edges (run_id, task_index, dependent_index, dependent_id)
        SELECT p_run, e.dependency, e.dependent, p_ids[e.dependent + 1]
        FROM unnest(p_dependencies, p_dependents) AS e (dependency, dependent);

        -- A run without tasks has succeeded.
        UPDATE runs r
        SET status = CASE WHEN cardinality(p_ids) = 0 THEN 'success' ELSE 'running' END,
            tasks_total = cardinality(p_ids),
            tasks_unfinished = cardinality(p_ids),
            started_at = v_now,
            finished_at = CASE WHEN cardinality(p_ids) = 0 THEN v_now END
        WHERE r.id = p_run;
        IF cardinality(p_ids) = 0 THEN
            PERFORM ork_count_ended(ARRAY[p_run], 1);
            PERFORM ork_hint_ended();
        END IF;
    END IF;
    RETURN QUERY SELECT * FROM runs r WHERE r.id = p_run;
END
$$;
