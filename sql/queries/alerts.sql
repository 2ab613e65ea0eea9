-- Alerts: the view finds them, and the outbox publishes them.

-- name: sample_progress
-- Once a minute for each delivery that runs without a throughput limit; the first scheduler does it.
INSERT INTO sendoff.delivery_sample (delivery_id, minute, processed)
SELECT d.delivery_id, date_trunc('minute', now()), k.to_deliver - k.cancelled - k.pending - k.sending
FROM sendoff.delivery_record d
JOIN sendoff.deployment k ON k.delivery_id = d.delivery_id
WHERE d.running AND d.state = 'in_progress' AND d.messages_per_hour IS NULL
ORDER BY d.delivery_id
ON CONFLICT DO NOTHING;

-- name: forget_samples
-- The rate is of five minutes: an hour bridges a scheduler that was away. There are few rows, of few deliveries.
DELETE FROM sendoff.delivery_sample WHERE minute < now() - interval '1 hour';

-- name: read_due_alerts
-- Alerts that were not raised within 24 hours.
SELECT a.delivery_id, a.criterion
FROM sendoff.alert a
WHERE NOT EXISTS (
    SELECT FROM sendoff.delivery_alert r
    WHERE r.delivery_id = a.delivery_id AND r.criterion = a.criterion AND r.at > now() - interval '24 hours')
ORDER BY a.delivery_id, a.criterion
LIMIT 200;

-- name: lock_delivery
-- Locks the row as a move does, so that schedulers take turns and the numbers of events rise in the order of
-- their commits.
SELECT delivery_id FROM sendoff.delivery_record WHERE delivery_id = :delivery_id FOR NO KEY UPDATE;

-- name: raise_alert
-- Checks again, with the delivery locked. One statement writes the alert and its event, and wakes the
-- publisher.
WITH raised AS (
    INSERT INTO sendoff.delivery_alert (delivery_id, criterion, state, since, value, threshold, unit, sentence)
    SELECT a.delivery_id, a.criterion, a.state, a.since, a.value, a.threshold, a.unit, a.sentence
    FROM sendoff.alert a
    WHERE a.delivery_id = :delivery_id AND a.criterion = :criterion
      AND NOT EXISTS (
          SELECT FROM sendoff.delivery_alert r
          WHERE r.delivery_id = a.delivery_id AND r.criterion = a.criterion
            AND r.at > clock_timestamp() - interval '24 hours')
    ON CONFLICT DO NOTHING
    RETURNING delivery_id, number, criterion, sentence
), told AS (
    INSERT INTO sendoff.event (delivery_id, number, event)
    SELECT delivery_id, number, :event FROM raised
)
SELECT delivery_id, criterion, sentence, pg_notify('sendoff_events', '') FROM raised;

-- name: read_alerts
SELECT delivery_id, label, state, criterion, since, value, threshold, unit, sentence
FROM sendoff.alert
ORDER BY since, delivery_id, criterion;

-- name: read_thresholds
SELECT criterion, enabled, threshold, unit, minimum FROM sendoff.alert_threshold ORDER BY criterion;

-- name: set_threshold
-- A null value changes nothing.
UPDATE sendoff.alert_threshold
SET threshold = coalesce(:threshold, threshold), minimum = coalesce(:minimum, minimum),
    enabled = coalesce(:enabled, enabled)
WHERE criterion = :criterion
RETURNING criterion, enabled, threshold, unit, minimum;
