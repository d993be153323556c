-- Keeps sqlx's own migrator away from stores that it did not make. `Maintenance::migrate` does not
-- apply this step.

DO $$
DECLARE
    v_table text;
BEGIN
    SELECT c.relname INTO v_table
    FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = current_schema()
        AND c.relkind IN ('r', 'p')
        AND c.relname IN (
            'ork_state_migrations', 'workflows', 'runs', 'tasks', 'workflow_tasks', 'deferred_jobs'
        )
    ORDER BY c.relname <> 'ork_state_migrations', c.relname
    LIMIT 1;
    IF v_table = 'ork_state_migrations' THEN
        RAISE EXCEPTION 'call `Maintenance::migrate` instead of MIGRATOR: it made this store, and brings it up to date';
    ELSIF v_table IS NOT NULL THEN
        RAISE EXCEPTION 'call `Maintenance::migrate` instead of MIGRATOR: the schema % has a table % already, and only that call takes a database of Ork over',
            current_schema(), v_table;
    END IF;
END
$$;
