-- Retention: deliveries whose recipients, outcomes and content have left; what they came to stays.

ALTER TABLE sendoff.delivery_record ADD COLUMN purged_at timestamptz;

-- From here on the set's partitions are detached and dropped, one after the other; the row goes with the last.
ALTER TABLE sendoff.partition_set ADD COLUMN leaving_at timestamptz;

CREATE OR REPLACE VIEW sendoff.delivery AS
SELECT delivery_id, label, channel, state, state_reason, preparation, to_deliver, excluded, contact_date, time_zone,
       valid_for, valid_until, created_by, created_at, prepared_at, confirmed_by, confirmed_at, started_at,
       finished_at, cancelled_at, updated_at, purged_at
FROM sendoff.delivery_record;
COMMENT ON COLUMN sendoff.delivery.purged_at IS
    'When its recipients left by retention; its logs are empty since, its KPIs stay as they were.';
