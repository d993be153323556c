-- Creates the run of a schedule's slot and moves the schedule on, if the slot is due.
--
-- Returns `fired` with the run, or `not_due`. No row: no such workflow.
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
    -- A second caller waits here, then sees that the schedule has moved on.
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
