-- Rows of databases that Ork made before ork-state, as the rules want them. A new store has none,
-- and nothing happens here.

-- Step 010 made it, unless it was applied through another connection.
CREATE TEMP TABLE IF NOT EXISTS ork_adjusted (
    rule TEXT NOT NULL, entity TEXT NOT NULL, id BLOB NOT NULL, problem TEXT NOT NULL
);

CREATE TEMP TABLE ork_now AS SELECT CAST(unixepoch('subsec') * 1000000 AS INTEGER) AS now;

-- What no type of the API can hold.
UPDATE runs SET triggered_by = 'manual' WHERE triggered_by = '';
UPDATE tasks SET execution_name = NULL WHERE execution_name = '';
UPDATE tasks
SET max_retries = min(max(max_retries, 0), 1000000),
    attempts = max(attempts, 0),
    timeout_seconds = iif(timeout_seconds > 0, timeout_seconds, NULL)
WHERE max_retries NOT BETWEEN 0 AND 1000000 OR attempts < 0 OR timeout_seconds <= 0;
INSERT INTO temp.ork_adjusted
SELECT 'G5', 'task', t.id, 'had an error longer than 1 MiB: its beginning is kept' FROM tasks AS t WHERE octet_length(t.error) > 1048576;
UPDATE tasks SET error = substr(error, 1, 250000) || ' [cut]' WHERE octet_length(error) > 1048576;
INSERT INTO temp.ork_adjusted
SELECT 'G5', 'run', r.id, 'had an error longer than 1 MiB: its beginning is kept' FROM runs AS r WHERE octet_length(r.error) > 1048576;
UPDATE runs SET error = substr(error, 1, 250000) || ' [cut]' WHERE octet_length(error) > 1048576;
INSERT INTO temp.ork_adjusted
SELECT 'G8', 'task', t.id, 'has a name that cannot be used: rename it, and in `depends_on` of others'
FROM tasks AS t
WHERE t.task_name IN ('', '.', '..') OR octet_length(t.task_name) > 255 OR t.task_name GLOB '*[/\' || char(10, 13, 9) || ']*';
INSERT INTO temp.ork_adjusted
SELECT 'G8', 'workflow', w.id, 'has a name that cannot be used: rename it'
FROM workflows AS w
WHERE w.name = '' OR octet_length(w.name) > 255 OR w.name GLOB '*[' || char(10, 13, 9) || ']*';
INSERT INTO temp.ork_adjusted
SELECT 'G8', 'task', t.id, 'had a list of dependencies that cannot be read: it has none now' || iif(t.status = 'pending', ', and has failed', '')
FROM tasks AS t
WHERE NOT json_valid(t.depends_on) OR json_type(t.depends_on) <> 'array';
UPDATE tasks
SET depends_on = '[]',
    status = iif(status = 'pending', 'failed', status),
    error = iif(status = 'pending', 'its list of dependencies could not be read', error)
WHERE NOT json_valid(depends_on) OR json_type(depends_on) <> 'array';

-- A run that has tasks was started.
UPDATE runs
SET status = 'running', started_at = coalesce(started_at, created_at)
WHERE status = 'pending' AND id IN (SELECT t.run_id FROM tasks AS t);

-- Tasks are numbered from 0 without gaps. By way of negative numbers, for each is there once.
CREATE TEMP TABLE ork_places AS
SELECT t.id, t.task_index, row_number() OVER (PARTITION BY t.run_id ORDER BY t.task_index) - 1 AS place FROM tasks AS t;
INSERT INTO temp.ork_adjusted
SELECT 'R2', 'task', p.id, 'had the index ' || p.task_index || ': the tasks of its run are numbered without gaps now'
FROM temp.ork_places AS p
WHERE p.place <> p.task_index;
UPDATE tasks SET task_index = -p.place - 1 FROM temp.ork_places AS p WHERE p.id = tasks.id AND p.place <> p.task_index;
UPDATE tasks SET task_index = -task_index - 1 WHERE task_index < 0;
DROP TABLE temp.ork_places;

-- Dependencies that are no task of the run, or that are listed twice.
CREATE TEMP TABLE ork_dangling AS
SELECT t.id, t.run_id, group_concat('"' || d.value || '"', ', ') AS names
FROM tasks AS t
CROSS JOIN json_each(t.depends_on) AS d
WHERE NOT EXISTS (SELECT 1 FROM tasks AS o WHERE o.run_id = t.run_id AND o.task_name = d.value)
GROUP BY t.id;
INSERT INTO temp.ork_adjusted
SELECT 'T1', 'task', d.id, 'depended on ' || substr(d.names, 1, 300) || ', which its run does not have: it does not any more'
FROM temp.ork_dangling AS d;
UPDATE tasks
SET depends_on = (
    SELECT json_group_array(n.value)
    FROM (
        SELECT d.value, min(d.key) AS place
        FROM json_each(tasks.depends_on) AS d
        WHERE EXISTS (SELECT 1 FROM tasks AS o WHERE o.run_id = tasks.run_id AND o.task_name = d.value)
        GROUP BY d.value
        ORDER BY place
    ) AS n
)
WHERE depends_on <> '[]';

INSERT INTO task_edges (run_id, task_index, dependent_index)
SELECT t.run_id, d.task_index, t.task_index
FROM tasks AS t
CROSS JOIN json_each(t.depends_on) AS n
JOIN tasks AS d ON d.run_id = t.run_id AND d.task_name = n.value;

-- Tasks of runs that have ended have ended too.
CREATE TEMP TABLE ork_over AS
SELECT t.id, r.status, r.finished_at
FROM tasks AS t
JOIN runs AS r ON r.id = t.run_id AND r.status IN ('success', 'failed', 'cancelled')
WHERE t.status NOT IN ('success', 'failed', 'cancelled');
INSERT INTO temp.ork_adjusted
SELECT 'R4', 'task', o.id, 'had not ended in a run that has (' || o.status || '): it is cancelled' FROM temp.ork_over AS o;
UPDATE tasks
SET status = 'cancelled', finished_at = coalesce(tasks.finished_at, o.finished_at, (SELECT now FROM temp.ork_now))
FROM temp.ork_over AS o
WHERE o.id = tasks.id;
DROP TABLE temp.ork_over;

-- Tasks of live runs that can never be ready: they, and what depends on them, fail. What waits for
-- itself is what is left when everything is taken away that can be reached from tasks that wait for
-- nothing: the largest number of links before a task that is no part of a circle is less than the
-- number of tasks of its run.
CREATE TEMP TABLE ork_stuck AS
SELECT t.id, 'depends on ' || substr(d.names, 1, 300) || ', which its run does not have' AS error
FROM tasks AS t
JOIN temp.ork_dangling AS d ON d.id = t.id
JOIN runs AS r ON r.id = t.run_id AND r.status IN ('running', 'paused')
WHERE t.status = 'pending';
INSERT INTO temp.ork_stuck
WITH RECURSIVE
live AS (
    SELECT t.run_id, t.task_index, t.id
    FROM tasks AS t
    JOIN runs AS r ON r.id = t.run_id AND r.status IN ('running', 'paused')
    WHERE t.status NOT IN ('success', 'failed', 'cancelled')
),
behind (run_id, origin, task_index) AS (
    SELECT l.run_id, l.task_index, e.dependent_index
    FROM live AS l
    JOIN task_edges AS e ON e.run_id = l.run_id AND e.task_index = l.task_index
    WHERE EXISTS (
        SELECT 1 FROM task_edges AS b WHERE b.run_id = l.run_id AND b.dependent_index = l.task_index AND b.task_index >= l.task_index
    )
    UNION
    SELECT b.run_id, b.origin, e.dependent_index
    FROM behind AS b
    JOIN task_edges AS e ON e.run_id = b.run_id AND e.task_index = b.task_index
)
SELECT DISTINCT l.id, 'depends on itself, however indirectly'
FROM behind AS b
JOIN live AS l ON l.run_id = b.run_id AND l.task_index = b.task_index
WHERE b.origin = b.task_index AND l.id NOT IN (SELECT s.id FROM temp.ork_stuck AS s);
INSERT INTO temp.ork_adjusted
SELECT 'T1', 'task', s.id, 'could never run: it ' || s.error || ', and has failed' FROM temp.ork_stuck AS s;
UPDATE tasks
SET status = 'failed', error = s.error, finished_at = (SELECT now FROM temp.ork_now)
FROM temp.ork_stuck AS s
WHERE s.id = tasks.id;
CREATE TEMP TABLE ork_doomed AS
WITH RECURSIVE doomed (run_id, task_index, culprit) AS (
    SELECT t.run_id, e.dependent_index, t.task_name
    FROM tasks AS t
    JOIN runs AS r ON r.id = t.run_id AND r.status IN ('running', 'paused')
    JOIN task_edges AS e ON e.run_id = t.run_id AND e.task_index = t.task_index
    WHERE t.status IN ('failed', 'cancelled')
    UNION
    SELECT d.run_id, e.dependent_index, d.culprit
    FROM doomed AS d
    JOIN task_edges AS e ON e.run_id = d.run_id AND e.task_index = d.task_index
)
SELECT t.id, min(d.culprit) AS culprit
FROM doomed AS d
JOIN tasks AS t ON t.run_id = d.run_id AND t.task_index = d.task_index AND t.status = 'pending'
GROUP BY t.id;
INSERT INTO temp.ork_adjusted
SELECT 'T5', 'task', d.id, 'depended on a task that failed or was cancelled: it has failed' FROM temp.ork_doomed AS d;
UPDATE tasks
SET status = 'failed', error = 'dependency "' || d.culprit || '" failed', finished_at = (SELECT now FROM temp.ork_now)
FROM temp.ork_doomed AS d
WHERE d.id = tasks.id;
DROP TABLE temp.ork_doomed;
DROP TABLE temp.ork_stuck;
DROP TABLE temp.ork_dangling;

-- Times and attempts as each status has them.
UPDATE tasks
SET finished_at = CASE
        WHEN status IN ('success', 'failed', 'cancelled') THEN coalesce(finished_at, started_at, dispatched_at, created_at)
    END,
    started_at = iif(status = 'running', coalesce(started_at, dispatched_at, created_at), started_at),
    dispatched_at = iif(status IN ('dispatched', 'running'), coalesce(dispatched_at, started_at, created_at), dispatched_at),
    retry_at = iif(status = 'pending', retry_at, NULL),
    attempts = CASE
        WHEN status = 'pending' THEN min(attempts, max_retries)
        WHEN status IN ('dispatched', 'running') THEN min(max(attempts, 1), max_retries + 1)
        ELSE min(attempts, max_retries + 1)
    END,
    token = iif(status IN ('dispatched', 'running'), 1, 0);
UPDATE tasks
SET unmet_dependencies = e.unmet
FROM (
    SELECT e.run_id, e.dependent_index, count(*) AS unmet
    FROM task_edges AS e
    JOIN tasks AS d ON d.run_id = e.run_id AND d.task_index = e.task_index AND d.status <> 'success'
    GROUP BY e.run_id, e.dependent_index
) AS e
WHERE e.run_id = tasks.run_id AND e.dependent_index = tasks.task_index;

-- Deferred jobs: those that are open belong to the running attempt; of a task that does not run
-- they are over.
UPDATE deferred_jobs SET deferral = t.token FROM tasks AS t WHERE t.id = deferred_jobs.task_id;
INSERT INTO temp.ork_adjusted
SELECT 'D2', 'deferred job', j.id, 'was open though its task does not wait for it: it is cancelled'
FROM deferred_jobs AS j
JOIN tasks AS t ON t.id = j.task_id AND t.status <> 'running'
WHERE j.status IN ('pending', 'polling');
UPDATE deferred_jobs
SET status = 'cancelled', finished_at = coalesce(t.finished_at, (SELECT now FROM temp.ork_now))
FROM tasks AS t
WHERE t.id = deferred_jobs.task_id AND t.status <> 'running' AND deferred_jobs.status IN ('pending', 'polling');
UPDATE deferred_jobs
SET poll_at = iif(status IN ('pending', 'polling'), (SELECT now FROM temp.ork_now), NULL),
    job_data = iif(json_valid(job_data), job_data, 'null'),
    finished_at = iif(status IN ('completed', 'failed', 'cancelled'), coalesce(finished_at, last_polled_at, created_at), NULL);
UPDATE tasks
SET open_jobs = j.open
FROM (SELECT k.task_id, count(*) AS open FROM deferred_jobs AS k WHERE k.poll_at IS NOT NULL GROUP BY k.task_id) AS j
WHERE j.task_id = tasks.id;

-- Nobody holds the claimed tasks as far as we know: their leases have lapsed, and whoever looks for
-- such brings them back.
INSERT INTO task_leases (task_id, run_id, owner, token, expires_at)
SELECT t.id, t.run_id, 'Ork before ork-state', t.token, (SELECT now FROM temp.ork_now)
FROM tasks AS t
WHERE t.status IN ('dispatched', 'running') AND t.open_jobs = 0;
INSERT INTO task_timeouts (task_id, deadline)
SELECT t.id, t.started_at + t.timeout_seconds * 1000000
FROM tasks AS t
WHERE t.status = 'running' AND t.timeout_seconds IS NOT NULL;

-- The counts of runs, and the runs that ought to have ended.
UPDATE runs
SET tasks_total = c.total, tasks_unfinished = c.unfinished, tasks_failed = c.failed, tasks_cancelled = c.cancelled
FROM (
    SELECT
        t.run_id, count(*) AS total,
        count(*) FILTER (WHERE t.status IN ('pending', 'dispatched', 'running')) AS unfinished,
        count(*) FILTER (WHERE t.status = 'failed') AS failed,
        count(*) FILTER (WHERE t.status = 'cancelled') AS cancelled
    FROM tasks AS t
    GROUP BY t.run_id
) AS c
WHERE c.run_id = runs.id;
CREATE TEMP TABLE ork_wrong AS
SELECT
    r.id, r.status,
    CASE WHEN r.tasks_failed > 0 THEN 'failed' WHEN r.tasks_cancelled > 0 THEN 'cancelled' ELSE 'success' END AS of_tasks
FROM runs AS r
WHERE (r.status IN ('running', 'paused') AND r.tasks_unfinished = 0)
    OR (r.status = 'success' AND r.tasks_failed + r.tasks_cancelled > 0);
INSERT INTO temp.ork_adjusted
SELECT 'R3', 'run', w.id, 'was ' || w.status || ' though its tasks had ended otherwise: it is ' || w.of_tasks
FROM temp.ork_wrong AS w;
UPDATE runs
SET status = w.of_tasks,
    finished_at = coalesce(
        runs.finished_at, (SELECT max(t.finished_at) FROM tasks AS t WHERE t.run_id = runs.id), (SELECT now FROM temp.ork_now)
    )
FROM temp.ork_wrong AS w
WHERE w.id = runs.id;
DROP TABLE temp.ork_wrong;
UPDATE runs
SET error = coalesce(
    (
        SELECT 'task "' || t.task_name || '" failed'
        FROM tasks AS t
        WHERE t.run_id = runs.id AND t.status = 'failed'
        ORDER BY t.unmet_dependencies > 0, t.task_index
        LIMIT 1
    ),
    'failed, and no task of it did'
)
WHERE status = 'failed' AND error IS NULL;
UPDATE runs
SET started_at = CASE
        WHEN status = 'pending' THEN NULL
        WHEN status IN ('running', 'paused') THEN coalesce(started_at, created_at)
        ELSE started_at
    END,
    finished_at = CASE
        WHEN status IN ('success', 'failed', 'cancelled') THEN coalesce(finished_at, started_at, created_at)
    END;

-- What is ready.
UPDATE tasks
SET ready_at = max((SELECT now FROM temp.ork_now), coalesce(tasks.retry_at, 0))
FROM runs AS r
WHERE r.id = tasks.run_id AND r.status = 'running' AND tasks.status = 'pending' AND tasks.unmet_dependencies = 0;
INSERT INTO ready_tasks (ready_at, run_id, task_index, task_id)
SELECT t.ready_at, t.run_id, t.task_index, t.id FROM tasks AS t WHERE t.ready_at IS NOT NULL;
INSERT INTO ended_counts (kind, status, number)
SELECT n.kind, n.status, sum(n.number)
FROM (
    SELECT 'run' AS kind, r.status, 1 AS number FROM runs AS r WHERE r.status IN ('success', 'failed', 'cancelled')
    UNION ALL
    SELECT 'ever', 'ended', 1 FROM runs AS r WHERE r.status IN ('success', 'failed', 'cancelled')
    UNION ALL
    SELECT 'task', t.status, 1
    FROM tasks AS t
    JOIN runs AS r ON r.id = t.run_id AND r.status IN ('success', 'failed', 'cancelled')
) AS n
GROUP BY n.kind, n.status;

-- A schedule in force without a next slot was due; without a next slot ours is not.
UPDATE workflows SET schedule_enabled = 0 WHERE schedule IS NULL AND schedule_enabled <> 0;
INSERT INTO temp.ork_adjusted
SELECT 'S1', 'workflow', w.id, 'had a schedule in force without a next slot: it is due now'
FROM workflows AS w
WHERE w.schedule_enabled <> 0 AND w.next_scheduled_at IS NULL;
UPDATE workflows SET next_scheduled_at = (SELECT now FROM temp.ork_now) WHERE schedule_enabled <> 0 AND next_scheduled_at IS NULL;
DROP TABLE temp.ork_now;
