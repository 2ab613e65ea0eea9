-- Events: taken from the outbox, published, deleted.

-- name: take_events
-- Only the oldest event of each delivery: the next is taken after it is deleted, so that the events of one
-- delivery are published in order by any number of processes. A lease reserves an event until the broker
-- confirms it. It expires by itself if its owner dies.
WITH head AS (
    SELECT e.delivery_id, e.number
    FROM sendoff.event e
    WHERE e.number = (SELECT min(first.number) FROM sendoff.event first WHERE first.delivery_id = e.delivery_id)
      AND (e.leased_until IS NULL OR e.leased_until < now())
    ORDER BY e.number
    LIMIT :events
    FOR UPDATE SKIP LOCKED
), taken AS (
    UPDATE sendoff.event e
    SET leased_until = now() + :lease::interval
    FROM head
    WHERE e.delivery_id = head.delivery_id AND e.number = head.number
    RETURNING e.delivery_id, e.number, e.event
)
SELECT taken.delivery_id, taken.number, taken.event, coalesce(t.to_state, a.state) AS state,
       coalesce(t.at, a.at) AS at, t.operator, coalesce(t.reason, a.sentence) AS reason, t.figures::text AS figures,
       a.criterion, a.since, a.value, a.threshold, a.unit
FROM taken
LEFT JOIN sendoff.delivery_transition t ON t.delivery_id = taken.delivery_id AND t.number = taken.number
LEFT JOIN sendoff.delivery_alert a ON a.delivery_id = taken.delivery_id AND a.number = taken.number
ORDER BY taken.number;

-- name: release_events
-- Ends leases: the broker did not confirm.
UPDATE sendoff.event e
SET leased_until = NULL
FROM unnest(:delivery_ids::bigint[], :numbers::bigint[]) AS held (delivery_id, number)
WHERE e.delivery_id = held.delivery_id AND e.number = held.number;

-- name: drop_events
-- Deletes events that the broker has confirmed.
DELETE FROM sendoff.event e
USING unnest(:delivery_ids::bigint[], :numbers::bigint[]) AS told (delivery_id, number)
WHERE e.delivery_id = told.delivery_id AND e.number = told.number;
