-- The views answer for one delivery of a million recipients in less than a second, whatever else the tables hold.

-- Few recipients are anything but sent: they are found here. All four are facts, set once, so that an outcome that
-- sets none of them stays on its page (HOT); with the status in it, every outcome would leave its page.
ALTER TABLE sendoff.outcome ADD COLUMN excluded_at timestamptz;
UPDATE sendoff.outcome SET excluded_at = claimed_at WHERE status = 'excluded';
CREATE INDEX outcome_exception ON sendoff.outcome (delivery_id, recipient)
    WHERE bounced_at IS NOT NULL OR error_at IS NOT NULL OR unknown_at IS NOT NULL OR excluded_at IS NOT NULL;

-- Where in the table a delivery lies, in a few kilobytes: who reads all of its rows reads them from end to end, not
-- one by one through the key, and in parallel. What is not summarised yet, by vacuum, is read as well.
CREATE INDEX outcome_place ON sendoff.outcome USING brin (delivery_id) WITH (pages_per_range = 64);

-- Vacuum marks pages as visible to all, which a count skips checking row by row, and summarises new ones. A fifth
-- of the table, the default, is more than a large delivery.
UPDATE sendoff.partitioned_table
SET storage = storage || ', autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.02'
                      || ', autovacuum_analyze_scale_factor = 0.02'
WHERE name IN ('recipient', 'outcome');
DO $$
DECLARE
    partition regclass;
BEGIN
    FOR partition IN
        SELECT inhrelid FROM pg_inherits WHERE inhparent IN ('sendoff.recipient'::regclass, 'sendoff.outcome'::regclass)
    LOOP
        EXECUTE format('ALTER TABLE %s SET (autovacuum_vacuum_scale_factor = 0.02, '
                       'autovacuum_vacuum_insert_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02)',
                       partition);
    END LOOP;
END $$;

-- The domains of an audience, and which of them each recipient's is: an array for every 1,000 recipients, in their
-- order. Outcomes are counted by domain without a look at the recipients: 3 times as fast as a join of the two.
CREATE TABLE sendoff.delivery_domain (
    delivery_id  bigint NOT NULL,
    number       integer NOT NULL,
    domain       text NOT NULL,
    to_deliver   integer NOT NULL,
    PRIMARY KEY (delivery_id, number)
) PARTITION BY RANGE (delivery_id);

CREATE TABLE sendoff.domain_page (
    delivery_id  bigint NOT NULL,
    page         integer NOT NULL,
    numbers      integer[] NOT NULL,
    PRIMARY KEY (delivery_id, page)
) PARTITION BY RANGE (delivery_id);
ALTER TABLE sendoff.domain_page ALTER COLUMN numbers SET STORAGE PLAIN;

SELECT sendoff.add_partitioned_table('delivery_domain', 'fillfactor = 100');
SELECT sendoff.add_partitioned_table('domain_page', 'fillfactor = 100');

WITH numbered AS (
    SELECT delivery_id, recipient, domain,
           dense_rank() OVER (PARTITION BY delivery_id ORDER BY domain COLLATE "C") AS number
    FROM (SELECT delivery_id, recipient, lower(split_part(address, '@', 2)) AS domain FROM sendoff.recipient) r
), domains AS (
    INSERT INTO sendoff.delivery_domain (delivery_id, number, domain, to_deliver)
    SELECT delivery_id, number, min(domain), count(*) FROM numbered GROUP BY delivery_id, number
)
INSERT INTO sendoff.domain_page (delivery_id, page, numbers)
SELECT delivery_id, (recipient - 1) / 1000, array_agg(number::int ORDER BY recipient)
FROM numbered
GROUP BY delivery_id, (recipient - 1) / 1000;

CREATE OR REPLACE VIEW sendoff.domain_breakdown AS
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

CREATE OR REPLACE VIEW sendoff.sending_log AS
SELECT r.delivery_id, r.recipient, r.profile_id, r.address,
       CASE WHEN o.status IS NULL THEN CASE WHEN d.cancelled_at IS NULL THEN 'pending' ELSE 'cancelled' END
            WHEN o.status = 'retrying' AND d.cancelled_at IS NOT NULL THEN 'cancelled'
            WHEN o.status LIKE 'bounced%' THEN 'bounced'
            ELSE o.status END AS status,
       coalesce(o.attempt, 0) AS attempt,
       CASE WHEN o.status LIKE 'bounced%' THEN substr(o.status, 9) END AS bounce_kind,
       o.claimed_at, o.sent_at, o.bounced_at, o.error_at, o.unknown_at, o.retry_at,
       o.reason, o.code, o.fault, o.reply, o.provider_id, o.excluded_at
FROM sendoff.recipient r
JOIN sendoff.delivery_record d ON d.delivery_id = r.delivery_id
LEFT JOIN sendoff.outcome o ON o.delivery_id = r.delivery_id AND o.recipient = r.recipient;

CREATE OR REPLACE VIEW sendoff.exclusion_log AS
SELECT e.delivery_id, e.line, NULL::integer AS recipient, e.profile_id, e.address, e.cause, e.detail, false AS late,
       NULL::timestamptz AS excluded_at
FROM sendoff.exclusion e
UNION ALL
SELECT r.delivery_id, NULL, r.recipient, r.profile_id, r.address, o.reason, o.reply, true, o.excluded_at
FROM sendoff.outcome o
JOIN sendoff.recipient r ON r.delivery_id = o.delivery_id AND r.recipient = o.recipient
WHERE o.excluded_at IS NOT NULL AND o.status = 'excluded';

-- Of the log's two halves, the second without its join.
CREATE OR REPLACE VIEW sendoff.exclusion_cause AS
SELECT delivery_id, cause, late, count(*) AS excluded
FROM (
    SELECT delivery_id, cause, false AS late FROM sendoff.exclusion
    UNION ALL
    SELECT delivery_id, reason, true FROM sendoff.outcome WHERE excluded_at IS NOT NULL AND status = 'excluded'
) e
GROUP BY delivery_id, cause, late;

CREATE OR REPLACE VIEW sendoff.bounce_reason AS
SELECT delivery_id, substr(status, 9) AS kind, reason, code, fault, count(*) AS bounced
FROM sendoff.outcome
WHERE bounced_at IS NOT NULL AND status IN ('bounced_hard', 'bounced_soft', 'bounced_ignored')
GROUP BY delivery_id, status, reason, code, fault;

-- date_bin subtracts and divides, where date_trunc looks the session's time zone up for each row: half the time.
CREATE OR REPLACE VIEW sendoff.throughput AS
SELECT delivery_id, date_bin('1 minute', coalesce(sent_at, bounced_at, error_at), '2000-01-01 00:00+00') AS minute,
       count(*) AS processed,
       count(*) FILTER (WHERE status = 'sent') AS sent,
       count(*) FILTER (WHERE status LIKE 'bounced%') AS bounced,
       count(*) FILTER (WHERE status = 'error') AS errors
FROM sendoff.outcome
WHERE coalesce(sent_at, bounced_at, error_at) IS NOT NULL
GROUP BY delivery_id, date_bin('1 minute', coalesce(sent_at, bounced_at, error_at), '2000-01-01 00:00+00');

-- The newest commands of all, and a profile on every channel.
CREATE INDEX command_received ON sendoff.command (received_at);
CREATE INDEX denylisted_profile_profile ON sendoff.denylisted_profile (profile_id);

-- What each column says, for whoever reads the tables with a tool; docs/tables.md says the same.

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
    'Recipients whose standing outcome is sent: the channel took the message, and nothing came back.';
COMMENT ON COLUMN sendoff.deployment.bounced IS
    'Recipients whose standing outcome is a bounce: hard, soft and ignored.';
COMMENT ON COLUMN sendoff.deployment.bounced_hard IS 'Those refused, or returned, for good.';
COMMENT ON COLUMN sendoff.deployment.bounced_soft IS 'Those refused, or returned, for now, with no attempt left.';
COMMENT ON COLUMN sendoff.deployment.bounced_ignored IS
    'Those from whom something came back that says nothing about the address.';
COMMENT ON COLUMN sendoff.deployment.errors IS 'Recipients whose message could not be handed to the channel.';
COMMENT ON COLUMN sendoff.deployment.unknown IS 'Recipients of whom nobody knows whether the message went out.';
COMMENT ON COLUMN sendoff.deployment.excluded_late IS 'Recipients left out at send time.';
COMMENT ON COLUMN sendoff.deployment.cancelled IS
    'Recipients who were not tried when the delivery was stopped or its validity ended.';
COMMENT ON COLUMN sendoff.deployment.retrying IS 'Recipients who wait for their next attempt.';
COMMENT ON COLUMN sendoff.deployment.sending IS 'Recipients whose attempt is under way.';
COMMENT ON COLUMN sendoff.deployment.pending IS
    'Recipients who were not tried yet: to_deliver less all of the above.';
COMMENT ON COLUMN sendoff.deployment.opened IS 'Unique recipients with any tracking event: who clicks has opened.';
COMMENT ON COLUMN sendoff.deployment.clicked IS 'Unique recipients with a click.';
COMMENT ON COLUMN sendoff.deployment.optout IS 'Unique recipients who opted out.';
COMMENT ON COLUMN sendoff.deployment.mirror IS 'Unique recipients who viewed the mirror page.';
COMMENT ON COLUMN sendoff.deployment.sent_pct IS 'sent of to_deliver, in percent.';
COMMENT ON COLUMN sendoff.deployment.bounce_error_pct IS
    'bounced and errors of sent, bounced and errors, in percent.';
COMMENT ON COLUMN sendoff.deployment.open_pct IS 'opened of sent, in percent.';
COMMENT ON COLUMN sendoff.deployment.click_pct IS 'clicked of sent, in percent.';
COMMENT ON COLUMN sendoff.deployment.excluded IS 'Targets that the preparation left out; outside the balance.';
COMMENT ON COLUMN sendoff.deployment.updated_at IS 'When its state or one of the counters last moved.';
COMMENT ON COLUMN sendoff.deployment.state_reason IS
    'Why it is in that state, in a sentence, where there is a reason.';
COMMENT ON COLUMN sendoff.deployment.human_opened IS
    'Of opened, those with an event that no rule takes for a machine''s.';
COMMENT ON COLUMN sendoff.deployment.human_clicked IS
    'Of clicked, those with a click that no rule takes for a machine''s.';
COMMENT ON COLUMN sendoff.deployment.human_open_pct IS 'human_opened of sent, in percent.';
COMMENT ON COLUMN sendoff.deployment.human_click_pct IS 'human_clicked of sent, in percent.';

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
COMMENT ON COLUMN sendoff.sending_log.fault IS
    'Whose fault a bounce is: recipient, sender, content or infrastructure.';
COMMENT ON COLUMN sendoff.sending_log.reply IS 'What the server said, at most 1,000 characters.';
COMMENT ON COLUMN sendoff.sending_log.provider_id IS 'The number that the server gave the message.';
COMMENT ON COLUMN sendoff.sending_log.excluded_at IS 'When the recipient was left out at send time.';

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

COMMENT ON COLUMN sendoff.exclusion_cause.delivery_id IS 'The delivery.';
COMMENT ON COLUMN sendoff.exclusion_cause.cause IS 'As in exclusion_log.';
COMMENT ON COLUMN sendoff.exclusion_cause.late IS 'Whether it was at send time, and not at preparation.';
COMMENT ON COLUMN sendoff.exclusion_cause.excluded IS 'How many were left out so.';

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

COMMENT ON COLUMN sendoff.tracked_url.delivery_id IS 'The delivery.';
COMMENT ON COLUMN sendoff.tracked_url.url IS 'Where the clicks led; null where the tracker did not say.';
COMMENT ON COLUMN sendoff.tracked_url.clicks IS 'Clicks.';
COMMENT ON COLUMN sendoff.tracked_url.clickers IS 'Recipients who clicked it.';
COMMENT ON COLUMN sendoff.tracked_url.human_clicks IS 'Clicks that no rule takes for a machine''s.';
COMMENT ON COLUMN sendoff.tracked_url.human_clickers IS 'Recipients with such a click.';

COMMENT ON COLUMN sendoff.bounce_reason.delivery_id IS 'The delivery.';
COMMENT ON COLUMN sendoff.bounce_reason.kind IS 'hard, soft or ignored.';
COMMENT ON COLUMN sendoff.bounce_reason.reason IS 'Why, as a word: user_unknown, mailbox_full, …';
COMMENT ON COLUMN sendoff.bounce_reason.code IS 'The enhanced status code (RFC 3463).';
COMMENT ON COLUMN sendoff.bounce_reason.fault IS 'Whose fault: recipient, sender, content or infrastructure.';
COMMENT ON COLUMN sendoff.bounce_reason.bounced IS 'How many recipients have this as their standing outcome.';

COMMENT ON COLUMN sendoff.domain_breakdown.delivery_id IS 'The delivery.';
COMMENT ON COLUMN sendoff.domain_breakdown.domain IS
    'The domain of the address, in lower case; empty where it has none.';
COMMENT ON COLUMN sendoff.domain_breakdown.to_deliver IS 'Recipients with an address of this domain.';
COMMENT ON COLUMN sendoff.domain_breakdown.sent IS 'Those whose standing outcome is sent.';
COMMENT ON COLUMN sendoff.domain_breakdown.bounced IS 'Those whose standing outcome is a bounce.';
COMMENT ON COLUMN sendoff.domain_breakdown.errors IS 'Those whose standing outcome is an error.';
COMMENT ON COLUMN sendoff.domain_breakdown.unknown IS 'Those of whom nobody knows.';

COMMENT ON COLUMN sendoff.throughput.delivery_id IS 'The delivery.';
COMMENT ON COLUMN sendoff.throughput.minute IS 'The minute, by its beginning.';
COMMENT ON COLUMN sendoff.throughput.processed IS
    'Recipients whose message was taken in that minute, or was refused or failed without ever being taken.';
COMMENT ON COLUMN sendoff.throughput.sent IS 'Those of them whose standing outcome is sent.';
COMMENT ON COLUMN sendoff.throughput.bounced IS
    'Those whose standing outcome is a bounce, were it reported days later.';
COMMENT ON COLUMN sendoff.throughput.errors IS 'Those whose standing outcome is an error.';

COMMENT ON COLUMN sendoff.command_log.command_id IS
    'The message_id of the command: the same one gets the same answer.';
COMMENT ON COLUMN sendoff.command_log.command IS
    'delivery.confirm, delivery.pause, delivery.resume, delivery.stop, …';
COMMENT ON COLUMN sendoff.command_log.delivery_id IS
    'The delivery that it is about; there may be no such delivery.';
COMMENT ON COLUMN sendoff.command_log.operator IS 'Who asked, as the command says.';
COMMENT ON COLUMN sendoff.command_log.publisher IS 'The user that it was published as, as the broker vouches.';
COMMENT ON COLUMN sendoff.command_log.received_at IS 'When it arrived.';
COMMENT ON COLUMN sendoff.command_log.status IS 'accepted, finalize (waits for the OK), refused or invalid.';
COMMENT ON COLUMN sendoff.command_log.reason IS 'Why it was refused, as a word.';
COMMENT ON COLUMN sendoff.command_log.message IS 'The answer, as a sentence.';
COMMENT ON COLUMN sendoff.command_log.body IS 'The command as it came.';
COMMENT ON COLUMN sendoff.command_log.reply IS 'The whole answer, as JSON.';

COMMENT ON COLUMN sendoff.quarantine.channel IS 'The channel.';
COMMENT ON COLUMN sendoff.quarantine.address IS 'The address that is not written to.';
COMMENT ON COLUMN sendoff.quarantine.cause IS 'Why, as a word.';
COMMENT ON COLUMN sendoff.quarantine.since IS 'Since when.';

COMMENT ON COLUMN sendoff.denylist.channel IS 'The channel.';
COMMENT ON COLUMN sendoff.denylist.profile_id IS 'The profile that is not written to, at whatever address.';
COMMENT ON COLUMN sendoff.denylist.cause IS 'Why, as a word.';
COMMENT ON COLUMN sendoff.denylist.since IS 'Since when.';

COMMENT ON COLUMN sendoff.wave.delivery_id IS 'The delivery.';
COMMENT ON COLUMN sendoff.wave.wave IS 'The wave''s number, from 1.';
COMMENT ON COLUMN sendoff.wave.first IS 'Its first recipient.';
COMMENT ON COLUMN sendoff.wave.last IS 'Its last recipient.';
COMMENT ON COLUMN sendoff.wave.recipients IS 'How many they are.';
COMMENT ON COLUMN sendoff.wave.due_at IS 'When it is due; null while that hangs on a start that has no time yet.';
COMMENT ON COLUMN sendoff.wave.due_after IS
    'How long after the start it is due; null where it has a time of its own.';
