-- Pages: ranges of recipients, leased by the fan-out and inspected by the scheduler.

-- name: create_pages
-- In the confirming transaction: from here on the pages are the work, and no outbox is needed.
INSERT INTO sendoff.delivery_page (delivery_id, page, first, last, due_at)
SELECT $1, n + 1, n * $3 + 1, least((n + 1) * $3, $2), now()
FROM generate_series(0, ($2 - 1) / $3) AS n;

-- name: notify_pages
-- Wakes the fan-out; delivered when the transaction commits.
SELECT pg_notify('sendoff_pages', $1::text);

-- name: lease_pages
-- One page of every running delivery, the deliveries after $1 first: round-robin, so that a small delivery
-- never waits behind a large one. SKIP LOCKED lets any number of fan-outs work side by side.
WITH picked AS (
    SELECT p.delivery_id, p.page
    FROM sendoff.delivery_record d
    CROSS JOIN LATERAL (
        SELECT o.delivery_id, o.page
        FROM sendoff.delivery_page o
        WHERE o.delivery_id = d.delivery_id AND o.state = 'open' AND o.due_at <= now()
          AND (o.leased_until IS NULL OR o.leased_until < now())
        ORDER BY o.page
        LIMIT 1
        FOR UPDATE SKIP LOCKED
    ) p
    WHERE d.state IN ('in_progress', 'retry_pending') AND d.cancelled_at IS NULL AND d.channel <> ALL ($5::text[])
    ORDER BY d.delivery_id <= $1, d.delivery_id
    LIMIT $2
)
UPDATE sendoff.delivery_page p
SET leased_until = now() + $3::interval, leased_by = $4
FROM picked, sendoff.delivery_record d
WHERE p.delivery_id = picked.delivery_id AND p.page = picked.page AND d.delivery_id = picked.delivery_id
RETURNING p.delivery_id, p.page, p.first, p.last, d.channel, d.valid_until;

-- name: read_sends
-- The bodies of a page's send messages, made where the data is: 2 µs a message against 12 in Python.
-- Only recipients that are still to be tried: those without a row, and retries that are due. OFFSET 0 keeps the
-- look-up by the whole key: for an empty table the planner thinks half the key as good, and a plan that was
-- made then compares every recipient of the page with every row of the delivery (42 s for 20,000 recipients).
SELECT r.recipient, coalesce(o.attempt, 0) + 1 AS attempt,
       '{"delivery_id":' || r.delivery_id || ',"recipient":' || r.recipient || ',"attempt":'
       || (coalesce(o.attempt, 0) + 1) || ',"channel":' || $4::text || ',"address":' || to_json(r.address)
       || ',"variables":' || r.variables || ',"valid_until":' || $5::text || '}' AS body
FROM sendoff.recipient r
LEFT JOIN LATERAL (
    SELECT k.recipient, k.attempt, k.status, k.retry_at
    FROM sendoff.outcome k
    WHERE k.delivery_id = r.delivery_id AND k.recipient = r.recipient
    OFFSET 0
) o ON true
WHERE r.delivery_id = $1 AND r.recipient BETWEEN $2 AND $3
  AND (o.recipient IS NULL OR (o.status = 'retrying' AND o.retry_at <= now()))
ORDER BY r.recipient;

-- name: page_published
-- The checkpoint: only after the broker confirmed every message of the page, and only by the lease's owner.
UPDATE sendoff.delivery_page
SET state = 'published', published_at = now(), look_at = now() + $4::interval, rounds = rounds + 1,
    leased_until = NULL, leased_by = NULL
WHERE delivery_id = $1 AND page = $2 AND state = 'open' AND leased_by = $3
RETURNING page;

-- name: release_page
-- Gives a lease back, so that a stop or an outage does not hold the page up until the lease ends.
UPDATE sendoff.delivery_page
SET leased_until = NULL, leased_by = NULL
WHERE delivery_id = $1 AND page = $2 AND state = 'open' AND leased_by = $3
RETURNING page;

-- name: read_deliveries_to_inspect
SELECT DISTINCT p.delivery_id, d.channel,
       d.state IN ('in_progress', 'retry_pending') AND d.cancelled_at IS NULL AS running,
       d.state IN ('finished', 'stopped', 'failed') OR d.cancelled_at IS NOT NULL AS over
FROM sendoff.delivery_page p
JOIN sendoff.delivery_record d ON d.delivery_id = p.delivery_id
WHERE p.state = 'published' AND p.look_at <= now()
ORDER BY p.delivery_id;

-- name: inspect_pages
-- Published pages whose time to be looked at has come: how many of the range have a row, and how many of
-- these are still open. Their next look is put off in the same statement, so that schedulers do not repeat
-- each other.
WITH due AS (
    SELECT p.delivery_id, p.page, p.first, p.last, p.published_at
    FROM sendoff.delivery_page p
    WHERE p.delivery_id = $1 AND p.state = 'published' AND p.look_at <= now()
    ORDER BY p.page
    LIMIT $3
    FOR UPDATE SKIP LOCKED
), looked AS (
    UPDATE sendoff.delivery_page p
    SET look_at = now() + $2::interval
    FROM due
    WHERE p.delivery_id = due.delivery_id AND p.page = due.page
    RETURNING p.page
)
SELECT due.page, due.first, due.last, extract(epoch FROM now() - due.published_at)::float8 AS age,
       due.last - due.first + 1 - count(o.recipient) AS unclaimed,
       count(*) FILTER (WHERE o.status = 'sending') AS sending,
       count(*) FILTER (WHERE o.status = 'retrying') AS retrying,
       min(o.retry_at) FILTER (WHERE o.status = 'retrying') AS retry_at
FROM due
JOIN looked ON looked.page = due.page
LEFT JOIN sendoff.outcome o ON o.delivery_id = due.delivery_id AND o.recipient BETWEEN due.first AND due.last
GROUP BY due.page, due.first, due.last, due.published_at
ORDER BY due.page;

-- name: close_pages
UPDATE sendoff.delivery_page
SET state = 'closed', look_at = NULL
WHERE delivery_id = $1 AND page = ANY ($2::int[]) AND state = 'published'
RETURNING page;

-- name: reopen_pages
-- Their messages are lost or were refused, or a retry is due: they are published again, and claims decide.
UPDATE sendoff.delivery_page
SET state = 'open', due_at = coalesce($3, now()), look_at = NULL
WHERE delivery_id = $1 AND page = ANY ($2::int[]) AND state = 'published'
RETURNING page;

-- name: reopen_all_pages
-- After a resume: messages that were refused during the pause are gone from the queue.
UPDATE sendoff.delivery_page
SET state = 'open', due_at = now(), look_at = NULL
WHERE delivery_id = $1 AND state = 'published'
RETURNING page;

-- name: close_all_pages
-- Nothing of the delivery is open any more.
UPDATE sendoff.delivery_page
SET state = 'closed', look_at = NULL, leased_until = NULL, leased_by = NULL
WHERE delivery_id = $1 AND state <> 'closed';
