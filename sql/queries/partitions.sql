-- The sets of partitions that the big tables are made of.

-- name: open_partition_set
SELECT sendoff.open_partition_set(:period);

-- name: read_missing_partitions
-- Partitions of a set that are missing or half detached: rows cannot be inserted. Sets that retention is
-- removing are left out.
SELECT t.name || '_' || s.first_id AS partition
FROM sendoff.partition_set s
CROSS JOIN sendoff.partitioned_table t
WHERE s.leaving_at IS NULL AND NOT EXISTS (
    SELECT FROM pg_inherits i
    WHERE i.inhparent = to_regclass('sendoff.' || t.name)
      AND i.inhrelid = to_regclass('sendoff.' || t.name || '_' || s.first_id) AND NOT i.inhdetachpending)
ORDER BY s.first_id, t.name;

-- name: read_newest_set
-- How many sets there are, and how many ids the newest has left.
SELECT count(*) OVER ()::int AS sets, s.first_id, s.last_id, s.opened_at,
       s.last_id - q.last_value + (NOT q.is_called)::int AS ids_left
FROM sendoff.partition_set s
CROSS JOIN sendoff.delivery_record_delivery_id_seq q
ORDER BY s.first_id DESC
LIMIT 1;
