-- Notifies those who watch this schema that a run ended, if anybody does.
--
-- Watchers share an advisory lock, so the lock is free exactly when nobody watches.
CREATE FUNCTION ork_hint_ended()
RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtextextended('ork_ended_' || md5(current_schema()), 0)) THEN
        PERFORM pg_notify('ork_ended_' || md5(current_schema()), '');
    END IF;
END
$$;
