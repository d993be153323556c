-- A task's log text.

ALTER TABLE tasks ADD COLUMN logs TEXT;
