-- The schema itself.

-- name: read_schema_version
SELECT coalesce(max(number), 0) FROM sendoff.migration;
