-- Column names that suit any executor. Indexes and constraints follow a renamed column.

ALTER TABLE workflows RENAME COLUMN cloud_run_job_name TO job_name;
ALTER TABLE workflows RENAME COLUMN cloud_run_project TO project;
ALTER TABLE workflows RENAME COLUMN cloud_run_region TO region;

ALTER TABLE tasks RENAME COLUMN cloud_run_execution_name TO execution_name;
