-- The public views of recipients: logs, and their sums by cause, reason, domain, minute and link. A query
-- with the delivery's number takes less than a second for a million recipients, with any amount of other data
-- in the tables.

CREATE VIEW sendoff.sending_log AS
SELECT r.delivery_id, r.recipient, r.profile_id, r.address,
       sendoff.shown_status(o.status, d.cancelled_at) AS status,
       coalesce(o.attempt, 0) AS attempt,
       CASE WHEN o.status LIKE 'bounced%' THEN substr(o.status, 9) END AS bounce_kind,
       o.claimed_at, o.sent_at, o.bounced_at, o.error_at, o.unknown_at, o.retry_at,
       o.reason, o.code, o.fault, o.reply, o.provider_id, o.excluded_at,
       coalesce(o.bounced_at, o.sent_at, o.error_at, o.unknown_at, o.retry_at, o.excluded_at, o.claimed_at) AS at
FROM sendoff.recipient r
JOIN sendoff.delivery_record d ON d.delivery_id = r.delivery_id
LEFT JOIN sendoff.outcome o ON o.delivery_id = r.delivery_id AND o.recipient = r.recipient;

COMMENT ON VIEW sendoff.sending_log IS
    'One row per recipient of a delivery: its current outcome, the facts with their times, and the reply.';
COMMENT ON COLUMN sendoff.sending_log.delivery_id IS 'The delivery.';
COMMENT ON COLUMN sendoff.sending_log.recipient IS 'The recipient''s number in the delivery, from 1 without a gap.';
COMMENT ON COLUMN sendoff.sending_log.profile_id IS 'The profile, as upstream named it.';
COMMENT ON COLUMN sendoff.sending_log.address IS 'The address, in its normal form.';
COMMENT ON COLUMN sendoff.sending_log.status IS
    'pending, sending, sent, bounced, error, retrying, unknown, excluded or cancelled.';
COMMENT ON COLUMN sendoff.sending_log.attempt IS 'The attempt that the status is of, from 1; 0 for pending.';
COMMENT ON COLUMN sendoff.sending_log.bounce_kind IS 'hard, soft or ignored; null for what is no bounce.';
COMMENT ON COLUMN sendoff.sending_log.claimed_at IS 'When the attempt began.';
COMMENT ON COLUMN sendoff.sending_log.sent_at IS 'When the channel took the message.';
COMMENT ON COLUMN sendoff.sending_log.bounced_at IS 'When it was refused, or came back.';
COMMENT ON COLUMN sendoff.sending_log.error_at IS 'When it could not be handed to the channel.';
COMMENT ON COLUMN sendoff.sending_log.unknown_at IS 'When the claim ran out without a result.';
COMMENT ON COLUMN sendoff.sending_log.retry_at IS 'When the next attempt is due.';
COMMENT ON COLUMN sendoff.sending_log.reason IS 'Why it bounced, failed or was left out, as a word.';
COMMENT ON COLUMN sendoff.sending_log.code IS 'The enhanced status code of a bounce (RFC 3463).';
COMMENT ON COLUMN sendoff.sending_log.fault IS 'Whose fault a bounce is: recipient, sender, content or infrastructure.';
COMMENT ON COLUMN sendoff.sending_log.reply IS 'What the server said, at most 1,000 characters.';
COMMENT ON COLUMN sendoff.sending_log.provider_id IS 'The number that the server gave the message.';
COMMENT ON COLUMN sendoff.sending_log.excluded_at IS 'When the recipient was left out at send time.';
COMMENT ON COLUMN sendoff.sending_log.at IS 'The time of the fact that gives the status, or else of the claim.';

CREATE VIEW sendoff.exclusion_log AS
SELECT e.delivery_id, e.line, NULL::integer AS recipient, e.profile_id, e.address, e.cause, e.detail, false AS late,
       NULL::timestamptz AS excluded_at
FROM sendoff.exclusion e
UNION ALL
SELECT r.delivery_id, NULL, r.recipient, r.profile_id, r.address, o.reason, o.reply, true, o.excluded_at
FROM sendoff.outcome o
JOIN sendoff.recipient r ON r.delivery_id = o.delivery_id AND r.recipient = o.recipient
WHERE o.excluded_at IS NOT NULL AND o.status = 'excluded';

COMMENT ON VIEW sendoff.exclusion_log IS
    'Targets left out: at preparation with the line of the recipients file, or late (at send time) with the recipient.';
COMMENT ON COLUMN sendoff.exclusion_log.delivery_id IS 'The delivery.';
COMMENT ON COLUMN sendoff.exclusion_log.line IS 'The line of the recipients file; null for a late exclusion.';
COMMENT ON COLUMN sendoff.exclusion_log.recipient IS
    'The recipient''s number; null for who was left out at preparation.';
COMMENT ON COLUMN sendoff.exclusion_log.profile_id IS 'The profile, as upstream named it.';
COMMENT ON COLUMN sendoff.exclusion_log.address IS
    'The address, as it was written for who was left out at preparation.';
COMMENT ON COLUMN sendoff.exclusion_log.cause IS
    'empty, invalid, duplicate, quarantined, denylisted, malformed or mistimed; of a late one, that of the quarantine.';
COMMENT ON COLUMN sendoff.exclusion_log.detail IS 'What more is to be said of it.';
COMMENT ON COLUMN sendoff.exclusion_log.late IS 'Whether it was at send time, and not at preparation.';
COMMENT ON COLUMN sendoff.exclusion_log.excluded_at IS
    'When it was, for a late exclusion; else see prepared_at of the delivery.';

-- The second half of the log, without its join.
CREATE VIEW sendoff.exclusion_cause AS
SELECT delivery_id, cause, late, count(*) AS excluded
FROM (
    SELECT delivery_id, cause, false AS late FROM sendoff.exclusion
    UNION ALL
    SELECT delivery_id, reason, true FROM sendoff.outcome WHERE excluded_at IS NOT NULL AND status = 'excluded'
) e
GROUP BY delivery_id, cause, late;

COMMENT ON VIEW sendoff.exclusion_cause IS 'Exclusions of a delivery by cause.';
COMMENT ON COLUMN sendoff.exclusion_cause.delivery_id IS 'The delivery.';
COMMENT ON COLUMN sendoff.exclusion_cause.cause IS 'As in exclusion_log.';
COMMENT ON COLUMN sendoff.exclusion_cause.late IS 'Whether it was at send time, and not at preparation.';
COMMENT ON COLUMN sendoff.exclusion_cause.excluded IS 'How many were left out so.';

CREATE VIEW sendoff.bounce_reason AS
SELECT delivery_id, substr(status, 9) AS kind, reason, code, fault, count(*) AS bounced
FROM sendoff.outcome
WHERE bounced_at IS NOT NULL AND status IN ('bounced_hard', 'bounced_soft', 'bounced_ignored')
GROUP BY delivery_id, status, reason, code, fault;

COMMENT ON VIEW sendoff.bounce_reason IS
    'Current bounces of a delivery by kind, reason, enhanced code (RFC 3463) and fault.';
COMMENT ON COLUMN sendoff.bounce_reason.delivery_id IS 'The delivery.';
COMMENT ON COLUMN sendoff.bounce_reason.kind IS 'hard, soft or ignored.';
COMMENT ON COLUMN sendoff.bounce_reason.reason IS 'Why, as a word: user_unknown, mailbox_full, …';
COMMENT ON COLUMN sendoff.bounce_reason.code IS 'The enhanced status code (RFC 3463).';
COMMENT ON COLUMN sendoff.bounce_reason.fault IS 'Whose fault: recipient, sender, content or infrastructure.';
COMMENT ON COLUMN sendoff.bounce_reason.bounced IS 'How many recipients have this as their current outcome.';

CREATE VIEW sendoff.domain_breakdown AS
SELECT d.delivery_id, d.domain, d.to_deliver::bigint AS to_deliver, coalesce(c.sent, 0) AS sent,
       coalesce(c.bounced, 0) AS bounced, coalesce(c.errors, 0) AS errors, coalesce(c.unknown, 0) AS unknown
FROM sendoff.delivery_domain d
LEFT JOIN (
    SELECT o.delivery_id, p.numbers[1 + (o.recipient - 1) % 1000] AS number,
           count(*) FILTER (WHERE o.status = 'sent') AS sent,
           count(*) FILTER (WHERE o.status LIKE 'bounced%') AS bounced,
           count(*) FILTER (WHERE o.status = 'error') AS errors,
           count(*) FILTER (WHERE o.status = 'unknown') AS unknown
    FROM sendoff.outcome o
    JOIN sendoff.domain_page p ON p.delivery_id = o.delivery_id AND p.page = (o.recipient - 1) / 1000
    GROUP BY o.delivery_id, p.numbers[1 + (o.recipient - 1) % 1000]
) c ON c.delivery_id = d.delivery_id AND c.number = d.number;

COMMENT ON VIEW sendoff.domain_breakdown IS 'Outcomes of a delivery by the domain of the address.';
COMMENT ON COLUMN sendoff.domain_breakdown.delivery_id IS 'The delivery.';
COMMENT ON COLUMN sendoff.domain_breakdown.domain IS
    'The domain of the address, in lower case; empty where it has none.';
COMMENT ON COLUMN sendoff.domain_breakdown.to_deliver IS 'Recipients with an address of this domain.';
COMMENT ON COLUMN sendoff.domain_breakdown.sent IS 'Those whose current outcome is sent.';
COMMENT ON COLUMN sendoff.domain_breakdown.bounced IS 'Those whose current outcome is a bounce.';
COMMENT ON COLUMN sendoff.domain_breakdown.errors IS 'Those whose current outcome is an error.';
COMMENT ON COLUMN sendoff.domain_breakdown.unknown IS 'Those for which nobody knows whether the message went out.';

-- date_bin subtracts and divides, where date_trunc looks the session's time zone up for each row: half the time.
CREATE VIEW sendoff.throughput AS
SELECT delivery_id, date_bin('1 minute', coalesce(sent_at, bounced_at, error_at), '2000-01-01 00:00+00') AS minute,
       count(*) AS processed,
       count(*) FILTER (WHERE status = 'sent') AS sent,
       count(*) FILTER (WHERE status LIKE 'bounced%') AS bounced,
       count(*) FILTER (WHERE status = 'error') AS errors
FROM sendoff.outcome
WHERE coalesce(sent_at, bounced_at, error_at) IS NOT NULL
GROUP BY delivery_id, date_bin('1 minute', coalesce(sent_at, bounced_at, error_at), '2000-01-01 00:00+00');

COMMENT ON VIEW sendoff.throughput IS 'Outcomes of a delivery per minute.';
COMMENT ON COLUMN sendoff.throughput.delivery_id IS 'The delivery.';
COMMENT ON COLUMN sendoff.throughput.minute IS 'The minute, by its beginning.';
COMMENT ON COLUMN sendoff.throughput.processed IS
    'Recipients whose message was taken in that minute, or was refused or failed without ever being taken.';
COMMENT ON COLUMN sendoff.throughput.sent IS 'Those of them whose current outcome is sent.';
COMMENT ON COLUMN sendoff.throughput.bounced IS
    'Those whose current outcome is a bounce, even if it was reported days later.';
COMMENT ON COLUMN sendoff.throughput.errors IS 'Those whose current outcome is an error.';

CREATE VIEW sendoff.tracking_log AS
SELECT e.delivery_id, e.event_id, e.recipient, r.profile_id, r.address, e.kind, e.url, e.at, e.received_at,
       e.user_agent, e.machine_rule, e.rules
FROM sendoff.tracking_event e
LEFT JOIN sendoff.recipient r ON r.delivery_id = e.delivery_id AND r.recipient = e.recipient;

COMMENT ON VIEW sendoff.tracking_log IS
    'One row per open, click, mirror-page view and opt-out; machine_rule is null where a person is behind it.';
COMMENT ON COLUMN sendoff.tracking_log.delivery_id IS 'The delivery.';
COMMENT ON COLUMN sendoff.tracking_log.event_id IS
    'The event''s number, as the tracker gave it; doubled ones count once.';
COMMENT ON COLUMN sendoff.tracking_log.recipient IS 'The recipient''s number in the delivery.';
COMMENT ON COLUMN sendoff.tracking_log.profile_id IS 'The profile, as upstream named it.';
COMMENT ON COLUMN sendoff.tracking_log.address IS 'The address that was written to.';
COMMENT ON COLUMN sendoff.tracking_log.kind IS 'open, click, mirror or optout.';
COMMENT ON COLUMN sendoff.tracking_log.url IS 'Where a click led.';
COMMENT ON COLUMN sendoff.tracking_log.at IS 'When it happened, as the tracker says.';
COMMENT ON COLUMN sendoff.tracking_log.received_at IS 'When it was recorded.';
COMMENT ON COLUMN sendoff.tracking_log.user_agent IS 'What the client said it is.';
COMMENT ON COLUMN sendoff.tracking_log.machine_rule IS
    'The rule by which it is a machine''s; null where it is taken for a person''s.';
COMMENT ON COLUMN sendoff.tracking_log.rules IS 'The version of the rules that judged.';

-- Recipients first, then urls: both run along the index, where count(DISTINCT) would sort.
CREATE VIEW sendoff.tracked_url AS
SELECT c.delivery_id,
       (SELECT e.url FROM sendoff.tracking_event e
        WHERE e.delivery_id = c.delivery_id AND e.kind = 'click' AND e.link = c.link LIMIT 1) AS url,
       sum(c.clicks)::bigint AS clicks, count(*) AS clickers,
       sum(c.human_clicks)::bigint AS human_clicks, count(*) FILTER (WHERE c.human_clicks > 0) AS human_clickers
FROM (
    SELECT delivery_id, link, recipient, count(*) AS clicks,
           count(*) FILTER (WHERE machine_rule IS NULL) AS human_clicks
    FROM sendoff.tracking_event
    WHERE kind = 'click'
    GROUP BY delivery_id, link, recipient
) c
GROUP BY c.delivery_id, c.link;

COMMENT ON VIEW sendoff.tracked_url IS
    'Clicks and unique clickers of a delivery by url, all and those of persons; url is null where none was given.';
COMMENT ON COLUMN sendoff.tracked_url.delivery_id IS 'The delivery.';
COMMENT ON COLUMN sendoff.tracked_url.url IS 'Where the clicks led; null where the tracker did not say.';
COMMENT ON COLUMN sendoff.tracked_url.clicks IS 'Clicks.';
COMMENT ON COLUMN sendoff.tracked_url.clickers IS 'Recipients who clicked it.';
COMMENT ON COLUMN sendoff.tracked_url.human_clicks IS 'Clicks that no rule takes for a machine''s.';
COMMENT ON COLUMN sendoff.tracked_url.human_clickers IS 'Recipients with such a click.';

-- Each part is looked up by its whole key (OFFSET 0): a join may as well begin with all deliveries.
CREATE VIEW sendoff.profile_history AS
SELECT r.profile_id, r.delivery_id, r.recipient, d.label, d.channel, d.state, r.address,
       sendoff.shown_status(o.status, d.cancelled_at) AS status,
       coalesce(o.attempt, 0) AS attempt,
       CASE WHEN o.status LIKE 'bounced%' THEN substr(o.status, 9) END AS bounce_kind,
       o.claimed_at, o.sent_at, o.bounced_at, o.error_at, o.unknown_at, o.retry_at, o.reason, o.code, o.reply,
       o.excluded_at, t.opened_at, t.human_opened_at, t.clicked_at, t.human_clicked_at, t.mirror_at, t.optout_at,
       coalesce(o.bounced_at, o.sent_at, o.error_at, o.unknown_at, o.retry_at, o.excluded_at, o.claimed_at) AS at
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

COMMENT ON VIEW sendoff.profile_history IS
    'Everything that one profile got: a row per message with its outcome, and when it was first opened and clicked.';
COMMENT ON COLUMN sendoff.profile_history.profile_id IS 'The profile, as upstream named it.';
COMMENT ON COLUMN sendoff.profile_history.delivery_id IS 'The delivery; the newest have the greatest.';
COMMENT ON COLUMN sendoff.profile_history.recipient IS 'The number of the recipient in it.';
COMMENT ON COLUMN sendoff.profile_history.label IS 'The label of the delivery.';
COMMENT ON COLUMN sendoff.profile_history.channel IS 'The channel.';
COMMENT ON COLUMN sendoff.profile_history.state IS 'The state of the delivery.';
COMMENT ON COLUMN sendoff.profile_history.address IS 'The address that was written to.';
COMMENT ON COLUMN sendoff.profile_history.status IS 'What became of the message.';
COMMENT ON COLUMN sendoff.profile_history.attempt IS 'How often it was tried; 0 for never.';
COMMENT ON COLUMN sendoff.profile_history.bounce_kind IS 'hard, soft or ignored.';
COMMENT ON COLUMN sendoff.profile_history.claimed_at IS 'When the last try began.';
COMMENT ON COLUMN sendoff.profile_history.sent_at IS 'When the channel took it.';
COMMENT ON COLUMN sendoff.profile_history.bounced_at IS 'When it bounced.';
COMMENT ON COLUMN sendoff.profile_history.error_at IS 'When it failed.';
COMMENT ON COLUMN sendoff.profile_history.unknown_at IS 'When no result was waited for any more.';
COMMENT ON COLUMN sendoff.profile_history.retry_at IS 'When it is tried again.';
COMMENT ON COLUMN sendoff.profile_history.reason IS 'Why it bounced, failed or was left out.';
COMMENT ON COLUMN sendoff.profile_history.code IS 'The enhanced status code (RFC 3463).';
COMMENT ON COLUMN sendoff.profile_history.reply IS 'What the channel answered.';
COMMENT ON COLUMN sendoff.profile_history.excluded_at IS 'When it was left out at send time.';
COMMENT ON COLUMN sendoff.profile_history.opened_at IS 'When it was first opened: the first event of any kind.';
COMMENT ON COLUMN sendoff.profile_history.human_opened_at IS 'The same without machines.';
COMMENT ON COLUMN sendoff.profile_history.clicked_at IS 'When it was first clicked.';
COMMENT ON COLUMN sendoff.profile_history.human_clicked_at IS 'The same without machines.';
COMMENT ON COLUMN sendoff.profile_history.mirror_at IS 'When its copy on the web was first looked at.';
COMMENT ON COLUMN sendoff.profile_history.optout_at IS 'When the profile first opted out by it.';
COMMENT ON COLUMN sendoff.profile_history.at IS 'The time of the fact that gives the status, or else of the claim.';
