-- Alerts: what somebody should look at, judged from deliveries and their counters alone.

-- One row per criterion; operators change limits and switch criteria off. A delivery to fewer than `minimum`
-- recipients is not looked at.
CREATE TABLE sendoff.alert_threshold (
    criterion  text PRIMARY KEY,
    enabled    boolean NOT NULL DEFAULT true,
    threshold  float8 CHECK (threshold >= 0),
    unit       text NOT NULL,
    minimum    integer NOT NULL DEFAULT 0 CHECK (minimum >= 0),
    CONSTRAINT none_without_unit CHECK ((threshold IS NULL) = (unit = '')),
    CONSTRAINT hundred_percent CHECK (unit <> 'percent' OR threshold <= 100)
);
INSERT INTO sendoff.alert_threshold (criterion, threshold, unit, minimum) VALUES
    ('failed', NULL, '', 0),
    ('preparation_failed', NULL, '', 0),
    ('hard_bounce_ratio', 5, 'percent', 100),
    ('soft_bounce_ratio', 10, 'percent', 100),
    ('start_pending', 15, 'minutes', 0),
    ('low_throughput', 60, 'recipients per minute', 1000),
    ('long_in_progress', 1440, 'minutes', 0);

-- How far each running delivery was in each of the last minutes: a rate has no other source that is cheap to read.
CREATE TABLE sendoff.delivery_sample (
    delivery_id  bigint NOT NULL REFERENCES sendoff.delivery_record,
    minute       timestamptz NOT NULL,
    at           timestamptz NOT NULL DEFAULT now(),
    processed    bigint NOT NULL,
    PRIMARY KEY (delivery_id, minute)
);

-- Those that ended lately, beside delivery_record_active: nothing here reads the deliveries of years.
CREATE INDEX delivery_record_ended ON sendoff.delivery_record (updated_at)
    WHERE state IN ('preparation_failed', 'finished', 'stopped', 'failed');

-- Reads deliveries under way and those that ended within a day, and at most 16 short rows of counters for each.
-- Attempted are those with a standing outcome of a try.
CREATE VIEW sendoff.alert AS
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
    SELECT d.started_at, trim_scale(b.pct),
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
COMMENT ON VIEW sendoff.alert IS
    'What somebody should look at now, by delivery and criterion: since when, the figure, the threshold, a sentence.';
COMMENT ON COLUMN sendoff.alert.delivery_id IS 'The delivery.';
COMMENT ON COLUMN sendoff.alert.label IS 'Its name for people.';
COMMENT ON COLUMN sendoff.alert.channel IS 'What it is sent over.';
COMMENT ON COLUMN sendoff.alert.state IS 'As in delivery.';
COMMENT ON COLUMN sendoff.alert.criterion IS 'What the alert is about.';
COMMENT ON COLUMN sendoff.alert.since IS
    'What it is counted from: the end, the start, the time that was due, or the first sample of the rate.';
COMMENT ON COLUMN sendoff.alert.value IS
    'The figure that crossed the threshold; null where the criterion has none.';
COMMENT ON COLUMN sendoff.alert.threshold IS 'The threshold; null where the criterion has none.';
COMMENT ON COLUMN sendoff.alert.unit IS
    'Of both: percent, minutes, recipients per minute; empty where there is none.';
COMMENT ON COLUMN sendoff.alert.sentence IS 'All of it in a sentence, or the reason of what failed.';

-- What was told, once per criterion and delivery in 24 hours; the day (UTC) keeps it from being told twice whatever
-- happens. Numbers are drawn where those of moves are, with the delivery locked, so that events rise in order.
CREATE TABLE sendoff.delivery_alert (
    delivery_id  bigint NOT NULL REFERENCES sendoff.delivery_record,
    number       bigint NOT NULL DEFAULT nextval('sendoff.delivery_transition_number_seq'),
    criterion    text NOT NULL,
    at           timestamptz NOT NULL DEFAULT clock_timestamp(),
    day          date NOT NULL DEFAULT (clock_timestamp() AT TIME ZONE 'UTC')::date,
    state        text NOT NULL,
    since        timestamptz NOT NULL,
    value        float8,
    threshold    float8,
    unit         text NOT NULL,
    sentence     text NOT NULL,
    PRIMARY KEY (delivery_id, number),
    UNIQUE (delivery_id, criterion, day)
);

-- An event tells of a move or of an alert, whichever has its number.
ALTER TABLE sendoff.event DROP CONSTRAINT event_delivery_id_number_fkey;
