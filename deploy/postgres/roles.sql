-- The roles of an installation, each with what it needs and no more. Run it as a superuser, in the database of
-- Sendoff, before the first “sendoff migrate” and again after each; it may run any number of times:
--
--     psql --set=ON_ERROR_STOP=1 --dbname=sendoff --file=roles.sql
--
--     sendoff_owner    migrate, retention: owns the schema
--     sendoff_worker   run, prepare and all other commands: reads and writes rows
--     sendoff_reader   dashboards: reads the views
--
-- None has a password, so that nobody can log in as one until ALTER ROLE … PASSWORD gives it one.
BEGIN;

DO $$
DECLARE
    role text;
BEGIN
    FOREACH role IN ARRAY ARRAY['sendoff_owner', 'sendoff_worker', 'sendoff_reader'] LOOP
        IF to_regrole(role) IS NULL THEN
            EXECUTE format('CREATE ROLE %I LOGIN', role);
        END IF;
        EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), role);
    END LOOP;
    -- Other accounts of this server have no access.
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
    EXECUTE format('GRANT CREATE, TEMPORARY ON DATABASE %I TO sendoff_owner', current_database());
    -- An audience is sorted in a temporary table.
    EXECUTE format('GRANT TEMPORARY ON DATABASE %I TO sendoff_worker', current_database());
END $$;

ALTER ROLE sendoff_reader SET default_transaction_read_only = on;
-- A slow question troubles no delivery.
ALTER ROLE sendoff_reader SET statement_timeout = '10s';

CREATE SCHEMA IF NOT EXISTS sendoff AUTHORIZATION sendoff_owner;
GRANT USAGE ON SCHEMA sendoff TO sendoff_worker, sendoff_reader;

GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA sendoff TO sendoff_worker;
GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA sendoff TO sendoff_worker;
ALTER DEFAULT PRIVILEGES FOR ROLE sendoff_owner IN SCHEMA sendoff
    GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO sendoff_worker;
ALTER DEFAULT PRIVILEGES FOR ROLE sendoff_owner IN SCHEMA sendoff
    GRANT USAGE, SELECT ON SEQUENCES TO sendoff_worker;

DO $$
DECLARE
    name regclass;
BEGIN
    -- Views are read with the rights of their owner: a reader needs none on the tables, and gets none.
    FOR name IN SELECT oid FROM pg_class WHERE relnamespace = 'sendoff'::regnamespace AND relkind = 'v' LOOP
        EXECUTE format('GRANT SELECT ON %s TO sendoff_reader', name);
    END LOOP;
    -- What says how the schema is made is the owner's to write.
    FOREACH name IN ARRAY ARRAY[
        to_regclass('sendoff.migration'), to_regclass('sendoff.partition_set'), to_regclass('sendoff.partitioned_table')
    ] LOOP
        IF name IS NOT NULL THEN
            EXECUTE format('REVOKE INSERT, UPDATE, DELETE ON %s FROM sendoff_worker', name);
        END IF;
    END LOOP;
    -- A preparation opens the next set of partitions when the newest is full: the one change to the schema that a
    -- worker brings about, and only as this function makes it.
    IF to_regprocedure('sendoff.open_partition_set(interval)') IS NOT NULL THEN
        ALTER FUNCTION sendoff.open_partition_set(interval) SECURITY DEFINER SET search_path = pg_catalog, pg_temp;
        REVOKE EXECUTE ON FUNCTION sendoff.open_partition_set(interval) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION sendoff.open_partition_set(interval) TO sendoff_worker;
    END IF;
END $$;

COMMIT;
