-- Compute stats: the KPIs from the outcomes themselves, beside the live counters, in one snapshot.

-- name: lock_stats
-- One recount of a delivery at a time: two would both repair the same drift. Held by the session, because the
-- snapshot must be taken after it; the key lies below those of deliveries and commands.
SELECT pg_advisory_lock(-9000000000000000000 - $1 % 100000000000000000);

-- name: unlock_stats
SELECT pg_advisory_unlock(-9000000000000000000 - $1 % 100000000000000000);

-- name: read_deployment
SELECT * FROM sendoff.deployment WHERE delivery_id = $1;

-- name: recount
-- Reads every outcome of the delivery once, by its key.
SELECT now() AS as_of, d.cancelled_at, d.purged_at IS NOT NULL AS purged,
       count(*) FILTER (WHERE o.status = 'sending') AS sending,
       count(*) FILTER (WHERE o.status = 'sent') AS sent,
       count(*) FILTER (WHERE o.status = 'bounced_hard') AS bounced_hard,
       count(*) FILTER (WHERE o.status = 'bounced_soft') AS bounced_soft,
       count(*) FILTER (WHERE o.status = 'bounced_ignored') AS bounced_ignored,
       count(*) FILTER (WHERE o.status = 'error') AS errors,
       count(*) FILTER (WHERE o.status = 'unknown') AS unknown,
       count(*) FILTER (WHERE o.status = 'excluded') AS excluded_late,
       count(*) FILTER (WHERE o.status = 'retrying' AND d.cancelled_at IS NULL) AS retrying,
       CASE WHEN d.cancelled_at IS NULL THEN 0
            ELSE d.to_deliver - count(*) FILTER (WHERE o.status <> 'retrying') END AS cancelled
FROM sendoff.delivery_record d
LEFT JOIN sendoff.outcome o ON o.delivery_id = d.delivery_id
WHERE d.delivery_id = $1
GROUP BY d.delivery_id, d.cancelled_at, d.to_deliver, d.purged_at;

-- name: recount_tracking
-- Reads what is known of every recipient that did anything once, by the key.
SELECT count(*) AS opened, count(clicked_at) AS clicked, count(optout_at) AS optout, count(mirror_at) AS mirror,
       count(human_opened_at) AS human_opened, count(human_clicked_at) AS human_clicked
FROM sendoff.tracked_recipient
WHERE delivery_id = $1;

-- name: repair_counters
-- Adds the drift that one snapshot showed. Outcomes, events and counters that moved since moved together, so that the
-- difference still holds; not so when what was left was cancelled, which is computed from the counters, drift and
-- all: then no row comes back, and it is to be counted again.
INSERT INTO sendoff.delivery_counter AS c (
    delivery_id, shard, sending, sent, bounced_hard, bounced_soft, bounced_ignored, errors, unknown, excluded_late,
    cancelled, retrying, opened, clicked, optout, mirror, human_opened, human_clicked)
SELECT $1, $2, $4::int, $5::int, $6::int, $7::int, $8::int, $9::int, $10::int, $11::int, $12::int, $13::int,
       $14::int, $15::int, $16::int, $17::int, $18::int, $19::int
FROM sendoff.delivery_record d
WHERE d.delivery_id = $1 AND d.cancelled_at IS NOT DISTINCT FROM $3::timestamptz
ON CONFLICT (delivery_id, shard) DO UPDATE
SET sending = c.sending + excluded.sending,
    sent = c.sent + excluded.sent,
    bounced_hard = c.bounced_hard + excluded.bounced_hard,
    bounced_soft = c.bounced_soft + excluded.bounced_soft,
    bounced_ignored = c.bounced_ignored + excluded.bounced_ignored,
    errors = c.errors + excluded.errors,
    unknown = c.unknown + excluded.unknown,
    excluded_late = c.excluded_late + excluded.excluded_late,
    cancelled = c.cancelled + excluded.cancelled,
    retrying = c.retrying + excluded.retrying,
    opened = c.opened + excluded.opened,
    clicked = c.clicked + excluded.clicked,
    optout = c.optout + excluded.optout,
    mirror = c.mirror + excluded.mirror,
    human_opened = c.human_opened + excluded.human_opened,
    human_clicked = c.human_clicked + excluded.human_clicked,
    updated_at = now()
RETURNING c.delivery_id;
