-- Claims and ends with fewer lookups: each row that a batch is about is found once, by its key, and known by its place (ctid) from then on,
-- which holds good under the locks that 018 tells of. What is done is what 018 and 019 did.

-- As in 019, but looks at the end of the queue, not at its beginning: there the rows that were taken and not yet vacuumed lie in the way.
CREATE OR REPLACE FUNCTION ork_hint_ready(p_now timestamptz)
RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    -- In an EXISTS the order would count for nothing.
    PERFORM FROM ready_tasks q WHERE q.ready_at <= p_now ORDER BY q.ready_at DESC LIMIT 1;
    IF NOT FOUND THEN
        PERFORM pg_notify('ork_ready_' || md5(current_schema()), '');
    END IF;
END
$$;

DROP FUNCTION ork_claim_tasks(text, interval, int, boolean, timestamptz);

-- Gives a row a claimed task, in the order of the claim. With `p_outputs` rows for the tasks they depend on follow, each
-- once: `is_output`, id, run, name, and the output in the place of `params`. The queue is looked at from `p_from` on.
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
    -- Whose row is deleted here, has the task: rows that another claim is deleting are passed over.
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
    -- Only a damaged store has leases on pending tasks. To insert leases that may be there already would cost more than this look.
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
                -- Always so, but for rows that were damaged: those are left to `verify`.
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
        -- A workflow's fields come with the first of its tasks only: they may be long.
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

DROP FUNCTION ork_finish(timestamptz, uuid[], text[], text[], text[], text[], timestamptz[]);

-- Ends claims, with all that follows: counters, tasks that become ready or fail with what they depend on, runs that end.
-- Called by the two functions below, which have locked the runs and the leases and found that the claims are over;
-- their settings for the planner hold here too. Kinds: `success`, `failed` (for good), `retry`, `released`.
-- Gives the runs that ended. `p_leases` is where the leases are, for who knows it.
CREATE FUNCTION ork_finish(
    p_now timestamptz, p_tasks uuid[], p_kinds text[], p_names text[], p_outputs text[], p_errors text[],
    p_retry_at timestamptz[], p_leases tid[] DEFAULT NULL
)
RETURNS TABLE (run_id uuid, status text)
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
DECLARE
    v_ended bigint;
    v_places tid[];
    v_runs uuid[];
    v_indexes int[];
    v_running boolean[];
    v_culprit record;
    v_over uuid[];
BEGIN
    IF p_leases IS NULL THEN
        DELETE FROM task_leases l WHERE l.task_id = ANY (p_tasks);
    ELSE
        DELETE FROM task_leases l WHERE l.ctid = ANY (p_leases);
    END IF;
    -- Most stores have none.
    IF EXISTS (SELECT FROM task_timeouts) THEN
        DELETE FROM task_timeouts o WHERE o.task_id = ANY (p_tasks);
    END IF;
    PERFORM ork_hint_ready(p_now);

    -- Each is looked up here, and nowhere else.
    SELECT
        array_agg(x.place ORDER BY e.number), array_agg(x.run_id ORDER BY e.number),
        array_agg(x.task_index ORDER BY e.number), array_agg(coalesce(r.status = 'running', false) ORDER BY e.number)
    INTO v_places, v_runs, v_indexes, v_running
    FROM unnest(p_tasks) WITH ORDINALITY AS e (task_id, number)
    CROSS JOIN LATERAL (
        SELECT k.ctid AS place, k.run_id, k.task_index FROM tasks k WHERE k.id = e.task_id OFFSET 0
    ) x
    LEFT JOIN LATERAL (SELECT k.status FROM runs k WHERE k.id = x.run_id OFFSET 0) r ON true;

    WITH ended AS (
        UPDATE tasks t
        SET status = CASE e.kind WHEN 'success' THEN 'success' WHEN 'failed' THEN 'failed' ELSE 'pending' END,
            attempts = t.attempts - (e.kind = 'released')::int,
            open_jobs = 0,
            execution_name = CASE WHEN e.kind <> 'released' THEN coalesce(e.name, t.execution_name) END,
            output = CASE WHEN e.kind = 'success' THEN e.output::json ELSE t.output END,
            error = CASE e.kind WHEN 'success' THEN NULL WHEN 'released' THEN t.error ELSE e.error END,
            -- In a paused run it waits for the resumption.
            ready_at = CASE WHEN e.kind IN ('retry', 'released') AND e.is_running THEN coalesce(e.retry_at, p_now) END,
            retry_at = CASE WHEN e.kind = 'retry' THEN e.retry_at END,
            dispatched_at = CASE WHEN e.kind <> 'released' THEN t.dispatched_at END,
            started_at = CASE WHEN e.kind <> 'released' THEN coalesce(t.started_at, p_now) END,
            finished_at = CASE WHEN e.kind IN ('success', 'failed') THEN p_now END
        FROM (
            SELECT *
            FROM unnest(v_places, v_running, p_kinds, p_names, p_outputs, p_errors, p_retry_at)
                AS e (place, is_running, kind, name, output, error, retry_at)
        ) e
        WHERE t.ctid = e.place
        RETURNING t.id, t.run_id, t.task_index, t.ready_at
    ),
    queued AS (
        INSERT INTO ready_tasks (ready_at, run_id, task_index, task_id)
        SELECT e.ready_at, e.run_id, e.task_index, e.id FROM ended e WHERE e.ready_at IS NOT NULL
    )
    SELECT count(*) INTO v_ended FROM ended;
    IF v_ended <> cardinality(p_tasks) THEN
        RAISE EXCEPTION 'tasks were changed without the locks that guard them' USING ERRCODE = 'serialization_failure';
    END IF;

    IF 'success' = ANY (p_kinds) THEN
        -- The counter says how many dependencies have not succeeded, for every task, whatever its status.
        WITH met AS (
            UPDATE tasks t
            SET unmet_dependencies = t.unmet_dependencies - d.met,
                ready_at = CASE
                    WHEN t.unmet_dependencies = d.met AND t.status = 'pending' AND d.is_running THEN p_now
                END
            FROM (
                SELECT g.met, g.is_running, x.place
                FROM (
                    SELECT o.dependent_id, count(*)::int AS met, bool_and(e.is_running) AS is_running
                    FROM unnest(v_runs, v_indexes, v_running, p_kinds) AS e (run_id, task_index, is_running, kind)
                    CROSS JOIN LATERAL (
                        SELECT k.dependent_id
                        FROM task_edges k
                        WHERE k.run_id = e.run_id AND k.task_index = e.task_index
                        OFFSET 0
                    ) o
                    WHERE e.kind = 'success'
                    GROUP BY o.dependent_id
                ) g
                CROSS JOIN LATERAL (
                    SELECT k.ctid AS place FROM tasks k WHERE k.id = g.dependent_id OFFSET 0
                ) x
            ) d
            WHERE t.ctid = d.place
            RETURNING t.id, t.run_id, t.task_index, t.ready_at
        )
        INSERT INTO ready_tasks (ready_at, run_id, task_index, task_id)
        SELECT m.ready_at, m.run_id, m.task_index, m.id FROM met m WHERE m.ready_at IS NOT NULL;
    END IF;

    IF 'failed' = ANY (p_kinds) THEN
        -- Culprit after culprit, in the order of their indexes: what the first one reaches bears its name and is not walked
        -- again, so all of them together walk each dependent once.
        FOR v_culprit IN
            SELECT e.task_id, e.run_id, e.task_index, t.task_name
            FROM unnest(p_tasks, v_runs, v_indexes, p_kinds) AS e (task_id, run_id, task_index, kind)
            CROSS JOIN LATERAL (SELECT k.task_name FROM tasks k WHERE k.id = e.task_id OFFSET 0) t
            CROSS JOIN LATERAL (
                SELECT FROM task_edges k WHERE k.run_id = e.run_id AND k.task_index = e.task_index LIMIT 1
            ) has_dependents
            WHERE e.kind = 'failed'
            ORDER BY e.run_id, e.task_index
        LOOP
            WITH RECURSIVE doomed (task_id, task_index) AS (
                SELECT v_culprit.task_id, v_culprit.task_index
                UNION
                SELECT o.dependent_id, o.dependent_index
                FROM doomed d
                CROSS JOIN LATERAL (
                    SELECT k.dependent_id, k.dependent_index
                    FROM task_edges k
                    WHERE k.run_id = v_culprit.run_id AND k.task_index = d.task_index
                    OFFSET 0
                ) o
                CROSS JOIN LATERAL (
                    SELECT
                    FROM tasks k
                    WHERE k.id = o.dependent_id AND k.status NOT IN ('success', 'failed', 'cancelled')
                    OFFSET 0
                ) x
            ),
            failed AS (
                UPDATE tasks t
                SET status = 'failed',
                    error = format('dependency "%s" failed', v_culprit.task_name),
                    finished_at = p_now,
                    ready_at = NULL,
                    retry_at = NULL
                FROM (
                    SELECT x.place
                    FROM doomed d
                    CROSS JOIN LATERAL (
                        SELECT k.ctid AS place FROM tasks k WHERE k.id = d.task_id OFFSET 0
                    ) x
                    WHERE d.task_id <> v_culprit.task_id
                ) d
                WHERE t.ctid = d.place
                RETURNING t.id
            )
            UPDATE runs r
            SET tasks_unfinished = r.tasks_unfinished - f.number,
                tasks_failed = r.tasks_failed + f.number
            FROM (SELECT count(*)::int AS number FROM failed) f
            WHERE r.id = v_culprit.run_id AND f.number > 0;
        END LOOP;
    END IF;

    WITH counted AS (
        UPDATE runs r
        SET tasks_unfinished = r.tasks_unfinished - d.ended,
            tasks_failed = r.tasks_failed + d.failed,
            -- Null without a culprit, which `format` would take for an empty name.
            error = coalesce(r.error, 'task "' || d.culprit || '" failed'),
            status = CASE
                WHEN NOT d.is_over THEN r.status
                WHEN r.tasks_failed + d.failed = 0 THEN 'success'
                ELSE 'failed'
            END,
            finished_at = CASE WHEN d.is_over THEN p_now ELSE r.finished_at END
        FROM (
            SELECT g.*, x.place, x.status IN ('running', 'paused') AND x.tasks_unfinished = g.ended AS is_over
            FROM (
                SELECT
                    e.run_id,
                    count(*)::int AS ended,
                    (count(*) FILTER (WHERE e.kind = 'failed'))::int AS failed,
                    (array_agg(t.task_name ORDER BY e.task_index) FILTER (WHERE e.kind = 'failed'))[1] AS culprit
                FROM unnest(p_tasks, v_runs, v_indexes, p_kinds) AS e (task_id, run_id, task_index, kind)
                LEFT JOIN LATERAL (
                    SELECT k.task_name FROM tasks k WHERE k.id = e.task_id AND e.kind = 'failed' OFFSET 0
                ) t ON true
                WHERE e.kind IN ('success', 'failed')
                GROUP BY e.run_id
            ) g
            CROSS JOIN LATERAL (
                SELECT k.ctid AS place, k.status, k.tasks_unfinished FROM runs k WHERE k.id = g.run_id OFFSET 0
            ) x
        ) d
        WHERE r.ctid = d.place
        RETURNING r.id, d.is_over
    )
    SELECT array_agg(c.id) INTO v_over FROM counted c WHERE c.is_over;
    IF v_over IS NULL THEN
        RETURN;
    END IF;
    PERFORM ork_count_ended(v_over, 1);
    PERFORM ork_hint_ended();
    RETURN QUERY SELECT r.id, r.status FROM runs r WHERE r.id = ANY (v_over);
END
$$;

-- Applies one step a claim. Answers a row a step (`applied`, `terminal`, `lost`, `missing`, with the task's status; none for a claim
-- whose task is gone) and a row a run that ended (`ended`). An end is `success`, `failed` or `released`; a failure
-- without a delay is for good.
CREATE OR REPLACE FUNCTION ork_update_tasks(
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
    v_names text[];
    v_outputs text[];
    v_errors text[];
    v_retry_at timestamptz[];
    v_leases tid[];
BEGIN
    -- Only what ends a claim touches counters, and so needs the run. A claim that is not there now never comes back.
    SELECT array_agg(DISTINCT l.run_id) INTO v_runs
    FROM unnest(p_tasks, p_tokens, p_ends) AS s (task_id, token, ending)
    CROSS JOIN LATERAL (
        SELECT k.run_id FROM task_leases k WHERE k.task_id = s.task_id AND k.token = s.token OFFSET 0
    ) l
    WHERE s.ending IS NOT NULL;
    IF v_runs IS NOT NULL THEN
        PERFORM FROM runs r WHERE r.id = ANY (v_runs) ORDER BY r.id FOR NO KEY UPDATE;
    END IF;
    -- Locked in the order of their tasks; those of the runs above stay where they are from here on.
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

    -- Claims that go on.
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
        array_agg(s.error), array_agg(ork_later(v_now, s.delay)),
        array_agg(
            CASE
                WHEN s.ending <> 'failed' THEN s.ending
                WHEN s.delay IS NOT NULL AND t.attempts <= t.max_retries THEN 'retry'
                ELSE 'failed'
            END
        )
    INTO v_steps, v_tasks, v_leases, v_names, v_outputs, v_errors, v_retry_at, v_kinds
    FROM unnest(p_tasks, v_holds, v_places, p_names, p_ends, p_outputs, p_errors, p_delays) WITH ORDINALITY
        AS s (task_id, holds, place, name, ending, output, error, delay, step)
    CROSS JOIN LATERAL (SELECT k.attempts, k.max_retries FROM tasks k WHERE k.id = s.task_id OFFSET 0) t
    WHERE s.holds AND s.ending IS NOT NULL;
    IF v_tasks IS NULL THEN
        RETURN;
    END IF;

    RETURN QUERY
    SELECT 'ended', NULL::int, f.status, f.run_id
    FROM ork_finish(v_now, v_tasks, v_kinds, v_names, v_outputs, v_errors, v_retry_at, v_leases) f;

    RETURN QUERY
    SELECT 'applied', s.step, CASE WHEN s.kind IN ('success', 'failed') THEN s.kind ELSE 'pending' END, NULL::uuid
    FROM unnest(v_steps, v_kinds) AS s (step, kind);
END
$$;

-- Ends attempts that are overdue, the longest overdue first, with their open jobs. Answers as `ork_expire_leases`.
CREATE OR REPLACE FUNCTION ork_expire_timeouts(p_limit int, p_now timestamptz)
RETURNS TABLE (answer text, id uuid, status text)
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
    v_candidates uuid[];
    v_runs uuid[];
    v_tasks uuid[];
    v_kinds text[];
    v_errors text[];
BEGIN
    SELECT array_agg(o.task_id), array_agg(DISTINCT o.run_id) INTO v_candidates, v_runs
    FROM (
        SELECT k.task_id, k.run_id
        FROM task_timeouts k
        WHERE k.deadline <= v_now
        ORDER BY k.deadline, k.task_id
        LIMIT p_limit
    ) o;
    IF v_candidates IS NULL THEN
        RETURN;
    END IF;
    PERFORM FROM runs r WHERE r.id = ANY (v_runs) ORDER BY r.id FOR NO KEY UPDATE;
    PERFORM FROM task_leases l WHERE l.task_id = ANY (v_candidates) ORDER BY l.task_id FOR UPDATE;
    -- What becomes ready does so no earlier than its transaction got its number: the beginning of the queue is known by that.
    v_now := coalesce(p_now, clock_timestamp());
    -- What ended while the locks were waited for is not here any more, and another attempt has another deadline.
    DELETE FROM task_timeouts o WHERE o.task_id = ANY (v_candidates) AND o.deadline + interval '0' <= v_now;

    SELECT
        array_agg(t.id),
        array_agg(CASE WHEN t.attempts <= t.max_retries THEN 'retry' ELSE 'failed' END),
        array_agg(format('timed out after %s s', t.timeout_seconds))
    INTO v_tasks, v_kinds, v_errors
    FROM unnest(v_candidates) AS c (task_id)
    CROSS JOIN LATERAL (
        SELECT k.id, k.attempts, k.max_retries, k.timeout_seconds, k.started_at
        FROM tasks k
        WHERE k.id = c.task_id AND k.status = 'running'
        OFFSET 0
    ) t
    WHERE ork_later(t.started_at, make_interval(secs => t.timeout_seconds)) <= v_now;
    IF v_tasks IS NULL THEN
        RETURN;
    END IF;

    UPDATE deferred_jobs j
    SET status = 'cancelled', finished_at = v_now, poll_at = NULL, owner = NULL
    WHERE j.task_id = ANY (v_tasks) AND j.poll_at IS NOT NULL;

    RETURN QUERY
    SELECT 'ended', f.run_id, f.status
    FROM ork_finish(v_now, v_tasks, v_kinds, NULL, NULL, v_errors, NULL) f;

    RETURN QUERY
    SELECT CASE t.kind WHEN 'retry' THEN 'requeued' ELSE 'failed' END, t.task_id, NULL
    FROM unnest(v_tasks, v_kinds) AS t (task_id, kind);
END
$$;
