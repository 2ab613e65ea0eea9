-- The public views of deliveries: what dashboards read. Their columns only ever grow. docs/tables.md is made from the
-- comments here.

CREATE VIEW sendoff.delivery AS
SELECT delivery_id, label, channel, state, state_reason, preparation, to_deliver, excluded, contact_date, time_zone,
       valid_for, valid_until, created_by, created_at, prepared_at, confirmed_by, confirmed_at, started_at,
       finished_at, cancelled_at, updated_at, purged_at
FROM sendoff.delivery_record;

COMMENT ON VIEW sendoff.delivery IS 'One row per delivery: what it is, its state and its dates.';
COMMENT ON COLUMN sendoff.delivery.delivery_id IS 'Its number.';
COMMENT ON COLUMN sendoff.delivery.label IS 'Its name for people.';
COMMENT ON COLUMN sendoff.delivery.channel IS 'What it is sent over: email, null, …';
COMMENT ON COLUMN sendoff.delivery.state IS
    'editing, preparing, preparation_failed, ready, start_pending, in_progress, retry_pending, paused, finished, …';
COMMENT ON COLUMN sendoff.delivery.state_reason IS
    'Why it is in that state, in a sentence, where somebody or something gave a reason.';
COMMENT ON COLUMN sendoff.delivery.preparation IS 'The number of its preparation, from 1; 0 before the first.';
COMMENT ON COLUMN sendoff.delivery.to_deliver IS 'Recipients of that preparation.';
COMMENT ON COLUMN sendoff.delivery.excluded IS 'Targets that the preparation left out.';
COMMENT ON COLUMN sendoff.delivery.contact_date IS 'When sending may start; null for as soon as it is confirmed.';
COMMENT ON COLUMN sendoff.delivery.time_zone IS
    'The zone that the contact date was given in, by its IANA name; null where it was an instant, or none.';
COMMENT ON COLUMN sendoff.delivery.valid_for IS
    'How long after the contact date, or the confirmation if that is later, sending and retrying may go on.';
COMMENT ON COLUMN sendoff.delivery.valid_until IS 'When that ends; null before the confirmation.';
COMMENT ON COLUMN sendoff.delivery.created_by IS 'The operator who prepared it first.';
COMMENT ON COLUMN sendoff.delivery.created_at IS 'When that was.';
COMMENT ON COLUMN sendoff.delivery.prepared_at IS 'When the preparation was complete.';
COMMENT ON COLUMN sendoff.delivery.confirmed_by IS 'The operator who confirmed it.';
COMMENT ON COLUMN sendoff.delivery.confirmed_at IS 'When that was.';
COMMENT ON COLUMN sendoff.delivery.started_at IS 'When sending began.';
COMMENT ON COLUMN sendoff.delivery.finished_at IS 'When everybody was settled; null while somebody is not.';
COMMENT ON COLUMN sendoff.delivery.cancelled_at IS
    'When what was left was cancelled: by a stop, or at the end of the validity.';
COMMENT ON COLUMN sendoff.delivery.updated_at IS 'When its state, or one of its dates, last changed.';
COMMENT ON COLUMN sendoff.delivery.purged_at IS
    'When its recipients left by retention; its logs are empty since, its KPIs stay as they were.';

-- The one place where counters are summed: from at most 16 short rows, by the key; a read counts nothing.
-- The services read it too.
CREATE VIEW sendoff.deployment AS
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
       round(100.0 * c.human_clicked / nullif(c.sent, 0), 2) AS human_click_pct
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
           max(k.updated_at) AS updated_at
    FROM sendoff.delivery_counter k
    WHERE k.delivery_id = d.delivery_id
) c;

COMMENT ON VIEW sendoff.deployment IS
    'One row per delivery with every KPI, live: the counters move in the transaction of the outcomes they count.';
COMMENT ON COLUMN sendoff.deployment.delivery_id IS 'The delivery.';
COMMENT ON COLUMN sendoff.deployment.label IS 'Its name for people.';
COMMENT ON COLUMN sendoff.deployment.channel IS 'What it is sent over.';
COMMENT ON COLUMN sendoff.deployment.state IS 'As in delivery.';
COMMENT ON COLUMN sendoff.deployment.preparation IS 'The number of its preparation, from 1.';
COMMENT ON COLUMN sendoff.deployment.contact_date IS 'When sending may start; null for as soon as it is confirmed.';
COMMENT ON COLUMN sendoff.deployment.confirmed_at IS 'When it was confirmed.';
COMMENT ON COLUMN sendoff.deployment.started_at IS 'When sending began.';
COMMENT ON COLUMN sendoff.deployment.finished_at IS 'When everybody was settled.';
COMMENT ON COLUMN sendoff.deployment.to_deliver IS 'Recipients of the confirmed preparation.';
COMMENT ON COLUMN sendoff.deployment.sent IS
    'Recipients whose current outcome is sent: the channel took the message, and nothing came back.';
COMMENT ON COLUMN sendoff.deployment.bounced IS
    'Recipients whose current outcome is a bounce: hard, soft and ignored.';
COMMENT ON COLUMN sendoff.deployment.bounced_hard IS 'Those refused, or returned, permanently.';
COMMENT ON COLUMN sendoff.deployment.bounced_soft IS 'Those refused, or returned, for now, with no attempt left.';
COMMENT ON COLUMN sendoff.deployment.bounced_ignored IS
    'Those for which something came back that says nothing about the address.';
COMMENT ON COLUMN sendoff.deployment.errors IS 'Recipients whose message could not be handed to the channel.';
COMMENT ON COLUMN sendoff.deployment.unknown IS 'Recipients for which nobody knows whether the message went out.';
COMMENT ON COLUMN sendoff.deployment.excluded_late IS 'Recipients left out at send time.';
COMMENT ON COLUMN sendoff.deployment.cancelled IS
    'Recipients who were not tried when the delivery was stopped or its validity ended.';
COMMENT ON COLUMN sendoff.deployment.retrying IS 'Recipients who wait for their next attempt.';
COMMENT ON COLUMN sendoff.deployment.sending IS 'Recipients whose attempt is under way.';
COMMENT ON COLUMN sendoff.deployment.pending IS 'Recipients who were not tried yet: to_deliver less all of the above.';
COMMENT ON COLUMN sendoff.deployment.opened IS 'Unique recipients with any tracking event: who clicks has opened.';
COMMENT ON COLUMN sendoff.deployment.clicked IS 'Unique recipients with a click.';
COMMENT ON COLUMN sendoff.deployment.optout IS 'Unique recipients who opted out.';
COMMENT ON COLUMN sendoff.deployment.mirror IS 'Unique recipients who viewed the mirror page.';
COMMENT ON COLUMN sendoff.deployment.sent_pct IS 'sent of to_deliver, in percent.';
COMMENT ON COLUMN sendoff.deployment.bounce_error_pct IS 'bounced and errors of sent, bounced and errors, in percent.';
COMMENT ON COLUMN sendoff.deployment.open_pct IS 'opened of sent, in percent.';
COMMENT ON COLUMN sendoff.deployment.click_pct IS 'clicked of sent, in percent.';
COMMENT ON COLUMN sendoff.deployment.excluded IS 'Targets that the preparation left out; outside the balance.';
COMMENT ON COLUMN sendoff.deployment.updated_at IS 'When its state or one of the counters last moved.';
COMMENT ON COLUMN sendoff.deployment.state_reason IS 'Why it is in that state, in a sentence, where there is a reason.';
COMMENT ON COLUMN sendoff.deployment.human_opened IS
    'Of opened, those with an event that no rule takes for a machine''s.';
COMMENT ON COLUMN sendoff.deployment.human_clicked IS
    'Of clicked, those with a click that no rule takes for a machine''s.';
COMMENT ON COLUMN sendoff.deployment.human_open_pct IS 'human_opened of sent, in percent.';
COMMENT ON COLUMN sendoff.deployment.human_click_pct IS 'human_clicked of sent, in percent.';

CREATE VIEW sendoff.wave AS
SELECT w.delivery_id, w.wave, w.first, w.last, w.last - w.first + 1 AS recipients,
       coalesce(w.due_at, coalesce(d.started_at, d.contact_date) + w.due_after) AS due_at, w.due_after
FROM sendoff.delivery_wave w
JOIN sendoff.delivery_record d ON d.delivery_id = w.delivery_id;

COMMENT ON VIEW sendoff.wave IS
    'The waves of a delivery: ranges of recipients and when they are due; due_after is counted from the start.';
COMMENT ON COLUMN sendoff.wave.delivery_id IS 'The delivery.';
COMMENT ON COLUMN sendoff.wave.wave IS 'The wave''s number, from 1.';
COMMENT ON COLUMN sendoff.wave.first IS 'Its first recipient.';
COMMENT ON COLUMN sendoff.wave.last IS 'Its last recipient.';
COMMENT ON COLUMN sendoff.wave.recipients IS 'How many they are.';
COMMENT ON COLUMN sendoff.wave.due_at IS 'When it is due; null while that hangs on a start that has no time yet.';
COMMENT ON COLUMN sendoff.wave.due_after IS 'How long after the start it is due; null where it has a time of its own.';

-- A bare expression, so that it becomes part of the plan.
CREATE FUNCTION sendoff.minutes_since(moment timestamptz) RETURNS numeric LANGUAGE sql STABLE AS $$
    SELECT round(extract(epoch FROM now() - moment) / 60, 2)
$$;

-- Reads deliveries under way and those that ended within a day, and at most 16 short rows of counters for each, looked
-- up by its whole key (OFFSET 0): a join may as well begin with all deliveries. Attempted are those with a standing
-- outcome of a try. Every alert has a since: bounces may be known of a delivery that has not started.
CREATE VIEW sendoff.alert AS
SELECT d.delivery_id, d.label, d.channel, d.state, t.criterion, m.since, m.value::float8 AS value, t.threshold, t.unit,
       m.sentence
FROM sendoff.delivery_record d
CROSS JOIN LATERAL (
    SELECT p.sent + p.bounced + p.errors AS attempted, p.bounced_hard, p.bounced_soft, p.pending,
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

COMMENT ON VIEW sendoff.alert IS
    'What somebody should look at now, by delivery and criterion: since when, the figure, the threshold, a sentence.';
COMMENT ON COLUMN sendoff.alert.delivery_id IS 'The delivery.';
COMMENT ON COLUMN sendoff.alert.label IS 'Its name for people.';
COMMENT ON COLUMN sendoff.alert.channel IS 'What it is sent over.';
COMMENT ON COLUMN sendoff.alert.state IS 'As in delivery.';
COMMENT ON COLUMN sendoff.alert.criterion IS 'What the alert is about.';
COMMENT ON COLUMN sendoff.alert.since IS
    'What it is counted from: the end, the start, the time that was due, or the first sample of the rate.';
COMMENT ON COLUMN sendoff.alert.value IS 'The figure that crossed the threshold; null where the criterion has none.';
COMMENT ON COLUMN sendoff.alert.threshold IS 'The threshold; null where the criterion has none.';
COMMENT ON COLUMN sendoff.alert.unit IS 'Of both: percent, minutes, recipients per minute; empty where there is none.';
COMMENT ON COLUMN sendoff.alert.sentence IS 'All of it in a sentence, or the reason of what failed.';

CREATE VIEW sendoff.command_log AS
SELECT command_id, command, delivery_id, operator, publisher, received_at, status, reason,
       reply ->> 'message' AS message, body, reply
FROM sendoff.command;

COMMENT ON VIEW sendoff.command_log IS
    'Every command: who asked for what, when, through which broker user, and the answer.';
COMMENT ON COLUMN sendoff.command_log.command_id IS 'The message_id of the command: the same one gets the same answer.';
COMMENT ON COLUMN sendoff.command_log.command IS 'delivery.confirm, delivery.pause, delivery.resume, delivery.stop, …';
COMMENT ON COLUMN sendoff.command_log.delivery_id IS 'The delivery that it is about; there may be no such delivery.';
COMMENT ON COLUMN sendoff.command_log.operator IS 'Who asked, as the command says.';
COMMENT ON COLUMN sendoff.command_log.publisher IS 'The user that it was published as, as the broker vouches.';
COMMENT ON COLUMN sendoff.command_log.received_at IS 'When it arrived.';
COMMENT ON COLUMN sendoff.command_log.status IS 'accepted, finalize (waits for the OK), refused or invalid.';
COMMENT ON COLUMN sendoff.command_log.reason IS 'Why it was refused, as a word.';
COMMENT ON COLUMN sendoff.command_log.message IS 'The answer, as a sentence.';
COMMENT ON COLUMN sendoff.command_log.body IS 'The command as it came.';
COMMENT ON COLUMN sendoff.command_log.reply IS 'The whole answer, as JSON.';

CREATE VIEW sendoff.quarantine AS
SELECT channel, address, cause, since
FROM sendoff.quarantined_address;

COMMENT ON VIEW sendoff.quarantine IS 'Addresses that are not written to on a channel, with the cause.';
COMMENT ON COLUMN sendoff.quarantine.channel IS 'The channel.';
COMMENT ON COLUMN sendoff.quarantine.address IS 'The address that is not written to.';
COMMENT ON COLUMN sendoff.quarantine.cause IS 'Why, as a word.';
COMMENT ON COLUMN sendoff.quarantine.since IS 'Since when.';

CREATE VIEW sendoff.denylist AS
SELECT channel, profile_id, cause, since
FROM sendoff.denylisted_profile;

COMMENT ON VIEW sendoff.denylist IS 'Profiles that are not written to on a channel, with the cause.';
COMMENT ON COLUMN sendoff.denylist.channel IS 'The channel.';
COMMENT ON COLUMN sendoff.denylist.profile_id IS 'The profile that is not written to, at whatever address.';
COMMENT ON COLUMN sendoff.denylist.cause IS 'Why, as a word.';
COMMENT ON COLUMN sendoff.denylist.since IS 'Since when.';
