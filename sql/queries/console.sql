-- What the console shows. A page is a range of a key, so the thousandth takes as long as the first.

-- name: read_shown
-- The deliveries that somebody looks at, all in one statement: it is read once a second, for any number of viewers.
-- When the next recipients are due is asked only where something waits for it.
SELECT k.*, d.time_zone, d.valid_until, d.created_by, d.created_at, d.prepared_at, d.confirmed_by, d.cancelled_at,
       d.purged_at, d.first_approval_by, d.first_approval_at, d.first_approval_until, r.messages_per_hour,
       now() AS as_of,
       CASE WHEN r.state = 'retry_pending'
            THEN (SELECT min(p.due_at) FROM sendoff.delivery_page p
                  WHERE p.delivery_id = r.delivery_id AND p.state = 'open')
            WHEN r.running
            THEN (SELECT min(w.due_at) FROM sendoff.wave w WHERE w.delivery_id = r.delivery_id AND w.due_at > now())
       END AS next_due_at
FROM sendoff.deployment k
JOIN sendoff.delivery d ON d.delivery_id = k.delivery_id
JOIN sendoff.delivery_record r ON r.delivery_id = k.delivery_id
WHERE k.delivery_id = ANY (:deliveries::bigint[]);

-- name: read_deliveries_page
-- The newest first.
SELECT k.*, now() AS as_of
FROM sendoff.deployment k
WHERE k.delivery_id < :before AND (:states::text[] IS NULL OR k.state = ANY (:states::text[]))
  AND (:channel::text IS NULL OR k.channel = :channel)
  AND (:text::text IS NULL OR position(lower(:text) IN lower(k.label)) > 0 OR k.delivery_id::text = :text)
ORDER BY k.delivery_id DESC
LIMIT :rows;

-- name: read_attention
-- What somebody should look at: what is paused, and what has an alert.
SELECT k.*, a.sentences, now() AS as_of
FROM (
    SELECT delivery_id, array_agg(sentence ORDER BY since, criterion) FILTER (WHERE sentence IS NOT NULL) AS sentences
    FROM (
        SELECT delivery_id, sentence, since, criterion FROM sendoff.alert
      UNION ALL
        SELECT delivery_id, NULL, NULL, NULL FROM sendoff.delivery_record WHERE under_way AND state = 'paused'
    ) x
    GROUP BY delivery_id
    ORDER BY delivery_id DESC
    LIMIT :rows
) a
JOIN sendoff.deployment k ON k.delivery_id = a.delivery_id
ORDER BY k.delivery_id DESC;

-- name: read_channels
SELECT DISTINCT channel FROM sendoff.delivery WHERE channel <> '' ORDER BY channel;

-- name: read_alerts_of
SELECT criterion, since, sentence FROM sendoff.alert WHERE delivery_id = :delivery_id ORDER BY since, criterion;

-- name: read_raised_alerts
SELECT criterion, at, sentence
FROM sendoff.delivery_alert
WHERE delivery_id = :delivery_id
ORDER BY number DESC
LIMIT :rows;

-- name: read_commands_of
SELECT command_id, command, operator, publisher, received_at, status, reason, message
FROM sendoff.command_log
WHERE delivery_id = :delivery_id
ORDER BY received_at DESC, command_id
LIMIT :rows;

-- name: read_transitions
SELECT from_state, to_state, operator, reason, at
FROM sendoff.delivery_transition
WHERE delivery_id = :delivery_id
ORDER BY number DESC
LIMIT :rows;

-- name: read_command
SELECT command_id, command, delivery_id, operator, received_at, status, reason, message, reply::text AS reply
FROM sendoff.command_log
WHERE command_id = :command_id;

-- name: read_waves_page
SELECT wave, recipients, first, due_at, due_after
FROM sendoff.wave
WHERE delivery_id = :delivery_id AND wave > :after
ORDER BY wave
LIMIT :rows;

-- name: read_curve
SELECT minute, sent, bounced FROM sendoff.throughput WHERE delivery_id = :delivery_id ORDER BY minute;

-- name: read_opens
-- First opens by minute: who opens twice counts once, as in the KPI. Who only complained has not opened.
SELECT date_bin('1 minute', opened_at, '2000-01-01 00:00+00') AS minute, count(*) AS opened
FROM sendoff.tracked_recipient
WHERE delivery_id = :delivery_id AND opened_at IS NOT NULL
GROUP BY date_bin('1 minute', opened_at, '2000-01-01 00:00+00')
ORDER BY minute;

-- name: read_bounce_reasons
SELECT kind, reason, code, fault, bounced
FROM sendoff.bounce_reason
WHERE delivery_id = :delivery_id
ORDER BY bounced DESC, kind, reason, code, fault
LIMIT :rows;

-- name: read_domains
SELECT domain, to_deliver, sent, bounced, errors, unknown
FROM sendoff.domain_breakdown
WHERE delivery_id = :delivery_id
ORDER BY to_deliver DESC, domain
LIMIT :rows;

-- name: read_urls
SELECT url, clicks, clickers, human_clicks, human_clickers
FROM sendoff.tracked_url
WHERE delivery_id = :delivery_id
ORDER BY clicks DESC, url
LIMIT :rows;

-- name: read_causes
SELECT cause, late, excluded
FROM sendoff.exclusion_cause
WHERE delivery_id = :delivery_id
ORDER BY excluded DESC, cause, late;

-- name: read_log_page
-- A part of a range of recipients: a filter that fits nobody reads no more than the range.
SELECT *
FROM sendoff.sending_log
WHERE delivery_id = :delivery_id AND recipient > :after AND recipient <= :last
  AND (:status::text IS NULL OR status = :status) AND (:bounce_kind::text IS NULL OR bounce_kind = :bounce_kind)
  AND (:reason::text IS NULL OR reason = :reason) AND (:code::text IS NULL OR code = :code)
  AND (:domain::text IS NULL OR lower(split_part(address, '@', 2)) = lower(:domain))
  AND (:minute::timestamptz IS NULL OR date_bin('1 minute', coalesce(sent_at, bounced_at, error_at), :minute) = :minute)
  AND (:text::text IS NULL OR position(lower(:text) IN lower(address)) > 0 OR profile_id = :text)
ORDER BY recipient
LIMIT :rows;

-- name: read_exceptions_page
-- The few recipients that are not just sent, from their index: of a million, a hundred bounces take milliseconds.
SELECT *
FROM sendoff.sending_log
WHERE delivery_id = :delivery_id AND recipient > :after
  AND (bounced_at IS NOT NULL OR error_at IS NOT NULL OR unknown_at IS NOT NULL OR excluded_at IS NOT NULL)
  AND status = :status AND (:bounce_kind::text IS NULL OR bounce_kind = :bounce_kind)
  AND (:reason::text IS NULL OR reason = :reason) AND (:code::text IS NULL OR code = :code)
  AND (:domain::text IS NULL OR lower(split_part(address, '@', 2)) = lower(:domain))
  AND (:minute::timestamptz IS NULL OR date_bin('1 minute', coalesce(sent_at, bounced_at, error_at), :minute) = :minute)
  AND (:text::text IS NULL OR position(lower(:text) IN lower(address)) > 0 OR profile_id = :text)
ORDER BY recipient
LIMIT :rows;

-- name: read_tracking_page
SELECT *
FROM sendoff.tracking_log
WHERE delivery_id = :delivery_id AND (recipient, event_id) > (:after, :after_event) AND recipient <= :last
  AND (:kind::text IS NULL OR kind = :kind OR :kind = 'opened' AND kind <> 'complaint')
  AND (:human::boolean IS NULL OR (machine_rule IS NULL) = :human)
  AND (:url::text IS NULL OR url = :url)
  AND (:text::text IS NULL OR position(lower(:text) IN lower(address)) > 0 OR profile_id = :text)
ORDER BY recipient, event_id
LIMIT :rows;

-- name: read_exclusions_page
-- Left out by the preparation, by the line of the recipients file.
SELECT *
FROM sendoff.exclusion_log
WHERE delivery_id = :delivery_id AND NOT late AND line > :after AND (:cause::text IS NULL OR cause = :cause)
  AND (:text::text IS NULL OR position(lower(:text) IN lower(address)) > 0 OR profile_id = :text)
ORDER BY line
LIMIT :rows;

-- name: read_logged_recipient
SELECT s.*, r.variables::text AS variables
FROM sendoff.sending_log s
JOIN sendoff.recipient r ON r.delivery_id = s.delivery_id AND r.recipient = s.recipient
WHERE s.delivery_id = :delivery_id AND s.recipient = :recipient;

-- name: read_recipient_events
SELECT kind, url, at, machine_rule
FROM sendoff.tracking_log
WHERE delivery_id = :delivery_id AND recipient = :recipient
ORDER BY at, event_id
LIMIT :rows;

-- name: read_quarantine_page
-- By the key, which the view does not have.
SELECT channel, address, address_key AS key, cause, since, expires_at, delivery_id, added_by
FROM sendoff.quarantined_address
WHERE (channel, address_key) > (:channel, :key) AND (:only::text IS NULL OR address_key = :only)
ORDER BY channel, address_key
LIMIT :rows;

-- name: read_denylist_page
SELECT channel, profile_id, profile_id AS key, cause, since, expires_at, delivery_id, added_by
FROM sendoff.denylist
WHERE (channel, profile_id) > (:channel, :key) AND (:only::text IS NULL OR profile_id = :only)
ORDER BY channel, profile_id
LIMIT :rows;
