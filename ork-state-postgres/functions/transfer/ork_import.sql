-- Stores a page of another store's records until the last page has arrived.
--
-- The records must follow those that lead to this progress. Returns `kept`, `not_empty`, or
-- `unlike` with the current progress, if any.
CREATE FUNCTION ork_import(
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
