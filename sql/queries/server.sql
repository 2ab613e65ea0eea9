-- Facts about the server and our role, for “sendoff check”.

-- name: read_role
SELECT current_user AS name, r.rolsuper AS superuser,
       pg_has_role(current_user, n.nspowner, 'USAGE') AS owner,
       has_table_privilege(current_user, 'sendoff.delivery_record', 'UPDATE') AS writes,
       pg_has_role(current_user, n.nspowner, 'USAGE')
           OR (p.prosecdef AND has_function_privilege(current_user, p.oid, 'EXECUTE')) AS opens
FROM pg_roles r
CROSS JOIN pg_namespace n
JOIN pg_proc p ON p.oid = to_regprocedure('sendoff.open_partition_set(interval)')
WHERE r.rolname = current_user AND n.nspname = 'sendoff';

-- name: write_nothing
-- For readiness: a server that only reads refuses it, and no row is looked at.
UPDATE sendoff.delivery_record SET updated_at = now() WHERE false;

-- name: read_durability
-- Who follows is counted only: more of it is not shown to a role without pg_read_all_stats.
SELECT current_setting('synchronous_commit') AS commits, current_setting('synchronous_standby_names') AS standbys,
       (SELECT count(*) FROM pg_stat_replication) AS followers,
       (SELECT count(*) FROM pg_replication_slots WHERE slot_type = 'physical') AS slots;

-- name: read_room
-- Of other roles' sessions only that they are there is shown, which is enough; a limit of -1 is none. Postgres 15 has no
-- reserved_connections.
SELECT least(current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
                 - coalesce(current_setting('reserved_connections', true)::int, 0) - a.others,
             nullif(d.datconnlimit, -1), nullif(r.rolconnlimit, -1)) AS limit,
       a.others, a.open, a.processes
FROM (
    SELECT (count(*) FILTER (WHERE application_name NOT LIKE 'sendoff%' OR application_name IS NULL
                                   OR datname <> current_database()))::int AS others,
           (count(*) FILTER (WHERE application_name LIKE 'sendoff%' AND datname = current_database()))::int AS open,
           (count(DISTINCT application_name) FILTER (WHERE application_name ~ '^sendoff .+:[0-9]+$'
                                                          AND datname = current_database()))::int AS processes
    FROM pg_stat_activity
    WHERE backend_type = 'client backend'
) a
JOIN pg_database d ON d.datname = current_database()
JOIN pg_roles r ON r.rolname = current_user;

-- name: read_same_server
-- Whether the server is the one that wrote here last. A standby takes no claims, so it counts as the same.
SELECT pg_is_in_recovery() OR EXISTS (
    SELECT FROM sendoff.server s
    WHERE s.system_identifier = (pg_control_system()).system_identifier
      AND s.timeline = ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::integer);

-- name: lock_server
-- So that of several processes one does what a new server needs, and the others wait for it.
SELECT system_identifier, (pg_control_system()).system_identifier AS present FROM sendoff.server FOR UPDATE;

-- name: write_server
INSERT INTO sendoff.server (system_identifier, timeline)
VALUES ((pg_control_system()).system_identifier,
        ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::integer)
ON CONFLICT (single) DO UPDATE
SET system_identifier = EXCLUDED.system_identifier, timeline = EXCLUDED.timeline, known_since = now();

-- name: read_going_deliveries
-- Those that a pause can hold, in the order in which everybody locks them.
SELECT delivery_id FROM sendoff.delivery_record WHERE under_way AND state <> 'paused' ORDER BY delivery_id;
