-- Notifies those who watch this schema that a task became ready.
--
-- The notification arrives with the commit. It takes a server-wide lock at commit, so it is sent
-- only when no other task is ready. While there is one, the schedulers are busy anyway.
--
-- It reads the end of the queue. At the beginning lie dead rows of claimed tasks that are not
-- vacuumed yet.
CREATE FUNCTION ork_hint_ready(p_now timestamptz)
RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    -- In an EXISTS the order would be ignored.
    PERFORM FROM ready_tasks q WHERE q.ready_at <= p_now ORDER BY q.ready_at DESC LIMIT 1;
    IF NOT FOUND THEN
        PERFORM pg_notify('ork_ready_' || md5(current_schema()), '');
    END IF;
END
$$;
