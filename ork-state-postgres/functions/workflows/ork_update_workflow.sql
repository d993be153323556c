-- Changes the given fields of a workflow, and returns the workflow.
--
-- The description and the target change if their flags say so, the DAG if it has a text.
-- No row: no such workflow.
CREATE FUNCTION ork_update_workflow(
    p_workflow uuid, p_has_description boolean, p_description text, p_has_target boolean, p_executor text, p_job text,
    p_region text, p_project text, p_params text, p_snapshot uuid, p_hash text, p_dag text, p_now timestamptz
)
RETURNS SETOF workflows
LANGUAGE plpgsql
SET search_path FROM CURRENT
SET enable_seqscan = off
SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz;
    v_snapshot uuid;
BEGIN
    PERFORM FROM workflows w WHERE w.id = p_workflow FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    v_now := coalesce(p_now, clock_timestamp());
    IF p_dag IS NOT NULL THEN
        INSERT INTO workflow_snapshots (id, workflow_id, content_hash, tasks_json, created_at)
        VALUES (p_snapshot, p_workflow, p_hash, p_dag::json, v_now)
        ON CONFLICT (workflow_id, content_hash) DO NOTHING;
        SELECT s.id INTO v_snapshot
        FROM workflow_snapshots s
        WHERE s.workflow_id = p_workflow AND s.content_hash = p_hash;
    END IF;
    RETURN QUERY
    UPDATE workflows w
    SET description = CASE WHEN p_has_description THEN p_description ELSE w.description END,
        executor_type = CASE WHEN p_has_target THEN p_executor ELSE w.executor_type END,
        job_name = CASE WHEN p_has_target THEN p_job ELSE w.job_name END,
        region = CASE WHEN p_has_target THEN p_region ELSE w.region END,
        project = CASE WHEN p_has_target THEN p_project ELSE w.project END,
        task_params = CASE WHEN p_has_target THEN p_params::json ELSE w.task_params END,
        current_snapshot_id = coalesce(v_snapshot, w.current_snapshot_id),
        updated_at = v_now
    WHERE w.id = p_workflow
    RETURNING w.*;
END
$$;
