-- The big tables, with a row for each recipient or event, partitioned by ranges of delivery ids, so that
-- dropping partitions removes old deliveries. The key of each begins with delivery_id.
--
-- A set is one partition of each big table for one range of ids. A new set is opened when the newest is older than
-- a period, or its ids are used up; ids go on with the first of the new set, so that there are about as many sets as
-- periods are kept. They must stay few: a plan that is made once locks the partitions of every set (Postgres 15).
-- There is no default partition, which would be scanned with every new set, and could not be detached CONCURRENTLY.
-- No foreign key leads from a big table to the delivery: dropping a partition would have to lock it.

-- The frozen audience: recipients are numbered 1..to_deliver without a gap, so "does it exist" is a comparison and a
-- page is a range. variables is json, not jsonb: it is only ever passed on as text.
CREATE TABLE sendoff.recipient (
    delivery_id  bigint NOT NULL,
    recipient    integer NOT NULL CHECK (recipient > 0),
    profile_id   text,
    address      text NOT NULL,
    variables    json NOT NULL,
    PRIMARY KEY (delivery_id, recipient)
) PARTITION BY RANGE (delivery_id);

-- The blocks of a delivery's audience: a search for an address reads only this audience.
CREATE INDEX recipient_place ON sendoff.recipient USING brin (delivery_id) WITH (pages_per_range = 64);
-- A hash index, since profiles come in no order and it costs a preparation least: 300,000 recipients take 0.7
-- s of the server's processor without an index, 1.2 s with this one, 1.8 s with a b-tree.
CREATE INDEX recipient_profile ON sendoff.recipient USING hash (profile_id) WHERE profile_id IS NOT NULL;

CREATE TABLE sendoff.exclusion (
    delivery_id  bigint NOT NULL,
    line         integer NOT NULL,
    address      text,
    profile_id   text,
    cause        text NOT NULL,
    detail       text,
    PRIMARY KEY (delivery_id, line)
) PARTITION BY RANGE (delivery_id);

CREATE INDEX exclusion_profile ON sendoff.exclusion USING hash (profile_id) WHERE profile_id IS NOT NULL;
-- How many targets a preparation left out, by cause. Every confirmation and every compute stats reads it,
-- from the index only.
CREATE INDEX exclusion_delivery_cause ON sendoff.exclusion (delivery_id, cause);

-- The domains of an audience, and which of them each recipient's is: an array for every 1,000 recipients, in their
-- order. Outcomes are counted by domain without a look at the recipients: 3 times as fast as a join of the two.
CREATE TABLE sendoff.delivery_domain (
    delivery_id  bigint NOT NULL,
    number       integer NOT NULL,
    domain       text NOT NULL,
    to_deliver   integer NOT NULL,
    PRIMARY KEY (delivery_id, number)
) PARTITION BY RANGE (delivery_id);

CREATE TABLE sendoff.domain_page (
    delivery_id  bigint NOT NULL,
    page         integer NOT NULL,
    numbers      integer[] NOT NULL,
    PRIMARY KEY (delivery_id, page)
) PARTITION BY RANGE (delivery_id);
ALTER TABLE sendoff.domain_page ALTER COLUMN numbers SET STORAGE PLAIN;

-- One row per recipient from its first claim on. Facts are set once. status is that of the fact with the
-- highest precedence (worker/domain/outcomes.py). was is the status before the last change, so that one
-- statement can move rows and counters together without reading the row twice. A claim is held under a token
-- and a lease (claim_lease). After handed_over_at is set, a relay may have the message. Before that, the
-- claim can be undone: prior_precedence is the precedence of the fact before the claim, null at the first
-- attempt.
CREATE TABLE sendoff.outcome (
    delivery_id  bigint NOT NULL,
    recipient    integer NOT NULL,
    attempt      smallint NOT NULL,
    status       text NOT NULL CHECK (status IN (
                     'sending', 'sent', 'bounced_hard', 'bounced_soft', 'bounced_ignored', 'error',
                     'unknown', 'excluded', 'retrying')),
    was          text,
    precedence   integer NOT NULL,
    claimed_at   timestamptz,
    sent_at      timestamptz,
    bounced_at   timestamptz,
    error_at     timestamptz,
    unknown_at   timestamptz,
    retry_at     timestamptz,
    reason       text,
    code         text,
    fault        text,
    reply        text,
    provider_id  text,
    excluded_at  timestamptz,
    claim_token       bigint,
    handed_over_at    timestamptz,
    prior_precedence  integer,
    PRIMARY KEY (delivery_id, recipient)
) PARTITION BY RANGE (delivery_id);

-- Finds the few recipients that are not just sent. All four are facts, set once, so that an outcome that
-- sets none of them stays on its page (HOT); with the status in it, every outcome would leave its page.
CREATE INDEX outcome_exception ON sendoff.outcome (delivery_id, recipient)
    WHERE bounced_at IS NOT NULL OR error_at IS NOT NULL OR unknown_at IS NOT NULL OR excluded_at IS NOT NULL;
-- Few rows wait for a retry. On retry_at, and not on the status, which changes with every outcome.
CREATE INDEX outcome_retry ON sendoff.outcome (delivery_id, recipient) WHERE retry_at IS NOT NULL;
-- The blocks of a delivery in the table, in a few kilobytes. A reader of all its rows reads the blocks in
-- sequence and in parallel, not row by row through the key. Blocks that vacuum has not summarised yet are
-- read too. Vacuum leaves room in pages all over the table, and each that takes a row of a new delivery has
-- its whole range read: of a million recipients among eight, 145 such pages had 9,000 read beside its own
-- 28,000, and with 16 pages in a range, instead of 64, 2,300.
CREATE INDEX outcome_place ON sendoff.outcome USING brin (delivery_id) WITH (pages_per_range = 16);

-- Every tracking event, once: of those with the same event_id the first is kept. machine_rule names the rule
-- that matched a machine, null for a person. rules is the version of the rules. link is the md5 of the url,
-- so that clicks of one url lie together in an index, however long it is.
CREATE TABLE sendoff.tracking_event (
    delivery_id   bigint NOT NULL,
    event_id      text COLLATE "C" NOT NULL,
    recipient     integer NOT NULL,
    kind          text NOT NULL CHECK (kind IN ('open', 'click', 'mirror', 'optout')),
    url           text,
    link          uuid,
    at            timestamptz NOT NULL,
    received_at   timestamptz NOT NULL DEFAULT now(),
    user_agent    text,
    machine_rule  text,
    rules         text NOT NULL,
    PRIMARY KEY (delivery_id, event_id)
) PARTITION BY RANGE (delivery_id);

-- All events of one recipient.
CREATE INDEX tracking_event_recipient ON sendoff.tracking_event (delivery_id, recipient);
-- The clicks of a delivery by url and recipient, read from the index alone.
CREATE INDEX tracking_event_click ON sendoff.tracking_event (delivery_id, link, recipient) INCLUDE (machine_rule)
    WHERE kind = 'click';

-- The tracking facts of a recipient: the earliest time of each. Any event counts as an open. was holds the
-- facts before the last change (1 open, 2 click, 4 mirror page, 8 opt-out, 16 a person's open, 32 a person's
-- click), so that one statement can move rows and counters together, as outcome.was does.
CREATE TABLE sendoff.tracked_recipient (
    delivery_id       bigint NOT NULL,
    recipient         integer NOT NULL,
    was               smallint NOT NULL DEFAULT 0,
    opened_at         timestamptz NOT NULL,
    clicked_at        timestamptz,
    mirror_at         timestamptz,
    optout_at         timestamptz,
    human_opened_at   timestamptz,
    human_clicked_at  timestamptz,
    PRIMARY KEY (delivery_id, recipient)
) PARTITION BY RANGE (delivery_id);

-- The blocks of a delivery's tracked recipients, as for outcomes: compute stats reads only these, without the
-- key. With 400,000 of 1.2 million rows: 60 ms instead of 100.
CREATE INDEX tracked_recipient_place ON sendoff.tracked_recipient USING brin (delivery_id) WITH (pages_per_range = 16);

CREATE TABLE sendoff.partition_set (
    first_id    bigint PRIMARY KEY CHECK (first_id > 0),
    last_id     bigint NOT NULL,
    opened_at   timestamptz NOT NULL DEFAULT now(),
    -- From here on the set's partitions are detached and dropped, one after the other; the row goes with the last.
    leaving_at  timestamptz,
    CHECK (last_id >= first_id)
);

-- Storage parameters are set for each partition: it cannot inherit them from a partitioned table.
CREATE TABLE sendoff.partitioned_table (
    name     text PRIMARY KEY,
    storage  text NOT NULL DEFAULT 'fillfactor = 100'
);

-- Creates and then attaches: CREATE TABLE … PARTITION OF would block claims and results while it waits for
-- its lock. ATTACH blocks nobody, and takes no time with an empty table.
CREATE FUNCTION sendoff.add_partition(big text, first_id bigint, last_id bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    partition text := big || '_' || first_id;
    storage text := (SELECT t.storage FROM sendoff.partitioned_table t WHERE t.name = big);
BEGIN
    EXECUTE format('CREATE TABLE sendoff.%I (LIKE sendoff.%I INCLUDING ALL) WITH (%s)', partition, big, storage);
    EXECUTE format('ALTER TABLE sendoff.%I ATTACH PARTITION sendoff.%I FOR VALUES FROM (%s) TO (%s)',
                   big, partition, first_id, last_id + 1);
END $$;

-- An empty table PARTITION BY RANGE (delivery_id) gets its partition in every set.
CREATE FUNCTION sendoff.add_partitioned_table(big text, storage text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO sendoff.partitioned_table VALUES (big, storage);
    PERFORM sendoff.add_partition(big, s.first_id, s.last_id) FROM sendoff.partition_set s ORDER BY s.first_id;
END $$;

-- Called before a delivery is created, in its transaction; returns the first id of the set that it opened, or
-- null. The lock makes creations take turns, so that nobody takes an id without a set. Moving the sequence
-- cannot be undone: if the transaction fails, the ids of the newest set count as used up, and the next
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

INSERT INTO sendoff.partition_set VALUES (1, 100000);

-- Outcomes leave room for the result beside the claim: both updates stay on the page (HOT). With half of a page free,
-- 4 of 10 outcomes of mail did not fit any more, and took a new page and an entry in every index. With two thirds free
-- all fit: recording takes 6.1 µs a row in the server instead of 8.3, the table is a sixth smaller and its key half as
-- large. Vacuum marks pages as visible to all, which a count skips checking row by row, and summarises new ones. A fifth
-- of the table, the default, is more than a large delivery.
SELECT sendoff.add_partitioned_table(t.name, concat_ws(', ', t.fill, CASE WHEN t.large THEN
           'autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.02, '
           'autovacuum_analyze_scale_factor = 0.02' END))
FROM (VALUES ('recipient', 'fillfactor = 100', true),
             ('exclusion', 'fillfactor = 100', false),
             ('delivery_domain', 'fillfactor = 100', false),
             ('domain_page', 'fillfactor = 100', false),
             ('outcome', 'fillfactor = 34', true),
             ('tracking_event', 'fillfactor = 100', true),
             ('tracked_recipient', 'fillfactor = 70', true)) AS t (name, fill, large);
