-- Ends an import: moves the imported records into the store's tables.
--
-- Returns `finished`, `not_empty` or `none`.
CREATE FUNCTION ork_finish_import(p_now timestamptz)
RETURNS text
LANGUAGE plpgsql
SET search_path FROM CURRENT
SET jit = off
AS $$
BEGIN
    LOCK TABLE import_progress, workflows IN EXCLUSIVE MODE;
    IF EXISTS (SELECT FROM workflows) THEN
        RETURN 'not_empty';
    ELSIF NOT EXISTS (SELECT FROM import_progress) THEN
        RETURN 'none';
    END IF;
    PERFORM ork_hint_ready(coalesce(p_now, clock_timestamp()));

    PERFORM ork_take_in();
    DELETE FROM import_records;
    DELETE FROM import_progress;
    RETURN 'finished';
END
$$;
