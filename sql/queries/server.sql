-- Facts about the server and our role, for “sendoff check”.

-- name: read_role
SELECT current_user AS name, r.rolsuper AS superuser,
       pg_has_role(current_user, n.nspowner, 'USAGE') AS owner,
       has_table_privilege(current_user, 'sendoff.delivery_record', 'UPDATE') AS writes
FROM pg_roles r
CROSS JOIN pg_namespace n
WHERE r.rolname = current_user AND n.nspname = 'sendoff';

-- name: write_nothing
-- For readiness: a server that only reads refuses it, and no row is looked at.
UPDATE sendoff.delivery_record SET updated_at = now() WHERE false;

-- name: read_durability
SELECT current_setting('synchronous_commit') AS commits, current_setting('synchronous_standby_names') AS standbys;
