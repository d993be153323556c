-- Handing tasks out and keeping them leased.
--
-- About all functions from here on:
--
-- * Locks are taken in one order: workflows, runs by id, leases by task id, then tasks. So batches never deadlock. Claims lock
--   no run; they begin with rows of `ready_tasks` and skip those that others hold.
-- * A task's row changes only under the lock of its run, of its lease, or of its row in `ready_tasks`.
-- * Each statement of a function sees what was committed before that statement (READ COMMITTED), so what is read after a
--   lock was waited for is up to date.
-- * Plans are made once a connection, perhaps while the tables are still empty, and must suit them when they are full. So nothing is left to
--   the planner's taste: scans of whole tables are off, a row is looked up by its key in a LATERAL
--   subquery with OFFSET 0, which it cannot turn round, and updated at the place (ctid) that this found. The place holds good because the
--   locks above keep everybody else from moving the row. No other condition that an index could serve stands beside the key.
-- * `p_now` is the injected clock's time; without one it is the server's, taken after the locks.

-- A time plus a duration, at the latest the last time that the API knows; null without a duration, which `least` alone would
-- pass over.
CREATE FUNCTION ork_later(p_time timestamptz, p_by interval)
RETURNS timestamptz
LANGUAGE sql STABLE
RETURN CASE WHEN p_by IS NOT NULL THEN least(p_time + p_by, timestamptz '9999-12-31 23:59:59.999999+00') END;

-- Gives a row a claimed task, in the order of the claim. With `p_outputs` rows for the tasks they depend on follow, each
-- once: `is_output`, id, run, name, and the output in the place of `params`.
CREATE FUNCTION ork_claim_tasks(
    p_owner text, p_lease interval, p_limit int, p_outputs boolean, p_now timestamptz
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
    v_ready timestamptz[];
BEGIN
    -- Whose row is deleted here, has the task: rows that another claim is deleting are passed over.
    WITH taken AS (
        DELETE FROM ready_tasks
        WHERE ctid = ANY (ARRAY(
            SELECT q.ctid
            FROM ready_tasks q
            WHERE q.ready_at <= v_now
            ORDER BY q.ready_at, q.run_id, q.task_index
            LIMIT p_limit
            FOR UPDATE SKIP LOCKED
        ))
        RETURNING ready_tasks.task_id, ready_tasks.ready_at
    )
    SELECT array_agg(t.task_id), array_agg(t.ready_at) INTO v_tasks, v_ready FROM taken t;
    IF v_tasks IS NULL THEN
        RETURN;
    END IF;

    v_now := coalesce(p_now, clock_timestamp());
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
            SELECT x.place, p.ready_at
            FROM unnest(v_tasks, v_ready) AS p (task_id, ready_at)
            CROSS JOIN LATERAL (
                SELECT k.ctid AS place
                FROM tasks k
                -- Always so, but for rows that were damaged: those are left to `verify`.
                WHERE k.id = p.task_id AND k.status = 'pending'
                OFFSET 0
            ) x
        ) p
        WHERE t.ctid = p.place
        RETURNING t.*, p.ready_at AS was_ready_at
    ),
    leased AS (
        INSERT INTO task_leases AS l (task_id, run_id, owner, token, expires_at)
        SELECT c.id, c.run_id, p_owner, c.token, ork_later(v_now, p_lease)
        FROM claimed c
        -- Only a damaged store has a lease on a pending task.
        ON CONFLICT (task_id) DO UPDATE
        SET run_id = excluded.run_id,
            owner = excluded.owner,
            token = excluded.token,
            expires_at = excluded.expires_at
    ),
    placed AS (
        SELECT
            c.*,
            r.workflow_id,
            -- A workflow's fields come with the first of its tasks only: they may be long.
            row_number() OVER (
                PARTITION BY r.workflow_id ORDER BY c.was_ready_at, c.run_id, c.task_index
            ) = 1 AS is_first
        FROM claimed c
        LEFT JOIN LATERAL (SELECT k.workflow_id FROM runs k WHERE k.id = c.run_id OFFSET 0) r ON true
    )
    SELECT
        false, c.id, c.run_id, c.task_index, c.task_name, c.executor_type, c.depends_on,
        c.unmet_dependencies, c.open_jobs, c.status, c.attempts, c.max_retries, c.timeout_seconds,
        p_owner, c.token, ork_later(v_now, p_lease),
        c.execution_name, c.error, c.created_at, c.ready_at, c.retry_at,
        c.dispatched_at, c.started_at, c.finished_at, c.params::text,
        c.workflow_id, w.name, w.executor_type, w.job_name,
        w.region, w.project, w.task_params::text
    FROM placed c
    LEFT JOIN LATERAL (SELECT k.* FROM workflows k WHERE k.id = c.workflow_id AND c.is_first OFFSET 0) w ON true
    ORDER BY c.was_ready_at, c.run_id, c.task_index;

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

-- Renews the leases that hold: a row each.
CREATE FUNCTION ork_heartbeat(p_tasks uuid[], p_tokens bigint[], p_lease interval, p_now timestamptz)
RETURNS TABLE (task_id uuid, token bigint, expires_at timestamptz)
LANGUAGE plpgsql
SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_bitmapscan = off
SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz;
BEGIN
    PERFORM FROM task_leases l WHERE l.task_id = ANY (p_tasks) ORDER BY l.task_id FOR UPDATE;
    v_now := coalesce(p_now, clock_timestamp());
    RETURN QUERY
    UPDATE task_leases l
    SET expires_at = ork_later(v_now, p_lease)
    FROM (
        SELECT x.place
        FROM unnest(p_tasks, p_tokens) AS c (task_id, token)
        CROSS JOIN LATERAL (
            SELECT k.ctid AS place, k.expires_at
            FROM task_leases k
            WHERE k.task_id = c.task_id AND k.token = c.token
            OFFSET 0
        ) x
        WHERE v_now < x.expires_at
    ) held
    WHERE l.ctid = held.place
    RETURNING l.task_id, l.token, l.expires_at;
END
$$;
