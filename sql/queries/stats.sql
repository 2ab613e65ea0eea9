-- Compute stats: the KPIs from the outcomes themselves, beside the live counters, in one snapshot.

-- name: lock_stats
-- One recount of a delivery at a time: two would both repair the same drift. Held by the session, because the
-- snapshot must be taken after it; the key lies below those of deliveries and commands.
SELECT pg_advisory_lock(-9000000000000000000 - :delivery_id % 100000000000000000);

-- name: unlock_stats
SELECT pg_advisory_unlock(-9000000000000000000 - :delivery_id % 100000000000000000);

-- name: read_deployment
SELECT * FROM sendoff.deployment WHERE delivery_id = :delivery_id;

-- name: plan_recount
-- For the rest of the transaction, what a count of a whole delivery wants and nothing else: a plan for this delivery,
-- which may read the table from end to end. Where the key finds the rows, a bitmap of a million of them fits into the
-- memory. In parallel where that is worth the workers, and then whatever the statistics say, which know nothing yet of
-- a delivery that was just sent.
SELECT set_config('plan_cache_mode', 'force_custom_plan', true), set_config('enable_seqscan', 'on', true),
       set_config('work_mem', '64MB', true), set_config('effective_io_concurrency', '0', true),
       set_config('parallel_setup_cost', '0', true), set_config('min_parallel_table_scan_size', '0', true),
       CASE WHEN NOT :parallel THEN set_config('max_parallel_workers_per_gather', '0', true) END;

-- name: export_snapshot
-- So that another connection can count in it.
SELECT pg_export_snapshot();

-- name: recount
-- Reads every outcome of the delivery once, wherever it lies (outcome_place) and in parallel. Nearly all are sent, so
-- these are what is left when the others are counted, who are counted together: ten digits of one number for each
-- status. That takes 156 ms of processor time a million rows, a GROUP BY 183, a count per status 215. To be fetched as a
-- whole: the server runs nothing in parallel when it is asked for a number of rows.
SELECT now() AS as_of, d.cancelled_at, d.purged_at IS NOT NULL AS purged,
       c.sending, o.n - c.sending - c.bounced_hard - c.bounced_soft - c.bounced_ignored - c.errors - c.unknown
                  - c.excluded_late - c.retrying AS sent,
       c.bounced_hard, c.bounced_soft, c.bounced_ignored, c.errors, c.unknown, c.excluded_late,
       CASE WHEN d.cancelled_at IS NULL THEN c.retrying ELSE 0 END AS retrying,
       CASE WHEN d.cancelled_at IS NULL THEN 0 ELSE d.to_deliver - (o.n - c.retrying) END AS cancelled
FROM sendoff.delivery_record d
CROSS JOIN (
    SELECT count(*) AS n,
           coalesce(sum(CASE status WHEN 'sent' THEN NULL WHEN 'sending' THEN 1 WHEN 'bounced_hard' THEN 1e10
                                    WHEN 'bounced_soft' THEN 1e20 WHEN 'bounced_ignored' THEN 1e30
                                    WHEN 'error' THEN 1e40 WHEN 'unknown' THEN 1e50 WHEN 'excluded' THEN 1e60
                                    WHEN 'retrying' THEN 1e70 END), 0) AS others
    FROM sendoff.outcome
    WHERE delivery_id = :delivery_id
) o
CROSS JOIN LATERAL (
    SELECT (o.others % 1e10)::bigint AS sending, (div(o.others, 1e10) % 1e10)::bigint AS bounced_hard,
           (div(o.others, 1e20) % 1e10)::bigint AS bounced_soft,
           (div(o.others, 1e30) % 1e10)::bigint AS bounced_ignored,
           (div(o.others, 1e40) % 1e10)::bigint AS errors, (div(o.others, 1e50) % 1e10)::bigint AS unknown,
           (div(o.others, 1e60) % 1e10)::bigint AS excluded_late, div(o.others, 1e70)::bigint AS retrying
) c
WHERE d.delivery_id = :delivery_id;

-- name: recount_tracking
-- Reads what is known of every recipient that did anything once, wherever it lies (tracked_recipient_place).
SELECT count(*) AS opened, count(clicked_at) AS clicked, count(optout_at) AS optout, count(mirror_at) AS mirror,
       count(human_opened_at) AS human_opened, count(human_clicked_at) AS human_clicked
FROM sendoff.tracked_recipient
WHERE delivery_id = :delivery_id;
