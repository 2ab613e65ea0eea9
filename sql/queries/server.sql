-- Facts about the server and our role, for “sendoff check”.

-- name: read_role
SELECT current_user AS name, r.rolsuper AS superuser,
       pg_has_role(current_user, n.nspowner, 'USAGE') AS owner,
       has_table_privilege(current_user, 'sendoff.delivery_record', 'UPDATE') AS writes
FROM pg_roles r
CROSS JOIN pg_namespace n
WHERE r.rolname = current_user AND n.nspname = 'sendoff';

-- name: read_durability
SELECT current_setting('synchronous_commit') AS commits, current_setting('synchronous_standby_names') AS standbys;
