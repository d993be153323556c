-- Lets a claimed task wait for jobs outside of Ork, and returns the jobs.
--
-- Returns a row per job (`deferred`), or one row that says why not. That row is `lost` with the
-- task's status, or with null if there is no such task.
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
