-- works with code from: 5

-- The server that wrote what is here last. A database that was restored from a backup, or a standby that took over, is
-- another one: it may lack the last commits, and claims among them. Its deliveries pause before the first of them is
-- claimed again. The system identifier is drawn by initdb; the timeline is raised by each promotion and by each recovery
-- to a point in time.
CREATE TABLE sendoff.server (
    single             boolean PRIMARY KEY DEFAULT true CHECK (single),
    system_identifier  bigint NOT NULL,
    timeline           integer NOT NULL,
    known_since        timestamptz NOT NULL DEFAULT now()
);

INSERT INTO sendoff.server (system_identifier, timeline)
SELECT (pg_control_system()).system_identifier,
       ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::integer;
