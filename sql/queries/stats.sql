-- Compute stats: the KPIs from the outcomes themselves, beside the live counters, in one snapshot.

-- name: lock_stats
-- One recount of a delivery at a time: two would both repair the same drift. Held by the session, because the
-- snapshot must be taken after it; the key lies below those of deliveries and commands.
SELECT pg_advisory_lock(-9000000000000000000 - $1 % 100000000000000000);

-- name: unlock_stats
SELECT pg_advisory_unlock(-9000000000000000000 - $1 % 100000000000000000);

-- name: read_deployment
SELECT * FROM sendoff.deployment WHERE delivery_id = $1;

-- name: plan_recount
-- For the rest of the transaction, what a count of a whole delivery wants and nothing else: a plan for this delivery,
-- which may read the table from end to end. Where the key finds the rows, a bitmap of a million of them fits into the
-- memory. In parallel where $1 recipients are worth the workers, and then whatever the statistics say, which know
-- nothing yet of a delivery that was just sent.
SELECT set_config('plan_cache_mode', 'force_custom_plan', true), set_config('enable_seqscan', 'on', true),
       set_config('work_mem', '64MB', true), set_config('effective_io_concurrency', '0', true),
       set_config('parallel_setup_cost', '0', true), set_config('min_parallel_table_scan_size', '0', true),
       CASE WHEN $1::int < 200000 THEN set_config('max_parallel_workers_per_gather', '0', true) END;

-- name: recount
-- Reads every outcome of the delivery once, wherever it lies (outcome_place) and in parallel. Nearly all are sent,
-- and null is the group that is found fastest. To be fetched as a whole: the server runs no part of a query in
-- parallel when it is asked for a number of rows.
SELECT now() AS as_of, d.cancelled_at, d.purged_at IS NOT NULL AS purged,
       coalesce(sum(c.n) FILTER (WHERE c.status = 'sending'), 0)::bigint AS sending,
       coalesce(sum(c.n) FILTER (WHERE c.status IS NULL), 0)::bigint AS sent,
       coalesce(sum(c.n) FILTER (WHERE c.status = 'bounced_hard'), 0)::bigint AS bounced_hard,
       coalesce(sum(c.n) FILTER (WHERE c.status = 'bounced_soft'), 0)::bigint AS bounced_soft,
       coalesce(sum(c.n) FILTER (WHERE c.status = 'bounced_ignored'), 0)::bigint AS bounced_ignored,
       coalesce(sum(c.n) FILTER (WHERE c.status = 'error'), 0)::bigint AS errors,
       coalesce(sum(c.n) FILTER (WHERE c.status = 'unknown'), 0)::bigint AS unknown,
       coalesce(sum(c.n) FILTER (WHERE c.status = 'excluded'), 0)::bigint AS excluded_late,
       coalesce(sum(c.n) FILTER (WHERE c.status = 'retrying' AND d.cancelled_at IS NULL), 0)::bigint AS retrying,
       CASE WHEN d.cancelled_at IS NULL THEN 0
            ELSE d.to_deliver - coalesce(sum(c.n) FILTER (WHERE c.status IS DISTINCT FROM 'retrying'), 0)::bigint
       END AS cancelled
FROM sendoff.delivery_record d
LEFT JOIN (
    SELECT nullif(status, 'sent') AS status, count(*) AS n
    FROM sendoff.outcome
    WHERE delivery_id = $1
    GROUP BY nullif(status, 'sent')
) c ON true
WHERE d.delivery_id = $1
GROUP BY d.delivery_id, d.cancelled_at, d.to_deliver, d.purged_at;

-- name: recount_tracking
-- Reads what is known of every recipient that did anything once, wherever it lies (tracked_recipient_place).
SELECT count(*) AS opened, count(clicked_at) AS clicked, count(optout_at) AS optout, count(mirror_at) AS mirror,
       count(human_opened_at) AS human_opened, count(human_clicked_at) AS human_clicked
FROM sendoff.tracked_recipient
WHERE delivery_id = $1;

-- name: repair_counters
-- Adds the drift that one snapshot showed. Outcomes, events and counters that moved since moved together, so that the
-- difference still holds; not so when what was left was cancelled, which is computed from the counters, drift and
-- all, nor when its rows are leaving by retention, which no snapshot is safe from: then no row comes back, and it is to
-- be counted again.
INSERT INTO sendoff.delivery_counter AS c (
    delivery_id, shard, sending, sent, bounced_hard, bounced_soft, bounced_ignored, errors, unknown, excluded_late,
    cancelled, retrying, opened, clicked, optout, mirror, human_opened, human_clicked)
SELECT $1, $2, $4::int, $5::int, $6::int, $7::int, $8::int, $9::int, $10::int, $11::int, $12::int, $13::int,
       $14::int, $15::int, $16::int, $17::int, $18::int, $19::int
FROM sendoff.delivery_record d
WHERE d.delivery_id = $1 AND d.cancelled_at IS NOT DISTINCT FROM $3::timestamptz AND d.purged_at IS NULL
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
