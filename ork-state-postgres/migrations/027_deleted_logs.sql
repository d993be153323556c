-- What the tasks of deleted runs printed is freed in steps, of which the deletion itself makes the first: in one statement a log of some
-- gigabytes would take longer than a call may, each time anew.

-- Tasks that are gone and whose chunks from `freed_to` on are still to be freed. Without it each step would look at all chunks that were freed
-- before, as long as any old transaction keeps them from being vacuumed.
CREATE TABLE deleted_logs (
    task_id uuid PRIMARY KEY,
    freed_to bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);

-- As in 020, but leaves the chunks to `ork_free_logs`.
CREATE OR REPLACE FUNCTION ork_delete_runs(p_runs uuid[])
RETURNS bigint
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
DECLARE
    v_tasks uuid[];
BEGIN
    PERFORM ork_count_ended(p_runs, -1);
    -- Runs that have ended have no ready, claimed or timed tasks, unless they were damaged.
    PERFORM ork_unqueue(p_runs);
    DELETE FROM task_edges e WHERE e.run_id = ANY (p_runs);
    WITH gone AS (DELETE FROM tasks t WHERE t.run_id = ANY (p_runs) RETURNING t.id)
    SELECT array_agg(g.id) INTO v_tasks FROM gone g;
    DELETE FROM task_leases l WHERE l.task_id = ANY (v_tasks);
    DELETE FROM task_timeouts o WHERE o.task_id = ANY (v_tasks);
    DELETE FROM deferred_jobs j WHERE j.task_id = ANY (v_tasks);
    -- In this order: see `ork_append_log`.
    DELETE FROM task_logs l WHERE l.task_id = ANY (v_tasks);
    INSERT INTO deleted_logs (task_id)
    SELECT u.task_id
    FROM unnest(v_tasks) AS u (task_id)
    WHERE EXISTS (SELECT FROM task_log_chunks c WHERE c.task_id = u.task_id OFFSET 0);
    DELETE FROM runs r WHERE r.id = ANY (p_runs);
    RETURN coalesce(cardinality(v_tasks), 0);
END
$$;

-- Frees some 16 MiB of what was deleted, whoever deleted it. Says whether there is more that no other call is at.
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
    -- Whoever has locked the row of a task frees its chunks: nobody else changes them any more. Only the last task can have more of them.
    SELECT array_agg(s.task_id), array_agg(s.place), array_agg(s.start_offset)
    INTO v_tasks, v_chunks, v_offsets
    FROM (
        SELECT
            d.task_id, c.place, c.start_offset,
            coalesce(sum(c.bytes) OVER (ROWS UNBOUNDED PRECEDING) - c.bytes, 0) AS before
        FROM (SELECT k.task_id, k.freed_to FROM deleted_logs k LIMIT 1000 FOR UPDATE SKIP LOCKED) d
        LEFT JOIN LATERAL (
            -- The length is known without reading what is stored elsewhere.
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

-- As in 023, but clears away what deletions left: the tasks may come back with their ids.
CREATE OR REPLACE FUNCTION ork_import(
    p_records bigint, p_digest text, p_kinds text[], p_texts text[], p_new_digest text
)
RETURNS TABLE (answer text, found_records bigint, found_digest text)
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    v import_progress;
BEGIN
    LOCK TABLE import_progress IN EXCLUSIVE MODE;
    IF EXISTS (SELECT FROM workflows) THEN
        RETURN QUERY SELECT 'not_empty', NULL::bigint, NULL::text;
        RETURN;
    END IF;
    SELECT * INTO v FROM import_progress;
    IF coalesce(v.records, 0) <> p_records OR coalesce(v.digest, '') <> p_digest THEN
        RETURN QUERY SELECT 'unlike', v.records, v.digest;
        RETURN;
    END IF;
    IF p_records = 0 THEN
        WITH gone AS (DELETE FROM deleted_logs d RETURNING d.task_id)
        DELETE FROM task_log_chunks c USING gone g WHERE c.task_id = g.task_id;
    END IF;
    INSERT INTO import_records (number, kind, record)
    SELECT p_records + u.place, u.kind, u.record::json
    FROM unnest(p_kinds, p_texts) WITH ORDINALITY u (kind, record, place);
    INSERT INTO import_progress AS i (records, digest)
    VALUES (p_records + cardinality(p_kinds), p_new_digest)
    ON CONFLICT (id) DO UPDATE SET records = excluded.records, digest = excluded.digest;
    RETURN QUERY SELECT 'kept', NULL::bigint, NULL::text;
END
$$;
