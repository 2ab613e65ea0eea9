-- Every alert has a since. Results are recorded once a delivery is confirmed, so that bounces may be known of one that
-- has not started; its alert could not be told, and nobody else's after it. Else the view is as in 0013.

CREATE OR REPLACE VIEW sendoff.alert AS
SELECT d.delivery_id, d.label, d.channel, d.state, t.criterion, m.since, m.value::float8 AS value, t.threshold, t.unit,
       m.sentence
FROM sendoff.delivery_record d
CROSS JOIN LATERAL (
    SELECT coalesce(sum(c.sent + c.bounced_hard + c.bounced_soft + c.bounced_ignored + c.errors), 0) AS attempted,
           coalesce(sum(c.bounced_hard), 0) AS bounced_hard,
           coalesce(sum(c.bounced_soft), 0) AS bounced_soft,
           coalesce(sum(c.sent + c.bounced_hard + c.bounced_soft + c.bounced_ignored + c.errors + c.unknown
                        + c.excluded_late + c.retrying), 0) AS processed,
           d.to_deliver - coalesce(sum(c.sent + c.bounced_hard + c.bounced_soft + c.bounced_ignored + c.errors
                                       + c.unknown + c.excluded_late + c.cancelled + c.retrying + c.sending), 0) AS pending
    FROM sendoff.delivery_counter c
    WHERE c.delivery_id = d.delivery_id
) k
CROSS JOIN sendoff.alert_threshold t
CROSS JOIN LATERAL (
    SELECT d.finished_at AS since, NULL::numeric AS value, coalesce(d.state_reason, 'The delivery failed.') AS sentence
    WHERE t.criterion = 'failed' AND d.state = 'failed'
  UNION ALL
    SELECT d.updated_at, NULL, coalesce(d.state_reason, 'The preparation failed.')
    WHERE t.criterion = 'preparation_failed' AND d.state = 'preparation_failed'
  UNION ALL
    -- Of the first few that come back, half may bounce: a share counts once so many are known, or all are.
    SELECT coalesce(d.started_at, d.confirmed_at), trim_scale(b.pct),
           format('%s of %s attempted are %s bounces: %s %%, more than %s %%.', b.bounced, k.attempted, b.kind,
                  trim_scale(b.pct), t.threshold)
    FROM (
        SELECT 'hard' AS kind, k.bounced_hard AS bounced, round(100.0 * k.bounced_hard / nullif(k.attempted, 0), 2) AS pct
        WHERE t.criterion = 'hard_bounce_ratio'
      UNION ALL
        SELECT 'soft', k.bounced_soft, round(100.0 * k.bounced_soft / nullif(k.attempted, 0), 2)
        WHERE t.criterion = 'soft_bounce_ratio'
    ) b
    WHERE 100.0 * b.bounced > t.threshold * k.attempted
      AND (k.attempted >= t.minimum OR d.state IN ('finished', 'stopped', 'failed'))
  UNION ALL
    SELECT s.since, trim_scale(s.minutes),
           format('It should have started at %s UTC, %s minutes ago: more than %s.',
                  to_char(s.since AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI'), round(s.minutes), t.threshold)
    FROM (
        SELECT r.since, round(extract(epoch FROM now() - r.since) / 60, 2) AS minutes
        FROM (SELECT greatest(d.contact_date, d.confirmed_at) AS since) r
    ) s
    WHERE t.criterion = 'start_pending' AND d.state = 'start_pending' AND s.minutes > t.threshold
  UNION ALL
    -- Over the last five minutes or a little more, all of them in this state: updated_at moves with it. Deliveries
    -- with a limit are as slow as they were asked to be, between two waves nothing is due, and the last few may take
    -- their time.
    SELECT s.at, trim_scale(s.rate),
           format('%s recipients per minute since %s UTC, fewer than %s, and %s are pending.', trim_scale(s.rate),
                  to_char(s.at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI'), t.threshold, k.pending)
    FROM (
        SELECT f.at, round(60 * (k.processed - f.processed) / extract(epoch FROM now() - f.at), 1) AS rate
        FROM sendoff.delivery_sample f
        WHERE f.delivery_id = d.delivery_id AND f.at <= now() - interval '5 minutes' AND f.at >= d.updated_at
        ORDER BY f.minute DESC
        LIMIT 1
    ) s
    WHERE t.criterion = 'low_throughput' AND d.state = 'in_progress' AND d.messages_per_hour IS NULL
      AND s.rate < t.threshold AND k.pending >= t.threshold
      AND NOT EXISTS (SELECT FROM sendoff.wave w WHERE w.delivery_id = d.delivery_id AND w.due_at > s.at)
  UNION ALL
    -- Counted from when it could have been over: the last wave, or the time that its limit asks for.
    SELECT s.since, trim_scale(s.minutes),
           format('It has been %s for %s minutes: more than %s.', replace(d.state, '_', ' '), round(s.minutes), t.threshold)
    FROM (
        SELECT r.since, round(extract(epoch FROM now() - r.since) / 60, 2) AS minutes
        FROM (
            SELECT greatest(d.started_at, (SELECT max(w.due_at) FROM sendoff.wave w WHERE w.delivery_id = d.delivery_id),
                            d.started_at + d.to_deliver * interval '1 hour' / d.messages_per_hour) AS since
        ) r
    ) s
    WHERE t.criterion = 'long_in_progress' AND d.state IN ('in_progress', 'retry_pending') AND s.minutes > t.threshold
) m
WHERE t.enabled AND d.to_deliver >= t.minimum
  AND (d.state IN ('start_pending', 'in_progress', 'retry_pending', 'paused')
       OR (d.state IN ('preparation_failed', 'finished', 'stopped', 'failed')
           AND d.updated_at > now() - interval '1 day'
           AND coalesce(d.finished_at, d.updated_at) > now() - interval '1 day'));
