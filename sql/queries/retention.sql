-- Retention: removes sets of partitions, and finds the deliveries that prevent it.

-- name: read_sets
-- A delivery may be removed so long after its end or, if it was never confirmed, after its last change. A
-- delivery under way is never removed. The newest set stays: new deliveries go into it. The five deliveries
-- that keep a set for longest are named.
SELECT s.first_id, s.last_id, s.opened_at, s.leaving_at IS NOT NULL AS leaving,
       s.first_id = max(s.first_id) OVER () AS newest, d.deliveries, d.recipients, d.held, d.held_by, p.bytes
FROM sendoff.partition_set s
CROSS JOIN LATERAL (
    SELECT count(*)::int AS deliveries, coalesce(sum(r.to_deliver), 0) AS recipients,
           count(*) FILTER (WHERE k.ended > now() - :older_than::interval)::int AS held,
           (array_agg(r.delivery_id ORDER BY k.ended DESC, r.delivery_id)
            FILTER (WHERE k.ended > now() - :older_than::interval))[1:5] AS held_by
    FROM sendoff.delivery_record r
    CROSS JOIN LATERAL (SELECT CASE WHEN r.over THEN coalesce(r.finished_at, r.updated_at)
                                    WHEN r.confirmed_at IS NULL THEN r.updated_at
                                    ELSE 'infinity' END AS ended) k
    WHERE r.delivery_id BETWEEN s.first_id AND s.last_id
) d
CROSS JOIN LATERAL (
    SELECT coalesce(sum(pg_total_relation_size(to_regclass('sendoff.' || t.name || '_' || s.first_id))), 0)::bigint AS bytes
    FROM sendoff.partitioned_table t
) p
ORDER BY s.first_id;

-- name: read_holders
-- Deliveries that prevent a set's removal, as people see them.
SELECT delivery_id, state, CASE WHEN confirmed_at IS NULL THEN updated_at ELSE finished_at END AS since
FROM sendoff.delivery_record
WHERE delivery_id = ANY (:delivery_ids::bigint[])
ORDER BY array_position(:delivery_ids, delivery_id);

-- name: lock_retention
-- A lock for one removal at a time. The session holds it, so that it ends with the process. Below the ids of
-- deliveries.
SELECT pg_try_advisory_lock(-7365648);

-- name: lock_set
-- Locks the rows before the second check: the next statement sees a command's move, or the command waits.
SELECT delivery_id
FROM sendoff.delivery_record
WHERE delivery_id BETWEEN :first_id AND :last_id
ORDER BY delivery_id
FOR UPDATE;

-- name: mark_set
UPDATE sendoff.partition_set SET leaving_at = coalesce(leaving_at, now()) WHERE first_id = :first_id;

-- name: mark_deliveries
-- From here on nothing recounts them, and nothing is recorded for them.
UPDATE sendoff.delivery_record
SET purged_at = now()
WHERE delivery_id BETWEEN :first_id AND :last_id AND purged_at IS NULL;

-- name: read_last_delivery
SELECT max(delivery_id) FROM sendoff.delivery_record WHERE delivery_id BETWEEN :first_id AND :last_id;

-- name: drop_plans
-- Deletes the other data about an audience: its pages, waves, erasures, pace and content.
WITH pages AS (
    DELETE FROM sendoff.delivery_page WHERE delivery_id BETWEEN :first_id AND :last_id
), waves AS (
    DELETE FROM sendoff.delivery_wave WHERE delivery_id BETWEEN :first_id AND :last_id
), erased AS (
    DELETE FROM sendoff.erased_recipient WHERE delivery_id BETWEEN :first_id AND :last_id
), paces AS (
    DELETE FROM sendoff.delivery_pace WHERE delivery_id BETWEEN :first_id AND :last_id
)
DELETE FROM sendoff.delivery_content WHERE delivery_id BETWEEN :first_id AND :last_id;

-- name: read_next_step
-- The next statement that a leaving set needs, as the catalog shows it: what died between a detachment and a drop
-- goes on where it ended. CONCURRENTLY waits for readers of the partition, and nobody waits for it.
-- Recipients are removed last: as long as tracking is recorded, the profile of an opt-out can be found, even
-- if a step waits long.
SELECT p.name AS partition,
       CASE WHEN i.inhrelid IS NULL THEN format('DROP TABLE sendoff.%I', p.name)
            ELSE format('ALTER TABLE sendoff.%I DETACH PARTITION sendoff.%I %s', t.name, p.name,
                        CASE WHEN i.inhdetachpending THEN 'FINALIZE' ELSE 'CONCURRENTLY' END) END AS statement
FROM sendoff.partitioned_table t
CROSS JOIN LATERAL (SELECT t.name || '_' || :first_id::bigint AS name) p
LEFT JOIN pg_inherits i ON i.inhrelid = to_regclass('sendoff.' || p.name)
WHERE to_regclass('sendoff.' || p.name) IS NOT NULL
ORDER BY t.name = 'recipient', t.name
LIMIT 1;

-- name: be_patient
-- A statement that waits longer is tried again. The pool resets this setting when the session ends.
SELECT set_config('lock_timeout', :patience, false);

-- name: read_oldest_transaction
-- The sessions for which a detachment probably waits.
SELECT pid, coalesce(nullif(application_name, ''), usename, backend_type) AS name, xact_start AS since
FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL
ORDER BY xact_start
LIMIT 1;

-- name: forget_set
DELETE FROM sendoff.partition_set WHERE first_id = :first_id;
