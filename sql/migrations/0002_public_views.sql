-- The public views: what dashboards read. Their columns only ever grow.

CREATE VIEW sendoff.delivery AS
SELECT delivery_id, label, channel, state, state_reason, preparation, to_deliver, excluded, contact_date, time_zone,
       valid_for, valid_until, created_by, created_at, prepared_at, confirmed_by, confirmed_at, started_at,
       finished_at, cancelled_at, updated_at
FROM sendoff.delivery_record;
COMMENT ON VIEW sendoff.delivery IS 'One row per delivery: what it is, its state and its dates.';

-- The sums are read by primary key from at most 16 short rows; nothing is counted at read time.
CREATE VIEW sendoff.deployment AS
SELECT d.delivery_id, d.label, d.channel, d.state, d.preparation, d.contact_date, d.confirmed_at, d.started_at,
       d.finished_at, d.to_deliver,
       c.sent, c.bounced, c.bounced_hard, c.bounced_soft, c.bounced_ignored, c.errors, c.unknown,
       c.excluded_late, c.cancelled, c.retrying, c.sending,
       d.to_deliver - (c.sent + c.bounced + c.errors + c.unknown + c.excluded_late + c.cancelled
                       + c.retrying + c.sending) AS pending,
       c.opened, c.clicked, c.optout, c.mirror,
       round(100.0 * c.sent / nullif(d.to_deliver, 0), 2) AS sent_pct,
       round(100.0 * (c.bounced + c.errors) / nullif(c.sent + c.bounced + c.errors, 0), 2) AS bounce_error_pct,
       round(100.0 * c.opened / nullif(c.sent, 0), 2) AS open_pct,
       round(100.0 * c.clicked / nullif(c.sent, 0), 2) AS click_pct,
       d.excluded, greatest(d.updated_at, c.updated_at) AS updated_at, d.state_reason
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
           coalesce(sum(k.retrying), 0) AS retrying,
           coalesce(sum(k.sending), 0) AS sending,
           coalesce(sum(k.opened), 0) AS opened,
           coalesce(sum(k.clicked), 0) AS clicked,
           coalesce(sum(k.optout), 0) AS optout,
           coalesce(sum(k.mirror), 0) AS mirror,
           max(k.updated_at) AS updated_at
    FROM sendoff.delivery_counter k
    WHERE k.delivery_id = d.delivery_id
) c;
COMMENT ON VIEW sendoff.deployment IS
    'One row per delivery with every KPI, live: the counters move in the transaction of the outcomes they count.';

CREATE VIEW sendoff.sending_log AS
SELECT r.delivery_id, r.recipient, r.profile_id, r.address,
       CASE WHEN o.status IS NULL THEN CASE WHEN d.cancelled_at IS NULL THEN 'pending' ELSE 'cancelled' END
            WHEN o.status = 'retrying' AND d.cancelled_at IS NOT NULL THEN 'cancelled'
            WHEN o.status LIKE 'bounced%' THEN 'bounced'
            ELSE o.status END AS status,
       coalesce(o.attempt, 0) AS attempt,
       CASE WHEN o.status LIKE 'bounced%' THEN substr(o.status, 9) END AS bounce_kind,
       o.claimed_at, o.sent_at, o.bounced_at, o.error_at, o.unknown_at, o.retry_at,
       o.reason, o.code, o.fault, o.reply, o.provider_id
FROM sendoff.recipient r
JOIN sendoff.delivery_record d ON d.delivery_id = r.delivery_id
LEFT JOIN sendoff.outcome o ON o.delivery_id = r.delivery_id AND o.recipient = r.recipient;
COMMENT ON VIEW sendoff.sending_log IS
    'One row per recipient of a delivery: its standing outcome, the facts with their times, and the reply.';

CREATE VIEW sendoff.exclusion_log AS
SELECT e.delivery_id, e.line, NULL::integer AS recipient, e.profile_id, e.address, e.cause, e.detail, false AS late
FROM sendoff.exclusion e
UNION ALL
SELECT r.delivery_id, NULL, r.recipient, r.profile_id, r.address, o.reason, o.reply, true
FROM sendoff.outcome o
JOIN sendoff.recipient r ON r.delivery_id = o.delivery_id AND r.recipient = o.recipient
WHERE o.status = 'excluded';
COMMENT ON VIEW sendoff.exclusion_log IS
    'Targets left out: at preparation with the line of the recipients file, or late (at send time) with the recipient.';

CREATE VIEW sendoff.exclusion_cause AS
SELECT delivery_id, cause, late, count(*) AS excluded
FROM sendoff.exclusion_log
GROUP BY delivery_id, cause, late;
COMMENT ON VIEW sendoff.exclusion_cause IS 'Exclusions of a delivery by cause.';

CREATE VIEW sendoff.bounce_reason AS
SELECT delivery_id, substr(status, 9) AS kind, reason, code, fault, count(*) AS bounced
FROM sendoff.outcome
WHERE status IN ('bounced_hard', 'bounced_soft', 'bounced_ignored')
GROUP BY delivery_id, status, reason, code, fault;
COMMENT ON VIEW sendoff.bounce_reason IS 'Standing bounces of a delivery by kind, reason, enhanced code (RFC 3463) and fault.';

CREATE VIEW sendoff.domain_breakdown AS
SELECT r.delivery_id, lower(split_part(r.address, '@', 2)) AS domain,
       count(*) AS to_deliver,
       count(*) FILTER (WHERE o.status = 'sent') AS sent,
       count(*) FILTER (WHERE o.status LIKE 'bounced%') AS bounced,
       count(*) FILTER (WHERE o.status = 'error') AS errors,
       count(*) FILTER (WHERE o.status = 'unknown') AS unknown
FROM sendoff.recipient r
LEFT JOIN sendoff.outcome o ON o.delivery_id = r.delivery_id AND o.recipient = r.recipient
GROUP BY r.delivery_id, lower(split_part(r.address, '@', 2));
COMMENT ON VIEW sendoff.domain_breakdown IS 'Outcomes of a delivery by the domain of the address.';

CREATE VIEW sendoff.throughput AS
SELECT delivery_id, date_trunc('minute', coalesce(sent_at, bounced_at, error_at)) AS minute,
       count(*) AS processed,
       count(*) FILTER (WHERE status = 'sent') AS sent,
       count(*) FILTER (WHERE status LIKE 'bounced%') AS bounced,
       count(*) FILTER (WHERE status = 'error') AS errors
FROM sendoff.outcome
WHERE coalesce(sent_at, bounced_at, error_at) IS NOT NULL
GROUP BY delivery_id, date_trunc('minute', coalesce(sent_at, bounced_at, error_at));
COMMENT ON VIEW sendoff.throughput IS 'Outcomes of a delivery per minute.';

CREATE VIEW sendoff.command_log AS
SELECT command_id, command, delivery_id, operator, publisher, received_at, status, reason,
       reply ->> 'message' AS message, body, reply
FROM sendoff.command;
COMMENT ON VIEW sendoff.command_log IS 'Every command: who asked for what, when, through which broker user, and the answer.';

CREATE VIEW sendoff.quarantine AS
SELECT channel, address, cause, since
FROM sendoff.quarantined_address;
COMMENT ON VIEW sendoff.quarantine IS 'Addresses that are not written to on a channel, with the cause.';
