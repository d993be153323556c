-- Applies what workers report, one step per claim.
--
-- Returns a row per step: `applied`, `terminal`, `lost` or `missing`, with the task's status. A
-- claim whose task is gone gets no row. Each run that ended gets a row `ended`, with the last of
-- its steps. An end is `success`, `failed` or `released`. A failure without a delay is final.
CREATE FUNCTION ork_update_tasks(
    p_tasks uuid[], p_tokens bigint[], p_names text[], p_running boolean[], p_ends text[], p_outputs text[],
    p_errors text[], p_delays interval[], p_now timestamptz
)
RETURNS TABLE (answer text, step int, status text, run_id uuid)
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
    v_runs uuid[];
    v_held timestamptz[];
    v_places tid[];
    v_holds boolean[];
    v_steps int[];
    v_tasks uuid[];
    v_kinds text[];
    v_task_runs uuid[];
    v_indexes int[];
    v_names text[];
    v_outputs text[];
    v_errors text[];
    v_retry_at timestamptz[];
    v_leases tid[];
    v_over uuid[];
    v_over_statuses text[];
BEGIN
    -- Only a step that ends a claim changes counters, and so needs the run's lock. A claim that is
    -- gone now never comes back.
    SELECT array_agg(DISTINCT l.run_id) INTO v_runs
    FROM unnest(p_tasks, p_tokens, p_ends) AS s (task_id, token, ending)
    CROSS JOIN LATERAL (
        SELECT k.run_id FROM task_leases k WHERE k.task_id = s.task_id AND k.token = s.token OFFSET 0
    ) l
    WHERE s.ending IS NOT NULL;
    IF v_runs IS NOT NULL THEN
        PERFORM FROM runs r WHERE r.id = ANY (v_runs) ORDER BY r.id FOR NO KEY UPDATE;
    END IF;
    -- Locks the leases in the order of their tasks. From here on the leases of the locked runs
    -- cannot move.
    SELECT array_agg(l.expires_at ORDER BY s.step), array_agg(l.place ORDER BY s.step)
    INTO v_held, v_places
    FROM (
        SELECT u.task_id, u.token, u.step
        FROM unnest(p_tasks, p_tokens) WITH ORDINALITY AS u (task_id, token, step)
        ORDER BY u.task_id, u.step
    ) s
    LEFT JOIN LATERAL (
        SELECT k.expires_at, k.ctid AS place
        FROM task_leases k
        WHERE k.task_id = s.task_id AND k.token = s.token
        FOR UPDATE
    ) l ON true;
    v_now := coalesce(p_now, clock_timestamp());
    SELECT array_agg(coalesce(v_now < h.expires_at, false) ORDER BY h.step) INTO v_holds
    FROM unnest(v_held) WITH ORDINALITY AS h (expires_at, step);

    IF false = ANY (v_holds) THEN
        RETURN QUERY
        SELECT
            CASE
                WHEN t.id IS NULL THEN 'missing'
                WHEN t.status IN ('success', 'failed', 'cancelled') THEN 'terminal'
                ELSE 'lost'
            END,
            s.step::int, t.status, NULL::uuid
        FROM unnest(p_tasks, v_holds) WITH ORDINALITY AS s (task_id, holds, step)
        LEFT JOIN LATERAL (SELECT k.id, k.status FROM tasks k WHERE k.id = s.task_id OFFSET 0) t ON true
        WHERE NOT s.holds;
    END IF;

    -- Claims that continue.
    IF array_position(p_ends, NULL) IS NOT NULL THEN
        RETURN QUERY
        WITH changed AS (
            UPDATE tasks t
            SET execution_name = coalesce(s.name, t.execution_name),
                status = CASE WHEN s.running THEN 'running' ELSE t.status END,
                started_at = CASE WHEN s.running THEN coalesce(t.started_at, v_now) ELSE t.started_at END
            FROM (
                SELECT s.*, x.place
                FROM unnest(p_tasks, v_holds, p_names, p_running, p_ends) WITH ORDINALITY
                    AS s (task_id, holds, name, running, ending, step)
                CROSS JOIN LATERAL (SELECT k.ctid AS place FROM tasks k WHERE k.id = s.task_id OFFSET 0) x
                WHERE s.holds AND s.ending IS NULL
            ) s
            WHERE t.ctid = s.place
            RETURNING t.id, t.run_id, t.status, t.started_at, t.timeout_seconds, s.step
        ),
        timed AS (
            INSERT INTO task_timeouts (task_id, run_id, deadline)
            SELECT c.id, c.run_id, ork_later(c.started_at, make_interval(secs => c.timeout_seconds))
            FROM changed c
            WHERE c.status = 'running' AND c.timeout_seconds IS NOT NULL
            ON CONFLICT (task_id) DO NOTHING
        )
        SELECT 'applied', c.step::int, c.status, NULL::uuid FROM changed c;
    END IF;

    IF v_runs IS NULL THEN
        RETURN;
    END IF;

    -- Claims that end.
    SELECT
        array_agg(s.step::int), array_agg(s.task_id), array_agg(s.place), array_agg(s.name), array_agg(s.output),
        array_agg(s.error), array_agg(ork_later(v_now, s.delay)), array_agg(t.run_id), array_agg(t.task_index),
        array_agg(
            CASE
                WHEN s.ending <> 'failed' THEN s.ending
                WHEN s.delay IS NOT NULL AND t.attempts <= t.max_retries THEN 'retry'
                ELSE 'failed'
            END
        )
    INTO v_steps, v_tasks, v_leases, v_names, v_outputs, v_errors, v_retry_at,
        v_task_runs, v_indexes, v_kinds
    FROM unnest(p_tasks, v_holds, v_places, p_names, p_ends, p_outputs, p_errors, p_delays) WITH ORDINALITY
        AS s (task_id, holds, place, name, ending, output, error, delay, step)
    CROSS JOIN LATERAL (
        SELECT k.run_id, k.task_index, k.attempts, k.max_retries FROM tasks k WHERE k.id = s.task_id OFFSET 0
    ) t
    WHERE s.holds AND s.ending IS NOT NULL;
    IF v_tasks IS NULL THEN
        RETURN;
    END IF;

    -- In a separate statement: a join might leave the call out.
    SELECT array_agg(f.run_id), array_agg(f.status) INTO v_over, v_over_statuses
    FROM ork_finish(v_now, v_tasks, v_kinds, v_names, v_outputs, v_errors, v_retry_at, v_leases) f;
    IF v_over IS NOT NULL THEN
        RETURN QUERY
        SELECT 'ended', l.step, o.status, o.run_id
        FROM unnest(v_over, v_over_statuses) AS o (run_id, status)
        -- The last step is chosen by kind and index. `ork_finish` takes the failures of a run in
        -- the order of their indexes, and the run's error names the first.
        JOIN (
            SELECT DISTINCT ON (s.run_id) s.run_id, s.step
            FROM unnest(v_steps, v_task_runs, v_indexes, v_kinds) AS s (step, run_id, task_index, kind)
            WHERE s.kind IN ('success', 'failed')
            ORDER BY s.run_id, s.kind DESC, s.task_index DESC
        ) l ON l.run_id = o.run_id;
    END IF;

    RETURN QUERY
    SELECT 'applied', s.step, CASE WHEN s.kind IN ('success', 'failed') THEN s.kind ELSE 'pending' END, NULL::uuid
    FROM unnest(v_steps, v_kinds) AS s (step, kind);
END
$$;
