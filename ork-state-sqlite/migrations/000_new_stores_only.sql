-- Keeps sqlx's own migrator away from stores that it did not make. `Maintenance::migrate` does not
-- apply this step.

-- Only a trigger can raise an error.
CREATE TEMP TABLE ork_found (name TEXT NOT NULL);
CREATE TEMP TRIGGER ork_refuse_store BEFORE INSERT ON ork_found WHEN new.name = 'ork_state_migrations'
BEGIN
    SELECT RAISE(ABORT, 'call `Maintenance::migrate` instead of MIGRATOR: it made this store, and brings it up to date');
END;
CREATE TEMP TRIGGER ork_refuse_tables BEFORE INSERT ON ork_found WHEN new.name <> 'ork_state_migrations'
BEGIN
    SELECT RAISE(ABORT, 'call `Maintenance::migrate` instead of MIGRATOR: the database has tables of Ork already, and only that call takes them over');
END;

INSERT INTO temp.ork_found (name)
SELECT s.name
FROM sqlite_schema AS s
WHERE s.type = 'table'
    AND s.name IN ('ork_state_migrations', 'workflows', 'runs', 'tasks', 'workflow_tasks', 'deferred_jobs')
ORDER BY s.name <> 'ork_state_migrations', s.name
LIMIT 1;

DROP TABLE temp.ork_found;
