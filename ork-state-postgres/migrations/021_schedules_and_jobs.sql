-- Schedules and deferred jobs. See 018 for how all functions lock and look up.

-- A job is to be polled from `poll_at` on; whoever claims it sets that to the end of its lease, so one that is not reported on
-- is due again by itself. `deferral` is the token of the claim that the task was deferred under: it tells the jobs of one attempt from those of another.
ALTER TABLE deferred_jobs
    ALTER COLUMN job_data TYPE json USING job_data::text::json,
    ADD COLUMN run_id uuid,
    ADD COLUMN job_index int NOT NULL DEFAULT 0,
    ADD COLUMN deferral bigint NOT NULL DEFAULT 0,
    ADD COLUMN token bigint NOT NULL DEFAULT 0,
    ADD COLUMN owner text,
    ADD COLUMN poll_at timestamptz,
    ADD COLUMN output json,
    DROP CONSTRAINT deferred_jobs_task_id_fkey;

UPDATE deferred_jobs j SET run_id = t.run_id FROM tasks t WHERE t.id = j.task_id;

ALTER TABLE deferred_jobs ALTER COLUMN run_id SET NOT NULL;

DROP INDEX idx_deferred_jobs_status;
DROP INDEX idx_deferred_jobs_task_id;
DROP INDEX idx_deferred_jobs_created_at;

CREATE INDEX deferred_jobs_of_task ON deferred_jobs (task_id);
CREATE INDEX deferred_jobs_due ON deferred_jobs (poll_at) WHERE poll_at IS NOT NULL;

-- Answers `fired` with the run, or `not_due`; no row: no such workflow.
CREATE FUNCTION ork_fire_schedule(
    p_run uuid, p_workflow uuid, p_trigger text, p_slot timestamptz, p_next timestamptz, p_now timestamptz
)
RETURNS TABLE (answer text, run runs)
LANGUAGE plpgsql
SET search_path FROM CURRENT
SET enable_seqscan = off
SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    v_due boolean;
BEGIN
    -- Whoever comes second waits here, then sees the schedule moved on.
    SELECT w.schedule IS NOT NULL AND w.schedule_enabled AND w.next_scheduled_at = p_slot
        AND w.next_scheduled_at <= coalesce(p_now, clock_timestamp())
    INTO v_due
    FROM workflows w
    WHERE w.id = p_workflow
    FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    IF v_due IS NOT TRUE THEN
        RETURN QUERY SELECT 'not_due', NULL::runs;
        RETURN;
    END IF;
    UPDATE workflows w
    SET last_scheduled_at = p_slot, next_scheduled_at = p_next
    WHERE w.id = p_workflow;
    RETURN QUERY SELECT 'fired', r FROM ork_create_run(p_run, p_workflow, p_trigger, NULL, p_now) r;
END
$$;

-- Answers a row a job (`deferred`), or one that says why not: `lost` with the task's status, which is null if there is no such task.
CREATE FUNCTION ork_defer_task(
    p_task uuid, p_token bigint, p_ids uuid[], p_services text[], p_jobs text[], p_data text[], p_delays interval[],
    p_now timestamptz
)
RETURNS TABLE (answer text, status text, job deferred_jobs)
LANGUAGE plpgsql
SET search_path FROM CURRENT
SET enable_seqscan = off
SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz;
    v_lease task_leases;
BEGIN
    SELECT * INTO v_lease FROM task_leases l WHERE l.task_id = p_task FOR UPDATE;
    v_now := coalesce(p_now, clock_timestamp());
    IF v_lease.token IS DISTINCT FROM p_token OR v_lease.expires_at <= v_now THEN
        RETURN QUERY
        SELECT 'lost', (SELECT t.status FROM tasks t WHERE t.id = p_task), NULL::deferred_jobs;
        RETURN;
    END IF;
    DELETE FROM task_leases l WHERE l.task_id = p_task;
    WITH changed AS (
        UPDATE tasks t
        SET status = 'running', started_at = coalesce(t.started_at, v_now), open_jobs = cardinality(p_ids)
        WHERE t.id = p_task
        RETURNING t.started_at, t.timeout_seconds
    )
    INSERT INTO task_timeouts (task_id, run_id, deadline)
    SELECT p_task, v_lease.run_id, ork_later(c.started_at, make_interval(secs => c.timeout_seconds))
    FROM changed c
    WHERE c.timeout_seconds IS NOT NULL
    ON CONFLICT (task_id) DO NOTHING;

    RETURN QUERY
    INSERT INTO deferred_jobs (
        id, task_id, run_id, job_index, deferral, service_type, job_id, job_data, status, poll_at, created_at
    )
    SELECT
        j.id, p_task, v_lease.run_id, j.number::int - 1, p_token, j.service, j.job, j.data::json, 'pending',
        ork_later(v_now, j.delay), v_now
    FROM unnest(p_ids, p_services, p_jobs, p_data, p_delays) WITH ORDINALITY AS j (id, service, job, data, delay, number)
    RETURNING 'deferred', NULL, deferred_jobs;
END
$$;

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
    -- Jobs that another poller is just taking are passed over.
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

-- Answers a row an item (`applied`, `terminal`, `lost`, with the job's status; none for a job that is not there) and a row a run that ended (`ended`).
-- A change is `polled`, `completed` or `failed`.
CREATE FUNCTION ork_update_jobs(
    p_jobs uuid[], p_tokens bigint[], p_changes text[], p_outputs text[], p_errors text[], p_delays interval[],
    p_now timestamptz
)
RETURNS TABLE (answer text, item int, status text, run_id uuid)
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
    v_ended uuid[];
    v_tasks uuid[];
    v_kinds text[];
    v_outputs text[];
    v_errors text[];
BEGIN
    -- The runs come first: the end of a job may end its task, and that its run.
    PERFORM
    FROM runs r
    WHERE r.id IN (SELECT j.run_id FROM deferred_jobs j WHERE j.id = ANY (p_jobs))
    ORDER BY r.id
    FOR NO KEY UPDATE;
    PERFORM FROM deferred_jobs j WHERE j.id = ANY (p_jobs) ORDER BY j.id FOR UPDATE;
    v_now := coalesce(p_now, clock_timestamp());

    RETURN QUERY
    SELECT
        CASE
            WHEN j.status IN ('completed', 'failed', 'cancelled') THEN 'terminal'
            WHEN j.token = u.token AND j.owner IS NOT NULL AND v_now < j.poll_at THEN 'applied'
            ELSE 'lost'
        END,
        u.number::int,
        CASE
            WHEN j.status IN ('completed', 'failed', 'cancelled') THEN j.status
            WHEN u.change = 'polled' THEN 'polling'
            ELSE u.change
        END,
        NULL::uuid
    FROM unnest(p_jobs, p_tokens, p_changes) WITH ORDINALITY AS u (id, token, change, number)
    CROSS JOIN LATERAL (
        SELECT k.status, k.token, k.owner, k.poll_at FROM deferred_jobs k WHERE k.id = u.id OFFSET 0
    ) j;

    WITH changed AS (
        UPDATE deferred_jobs j
        SET status = CASE u.change WHEN 'polled' THEN 'polling' ELSE u.change END,
            owner = NULL,
            poll_at = CASE WHEN u.change = 'polled' THEN ork_later(v_now, u.delay) END,
            output = CASE WHEN u.change = 'completed' THEN u.output::json END,
            error = CASE WHEN u.change = 'failed' THEN u.error END,
            last_polled_at = v_now,
            finished_at = CASE WHEN u.change <> 'polled' THEN v_now END
        FROM unnest(p_jobs, p_tokens, p_changes, p_outputs, p_errors, p_delays)
            AS u (id, token, change, output, error, delay)
        WHERE j.id = u.id AND j.token = u.token AND j.owner IS NOT NULL AND v_now < j.poll_at
        RETURNING j.task_id, u.change
    ),
    counted AS (
        UPDATE tasks t
        SET open_jobs = t.open_jobs - c.ended
        FROM (
            SELECT k.task_id, count(*)::int AS ended FROM changed k WHERE k.change <> 'polled' GROUP BY k.task_id
        ) c
        WHERE t.id = c.task_id
        RETURNING t.id, t.open_jobs
    )
    SELECT array_agg(c.id) INTO v_ended FROM counted c WHERE c.open_jobs = 0;
    IF v_ended IS NULL THEN
        RETURN;
    END IF;

    SELECT
        array_agg(t.id), array_agg(
            CASE
                WHEN d.error IS NULL THEN 'success'
                WHEN t.attempts <= t.max_retries THEN 'retry'
                ELSE 'failed'
            END
        ),
        array_agg(d.output), array_agg(d.error)
    INTO v_tasks, v_kinds, v_outputs, v_errors
    FROM unnest(v_ended) AS e (task_id)
    CROSS JOIN LATERAL (
        SELECT k.id, k.token, k.attempts, k.max_retries FROM tasks k WHERE k.id = e.task_id OFFSET 0
    ) t
    CROSS JOIN LATERAL (
        SELECT
            CASE WHEN count(*) = 1 THEN min(k.output::text) END AS output,
            (array_agg(k.error ORDER BY k.job_index) FILTER (WHERE k.status = 'failed'))[1] AS error
        FROM deferred_jobs k
        -- Those of the attempt: the token was the task's last one when it was deferred.
        WHERE k.task_id = t.id AND k.deferral = t.token
    ) d;

    RETURN QUERY
    SELECT 'ended', NULL::int, f.status, f.run_id
    FROM ork_finish(v_now, v_tasks, v_kinds, NULL, v_outputs, v_errors, NULL) f;
END
$$;
