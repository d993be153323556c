-- Notifies those who watch this schema that a task became ready.
--
-- The notification arrives with the commit. It takes a lock of the whole server at commit, so it
-- is sent on the edge only: while another task is ready, the schedulers are busy anyway.
--
-- It looks at the end of the queue. At the beginning lie the rows that were taken and are not
-- vacuumed yet.
CREATE FUNCTION ork_hint_ready(p_now timestamptz)
RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    -- In an EXISTS the order would count for nothing.
    PERFORM FROM ready_tasks q WHERE q.ready_at <= p_now ORDER BY q.ready_at DESC LIMIT 1;
    IF NOT FOUND THEN
        PERFORM pg_notify('ork_ready_' || md5(current_schema()), '');
    END IF;
END
$$;
