-- The big tables, partitioned by ranges of delivery ids, so that old deliveries leave by dropping partitions.
--
-- A set is one partition of each big table for one range of ids. A new set is opened when the newest is older than
-- a period, or its ids are used up; ids go on with the first of the new set, so that there are about as many sets as
-- periods are kept. They must stay few: a plan that is made once locks the partitions of every set (Postgres 15).
-- There is no default partition, which would be scanned with every new set, and could not be detached CONCURRENTLY.

CREATE TABLE sendoff.partition_set (
    first_id   bigint PRIMARY KEY CHECK (first_id > 0),
    last_id    bigint NOT NULL,
    opened_at  timestamptz NOT NULL DEFAULT now(),
    CHECK (last_id >= first_id)
);

-- The storage of a partition is its own, a partitioned table has none to hand down.
CREATE TABLE sendoff.partitioned_table (
    name     text PRIMARY KEY,
    storage  text NOT NULL DEFAULT 'fillfactor = 100'
);

-- Creates and then attaches: CREATE TABLE … PARTITION OF would shut claims and results out for as long as it waits
-- for its lock; ATTACH shuts out nobody, and an empty table takes no time.
CREATE FUNCTION sendoff.add_partition(big text, first_id bigint, last_id bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    partition text := big || '_' || first_id;
    storage text := (SELECT t.storage FROM sendoff.partitioned_table t WHERE t.name = big);
BEGIN
    EXECUTE format('CREATE TABLE sendoff.%I (LIKE sendoff.%I INCLUDING ALL) WITH (%s)', partition, big, storage);
    EXECUTE format('ALTER TABLE sendoff.%I ATTACH PARTITION sendoff.%I FOR VALUES FROM (%s) TO (%s)',
                   big, partition, first_id, last_id + 1);
END $$;

-- For a later migration: an empty table PARTITION BY RANGE (delivery_id) gets its partition in every set.
CREATE FUNCTION sendoff.add_partitioned_table(big text, storage text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO sendoff.partitioned_table VALUES (big, storage);
    PERFORM sendoff.add_partition(big, s.first_id, s.last_id) FROM sendoff.partition_set s ORDER BY s.first_id;
END $$;

-- Called before a delivery is created, in its transaction; answers with the first id of the set that it opened, or
-- null. The lock makes creations take turns, so that nobody takes an id for which there is no set. Moving the
-- sequence cannot be undone: where the transaction fails, the ids of the newest set count as used up, and the next
-- creation opens the same set.
CREATE FUNCTION sendoff.open_partition_set(period interval) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    ids CONSTANT bigint := 100000;
    newest sendoff.partition_set;
    next_id bigint;
BEGIN
    PERFORM pg_advisory_xact_lock(-7365647);
    SELECT * INTO newest FROM sendoff.partition_set ORDER BY first_id DESC LIMIT 1;
    SELECT last_value + is_called::int INTO next_id FROM sendoff.delivery_record_delivery_id_seq;
    IF next_id <= newest.last_id AND newest.opened_at > now() - period THEN
        RETURN NULL;
    END IF;
    INSERT INTO sendoff.partition_set VALUES (newest.last_id + 1, newest.last_id + ids);
    PERFORM sendoff.add_partition(t.name, newest.last_id + 1, newest.last_id + ids)
    FROM sendoff.partitioned_table t ORDER BY t.name;
    PERFORM setval('sendoff.delivery_record_delivery_id_seq', newest.last_id + 1, false);
    RETURN newest.last_id + 1;
END $$;

-- The first set has all that is there, and counts as opened when that began.
INSERT INTO sendoff.partition_set
SELECT 1, (coalesce(max(delivery_id), 1) / 100000 + 1) * 100000, coalesce(min(created_at), now())
FROM sendoff.delivery_record;

INSERT INTO sendoff.partitioned_table VALUES
    ('recipient', DEFAULT), ('exclusion', DEFAULT), ('outcome', 'fillfactor = 50');

-- The views read the tables, whatever those are called: each is made again, by its own text, of the new ones. Its
-- columns, its comment and what depends on it stay.
SET LOCAL search_path = '';
CREATE TEMPORARY TABLE view_text ON COMMIT DROP AS
SELECT DISTINCT ON (r.ev_class) r.ev_class::regclass AS view, pg_get_viewdef(r.ev_class) AS text
FROM pg_depend d
JOIN pg_rewrite r ON r.oid = d.objid AND d.classid = 'pg_rewrite'::regclass
WHERE d.refobjid IN (SELECT ('sendoff.' || t.name)::regclass FROM sendoff.partitioned_table t);

ALTER TABLE sendoff.recipient RENAME TO recipient_1;
ALTER INDEX sendoff.recipient_pkey RENAME TO recipient_1_pkey;
CREATE TABLE sendoff.recipient (
    LIKE sendoff.recipient_1 INCLUDING ALL EXCLUDING INDEXES,
    PRIMARY KEY (delivery_id, recipient)
) PARTITION BY RANGE (delivery_id);

ALTER TABLE sendoff.exclusion RENAME TO exclusion_1;
ALTER INDEX sendoff.exclusion_pkey RENAME TO exclusion_1_pkey;
CREATE TABLE sendoff.exclusion (
    LIKE sendoff.exclusion_1 INCLUDING ALL EXCLUDING INDEXES,
    PRIMARY KEY (delivery_id, line)
) PARTITION BY RANGE (delivery_id);

ALTER TABLE sendoff.outcome RENAME TO outcome_1;
ALTER INDEX sendoff.outcome_pkey RENAME TO outcome_1_pkey;
ALTER INDEX sendoff.outcome_retry RENAME TO outcome_1_retry;
CREATE TABLE sendoff.outcome (
    LIKE sendoff.outcome_1 INCLUDING ALL EXCLUDING INDEXES,
    PRIMARY KEY (delivery_id, recipient)
) PARTITION BY RANGE (delivery_id);
CREATE INDEX outcome_retry ON sendoff.outcome (delivery_id, recipient) WHERE retry_at IS NOT NULL;

DO $$
DECLARE
    each record;
BEGIN
    FOR each IN SELECT t.name, s.last_id FROM sendoff.partitioned_table t, sendoff.partition_set s LOOP
        EXECUTE format('ALTER TABLE sendoff.%I ATTACH PARTITION sendoff.%I FOR VALUES FROM (1) TO (%s)',
                       each.name, each.name || '_1', each.last_id + 1);
    END LOOP;
    FOR each IN SELECT view, text FROM pg_temp.view_text LOOP
        EXECUTE format('CREATE OR REPLACE VIEW %s AS %s', each.view, each.text);
    END LOOP;
END $$;
