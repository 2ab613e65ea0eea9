-- Compute stats: the KPIs from the outcomes themselves, beside the live counters, in one snapshot.

-- name: lock_stats
-- One recount of a delivery at a time: two would both repair the same drift. Held by the session, because the
-- snapshot must be taken after it; its key is below those of deliveries and commands.
SELECT pg_advisory_lock(-9000000000000000000 - :delivery_id % 100000000000000000);

-- name: unlock_stats
SELECT pg_advisory_unlock(-9000000000000000000 - :delivery_id % 100000000000000000);

-- name: read_deployment
SELECT * FROM sendoff.deployment WHERE delivery_id = :delivery_id;

-- name: plan_recount
-- Settings for the rest of the transaction, for a count of a whole delivery: a plan for this delivery, which
-- may read the whole table. Where the key finds the rows, a bitmap of a million of them fits into the memory.
-- In parallel if the delivery is large enough, without regard to the statistics, which do not yet know a
-- delivery that was just sent.
SELECT set_config('plan_cache_mode', 'force_custom_plan', true), set_config('enable_seqscan', 'on', true),
       set_config('work_mem', '64MB', true), set_config('effective_io_concurrency', '0', true),
       set_config('parallel_setup_cost', '0', true), set_config('min_parallel_table_scan_size', '0', true),
       CASE WHEN NOT :parallel THEN set_config('max_parallel_workers_per_gather', '0', true) END;

-- name: export_snapshot
-- Exports the snapshot, so that another connection can count in it.
SELECT pg_export_snapshot();

-- name: recount
-- Fetch all rows at once: the server does not run in parallel if it is asked for a number of rows.
SELECT * FROM sendoff.recount(:delivery_id);

-- name: recount_tracking
SELECT * FROM sendoff.recount_tracking(:delivery_id);
