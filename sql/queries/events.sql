-- Events: taken from the outbox, published, deleted.

-- name: take_events
-- The oldest event of each delivery, and no other: the next is taken when it is gone, so that events of one
-- delivery leave in order, whoever publishes them. SKIP LOCKED lets any number of processes work side by side.
-- A row that another has published meanwhile is deleted, and so is not locked and not returned.
SELECT e.delivery_id, e.number, e.event, t.to_state AS state, t.at, t.operator, t.reason, t.figures::text AS figures
FROM sendoff.event e
JOIN sendoff.delivery_transition t ON t.delivery_id = e.delivery_id AND t.number = e.number
WHERE e.number = (SELECT min(first.number) FROM sendoff.event first WHERE first.delivery_id = e.delivery_id)
ORDER BY e.number
LIMIT $1
FOR UPDATE OF e SKIP LOCKED;

-- name: drop_events
-- The broker has them.
DELETE FROM sendoff.event e
USING unnest($1::bigint[], $2::bigint[]) AS told (delivery_id, number)
WHERE e.delivery_id = told.delivery_id AND e.number = told.number;
