-- Ends claims with all consequences, and returns the runs that ended.
--
-- The consequences: counters change, other tasks become ready or fail, runs end. The callers have
-- locked the runs and the leases, and checked that the claims are over. The callers' planner
-- settings apply here too. Kinds: `success`, `failed` (for good), `retry`, `released`. `p_leases`
-- holds the positions of the leases, if the caller knows them.
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

    -- Each task is looked up here and nowhere else.
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
            -- In a paused run it waits until the run is resumed.
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
        -- For every task, whatever its status, the counter is the number of dependencies that have
        -- not succeeded.
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
        -- Takes the culprits in the order of their indexes. Each dependent that a culprit reaches
        -- gets its name and is not walked again. So all culprits together walk each dependent once.
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
            -- Null without a culprit. `format` would print null as an empty name.
            error = coalesce(r.error, 'task "' || d.culprit || '" failed'),
            status = CASE
                WHEN NOT d.is_over THEN r.status
                WHEN r.tasks_failed + d.failed + r.tasks_cancelled = 0 THEN 'success'
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
