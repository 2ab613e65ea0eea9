-- Where in the table a delivery's tracked recipients lie, as for outcomes: compute stats reads those and no others, and
-- needs no look at the key. With 400,000 of 1.2 million rows: 60 ms instead of 100.
CREATE INDEX tracked_recipient_place ON sendoff.tracked_recipient USING brin (delivery_id) WITH (pages_per_range = 64);

UPDATE sendoff.partitioned_table
SET storage = storage || ', autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.02'
                      || ', autovacuum_analyze_scale_factor = 0.02'
WHERE name IN ('tracking_event', 'tracked_recipient');
DO $$
DECLARE
    partition regclass;
BEGIN
    FOR partition IN
        SELECT inhrelid FROM pg_inherits
        WHERE inhparent IN ('sendoff.tracking_event'::regclass, 'sendoff.tracked_recipient'::regclass)
    LOOP
        EXECUTE format('ALTER TABLE %s SET (autovacuum_vacuum_scale_factor = 0.02, '
                       'autovacuum_vacuum_insert_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02)',
                       partition);
    END LOOP;
END $$;
