-- Rows of databases that Ork made before ork-state, as the rules want them. A new store has none,
-- and nothing happens here.

-- The step before made it, unless it was applied in another transaction.
CREATE TEMP TABLE IF NOT EXISTS ork_adjusted (
    rule text NOT NULL, entity text NOT NULL, problem text NOT NULL
) ON COMMIT DROP;

-- What no type of the API can hold.
UPDATE runs SET triggered_by = 'manual' WHERE triggered_by = '';
UPDATE tasks SET execution_name = NULL WHERE execution_name = '';
UPDATE tasks
SET max_retries = least(greatest(max_retries, 0), 1000000),
    attempts = greatest(attempts, 0),
    timeout_seconds = CASE WHEN timeout_seconds > 0 THEN timeout_seconds END
WHERE max_retries NOT BETWEEN 0 AND 1000000 OR attempts < 0 OR timeout_seconds <= 0;
WITH cut AS (
    UPDATE tasks SET error = left(error, 250000) || ' [cut]' WHERE octet_length(error) > 1048576 RETURNING id
)
INSERT INTO ork_adjusted SELECT 'G5', 'task ' || c.id, 'had an error longer than 1 MiB: its beginning is kept' FROM cut c;
WITH cut AS (
    UPDATE runs SET error = left(error, 250000) || ' [cut]' WHERE octet_length(error) > 1048576 RETURNING id
)
INSERT INTO ork_adjusted SELECT 'G5', 'run ' || c.id, 'had an error longer than 1 MiB: its beginning is kept' FROM cut c;
INSERT INTO ork_adjusted
SELECT 'G8', 'task ' || t.id, format('has the name %L, which cannot be used: rename it, and in `depends_on` of others', left(t.task_name, 100))
FROM tasks t
WHERE t.task_name ~ '[[:cntrl:]/\\]' OR t.task_name IN ('', '.', '..') OR octet_length(t.task_name) > 255;
INSERT INTO ork_adjusted
SELECT 'G8', 'workflow ' || w.id, format('has the name %L, which cannot be used: rename it', left(w.name, 100))
FROM workflows w
WHERE w.name ~ '[[:cntrl:]]' OR w.name = '' OR octet_length(w.name) > 255;

-- A run that has tasks was started.
UPDATE runs r
SET status = 'running', started_at = coalesce(r.started_at, r.created_at)
WHERE r.status = 'pending' AND EXISTS (SELECT FROM tasks t WHERE t.run_id = r.id);

-- Tasks are numbered from 0 without gaps. By way of negative numbers, for each is there once.
WITH placed AS (
    SELECT t.id, t.task_index, row_number() OVER (PARTITION BY t.run_id ORDER BY t.task_index) - 1 AS place FROM tasks t
),
moved AS (
    UPDATE tasks t SET task_index = -p.place - 1 FROM placed p WHERE p.id = t.id AND p.place <> p.task_index RETURNING t.id, p.task_index
)
INSERT INTO ork_adjusted
SELECT 'R2', 'task ' || m.id, format('had the index %s: the tasks of its run are numbered without gaps now', m.task_index) FROM moved m;
UPDATE tasks SET task_index = -task_index - 1 WHERE task_index < 0;

-- Dependencies that are no task of the run, or that are listed twice.
CREATE TEMP TABLE ork_dangling ON COMMIT DROP AS
SELECT t.id, min(t.run_id::text)::uuid AS run_id, string_agg(format('%L', left(d.name, 100)), ', ' ORDER BY d.place) AS names
FROM tasks t
CROSS JOIN LATERAL unnest(t.depends_on) WITH ORDINALITY AS d (name, place)
WHERE NOT EXISTS (SELECT FROM tasks o WHERE o.run_id = t.run_id AND o.task_name = d.name)
GROUP BY t.id;
INSERT INTO ork_adjusted
SELECT 'T1', 'task ' || d.id, 'depended on ' || d.names || ', which its run does not have: it does not any more'
FROM ork_dangling d;
UPDATE tasks t
SET depends_on = ARRAY(
    SELECT d.name
    FROM unnest(t.depends_on) WITH ORDINALITY AS d (name, place)
    WHERE EXISTS (SELECT FROM tasks o WHERE o.run_id = t.run_id AND o.task_name = d.name)
    GROUP BY d.name
    ORDER BY min(d.place)
)
WHERE t.depends_on <> '{}'
    AND (
        EXISTS (SELECT FROM ork_dangling d WHERE d.id = t.id)
        OR cardinality(t.depends_on) <> (SELECT count(DISTINCT d.name) FROM unnest(t.depends_on) AS d (name))
    );

INSERT INTO task_edges (run_id, task_index, dependent_index, dependent_id)
SELECT t.run_id, d.task_index, t.task_index, t.id
FROM tasks t
CROSS JOIN LATERAL unnest(t.depends_on) AS n (name)
JOIN tasks d ON d.run_id = t.run_id AND d.task_name = n.name;

-- Tasks of runs that have ended have ended too.
WITH ended AS (
    UPDATE tasks t
    SET status = 'cancelled', finished_at = coalesce(t.finished_at, r.finished_at, clock_timestamp())
    FROM runs r
    WHERE r.id = t.run_id AND r.status IN ('success', 'failed', 'cancelled')
        AND t.status NOT IN ('success', 'failed', 'cancelled')
    RETURNING t.id, r.status
)
INSERT INTO ork_adjusted
SELECT 'R4', 'task ' || e.id, format('had not ended in a run that has (%s): it is cancelled', e.status) FROM ended e;

-- Tasks of live runs that can never be ready: they, and what depends on them, fail.
CREATE TEMP TABLE ork_stuck (id uuid PRIMARY KEY, run_id uuid NOT NULL, task_index int NOT NULL, error text NOT NULL) ON COMMIT DROP;
INSERT INTO ork_stuck
SELECT t.id, t.run_id, t.task_index, 'depends on ' || d.names || ', which its run does not have'
FROM tasks t
JOIN ork_dangling d ON d.id = t.id
JOIN runs r ON r.id = t.run_id AND r.status IN ('running', 'paused')
WHERE t.status = 'pending';
DO $$
BEGIN
    CREATE TEMP TABLE ork_waiting ON COMMIT DROP AS
    SELECT t.id, t.run_id, t.task_index
    FROM tasks t
    JOIN runs r ON r.id = t.run_id AND r.status IN ('running', 'paused')
    WHERE t.status NOT IN ('success', 'failed', 'cancelled');
    CREATE INDEX ON ork_waiting (run_id, task_index);
    ANALYZE ork_waiting;
    -- Takes away whatever waits for nothing that is left; what remains waits for itself.
    LOOP
        DELETE FROM ork_waiting w
        WHERE NOT EXISTS (
            SELECT FROM task_edges e
            JOIN ork_waiting d ON d.run_id = e.run_id AND d.task_index = e.task_index
            WHERE e.dependent_id = w.id AND e.run_id = w.run_id
        );
        EXIT WHEN NOT FOUND;
    END LOOP;
END
$$;
INSERT INTO ork_stuck
SELECT w.id, w.run_id, w.task_index, 'depends on itself, however indirectly' FROM ork_waiting w
ON CONFLICT DO NOTHING;
INSERT INTO ork_adjusted
SELECT 'T1', 'task ' || s.id, 'could never run: it ' || s.error || ', and has failed' FROM ork_stuck s;
UPDATE tasks t SET status = 'failed', error = s.error, finished_at = clock_timestamp() FROM ork_stuck s WHERE s.id = t.id;
WITH RECURSIVE doomed (run_id, task_index, id, culprit) AS (
    SELECT e.run_id, e.dependent_index, e.dependent_id, t.task_name
    FROM tasks t
    JOIN runs r ON r.id = t.run_id AND r.status IN ('running', 'paused')
    JOIN task_edges e ON e.run_id = t.run_id AND e.task_index = t.task_index
    WHERE t.status IN ('failed', 'cancelled')
    UNION
    SELECT e.run_id, e.dependent_index, e.dependent_id, d.culprit
    FROM doomed d
    JOIN task_edges e ON e.run_id = d.run_id AND e.task_index = d.task_index
),
failed AS (
    UPDATE tasks t
    SET status = 'failed', error = format('dependency "%s" failed', d.culprit), finished_at = clock_timestamp()
    FROM (SELECT k.id, min(k.culprit) AS culprit FROM doomed k GROUP BY k.id) d
    WHERE t.id = d.id AND t.status = 'pending'
    RETURNING t.id
)
INSERT INTO ork_adjusted
SELECT 'T5', 'task ' || f.id, 'depended on a task that failed or was cancelled: it has failed' FROM failed f;

-- Times and attempts as each status has them.
UPDATE tasks t
SET finished_at = CASE
        WHEN t.status IN ('success', 'failed', 'cancelled')
            THEN coalesce(t.finished_at, t.started_at, t.dispatched_at, t.created_at)
    END,
    started_at = CASE WHEN t.status = 'running' THEN coalesce(t.started_at, t.dispatched_at, t.created_at) ELSE t.started_at END,
    dispatched_at = CASE
        WHEN t.status IN ('dispatched', 'running') THEN coalesce(t.dispatched_at, t.started_at, t.created_at)
        ELSE t.dispatched_at
    END,
    retry_at = CASE WHEN t.status = 'pending' THEN t.retry_at END,
    attempts = CASE
        WHEN t.status = 'pending' THEN least(t.attempts, t.max_retries)
        WHEN t.status IN ('dispatched', 'running') THEN least(greatest(t.attempts, 1), t.max_retries + 1)
        ELSE least(t.attempts, t.max_retries + 1)
    END,
    token = CASE WHEN t.status IN ('dispatched', 'running') THEN 1 ELSE 0 END;
UPDATE tasks t
SET unmet_dependencies = e.unmet
FROM (
    SELECT e.dependent_id AS id, count(*)::int AS unmet
    FROM task_edges e
    JOIN tasks d ON d.run_id = e.run_id AND d.task_index = e.task_index AND d.status <> 'success'
    GROUP BY e.dependent_id
) e
WHERE e.id = t.id;

-- Deferred jobs: those that are open belong to the running attempt; of a task that does not run
-- they are over.
UPDATE deferred_jobs j
SET job_index = p.place, deferral = t.token
FROM tasks t,
    (SELECT k.id, (row_number() OVER (PARTITION BY k.task_id ORDER BY k.created_at, k.id) - 1)::int AS place FROM deferred_jobs k) p
WHERE t.id = j.task_id AND p.id = j.id;
WITH over AS (
    UPDATE deferred_jobs j
    SET status = 'cancelled', finished_at = coalesce(t.finished_at, clock_timestamp())
    FROM tasks t
    WHERE t.id = j.task_id AND t.status <> 'running' AND j.status IN ('pending', 'polling')
    RETURNING j.id
)
INSERT INTO ork_adjusted
SELECT 'D2', 'deferred job ' || o.id, 'was open though its task does not wait for it: it is cancelled' FROM over o;
UPDATE deferred_jobs
SET poll_at = CASE WHEN status IN ('pending', 'polling') THEN clock_timestamp() END,
    finished_at = CASE
        WHEN status IN ('completed', 'failed', 'cancelled') THEN coalesce(finished_at, last_polled_at, created_at)
    END;
UPDATE tasks t
SET open_jobs = j.open
FROM (SELECT k.task_id, count(*)::int AS open FROM deferred_jobs k WHERE k.poll_at IS NOT NULL GROUP BY k.task_id) j
WHERE j.task_id = t.id;

-- Nobody holds the claimed tasks as far as we know: their leases have lapsed, and whoever looks for
-- such brings them back.
INSERT INTO task_leases (task_id, run_id, owner, token, expires_at)
SELECT t.id, t.run_id, 'Ork before ork-state', t.token, clock_timestamp()
FROM tasks t
WHERE t.status IN ('dispatched', 'running') AND t.open_jobs = 0;
INSERT INTO task_timeouts (task_id, run_id, deadline)
SELECT
    t.id, t.run_id,
    -- At the latest the last time that the API knows.
    least(t.started_at + make_interval(secs => t.timeout_seconds), timestamptz '9999-12-31 23:59:59.999999+00')
FROM tasks t
WHERE t.status = 'running' AND t.timeout_seconds IS NOT NULL;

-- The counts of runs, and the runs that ought to have ended.
UPDATE runs r
SET tasks_total = c.total, tasks_unfinished = c.unfinished, tasks_failed = c.failed, tasks_cancelled = c.cancelled
FROM (
    SELECT
        t.run_id, count(*)::int AS total,
        (count(*) FILTER (WHERE t.status IN ('pending', 'dispatched', 'running')))::int AS unfinished,
        (count(*) FILTER (WHERE t.status = 'failed'))::int AS failed,
        (count(*) FILTER (WHERE t.status = 'cancelled'))::int AS cancelled
    FROM tasks t
    GROUP BY t.run_id
) c
WHERE c.run_id = r.id;
WITH wrong AS (
    SELECT
        r.id, r.status,
        CASE
            WHEN r.tasks_failed > 0 THEN 'failed'
            WHEN r.tasks_cancelled > 0 THEN 'cancelled'
            ELSE 'success'
        END AS status_of_tasks
    FROM runs r
    WHERE (r.status IN ('running', 'paused') AND r.tasks_unfinished = 0)
        OR (r.status = 'success' AND r.tasks_failed + r.tasks_cancelled > 0)
),
ended AS (
    UPDATE runs r
    SET status = w.status_of_tasks,
        finished_at = coalesce(
            r.finished_at, (SELECT max(t.finished_at) FROM tasks t WHERE t.run_id = r.id), clock_timestamp()
        )
    FROM wrong w
    WHERE w.id = r.id
    RETURNING r.id, w.status, r.status AS status_of_tasks
)
INSERT INTO ork_adjusted
SELECT 'R3', 'run ' || e.id, format('was %s though its tasks had ended otherwise: it is %s', e.status, e.status_of_tasks)
FROM ended e;
UPDATE runs r
SET error = coalesce(
        (
            SELECT format('task "%s" failed', t.task_name)
            FROM tasks t
            WHERE t.run_id = r.id AND t.status = 'failed'
            ORDER BY t.unmet_dependencies > 0, t.task_index
            LIMIT 1
        ),
        'failed, and no task of it did'
    )
WHERE r.status = 'failed' AND r.error IS NULL;
UPDATE runs r
SET started_at = CASE WHEN r.status = 'pending' THEN NULL WHEN r.status IN ('running', 'paused') THEN coalesce(r.started_at, r.created_at) ELSE r.started_at END,
    finished_at = CASE
        WHEN r.status IN ('success', 'failed', 'cancelled') THEN coalesce(r.finished_at, r.started_at, r.created_at)
    END;

-- What is ready.
UPDATE tasks t
SET ready_at = greatest(clock_timestamp(), t.retry_at)
FROM runs r
WHERE r.id = t.run_id AND r.status = 'running' AND t.status = 'pending' AND t.unmet_dependencies = 0;
INSERT INTO ready_tasks (ready_at, run_id, task_index, task_id)
SELECT t.ready_at, t.run_id, t.task_index, t.id FROM tasks t WHERE t.ready_at IS NOT NULL;
INSERT INTO ended_counts (slot, kind, status, number)
SELECT 0, n.kind, n.status, sum(n.number)
FROM runs r
CROSS JOIN LATERAL (
    VALUES
        ('run', r.status, 1),
        ('task', 'success', r.tasks_total - r.tasks_failed - r.tasks_cancelled),
        ('task', 'failed', r.tasks_failed),
        ('task', 'cancelled', r.tasks_cancelled)
) n (kind, status, number)
WHERE r.status IN ('success', 'failed', 'cancelled') AND n.number <> 0
GROUP BY n.kind, n.status;

-- A schedule in force without a next slot was due; without a next slot ours is not.
UPDATE workflows SET schedule_enabled = false WHERE schedule IS NULL AND schedule_enabled;
WITH due AS (
    UPDATE workflows SET next_scheduled_at = clock_timestamp() WHERE schedule_enabled AND next_scheduled_at IS NULL RETURNING id
)
INSERT INTO ork_adjusted
SELECT 'S1', 'workflow ' || d.id, 'had a schedule in force without a next slot: it is due now' FROM due d;
