-- Applies what pollers report about jobs.
--
-- Returns a row per item (`applied`, `terminal` or `lost`, with the job's status) and a row per run
-- that ended (`ended`). A missing job gets no row. A change is `polled`, `completed` or `failed`.
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
    -- The runs are locked first: the end of a job may end its task, and with it the run.
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
        -- The jobs of this attempt: when the task was deferred, the token was its latest.
        WHERE k.task_id = t.id AND k.deferral = t.token
    ) d;

    RETURN QUERY
    SELECT 'ended', NULL::int, f.status, f.run_id
    FROM ork_finish(v_now, v_tasks, v_kinds, NULL, v_outputs, v_errors, NULL) f;
END
$$;
