-- Pages: ranges of recipients, leased by the fan-out and inspected by the scheduler.

-- name: create_pages
-- In the confirming transaction: from here on the pages are the work, and no outbox is needed. A delivery
-- without waves has one wave.
INSERT INTO sendoff.delivery_page (delivery_id, page, first, last, due_at)
SELECT :delivery_id, row_number() OVER (ORDER BY w.first, n), w.first + n * :page_size,
       least(w.first + (n + 1) * :page_size - 1, w.last), w.due_at
FROM sendoff.delivery_record d
CROSS JOIN LATERAL (
    SELECT v.first, v.last, coalesce(v.due_at, greatest(now(), d.contact_date) + v.due_after) AS due_at
    FROM sendoff.delivery_wave v
    WHERE v.delivery_id = d.delivery_id
    UNION ALL
    SELECT 1, d.to_deliver, now()
    WHERE NOT EXISTS (SELECT FROM sendoff.delivery_wave v WHERE v.delivery_id = d.delivery_id)
) w
CROSS JOIN LATERAL generate_series(0, (w.last - w.first) / :page_size) AS n
WHERE d.delivery_id = :delivery_id;

-- name: create_pace
INSERT INTO sendoff.delivery_pace (delivery_id, page_size) VALUES (:delivery_id, :page_size);

-- name: start_waves
-- The delivery starts now: waves that are counted from the start get their times from this start, even a late
-- one.
UPDATE sendoff.delivery_page p
SET due_at = now() + w.due_after
FROM sendoff.delivery_wave w
WHERE p.delivery_id = :delivery_id AND w.delivery_id = :delivery_id AND p.first BETWEEN w.first AND w.last
  AND w.due_after IS NOT NULL;

-- name: notify_pages
-- Wakes the fan-out; delivered when the transaction commits.
SELECT pg_notify('sendoff_pages', :delivery_id::text);

-- name: lease_pages
-- The first page of every running delivery, the deliveries after :after first, then the second of each: round-robin,
-- so that a small delivery never waits behind a large one. Where small deliveries go past the mark of the send
-- queue, theirs are the first of all, since a page of a large one takes the senders 50 ms. SKIP LOCKED lets any number of fan-outs work
-- side by side. lease_paced_pages leases the pages of deliveries with a throughput limit.
WITH candidate AS (
    SELECT p.delivery_id, p.page, row_number() OVER (PARTITION BY p.delivery_id ORDER BY p.page) AS nth,
           d.channel = ANY (:small_channels::text[]) AND d.to_deliver <= :small AS small
    FROM sendoff.delivery_record d
    CROSS JOIN LATERAL (
        SELECT o.delivery_id, o.page
        FROM sendoff.delivery_page o
        WHERE o.delivery_id = d.delivery_id AND o.state = 'open' AND o.due_at <= now()
          AND (o.leased_until IS NULL OR o.leased_until < now())
        ORDER BY o.page
        LIMIT :pages
        FOR UPDATE SKIP LOCKED
    ) p
    WHERE d.running AND d.cancelled_at IS NULL AND d.messages_per_hour IS NULL
      AND (d.channel = ANY (:channels::text[])
           OR (d.channel = ANY (:small_channels::text[]) AND d.to_deliver <= :small))
), picked AS (
    SELECT delivery_id, page
    FROM candidate
    ORDER BY nth, small DESC, delivery_id <= :after, delivery_id
    LIMIT :pages
)
UPDATE sendoff.delivery_page p
SET leased_until = now() + :lease::interval, leased_by = :owner, published_at = now()
FROM picked, sendoff.delivery_record d
WHERE p.delivery_id = picked.delivery_id AND p.page = picked.page AND d.delivery_id = picked.delivery_id
RETURNING p.delivery_id, p.page, p.first, p.last, d.channel, d.valid_until, d.to_deliver AS recipients;

-- name: read_oldest_due_pages
-- The first open page of a delivery waits longest. A delivery with a throughput limit has pages that wait as they
-- should, and its turn is what is late.
SELECT d.channel, max(extract(epoch FROM now() - greatest(p.due_at, coalesce(k.next_at, p.due_at))))::float8 AS seconds
FROM sendoff.delivery_record d
LEFT JOIN sendoff.delivery_pace k ON k.delivery_id = d.delivery_id
CROSS JOIN LATERAL (
    SELECT o.due_at
    FROM sendoff.delivery_page o
    WHERE o.delivery_id = d.delivery_id AND o.state = 'open' AND o.due_at <= now()
    ORDER BY o.page
    LIMIT 1
) p
WHERE d.running AND d.cancelled_at IS NULL
GROUP BY d.channel;

-- name: lock_paces
-- Deliveries with a throughput limit that may publish a page now, first those that have waited longest. The
-- lock makes fan-outs take turns for each; the next statement sees the changes of the one before.
SELECT p.delivery_id
FROM sendoff.delivery_record d
JOIN sendoff.delivery_pace p ON p.delivery_id = d.delivery_id
WHERE d.running AND d.cancelled_at IS NULL AND d.channel = ANY (:channels::text[])
  AND p.next_at <= now()
  AND EXISTS (
      SELECT FROM sendoff.delivery_page o
      WHERE o.delivery_id = d.delivery_id AND o.state = 'open' AND o.due_at <= now()
        AND (o.leased_until IS NULL OR o.leased_until < now()))
ORDER BY p.next_at
LIMIT :pages
FOR NO KEY UPDATE OF p SKIP LOCKED;

-- name: lease_paced_pages
-- One page of each of the locked deliveries, unless more than a page of what was published before still waits
-- for a sender: if the senders are down, no backlog grows that they would send at once. The next page may
-- follow when this page's messages are sent at the limit. Time that passed since then is lost, except a
-- quarter of a page, which allows for a fan-out that comes a moment late. So no burst follows an outage.
WITH picked AS (
    SELECT o.delivery_id, o.page, k.messages, d.messages_per_hour
    FROM sendoff.delivery_pace p
    JOIN sendoff.delivery_record d ON d.delivery_id = p.delivery_id
    CROSS JOIN LATERAL (
        SELECT o.delivery_id, o.page, o.first, o.last
        FROM sendoff.delivery_page o
        WHERE o.delivery_id = p.delivery_id AND o.state = 'open' AND o.due_at <= now()
          AND (o.leased_until IS NULL OR o.leased_until < now())
        ORDER BY o.page
        LIMIT 1
        FOR UPDATE SKIP LOCKED
    ) o
    CROSS JOIN LATERAL (
        SELECT o.last - o.first + 1 - count(*) AS messages
        FROM sendoff.outcome k
        WHERE k.delivery_id = o.delivery_id AND k.recipient BETWEEN o.first AND o.last
          AND (k.status <> 'retrying' OR k.retry_at > now())
    ) k
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(w.last - w.first + 1 - c.claimed), 0) AS messages
        FROM sendoff.delivery_page w
        CROSS JOIN LATERAL (
            SELECT count(*) AS claimed
            FROM sendoff.outcome k
            WHERE k.delivery_id = w.delivery_id AND k.recipient BETWEEN w.first AND w.last
              AND (k.status <> 'retrying' OR k.retry_at > CASE w.state WHEN 'open' THEN now() ELSE w.published_at END)
        ) c
        WHERE w.delivery_id = p.delivery_id
          AND (w.state = 'published' OR (w.state = 'open' AND w.leased_until >= now()))
    ) waiting
    WHERE p.delivery_id = ANY (:delivery_ids::bigint[]) AND d.running AND d.cancelled_at IS NULL
      AND waiting.messages <= p.page_size
), paced AS (
    UPDATE sendoff.delivery_pace p
    SET next_at = greatest(p.next_at, now() - p.page_size * interval '15 minutes' / picked.messages_per_hour)
                  + picked.messages * interval '1 hour' / picked.messages_per_hour
    FROM picked
    WHERE p.delivery_id = picked.delivery_id
)
UPDATE sendoff.delivery_page p
SET leased_until = now() + :lease::interval, leased_by = :owner, published_at = now()
FROM picked, sendoff.delivery_record d
WHERE p.delivery_id = picked.delivery_id AND p.page = picked.page AND d.delivery_id = picked.delivery_id
RETURNING p.delivery_id, p.page, p.first, p.last, d.channel, d.valid_until, d.to_deliver AS recipients;

-- name: read_seconds_to_next_page
-- How long a fan-out may sleep until a delivery with a throughput limit may publish; null if none waits.
SELECT extract(epoch FROM min(p.next_at) - now())::float8
FROM sendoff.delivery_record d
JOIN sendoff.delivery_pace p ON p.delivery_id = d.delivery_id
WHERE d.running AND d.cancelled_at IS NULL AND p.next_at > now();

-- name: read_sends
-- The bodies of a page's send messages, made where the data is: 1 µs a message against 12 in Python. What is the same
-- for all comes as text: the text before the recipient, between the attempt and the address, and after the variables.
-- Only recipients that must still be tried: those without a row, and due retries. In a page that is published
-- for the first time nobody has a row: one look shows this and saves 0.4 µs for each. OFFSET 0 keeps the
-- look-up by the whole key: for an empty table the planner thinks half the key as good, and a plan that was
-- made then compares every recipient of the page with every row of the delivery (42 s for 20,000 recipients).
-- And :delivery_id, not the recipient's delivery_id: partitions are left out once, before the first row.
WITH known AS MATERIALIZED (
    SELECT EXISTS (
        SELECT FROM sendoff.outcome WHERE delivery_id = :delivery_id AND recipient BETWEEN :first AND :last
    ) AS anybody
)
SELECT r.recipient, coalesce(o.attempt, 0) + 1 AS attempt,
       :before_recipient::text || r.recipient || ',"attempt":' || (coalesce(o.attempt, 0) + 1)
       || :before_address::text || to_json(r.address) || ',"variables":' || r.variables || :after_variables::text AS body
FROM sendoff.recipient r
LEFT JOIN LATERAL (
    SELECT k.recipient, k.attempt, k.status, k.retry_at
    FROM sendoff.outcome k
    WHERE (SELECT anybody FROM known) AND k.delivery_id = :delivery_id AND k.recipient = r.recipient
    OFFSET 0
) o ON true
WHERE r.delivery_id = :delivery_id AND r.recipient BETWEEN :first AND :last
  AND (o.recipient IS NULL OR (o.status = 'retrying' AND o.retry_at <= now()))
ORDER BY r.recipient;

-- name: page_published
-- The checkpoint: only after the broker confirmed every message of the page, and only by the lease's owner.
-- published_at stays the moment of the lease, before the page was read: a retry that was due by then is published.
UPDATE sendoff.delivery_page
SET state = 'published', look_at = now() + :look_after::interval, rounds = rounds + 1,
    leased_until = NULL, leased_by = NULL
WHERE delivery_id = :delivery_id AND page = :page AND state = 'open' AND leased_by = :owner
RETURNING page;

-- name: release_page
-- Ends a lease, so that a stop or an outage does not delay the page until the lease expires.
UPDATE sendoff.delivery_page
SET leased_until = NULL, leased_by = NULL
WHERE delivery_id = :delivery_id AND page = :page AND state = 'open' AND leased_by = :owner
RETURNING page;

-- name: read_deliveries_to_inspect
SELECT DISTINCT p.delivery_id, d.channel,
       d.running AND d.cancelled_at IS NULL AS running,
       d.over OR d.cancelled_at IS NOT NULL AS over
FROM sendoff.delivery_page p
JOIN sendoff.delivery_record d ON d.delivery_id = p.delivery_id
WHERE p.state = 'published' AND p.look_at <= now()
ORDER BY p.delivery_id;

-- name: inspect_pages
-- Published pages that are due for an inspection, and how many of the range were published and not claimed.
-- open_due_retries handles retries that are due later. Their next look is put off in the same statement, so
-- that schedulers do not repeat each other. Counted page by page: a join, planned while the table was empty,
-- would compare every page with every row of the delivery.
WITH due AS (
    SELECT p.delivery_id, p.page, p.first, p.last, p.published_at
    FROM sendoff.delivery_page p
    WHERE p.delivery_id = :delivery_id AND p.state = 'published' AND p.look_at <= now()
    ORDER BY p.page
    LIMIT :pages
    FOR UPDATE SKIP LOCKED
), looked AS (
    UPDATE sendoff.delivery_page p
    SET look_at = now() + :again_after::interval
    FROM due
    WHERE p.delivery_id = due.delivery_id AND p.page = due.page
    RETURNING p.page
)
SELECT due.page, extract(epoch FROM now() - due.published_at)::float8 AS age,
       due.last - due.first + 1 - o.claimed + o.again AS unclaimed
FROM due
JOIN looked ON looked.page = due.page
CROSS JOIN LATERAL (
    SELECT count(*) AS claimed, count(*) FILTER (WHERE k.retry_at <= due.published_at) AS again
    FROM sendoff.outcome k
    WHERE k.delivery_id = :delivery_id AND k.recipient BETWEEN due.first AND due.last
) o
ORDER BY due.page;

-- name: close_pages
-- Checks again, in the same statement, that all recipients of the page were claimed: since the inspection a
-- claim may have been undone, or a retry may be due.
UPDATE sendoff.delivery_page p
SET state = 'closed', look_at = NULL
FROM sendoff.delivery_record d
WHERE p.delivery_id = :delivery_id AND p.page = ANY (:pages::int[]) AND p.state = 'published'
  AND d.delivery_id = :delivery_id
  AND (d.over OR d.cancelled_at IS NOT NULL
       OR p.last - p.first + 1 = (
           SELECT count(*)
           FROM sendoff.outcome k
           WHERE k.delivery_id = :delivery_id AND k.recipient BETWEEN p.first AND p.last
             AND (k.retry_at IS NULL OR k.retry_at > p.published_at)))
RETURNING p.page;

-- name: reopen_pages
-- Their messages are lost: they are published again, and claims decide.
UPDATE sendoff.delivery_page
SET state = 'open', due_at = now(), look_at = NULL
WHERE delivery_id = :delivery_id AND page = ANY (:pages::int[]) AND state = 'published'
RETURNING page;

-- name: open_due_retries
-- Closed pages with a due retry, and published pages with a retry that became due since their publish.
-- Recipients that need no further attempt are not published again. Open pages need no check: they are
-- published when they are due, with their due retries. The index has only those who wait for a retry.
UPDATE sendoff.delivery_page p
SET state = 'open', due_at = now(), look_at = NULL
WHERE p.delivery_id = :delivery_id AND p.state <> 'open'
  AND EXISTS (
      SELECT FROM sendoff.outcome o
      WHERE o.delivery_id = :delivery_id AND o.recipient BETWEEN p.first AND p.last
        AND (p.state = 'closed' OR o.retry_at > coalesce(p.published_at, '-infinity')) AND o.retry_at <= now()
      OFFSET 0)
RETURNING p.page;

-- name: read_deliveries_with_retries
SELECT d.delivery_id, k.pending + k.sending = 0 AS only_retries
FROM sendoff.delivery_record d
JOIN sendoff.deployment k ON k.delivery_id = d.delivery_id
WHERE d.running AND d.cancelled_at IS NULL AND k.retrying > 0
ORDER BY d.delivery_id;

-- name: reopen_all_pages
-- After a resume: messages that were refused during the pause are no longer in the queue. This may be true
-- for a page that is being published now too: its lease is ended, so that it does not count as published.
UPDATE sendoff.delivery_page
SET state = 'open', due_at = now(), look_at = NULL, leased_until = NULL, leased_by = NULL
WHERE delivery_id = :delivery_id AND (state = 'published' OR (state = 'open' AND leased_by IS NOT NULL))
RETURNING page;

-- name: close_all_pages
-- Closes all pages of a delivery without open recipients.
UPDATE sendoff.delivery_page
SET state = 'closed', look_at = NULL, leased_until = NULL, leased_by = NULL
WHERE delivery_id = :delivery_id AND state <> 'closed';

-- name: look_at_open_pages
-- For a cancelled delivery: nobody leases its open pages any more, and only published pages are inspected.
UPDATE sendoff.delivery_page
SET state = 'published', published_at = coalesce(published_at, now()), look_at = now(), leased_until = NULL,
    leased_by = NULL
WHERE delivery_id = :delivery_id AND state = 'open';
