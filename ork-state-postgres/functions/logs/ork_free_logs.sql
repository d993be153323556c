-- Frees some 16 MiB of deleted logs, and returns whether there is more to free.
--
-- It frees what any caller has deleted, and skips what another call is freeing.
CREATE FUNCTION ork_free_logs()
RETURNS boolean
LANGUAGE plpgsql
SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_bitmapscan = off
SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    v_tasks uuid[];
    v_chunks tid[];
    v_offsets bigint[];
BEGIN
    -- The call that locked a task's row frees its chunks. Nobody else changes them any more. Only
    -- the last task can have more of them.
    SELECT array_agg(s.task_id), array_agg(s.place), array_agg(s.start_offset)
    INTO v_tasks, v_chunks, v_offsets
    FROM (
        SELECT
            d.task_id, c.place, c.start_offset,
            coalesce(sum(c.bytes) OVER (ROWS UNBOUNDED PRECEDING) - c.bytes, 0) AS before
        FROM (SELECT k.task_id, k.freed_to FROM deleted_logs k LIMIT 1000 FOR UPDATE SKIP LOCKED) d
        LEFT JOIN LATERAL (
            -- The length is known without reading data that is stored out of line.
            SELECT k.ctid AS place, k.start_offset, octet_length(k.data) AS bytes
            FROM task_log_chunks k
            WHERE k.task_id = d.task_id AND k.start_offset >= d.freed_to
            ORDER BY k.start_offset
            OFFSET 0
        ) c ON true
        LIMIT 10000
    ) s
    WHERE s.before < 16 * 1024 * 1024;
    IF v_tasks IS NULL THEN
        RETURN false;
    END IF;
    DELETE FROM task_log_chunks c WHERE c.ctid = ANY (v_chunks);
    DELETE FROM deleted_logs d
    WHERE d.task_id = ANY (v_tasks)
        AND NOT EXISTS (
            SELECT FROM task_log_chunks c WHERE c.task_id = d.task_id AND c.start_offset >= d.freed_to OFFSET 0
        );
    UPDATE deleted_logs d
    SET freed_to = v_offsets[cardinality(v_offsets)] + 1
    WHERE d.task_id = v_tasks[cardinality(v_tasks)];
    RETURN EXISTS (SELECT FROM deleted_logs);
END
$$;
