-- The steps of a run, and the deletion of a workflow. See 018 for how all functions lock and look up.
--
-- The functions about a run give it as it stands after the call, changed or not; no row: no such run. Whether the status it has allows
-- the step is for the caller to say.

-- With a key that has a run already it gives that one. No row: no such workflow.
CREATE FUNCTION ork_create_run(p_run uuid, p_workflow uuid, p_trigger text, p_key text, p_now timestamptz)
RETURNS SETOF runs
LANGUAGE plpgsql
SET search_path FROM CURRENT
SET enable_seqscan = off
SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    v_snapshot uuid;
BEGIN
    -- Keeps a deletion of the workflow out until this is committed.
    SELECT w.current_snapshot_id INTO v_snapshot FROM workflows w WHERE w.id = p_workflow FOR KEY SHARE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    RETURN QUERY
    INSERT INTO runs (id, workflow_id, snapshot_id, status, triggered_by, idempotency_key, created_at)
    VALUES (
        p_run, p_workflow, v_snapshot, 'pending', p_trigger, p_key, coalesce(p_now, clock_timestamp())
    )
    -- Waits for another call with this key that is under way.
    ON CONFLICT (workflow_id, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
    RETURNING *;
    IF NOT FOUND THEN
        RETURN QUERY SELECT * FROM runs r WHERE r.workflow_id = p_workflow AND r.idempotency_key = p_key;
    END IF;
END
$$;

-- The tasks come as arrays by index, the dependencies of each as the text of an array; the edges as two arrays.
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

        -- A run of no tasks has succeeded.
        UPDATE runs r
        SET status = CASE WHEN cardinality(p_ids) = 0 THEN 'success' ELSE 'running' END,
            tasks_total = cardinality(p_ids),
            tasks_unfinished = cardinality(p_ids),
            started_at = v_now,
            finished_at = CASE WHEN cardinality(p_ids) = 0 THEN v_now END
        WHERE r.id = p_run;
    END IF;
    RETURN QUERY SELECT * FROM runs r WHERE r.id = p_run;
END
$$;

-- Takes all tasks of these runs, which are locked, out of the ready ones. Waits for claims that are just taking some, so it
-- comes before any change of the tasks. Its callers' settings hold here too.
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

CREATE FUNCTION ork_pause_run(p_run uuid)
RETURNS SETOF runs
LANGUAGE plpgsql
SET search_path FROM CURRENT
SET enable_seqscan = off
SET jit = off
AS $$
#variable_conflict use_column
BEGIN
    PERFORM FROM runs r WHERE r.id = p_run AND r.status = 'running' FOR NO KEY UPDATE;
    IF FOUND THEN
        PERFORM ork_unqueue(ARRAY[p_run]);
        UPDATE tasks t SET ready_at = NULL WHERE t.run_id = p_run AND t.ready_at IS NOT NULL;
        UPDATE runs r SET status = 'paused' WHERE r.id = p_run;
    END IF;
    RETURN QUERY SELECT * FROM runs r WHERE r.id = p_run;
END
$$;

CREATE FUNCTION ork_resume_run(p_run uuid, p_now timestamptz)
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
    PERFORM FROM runs r WHERE r.id = p_run AND r.status = 'paused' FOR NO KEY UPDATE;
    IF FOUND THEN
        v_now := coalesce(p_now, clock_timestamp());
        WITH queued AS (
            UPDATE tasks t
            -- `greatest` passes over a retry time that is not there.
            SET ready_at = greatest(v_now, t.retry_at)
            WHERE t.run_id = p_run AND t.status = 'pending' AND t.unmet_dependencies = 0
            RETURNING t.id, t.task_index, t.ready_at
        )
        INSERT INTO ready_tasks (ready_at, run_id, task_index, task_id)
        SELECT q.ready_at, p_run, q.task_index, q.id FROM queued q
        ON CONFLICT DO NOTHING;
        UPDATE runs r SET status = 'running' WHERE r.id = p_run;
    END IF;
    RETURN QUERY SELECT * FROM runs r WHERE r.id = p_run;
END
$$;

CREATE FUNCTION ork_cancel_run(p_run uuid, p_now timestamptz)
RETURNS SETOF runs
LANGUAGE plpgsql
SET search_path FROM CURRENT
SET enable_seqscan = off
SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz;
    v_tasks uuid[];
BEGIN
    PERFORM FROM runs r WHERE r.id = p_run AND r.status IN ('pending', 'running', 'paused') FOR NO KEY UPDATE;
    IF FOUND THEN
        PERFORM ork_unqueue(ARRAY[p_run]);
        SELECT array_agg(t.id) INTO v_tasks
        FROM tasks t
        WHERE t.run_id = p_run AND t.status NOT IN ('success', 'failed', 'cancelled');
        PERFORM FROM task_leases l WHERE l.task_id = ANY (v_tasks) ORDER BY l.task_id FOR UPDATE;
        DELETE FROM task_leases l WHERE l.task_id = ANY (v_tasks);
        v_now := coalesce(p_now, clock_timestamp());
        UPDATE tasks t
        SET status = 'cancelled', finished_at = v_now, ready_at = NULL, retry_at = NULL
        WHERE t.run_id = p_run AND t.status NOT IN ('success', 'failed', 'cancelled');
        UPDATE runs r SET status = 'cancelled', tasks_unfinished = 0, finished_at = v_now WHERE r.id = p_run;
    END IF;
    RETURN QUERY SELECT * FROM runs r WHERE r.id = p_run;
END
$$;

-- Answers `deleted`, or `live` with a run that has not ended; no row: no such workflow.
CREATE FUNCTION ork_delete_workflow(p_workflow uuid)
RETURNS TABLE (answer text, run_id uuid, run_status text)
LANGUAGE plpgsql
SET search_path FROM CURRENT
SET enable_seqscan = off
SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    v_runs uuid[];
    v_tasks uuid[];
BEGIN
    -- Keeps new runs out, and waits for those that are being created.
    PERFORM FROM workflows w WHERE w.id = p_workflow FOR UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    RETURN QUERY
    SELECT 'live', r.id, r.status
    FROM runs r
    WHERE r.workflow_id = p_workflow AND r.status NOT IN ('success', 'failed', 'cancelled')
    ORDER BY r.created_at, r.id
    LIMIT 1;
    IF FOUND THEN
        RETURN;
    END IF;

    SELECT array_agg(r.id) INTO v_runs FROM runs r WHERE r.workflow_id = p_workflow;
    -- Runs that have ended have no ready and no claimed tasks, unless they were damaged.
    PERFORM ork_unqueue(v_runs);
    DELETE FROM task_edges e WHERE e.run_id = ANY (v_runs);
    WITH gone AS (DELETE FROM tasks t WHERE t.run_id = ANY (v_runs) RETURNING t.id)
    SELECT array_agg(g.id) INTO v_tasks FROM gone g;
    DELETE FROM task_leases l WHERE l.task_id = ANY (v_tasks);
    -- In this order: see `ork_append_log`.
    DELETE FROM task_logs l WHERE l.task_id = ANY (v_tasks);
    DELETE FROM task_log_chunks c WHERE c.task_id = ANY (v_tasks);
    DELETE FROM runs r WHERE r.id = ANY (v_runs);
    -- Its snapshots go with it by their foreign key.
    DELETE FROM workflows w WHERE w.id = p_workflow;
    RETURN QUERY SELECT 'deleted', NULL::uuid, NULL::text;
END
$$;
