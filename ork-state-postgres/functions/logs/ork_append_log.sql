-- Appends a chunk to a task's log, and returns the new length of the log.
--
-- Also returns how many bytes of the chunk were dropped. With a cap the log keeps its first `p_cap`
-- bytes, then the note, and nothing after it. No row: no such task.
CREATE FUNCTION ork_append_log(p_task uuid, p_data bytea, p_cap bigint, p_note bytea)
RETURNS TABLE (new_length bigint, dropped bigint)
LANGUAGE plpgsql
SET search_path FROM CURRENT
SET enable_seqscan = off
AS $$
#variable_conflict use_column
DECLARE
    v_length bigint;
    v_keep bigint;
    v_data bytea;
BEGIN
    -- Concurrent appends to one log wait for each other here.
    SELECT length INTO v_length FROM task_logs WHERE task_id = p_task FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        -- The first append. The task is locked so that a deletion comes either before this or after
        -- it. A deletion takes the task first, then its log, then the chunks.
        PERFORM FROM tasks WHERE id = p_task FOR KEY SHARE;
        IF NOT FOUND THEN
            RETURN;
        END IF;
        INSERT INTO task_logs (task_id, length) VALUES (p_task, 0) ON CONFLICT (task_id) DO NOTHING;
        SELECT length INTO v_length FROM task_logs WHERE task_id = p_task FOR NO KEY UPDATE;
    END IF;

    v_keep := octet_length(p_data);
    v_data := p_data;
    IF v_keep > p_cap - v_length THEN
        v_keep := greatest(p_cap - v_length, 0);
        v_data := substring(p_data FROM 1 FOR v_keep::int);
        -- A log that is longer than its cap already has the note.
        IF v_length <= p_cap THEN
            v_data := v_data || p_note;
        END IF;
    END IF;

    IF octet_length(v_data) > 0 THEN
        INSERT INTO task_log_chunks (task_id, start_offset, data) VALUES (p_task, v_length, v_data);
        v_length := v_length + octet_length(v_data);
        UPDATE task_logs SET length = v_length WHERE task_id = p_task;
    END IF;
    RETURN QUERY SELECT v_length, octet_length(p_data) - v_keep;
END
$$;
