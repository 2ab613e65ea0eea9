-- Complaints: a recipient's provider passes on that the recipient took the message for spam (RFC 5965). A complaint is
-- a tracking event and no open: who complains need not have looked at more than the subject.
-- works with code from: 5

ALTER TABLE sendoff.tracking_event DROP CONSTRAINT tracking_event_kind_check;
-- NOT VALID: what is there was checked by the narrower rule, and is not read again.
ALTER TABLE sendoff.tracking_event ADD CONSTRAINT tracking_event_kind_check
    CHECK (kind IN ('open', 'click', 'mirror', 'optout', 'complaint')) NOT VALID;

-- Of a recipient who only complained, opened_at is null. In was, 64 is a complaint.
ALTER TABLE sendoff.tracked_recipient ADD COLUMN complained_at timestamptz;
ALTER TABLE sendoff.tracked_recipient ALTER COLUMN opened_at DROP NOT NULL;
ALTER TABLE sendoff.delivery_counter ADD COLUMN complained integer NOT NULL DEFAULT 0;

-- As in 0003, with complaints.
CREATE OR REPLACE FUNCTION sendoff.count_moves(delivery bigint, moves sendoff.move[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO sendoff.delivery_counter AS c (
        delivery_id, shard, sending, sent, bounced_hard, bounced_soft, bounced_ignored, errors, unknown, excluded_late,
        cancelled, retrying, opened, clicked, optout, mirror, human_opened, human_clicked, complained)
    SELECT delivery, pg_backend_pid() % 16,
           coalesce(sum(k.moved) FILTER (WHERE k.status = 'sending'), 0),
           coalesce(sum(k.moved) FILTER (WHERE k.status = 'sent'), 0),
           coalesce(sum(k.moved) FILTER (WHERE k.status = 'bounced_hard'), 0),
           coalesce(sum(k.moved) FILTER (WHERE k.status = 'bounced_soft'), 0),
           coalesce(sum(k.moved) FILTER (WHERE k.status = 'bounced_ignored'), 0),
           coalesce(sum(k.moved) FILTER (WHERE k.status IN ('error', 'errors')), 0),
           coalesce(sum(k.moved) FILTER (WHERE k.status = 'unknown'), 0),
           coalesce(sum(k.moved) FILTER (WHERE k.status IN ('excluded', 'excluded_late')), 0),
           coalesce(sum(k.moved) FILTER (WHERE k.status = 'cancelled'), 0),
           coalesce(sum(k.moved) FILTER (WHERE k.status = 'retrying'), 0),
           coalesce(sum(k.moved) FILTER (WHERE k.status = 'opened'), 0),
           coalesce(sum(k.moved) FILTER (WHERE k.status = 'clicked'), 0),
           coalesce(sum(k.moved) FILTER (WHERE k.status = 'optout'), 0),
           coalesce(sum(k.moved) FILTER (WHERE k.status = 'mirror'), 0),
           coalesce(sum(k.moved) FILTER (WHERE k.status = 'human_opened'), 0),
           coalesce(sum(k.moved) FILTER (WHERE k.status = 'human_clicked'), 0),
           coalesce(sum(k.moved) FILTER (WHERE k.status = 'complained'), 0)
    FROM unnest(moves) m
    CROSS JOIN LATERAL (VALUES
        (m.status, m.recipients),
        (CASE WHEN m.was IS NULL OR m.was = 'retrying'
              THEN coalesce((SELECT 'cancelled' FROM sendoff.delivery_record d
                             WHERE d.delivery_id = delivery AND d.cancelled_at IS NOT NULL), m.was)
              ELSE m.was END, -m.recipients)
    ) k (status, moved)
    WHERE m.status IS DISTINCT FROM m.was
    HAVING bool_or(k.moved <> 0)
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
        complained = c.complained + excluded.complained,
        updated_at = now();
END $$;

DROP FUNCTION sendoff.recount_tracking(bigint);
CREATE FUNCTION sendoff.recount_tracking(delivery bigint) RETURNS TABLE (
    opened bigint, clicked bigint, optout bigint, mirror bigint, human_opened bigint, human_clicked bigint,
    complained bigint
) LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT count(t.opened_at), count(t.clicked_at), count(t.optout_at), count(t.mirror_at), count(t.human_opened_at),
           count(t.human_clicked_at), count(t.complained_at)
    FROM sendoff.tracked_recipient t
    WHERE t.delivery_id = delivery
$$;

-- As in 0004, with complaints at the end.
CREATE OR REPLACE VIEW sendoff.deployment AS
SELECT d.delivery_id, d.label, d.channel, d.state, d.preparation, d.contact_date, d.confirmed_at, d.started_at,
       d.finished_at, d.to_deliver,
       c.sent, c.bounced, c.bounced_hard, c.bounced_soft, c.bounced_ignored, c.errors, c.unknown,
       c.excluded_late, c.cancelled, c.retrying, c.sending,
       d.to_deliver - (c.closed + c.retrying + c.sending) AS pending,
       c.opened, c.clicked, c.optout, c.mirror,
       round(100.0 * c.sent / nullif(d.to_deliver, 0), 2) AS sent_pct,
       round(100.0 * (c.bounced + c.errors) / nullif(c.sent + c.bounced + c.errors, 0), 2) AS bounce_error_pct,
       round(100.0 * c.opened / nullif(c.sent, 0), 2) AS open_pct,
       round(100.0 * c.clicked / nullif(c.sent, 0), 2) AS click_pct,
       d.excluded, greatest(d.updated_at, c.updated_at) AS updated_at, d.state_reason,
       c.human_opened, c.human_clicked,
       round(100.0 * c.human_opened / nullif(c.sent, 0), 2) AS human_open_pct,
       round(100.0 * c.human_clicked / nullif(c.sent, 0), 2) AS human_click_pct,
       c.complained, round(100.0 * c.complained / nullif(c.sent, 0), 2) AS complaint_pct
FROM sendoff.delivery_record d
CROSS JOIN LATERAL (
    SELECT coalesce(sum(k.sent), 0) AS sent,
           coalesce(sum(k.bounced_hard + k.bounced_soft + k.bounced_ignored), 0) AS bounced,
           coalesce(sum(k.bounced_hard), 0) AS bounced_hard,
           coalesce(sum(k.bounced_soft), 0) AS bounced_soft,
           coalesce(sum(k.bounced_ignored), 0) AS bounced_ignored,
           coalesce(sum(k.errors), 0) AS errors,
           coalesce(sum(k.unknown), 0) AS unknown,
           coalesce(sum(k.excluded_late), 0) AS excluded_late,
           coalesce(sum(k.cancelled), 0) AS cancelled,
           coalesce(sum(k.closed), 0) AS closed,
           coalesce(sum(k.retrying), 0) AS retrying,
           coalesce(sum(k.sending), 0) AS sending,
           coalesce(sum(k.opened), 0) AS opened,
           coalesce(sum(k.clicked), 0) AS clicked,
           coalesce(sum(k.optout), 0) AS optout,
           coalesce(sum(k.mirror), 0) AS mirror,
           coalesce(sum(k.human_opened), 0) AS human_opened,
           coalesce(sum(k.human_clicked), 0) AS human_clicked,
           coalesce(sum(k.complained), 0) AS complained,
           max(k.updated_at) AS updated_at
    FROM sendoff.delivery_counter k
    WHERE k.delivery_id = d.delivery_id
) c;

COMMENT ON COLUMN sendoff.deployment.complained IS 'Unique recipients who took the message for spam, as their provider says.';
COMMENT ON COLUMN sendoff.deployment.complaint_pct IS 'complained of sent, in percent.';

-- Gmail asks senders to stay below 0.1 percent, and never to reach 0.3.
INSERT INTO sendoff.alert_threshold (criterion, threshold, unit, minimum) VALUES ('complaint_ratio', 0.1, 'percent', 1000);

-- As in 0004, with the criterion complaint_ratio.
CREATE OR REPLACE VIEW sendoff.alert AS
SELECT d.delivery_id, d.label, d.channel, d.state, t.criterion, m.since, m.value::float8 AS value, t.threshold, t.unit,
       m.sentence
FROM sendoff.delivery_record d
CROSS JOIN LATERAL (
    SELECT p.sent + p.bounced + p.errors AS attempted, p.bounced_hard, p.bounced_soft, p.pending, p.sent, p.complained,
           p.to_deliver - p.cancelled - p.pending - p.sending AS processed
    FROM sendoff.deployment p
    WHERE p.delivery_id = d.delivery_id
    OFFSET 0
) k
CROSS JOIN sendoff.alert_threshold t
CROSS JOIN LATERAL (
    SELECT d.finished_at AS since, NULL::numeric AS value, coalesce(d.state_reason, 'The delivery failed.') AS sentence
    WHERE t.criterion = 'failed' AND d.state = 'failed'
  UNION ALL
    SELECT d.updated_at, NULL, coalesce(d.state_reason, 'The preparation failed.')
    WHERE t.criterion = 'preparation_failed' AND d.state = 'preparation_failed'
  UNION ALL
    -- Half of the first few results may be bounces: a share counts only when so many, or all, are known.
    SELECT coalesce(d.started_at, d.confirmed_at), trim_scale(b.pct),
           format('%s of %s attempted are %s bounces: %s %%, more than %s %%.', b.bounced, k.attempted, b.kind,
                  trim_scale(b.pct), t.threshold)
    FROM (VALUES ('hard_bounce_ratio', 'hard', k.bounced_hard), ('soft_bounce_ratio', 'soft', k.bounced_soft))
         r (criterion, kind, bounced)
    CROSS JOIN LATERAL (SELECT r.kind, r.bounced, round(100.0 * r.bounced / nullif(k.attempted, 0), 2) AS pct) b
    WHERE t.criterion = r.criterion AND 100.0 * b.bounced > t.threshold * k.attempted
      AND (k.attempted >= t.minimum OR d.over)
  UNION ALL
    SELECT coalesce(d.started_at, d.confirmed_at), trim_scale(r.pct),
           format('%s of %s sent are complaints: %s %%, more than %s %%.', k.complained, k.sent, trim_scale(r.pct),
                  t.threshold)
    FROM (SELECT round(100.0 * k.complained / nullif(k.sent, 0), 2) AS pct) r
    WHERE t.criterion = 'complaint_ratio' AND 100.0 * k.complained > t.threshold * k.sent
      AND (k.sent >= t.minimum OR d.over)
  UNION ALL
    SELECT s.since, trim_scale(s.minutes),
           format('It should have started at %s UTC, %s minutes ago: more than %s.',
                  to_char(s.since AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI'), round(s.minutes), t.threshold)
    FROM (SELECT greatest(d.contact_date, d.confirmed_at) AS since) r
    CROSS JOIN LATERAL (SELECT r.since, sendoff.minutes_since(r.since) AS minutes) s
    WHERE t.criterion = 'start_pending' AND d.state = 'start_pending' AND s.minutes > t.threshold
  UNION ALL
    -- Over the last five minutes or a little more, all of them in this state: updated_at moves with it.
    -- Deliveries with a throughput limit are slow on purpose, between two waves nothing is due, and the last
    -- few recipients may take long.
    SELECT s.at, trim_scale(s.rate),
           format('%s recipients per minute since %s UTC, fewer than %s, and %s are pending.', trim_scale(s.rate),
                  to_char(s.at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI'), t.threshold, k.pending)
    FROM (
        SELECT f.at, round(60 * (k.processed - f.processed) / extract(epoch FROM now() - f.at), 1) AS rate
        FROM sendoff.delivery_sample f
        WHERE f.delivery_id = d.delivery_id AND f.at <= now() - interval '5 minutes' AND f.at >= d.updated_at
        ORDER BY f.minute DESC LIMIT 1
    ) s
    WHERE t.criterion = 'low_throughput' AND d.state = 'in_progress' AND d.messages_per_hour IS NULL
      AND s.rate < t.threshold AND k.pending >= t.threshold
      AND NOT EXISTS (SELECT FROM sendoff.wave w WHERE w.delivery_id = d.delivery_id AND w.due_at > s.at)
  UNION ALL
    -- Counted from the earliest possible end: the last wave, or the time that its throughput limit needs.
    SELECT s.since, trim_scale(s.minutes),
           format('It has been %s for %s minutes: more than %s.', replace(d.state, '_', ' '), round(s.minutes),
                  t.threshold)
    FROM (SELECT greatest(d.started_at,
                          (SELECT max(w.due_at) FROM sendoff.wave w WHERE w.delivery_id = d.delivery_id),
                          d.started_at + d.to_deliver * interval '1 hour' / d.messages_per_hour) AS since) r
    CROSS JOIN LATERAL (SELECT r.since, sendoff.minutes_since(r.since) AS minutes) s
    WHERE t.criterion = 'long_in_progress' AND d.running AND s.minutes > t.threshold
) m
WHERE t.enabled AND d.to_deliver >= t.minimum
  AND (d.under_way OR ((d.over OR d.state = 'preparation_failed') AND d.updated_at > now() - interval '1 day'
                       AND coalesce(d.finished_at, d.updated_at) > now() - interval '1 day'));

-- As in 0005, with complained_at at the end.
CREATE OR REPLACE VIEW sendoff.profile_history AS
SELECT r.profile_id, r.delivery_id, r.recipient, d.label, d.channel, d.state, r.address,
       sendoff.shown_status(o.status, d.cancelled_at) AS status,
       coalesce(o.attempt, 0) AS attempt,
       CASE WHEN o.status LIKE 'bounced%' THEN substr(o.status, 9) END AS bounce_kind,
       o.claimed_at, o.sent_at, o.bounced_at, o.error_at, o.unknown_at, o.retry_at, o.reason, o.code, o.reply,
       o.excluded_at, t.opened_at, t.human_opened_at, t.clicked_at, t.human_clicked_at, t.mirror_at, t.optout_at,
       coalesce(o.bounced_at, o.sent_at, o.error_at, o.unknown_at, o.retry_at, o.excluded_at, o.claimed_at) AS at,
       t.complained_at
FROM sendoff.recipient r
CROSS JOIN LATERAL (
    SELECT k.label, k.channel, k.state, k.cancelled_at
    FROM sendoff.delivery_record k
    WHERE k.delivery_id = r.delivery_id
    OFFSET 0
) d
LEFT JOIN LATERAL (
    SELECT k.* FROM sendoff.outcome k WHERE k.delivery_id = r.delivery_id AND k.recipient = r.recipient OFFSET 0
) o ON true
LEFT JOIN LATERAL (
    SELECT k.*
    FROM sendoff.tracked_recipient k
    WHERE k.delivery_id = r.delivery_id AND k.recipient = r.recipient
    OFFSET 0
) t ON true
WHERE r.profile_id IS NOT NULL;

COMMENT ON COLUMN sendoff.profile_history.complained_at IS 'When the profile first took it for spam.';
COMMENT ON VIEW sendoff.tracking_log IS
    'One row per open, click, mirror-page view, opt-out and complaint; machine_rule is null where a person is behind it.';
COMMENT ON COLUMN sendoff.tracking_log.kind IS 'open, click, mirror, optout or complaint.';
COMMENT ON COLUMN sendoff.tracking_log.event_id IS
    'The event''s number, as the tracker gave it; doubled ones count once. Of a complaint: complaint-<recipient>-<attempt>.';
