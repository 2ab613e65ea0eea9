-- The schema itself.

-- name: read_migrations
-- Every column: a schema that was made before the first release has no works_from.
SELECT * FROM sendoff.migration ORDER BY number;
