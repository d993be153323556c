-- Writes the stored records into the tables, with everything that follows from them.
--
-- A row with the same id is overwritten with its record. Only a takeover of a database of Ork finds
-- such rows.
CREATE FUNCTION ork_take_in()
RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
SET jit = off
AS $$
BEGIN
    -- In one statement, because the two rows refer to each other.
    WITH snapshots AS (
        INSERT INTO workflow_snapshots (id, workflow_id, content_hash, tasks_json, created_at)
        SELECT (x.row->>'id')::uuid, (x.row->>'workflow')::uuid, x.row->>'content_hash', (x.row->>'dag')::json,
            (x.row->>'created_at')::timestamptz
        FROM import_records r
        CROSS JOIN LATERAL (SELECT r.record->'snapshot' AS row) x
        WHERE r.kind = 'snapshot'
        ON CONFLICT (id) DO UPDATE SET
            workflow_id = excluded.workflow_id, content_hash = excluded.content_hash,
            tasks_json = excluded.tasks_json, created_at = excluded.created_at
    )
    INSERT INTO workflows (
        id, name, description, executor_type, job_name, region, project, task_params, created_at, updated_at,
        schedule, schedule_enabled, last_scheduled_at, next_scheduled_at, current_snapshot_id
    )
    SELECT (x.row->>'id')::uuid, x.row->>'name', x.row->>'description', x.row#>>'{target,executor_type}',
        x.row#>>'{target,job_name}', x.row#>>'{target,region}', x.row#>>'{target,project}',
        (r.record#>>'{workflow,params}')::json, (x.row->>'created_at')::timestamptz,
        (x.row->>'updated_at')::timestamptz, x.row#>>'{schedule,expression}',
        coalesce((x.row#>>'{schedule,enabled}')::boolean, false), (x.row#>>'{schedule,last_at}')::timestamptz,
        (x.row#>>'{schedule,next_at}')::timestamptz, (x.row->>'snapshot')::uuid
    FROM import_records r
    CROSS JOIN LATERAL (SELECT r.record#>'{workflow,row}' AS row) x
    WHERE r.kind = 'workflow'
    ON CONFLICT (id) DO UPDATE SET
        name = excluded.name, description = excluded.description,
        executor_type = excluded.executor_type, job_name = excluded.job_name,
        region = excluded.region, project = excluded.project, task_params = excluded.task_params,
        created_at = excluded.created_at, updated_at = excluded.updated_at,
        schedule = excluded.schedule, schedule_enabled = excluded.schedule_enabled,
        last_scheduled_at = excluded.last_scheduled_at,
        next_scheduled_at = excluded.next_scheduled_at,
        current_snapshot_id = excluded.current_snapshot_id;

    INSERT INTO runs (
        id, workflow_id, snapshot_id, status, triggered_by, idempotency_key, error, created_at, started_at, finished_at,
        tasks_total, tasks_unfinished, tasks_failed, tasks_cancelled
    )
    SELECT (x.row->>'id')::uuid, (x.row->>'workflow')::uuid, (x.row->>'snapshot')::uuid, x.row->>'status',
        x.row->>'triggered_by', x.row->>'idempotency_key', x.row->>'error', (x.row->>'created_at')::timestamptz,
        (x.row->>'started_at')::timestamptz, (x.row->>'finished_at')::timestamptz, (x.row#>>'{tasks,total}')::int,
        (x.row#>>'{tasks,unfinished}')::int, (x.row#>>'{tasks,failed}')::int, (x.row#>>'{tasks,cancelled}')::int
    FROM import_records r
    CROSS JOIN LATERAL (SELECT r.record#>'{run,row}' AS row) x
    WHERE r.kind = 'run'
    ON CONFLICT (id) DO UPDATE SET
        workflow_id = excluded.workflow_id, snapshot_id = excluded.snapshot_id,
        status = excluded.status, triggered_by = excluded.triggered_by,
        idempotency_key = excluded.idempotency_key, error = excluded.error,
        created_at = excluded.created_at, started_at = excluded.started_at,
        finished_at = excluded.finished_at, tasks_total = excluded.tasks_total,
        tasks_unfinished = excluded.tasks_unfinished, tasks_failed = excluded.tasks_failed,
        tasks_cancelled = excluded.tasks_cancelled;

    INSERT INTO tasks (
        id, run_id, task_index, task_name, executor_type, depends_on, unmet_dependencies, open_jobs, status, attempts, max_retries,
        timeout_seconds, execution_name, error, created_at, ready_at, retry_at, dispatched_at, started_at, finished_at, params,
        output, token
    )
    SELECT (x.row->>'id')::uuid, (x.row->>'run')::uuid, (x.row->>'index')::int, x.row->>'name', x.row->>'executor_type',
        ARRAY(SELECT json_array_elements_text(x.row->'depends_on')), (x.row->>'unmet_dependencies')::int,
        (x.row->>'open_jobs')::int, x.row->>'status', (x.row->>'attempts')::int, (x.row->>'max_retries')::int,
        (x.row->>'timeout_seconds')::int, x.row->>'execution_name', x.row->>'error',
        (x.row->>'created_at')::timestamptz, (x.row->>'ready_at')::timestamptz, (x.row->>'retry_at')::timestamptz,
        (x.row->>'dispatched_at')::timestamptz, (x.row->>'started_at')::timestamptz,
        (x.row->>'finished_at')::timestamptz, (r.record#>>'{task,params}')::json, (r.record#>>'{task,output}')::json,
        (r.record#>>'{task,token}')::bigint
    FROM import_records r
    CROSS JOIN LATERAL (SELECT r.record#>'{task,row}' AS row) x
    WHERE r.kind = 'task'
    ON CONFLICT (id) DO UPDATE SET
        run_id = excluded.run_id, task_index = excluded.task_index, task_name = excluded.task_name,
        executor_type = excluded.executor_type, depends_on = excluded.depends_on,
        unmet_dependencies = excluded.unmet_dependencies, open_jobs = excluded.open_jobs,
        status = excluded.status, attempts = excluded.attempts, max_retries = excluded.max_retries,
        timeout_seconds = excluded.timeout_seconds, execution_name = excluded.execution_name,
        error = excluded.error, created_at = excluded.created_at, ready_at = excluded.ready_at,
        retry_at = excluded.retry_at, dispatched_at = excluded.dispatched_at,
        started_at = excluded.started_at, finished_at = excluded.finished_at,
        params = excluded.params, output = excluded.output, token = excluded.token;

    INSERT INTO task_leases (task_id, run_id, owner, token, expires_at)
    SELECT (x.row->>'id')::uuid, (x.row->>'run')::uuid, x.row#>>'{lease,owner}', (x.row#>>'{lease,token}')::bigint,
        (x.row#>>'{lease,expires_at}')::timestamptz
    FROM import_records r
    CROSS JOIN LATERAL (SELECT r.record#>'{task,row}' AS row) x
    WHERE r.kind = 'task' AND x.row#>>'{lease,token}' IS NOT NULL;

    INSERT INTO task_edges (run_id, task_index, dependent_index, dependent_id)
    SELECT d.run_id, f.task_index, d.task_index, d.id
    FROM tasks d
    CROSS JOIN LATERAL unnest(d.depends_on) n (name)
    JOIN tasks f ON f.run_id = d.run_id AND f.task_name = n.name;

    INSERT INTO ready_tasks (ready_at, run_id, task_index, task_id)
    SELECT t.ready_at, t.run_id, t.task_index, t.id
    FROM tasks t
    JOIN runs r ON r.id = t.run_id
    WHERE r.status = 'running' AND t.status = 'pending' AND t.unmet_dependencies = 0 AND t.ready_at IS NOT NULL;

    INSERT INTO task_timeouts (task_id, run_id, deadline)
    SELECT t.id, t.run_id, ork_later(t.started_at, make_interval(secs => t.timeout_seconds))
    FROM tasks t
    WHERE t.status = 'running' AND t.timeout_seconds IS NOT NULL AND t.started_at IS NOT NULL;

    INSERT INTO deferred_jobs (
        id, task_id, run_id, job_index, deferral, service_type, job_id, job_data, status, owner, poll_at, output, error,
        created_at, started_at, last_polled_at, finished_at, token
    )
    SELECT (x.row->>'id')::uuid, (x.row->>'task')::uuid, (x.row->>'run')::uuid, (x.row->>'index')::int,
        (r.record#>>'{job,deferral}')::bigint, x.row->>'service_type', x.row->>'job_id',
        (r.record#>>'{job,job_data}')::json, x.row->>'status', x.row->>'owner', (x.row->>'poll_at')::timestamptz,
        (r.record#>>'{job,output}')::json, x.row->>'error', (x.row->>'created_at')::timestamptz,
        (x.row->>'started_at')::timestamptz, (x.row->>'last_polled_at')::timestamptz,
        (x.row->>'finished_at')::timestamptz, (r.record#>>'{job,token}')::bigint
    FROM import_records r
    CROSS JOIN LATERAL (SELECT r.record#>'{job,row}' AS row) x
    WHERE r.kind = 'job'
    ON CONFLICT (id) DO UPDATE SET
        task_id = excluded.task_id, run_id = excluded.run_id, job_index = excluded.job_index,
        deferral = excluded.deferral, service_type = excluded.service_type,
        job_id = excluded.job_id, job_data = excluded.job_data, status = excluded.status,
        owner = excluded.owner, poll_at = excluded.poll_at, output = excluded.output,
        error = excluded.error, created_at = excluded.created_at, started_at = excluded.started_at,
        last_polled_at = excluded.last_polled_at, finished_at = excluded.finished_at,
        token = excluded.token;

    INSERT INTO task_log_chunks (task_id, start_offset, data)
    SELECT (x.row->>'task')::uuid, (x.row->>'offset')::bigint, decode(x.row->>'hex', 'hex')
    FROM import_records r
    CROSS JOIN LATERAL (SELECT r.record->'log' AS row) x
    WHERE r.kind = 'log';

    INSERT INTO task_logs (task_id, length)
    SELECT c.task_id, max(c.start_offset + length(c.data))
    FROM task_log_chunks c
    GROUP BY c.task_id;

    PERFORM ork_count_ended(ARRAY(SELECT r.id FROM runs r WHERE r.finished_at IS NOT NULL), 1);
END
$$;
