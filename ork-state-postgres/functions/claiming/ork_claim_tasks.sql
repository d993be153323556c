-- Hands out ready tasks under a lease, in the order of the queue.
--
-- Returns a row per claimed task, in that order. With `p_outputs`, a row follows for each task that
-- they depend on: `is_output`, id, run, name, and the output in the place of `params`. The queue is
-- read from `p_from` on.
CREATE FUNCTION ork_claim_tasks(
    p_owner text, p_lease interval, p_limit int, p_outputs boolean, p_now timestamptz, p_from timestamptz DEFAULT NULL
)
RETURNS TABLE (
    is_output boolean, id uuid, run_id uuid, task_index int, task_name text, executor_type text, depends_on text[],
    unmet_dependencies int, open_jobs int, status text, attempts int, max_retries int, timeout_seconds int,
    lease_owner text, lease_token bigint, lease_expires_at timestamptz,
    execution_name text, error text, created_at timestamptz, ready_at timestamptz, retry_at timestamptz,
    dispatched_at timestamptz, started_at timestamptz, finished_at timestamptz, params text,
    workflow_id uuid, workflow_name text, workflow_executor_type text, workflow_job_name text,
    workflow_region text, workflow_project text, workflow_task_params text
)
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
    v_tasks uuid[];
BEGIN
    -- The call that deletes the row here has claimed the task. Rows that another claim is deleting
    -- are skipped.
    WITH taken AS (
        DELETE FROM ready_tasks
        WHERE ctid = ANY (ARRAY(
            SELECT q.ctid
            FROM ready_tasks q
            WHERE q.ready_at >= coalesce(p_from, '-infinity') AND q.ready_at <= v_now
            ORDER BY q.ready_at, q.run_id, q.task_index
            LIMIT p_limit
            FOR UPDATE SKIP LOCKED
        ))
        RETURNING ready_tasks.*
    )
    SELECT array_agg(t.task_id ORDER BY t.ready_at, t.run_id, t.task_index) INTO v_tasks FROM taken t;
    IF v_tasks IS NULL THEN
        RETURN;
    END IF;

    v_now := coalesce(p_now, clock_timestamp());
    -- Only a damaged store has leases on pending tasks. This check costs less than an insert that
    -- allows for existing leases.
    IF EXISTS (
        SELECT
        FROM unnest(v_tasks) AS p (task_id)
        CROSS JOIN LATERAL (SELECT FROM task_leases k WHERE k.task_id = p.task_id OFFSET 0) l
    ) THEN
        DELETE FROM task_leases l WHERE l.task_id = ANY (v_tasks);
    END IF;

    RETURN QUERY
    WITH claimed AS (
        UPDATE tasks t
        SET status = 'dispatched',
            attempts = t.attempts + 1,
            token = t.token + 1,
            dispatched_at = v_now,
            execution_name = NULL,
            ready_at = NULL,
            retry_at = NULL,
            started_at = NULL
        FROM (
            SELECT x.place, r.workflow_id, p.number
            FROM unnest(v_tasks) WITH ORDINALITY AS p (task_id, number)
            CROSS JOIN LATERAL (
                SELECT k.ctid AS place, k.run_id
                FROM tasks k
                -- True except for damaged rows, which are left to `verify`.
                WHERE k.id = p.task_id AND k.status = 'pending'
                OFFSET 0
            ) x
            LEFT JOIN LATERAL (SELECT k.workflow_id FROM runs k WHERE k.id = x.run_id OFFSET 0) r ON true
        ) p
        WHERE t.ctid = p.place
        RETURNING t.*, p.workflow_id, p.number
    ),
    leased AS (
        INSERT INTO task_leases (task_id, run_id, owner, token, expires_at)
        SELECT c.id, c.run_id, p_owner, c.token, ork_later(v_now, p_lease)
        FROM claimed c
    )
    SELECT
        false, c.id, c.run_id, c.task_index, c.task_name, c.executor_type, c.depends_on,
        c.unmet_dependencies, c.open_jobs, c.status, c.attempts, c.max_retries, c.timeout_seconds,
        p_owner, c.token, ork_later(v_now, p_lease),
        c.execution_name, c.error, c.created_at, c.ready_at, c.retry_at,
        c.dispatched_at, c.started_at, c.finished_at, c.params::text,
        c.workflow_id, w.name, w.executor_type, w.job_name,
        w.region, w.project, w.task_params::text
    FROM (
        -- A workflow's fields come with the first of its tasks only, because they may be long.
        SELECT k.*, row_number() OVER (PARTITION BY k.workflow_id ORDER BY k.number) = 1 AS is_first FROM claimed k
    ) c
    LEFT JOIN LATERAL (SELECT k.* FROM workflows k WHERE k.id = c.workflow_id AND c.is_first OFFSET 0) w ON true
    ORDER BY c.number;

    IF p_outputs THEN
        RETURN QUERY
        SELECT
            true, k.id, k.run_id, NULL::int, k.task_name, NULL::text, NULL::text[],
            NULL::int, NULL::int, NULL::text, NULL::int, NULL::int, NULL::int,
            NULL::text, NULL::bigint, NULL::timestamptz,
            NULL::text, NULL::text, NULL::timestamptz, NULL::timestamptz, NULL::timestamptz,
            NULL::timestamptz, NULL::timestamptz, NULL::timestamptz, k.output::text,
            NULL::uuid, NULL::text, NULL::text, NULL::text,
            NULL::text, NULL::text, NULL::text
        FROM (
            SELECT DISTINCT t.run_id, d.name
            FROM unnest(v_tasks) AS c (task_id)
            CROSS JOIN LATERAL (SELECT k.run_id, k.depends_on FROM tasks k WHERE k.id = c.task_id OFFSET 0) t
            CROSS JOIN LATERAL unnest(t.depends_on) AS d (name)
        ) n
        CROSS JOIN LATERAL (
            SELECT k.id, k.run_id, k.task_name, k.output
            FROM tasks k
            WHERE k.run_id = n.run_id AND k.task_name = n.name
            OFFSET 0
        ) k;
    END IF;
END
$$;
