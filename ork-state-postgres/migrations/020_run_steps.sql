-- The steps of a run, and the deletion of a workflow. See 018 for how all functions lock and look up.
--
-- The functions about a run give it as it stands after the call, changed or not; no row: no such run. Whether the status it has allows
-- the step is for the caller to say.

-- Changes what is given: the description and the target if their flags say so, the DAG if it has a text. No row: no such workflow.
CREATE FUNCTION ork_update_workflow(
    p_workflow uuid, p_has_description boolean, p_description text, p_has_target boolean, p_executor text, p_job text,
    p_region text, p_project text, p_params text, p_snapshot uuid, p_hash text, p_dag text, p_now timestamptz
)
RETURNS SETOF workflows
LANGUAGE plpgsql
SET search_path FROM CURRENT
SET enable_seqscan = off
SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz;
    v_snapshot uuid;
BEGIN
    PERFORM FROM workflows w WHERE w.id = p_workflow FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    v_now := coalesce(p_now, clock_timestamp());
    IF p_dag IS NOT NULL THEN
        INSERT INTO workflow_snapshots (id, workflow_id, content_hash, tasks_json, created_at)
        VALUES (p_snapshot, p_workflow, p_hash, p_dag::json, v_now)
        ON CONFLICT (workflow_id, content_hash) DO NOTHING;
        SELECT s.id INTO v_snapshot
        FROM workflow_snapshots s
        WHERE s.workflow_id = p_workflow AND s.content_hash = p_hash;
    END IF;
    RETURN QUERY
    UPDATE workflows w
    SET description = CASE WHEN p_has_description THEN p_description ELSE w.description END,
        executor_type = CASE WHEN p_has_target THEN p_executor ELSE w.executor_type END,
        job_name = CASE WHEN p_has_target THEN p_job ELSE w.job_name END,
        region = CASE WHEN p_has_target THEN p_region ELSE w.region END,
        project = CASE WHEN p_has_target THEN p_project ELSE w.project END,
        task_params = CASE WHEN p_has_target THEN p_params::json ELSE w.task_params END,
        current_snapshot_id = coalesce(v_snapshot, w.current_snapshot_id),
        updated_at = v_now
    WHERE w.id = p_workflow
    RETURNING w.*;
END
$$;

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

        -- A run of no tasks has succeeded.
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
        PERFORM ork_hint_ready(v_now);
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
        DELETE FROM task_timeouts o WHERE o.task_id = ANY (v_tasks);
        UPDATE deferred_jobs j
        SET status = 'cancelled', finished_at = v_now, poll_at = NULL, owner = NULL
        WHERE j.task_id = ANY (v_tasks) AND j.poll_at IS NOT NULL;
        UPDATE tasks t
        SET status = 'cancelled', finished_at = v_now, ready_at = NULL, retry_at = NULL, open_jobs = 0
        WHERE t.run_id = p_run AND t.status NOT IN ('success', 'failed', 'cancelled');
        UPDATE runs r
        SET status = 'cancelled',
            tasks_cancelled = r.tasks_cancelled + r.tasks_unfinished,
            tasks_unfinished = 0,
            finished_at = v_now
        WHERE r.id = p_run;
        PERFORM ork_count_ended(ARRAY[p_run], 1);
        PERFORM ork_hint_ended();
    END IF;
    RETURN QUERY SELECT * FROM runs r WHERE r.id = p_run;
END
$$;

-- Does tasks of an ended run again: those that are named with all that depends on them, or without names those that failed or were cancelled.
-- Answers `retried` with the run, or why not: `live` or `nothing` (with the run's status), `unknown` (with the name), `blocked` (with a task, one
-- that it depends on, and that one's status). No row: no such run.
CREATE FUNCTION ork_retry_run(p_run uuid, p_names text[], p_now timestamptz)
RETURNS TABLE (answer text, task text, blocker text, blocker_status text, run runs)
LANGUAGE plpgsql
SET search_path FROM CURRENT
SET enable_seqscan = off
SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz;
    v_status text;
    v_again int[];
BEGIN
    SELECT r.status INTO v_status FROM runs r WHERE r.id = p_run FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    IF v_status NOT IN ('success', 'failed', 'cancelled') THEN
        RETURN QUERY SELECT 'live', NULL, NULL, v_status, NULL::runs;
        RETURN;
    END IF;

    IF p_names IS NULL THEN
        SELECT array_agg(t.task_index) INTO v_again
        FROM tasks t
        WHERE t.run_id = p_run AND t.status IN ('failed', 'cancelled');
    ELSE
        RETURN QUERY
        SELECT 'unknown', n.name, NULL, v_status, NULL::runs
        FROM unnest(p_names) AS n (name)
        WHERE NOT EXISTS (SELECT FROM tasks t WHERE t.run_id = p_run AND t.task_name = n.name)
        LIMIT 1;
        IF FOUND THEN
            RETURN;
        END IF;
        WITH RECURSIVE reached (task_index) AS (
            SELECT t.task_index FROM tasks t WHERE t.run_id = p_run AND t.task_name = ANY (p_names)
            UNION
            SELECT e.dependent_index
            FROM reached a
            JOIN task_edges e ON e.run_id = p_run AND e.task_index = a.task_index
        )
        SELECT array_agg(a.task_index) INTO v_again FROM reached a;
    END IF;
    IF v_again IS NULL THEN
        RETURN QUERY SELECT 'nothing', NULL, NULL, v_status, NULL::runs;
        RETURN;
    END IF;

    RETURN QUERY
    SELECT 'blocked', t.task_name, d.task_name, d.status, NULL::runs
    FROM task_edges e
    JOIN unnest(v_again) AS a (task_index) ON a.task_index = e.dependent_index
    LEFT JOIN unnest(v_again) AS also (task_index) ON also.task_index = e.task_index
    JOIN tasks t ON t.run_id = p_run AND t.task_index = e.dependent_index
    JOIN tasks d ON d.run_id = p_run AND d.task_index = e.task_index
    WHERE e.run_id = p_run AND also.task_index IS NULL AND d.status <> 'success'
    ORDER BY t.task_index, d.task_index
    LIMIT 1;
    IF FOUND THEN
        RETURN;
    END IF;

    v_now := coalesce(p_now, clock_timestamp());
    PERFORM ork_count_ended(ARRAY[p_run], -1);
    PERFORM ork_hint_ready(v_now);
    WITH waiting AS (
        SELECT a.task_index, count(also.task_index)::int AS unmet
        FROM unnest(v_again) AS a (task_index)
        LEFT JOIN task_edges e ON e.run_id = p_run AND e.dependent_index = a.task_index
        LEFT JOIN unnest(v_again) AS also (task_index) ON also.task_index = e.task_index
        GROUP BY a.task_index
    ),
    reset AS (
        UPDATE tasks t
        SET status = 'pending',
            unmet_dependencies = w.unmet,
            open_jobs = 0,
            attempts = 0,
            execution_name = NULL,
            output = NULL,
            error = NULL,
            ready_at = CASE WHEN w.unmet = 0 THEN v_now END,
            retry_at = NULL,
            dispatched_at = NULL,
            started_at = NULL,
            finished_at = NULL
        FROM waiting w
        WHERE t.run_id = p_run AND t.task_index = w.task_index
        RETURNING t.id, t.task_index, t.ready_at
    )
    INSERT INTO ready_tasks (ready_at, run_id, task_index, task_id)
    SELECT t.ready_at, p_run, t.task_index, t.id FROM reset t WHERE t.ready_at IS NOT NULL;

    RETURN QUERY
    UPDATE runs r
    SET status = 'running',
        finished_at = NULL,
        tasks_unfinished = cardinality(v_again),
        tasks_failed = c.failed,
        tasks_cancelled = c.cancelled,
        error = 'task "' || c.culprit || '" failed'
    FROM (
        SELECT
            (count(*) FILTER (WHERE t.status = 'failed'))::int AS failed,
            (count(*) FILTER (WHERE t.status = 'cancelled'))::int AS cancelled,
            -- What failed because of another never had all of its dependencies met.
            (array_agg(t.task_name ORDER BY t.task_index)
                FILTER (WHERE t.status = 'failed' AND t.unmet_dependencies = 0))[1] AS culprit
        FROM tasks t
        WHERE t.run_id = p_run
    ) c
    WHERE r.id = p_run
    RETURNING 'retried', NULL, NULL, NULL, r;
END
$$;

-- Deletes ended runs, which are locked, with all that is theirs; says how many tasks those were. Its callers' settings hold here too.
CREATE FUNCTION ork_delete_runs(p_runs uuid[])
RETURNS bigint
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
DECLARE
    v_tasks uuid[];
BEGIN
    PERFORM ork_count_ended(p_runs, -1);
    -- Runs that have ended have no ready, claimed or timed tasks, unless they were damaged.
    PERFORM ork_unqueue(p_runs);
    DELETE FROM task_edges e WHERE e.run_id = ANY (p_runs);
    WITH gone AS (DELETE FROM tasks t WHERE t.run_id = ANY (p_runs) RETURNING t.id)
    SELECT array_agg(g.id) INTO v_tasks FROM gone g;
    DELETE FROM task_leases l WHERE l.task_id = ANY (v_tasks);
    DELETE FROM task_timeouts o WHERE o.task_id = ANY (v_tasks);
    DELETE FROM deferred_jobs j WHERE j.task_id = ANY (v_tasks);
    -- In this order: see `ork_append_log`.
    DELETE FROM task_logs l WHERE l.task_id = ANY (v_tasks);
    DELETE FROM task_log_chunks c WHERE c.task_id = ANY (v_tasks);
    DELETE FROM runs r WHERE r.id = ANY (p_runs);
    RETURN coalesce(cardinality(v_tasks), 0);
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
BEGIN
    -- Keeps new runs out, and waits for those that are being created.
    PERFORM FROM workflows w WHERE w.id = p_workflow FOR UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    -- Keeps a retry from reviving one of them meanwhile.
    PERFORM FROM runs r WHERE r.workflow_id = p_workflow ORDER BY r.id FOR UPDATE;
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
    PERFORM ork_delete_runs(v_runs);
    -- Its snapshots go with it by their foreign key.
    DELETE FROM workflows w WHERE w.id = p_workflow;
    RETURN QUERY SELECT 'deleted', NULL::uuid, NULL::text;
END
$$;

-- Deletes runs that ended so long ago, the longest ended first. Those that another call has are passed over.
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
