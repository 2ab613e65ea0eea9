-- A delivery as it is left by its services; $1 is its number. Statements in the order in which they are run.
-- (n * 7919 + delivery * 104729) % 10000 deals recipients into 10,000 classes of one size, evenly over a delivery.

-- name: delivery
-- $1 is how many there are before it.
INSERT INTO sendoff.delivery_record (
    label, channel, state, preparation, to_deliver, excluded, contact_date, valid_until, created_by, created_at,
    prepared_at, confirmed_by, confirmed_at, started_at, finished_at, cancelled_at, updated_at)
SELECT 'Newsletter ' || $1::int, 'email', $2::text, 1, $3::int, $3 / 50, at, at + interval '3 days', 'bob',
       at - interval '1 day', at - interval '1 hour', 'ana', at, at,
       CASE WHEN $2 = 'finished' THEN done END, CASE WHEN $2 = 'stopped' THEN done END, done
FROM (
    SELECT at, at + $3 * interval '2 ms' + interval '1 minute' AS done
    FROM (SELECT now() - interval '90 days' + $1 * interval '1 hour' AS at) began
) d
RETURNING delivery_id, started_at;

-- name: recipients
-- A profile is in many deliveries, under the same address. A third of them have their mailbox at one provider; the
-- last tenth is spread over a thousand domains.
INSERT INTO sendoff.recipient (delivery_id, recipient, profile_id, address, variables)
SELECT $1::bigint, n, 'p' || p,
       'user' || p || '@' || CASE WHEN p % 100 < 35 THEN 'mail.example' WHEN p % 100 < 60 THEN 'post.example'
                                  WHEN p % 100 < 75 THEN 'inbox.example'
                                  WHEN p % 100 < 90 THEN 'provider' || p % 40 || '.example'
                                  ELSE 'company' || p / 100 % 1000 || '.example' END,
       ('{"first_name": "Ekaterina", "city": "Nizhny Novgorod", "plan": "premium", "number": "' || n || '"}')::json
FROM (
    SELECT n, (n * 48271::bigint + $1::bigint * 31) % $3::int AS p FROM generate_series(1, $2::int) n
) numbered;

-- name: exclusions
INSERT INTO sendoff.exclusion (delivery_id, line, address, profile_id, cause, detail)
SELECT $1::bigint, n * 50, 'user' || n || '@mail.example', 'q' || n,
       (ARRAY['duplicate', 'invalid', 'empty', 'quarantined', 'denylisted'])[1 + n % 5], 'as in line ' || n
FROM generate_series(1, $2::int) n;

-- name: wave
INSERT INTO sendoff.delivery_wave (delivery_id, wave, first, last, due_after)
VALUES ($1, 1, 1, $2, '0 s');

-- name: commands
INSERT INTO sendoff.command (
    command_id, command, delivery_id, operator, publisher, body, received_at, status, reply)
SELECT 'c-' || $1::bigint || '-' || n, CASE n WHEN 1 THEN 'delivery.confirm' ELSE 'delivery.pause' END, $1, 'ana',
       'crm', '{}', $2::timestamptz + n * interval '1 second', CASE n WHEN 1 THEN 'accepted' ELSE 'refused' END,
       '{"message": "Confirmed: sending has begun."}'
FROM generate_series(1, 2) n;

-- name: claims
INSERT INTO sendoff.outcome (
    delivery_id, recipient, attempt, status, precedence, claimed_at, excluded_at, reason, reply)
SELECT $1::bigint, n, 1, CASE WHEN h < 20 THEN 'excluded' ELSE 'sending' END, 16, at, CASE WHEN h < 20 THEN at END,
       CASE WHEN h < 20 THEN 'quarantined' END, CASE WHEN h < 20 THEN 'user_unknown' END
FROM (
    SELECT n, (n * 7919::bigint + $1::bigint * 104729) % 10000 AS h, $3::timestamptz + n * interval '2 ms' AS at
    FROM generate_series(1, $2::int) n
) dealt;

-- name: results
-- Of 10,000: 5 unknown, 60 errors, 150 hard, 80 soft and 10 ignored bounces, of which a third came back after *sent*;
-- where the delivery goes on ($3), 25 wait for a retry, and the last claims have no result yet.
UPDATE sendoff.outcome o
SET was = o.status, status = r.status, precedence = 16 + r.rank,
    sent_at = CASE WHEN r.rank = 4 OR (r.rank > 4 AND r.h % 3 = 0) THEN o.claimed_at + interval '300 ms' END,
    bounced_at = CASE WHEN r.rank > 4 THEN o.claimed_at + interval '1 s' END,
    error_at = CASE WHEN r.rank IN (2, 3) THEN o.claimed_at + interval '300 ms' END,
    unknown_at = CASE WHEN r.rank = 1 THEN o.claimed_at + interval '5 minutes' END,
    retry_at = CASE WHEN r.status = 'retrying' THEN o.claimed_at + interval '30 minutes' END,
    reason = CASE
        WHEN r.rank IN (2, 3) THEN (ARRAY['render', 'connection', 'timeout'])[1 + r.h % 3]
        WHEN r.rank = 7 THEN (ARRAY['user_unknown', 'account_disabled', 'invalid_domain'])[1 + r.h % 3]
        WHEN r.rank > 4 THEN (ARRAY['mailbox_full', 'unreachable', 'rate_limited', 'policy'])[1 + r.h % 4] END,
    code = CASE WHEN r.rank = 7 THEN '5.1.' || 1 + r.h % 3 WHEN r.rank > 4 THEN '4.2.' || r.h % 4 END,
    fault = CASE WHEN r.rank > 4 THEN (ARRAY['recipient', 'infrastructure'])[1 + r.h % 2] END,
    reply = CASE WHEN r.rank = 4 THEN '250 2.0.0 Ok: queued as ' || r.id
                 WHEN r.rank > 4 THEN '550 5.1.1 The mailbox does not exist, or does not take this message' END,
    provider_id = CASE WHEN r.rank = 4 THEN r.id END
FROM (
    SELECT n, h, upper(to_hex((n::bigint << 16) + $1::bigint)) AS id,
           CASE WHEN h < 25 THEN 'unknown' WHEN h < 85 THEN 'error' WHEN h < 235 THEN 'bounced_hard'
                WHEN h < 315 THEN 'bounced_soft' WHEN h < 325 THEN 'bounced_ignored'
                WHEN h < 350 AND $3::bool THEN 'retrying' ELSE 'sent' END AS status,
           CASE WHEN h < 25 THEN 1 WHEN h < 85 THEN 3 WHEN h < 235 THEN 7 WHEN h < 315 THEN 6 WHEN h < 325 THEN 5
                WHEN h < 350 AND $3 THEN 2 ELSE 4 END AS rank
    FROM (
        SELECT n, (n * 7919::bigint + $1::bigint * 104729) % 10000 AS h
        FROM generate_series(1, $2::int - CASE WHEN $3 THEN least($2 / 10, 1000) ELSE 0 END) n
    ) dealt
    WHERE h >= 20
) r
WHERE o.delivery_id = $1 AND o.recipient = r.n;

-- name: counters
-- $2 were cancelled.
INSERT INTO sendoff.delivery_counter (
    delivery_id, shard, sending, sent, bounced_hard, bounced_soft, bounced_ignored, errors, unknown,
    excluded_late, retrying, cancelled)
SELECT $1::bigint, recipient / 500 % 16,
       count(*) FILTER (WHERE status = 'sending'), count(*) FILTER (WHERE status = 'sent'),
       count(*) FILTER (WHERE status = 'bounced_hard'), count(*) FILTER (WHERE status = 'bounced_soft'),
       count(*) FILTER (WHERE status = 'bounced_ignored'), count(*) FILTER (WHERE status = 'error'),
       count(*) FILTER (WHERE status = 'unknown'), count(*) FILTER (WHERE status = 'excluded'),
       count(*) FILTER (WHERE status = 'retrying'), CASE WHEN recipient / 500 % 16 = 0 THEN $2::int ELSE 0 END
FROM sendoff.outcome
WHERE delivery_id = $1
GROUP BY recipient / 500 % 16;

-- name: events
-- Of those it was sent to, a fourth opened, and a fifth of them clicked one of 20 links; a third of it was machines.
INSERT INTO sendoff.tracking_event (
    delivery_id, event_id, recipient, kind, url, link, at, received_at, user_agent, machine_rule, rules)
SELECT delivery_id, kind || recipient, recipient, kind, url, md5(url)::uuid, at, at, 'Mozilla/5.0 (X11; Linux)',
       CASE WHEN recipient % 3 = 0 THEN 'prefetching proxy' END, '1'
FROM (
    SELECT o.delivery_id, o.recipient, k.kind, o.sent_at + k.every * interval '1 minute' AS at,
           CASE k.kind WHEN 'click' THEN 'https://shop.example/offers/' || o.recipient / 20 % 20 END AS url
    FROM sendoff.outcome o
    JOIN (VALUES ('open', 4), ('click', 20), ('mirror', 200), ('optout', 500)) k (kind, every)
      ON o.recipient % k.every = 0
    WHERE o.delivery_id = $1::bigint AND o.status = 'sent'
) e;

-- name: tracked
WITH tracked AS (
    INSERT INTO sendoff.tracked_recipient (
        delivery_id, recipient, opened_at, clicked_at, mirror_at, optout_at, human_opened_at, human_clicked_at)
    SELECT delivery_id, recipient, min(at), min(at) FILTER (WHERE kind = 'click'),
           min(at) FILTER (WHERE kind = 'mirror'), min(at) FILTER (WHERE kind = 'optout'),
           min(at) FILTER (WHERE machine_rule IS NULL),
           min(at) FILTER (WHERE kind = 'click' AND machine_rule IS NULL)
    FROM sendoff.tracking_event
    WHERE delivery_id = $1::bigint
    GROUP BY delivery_id, recipient
    RETURNING *
)
UPDATE sendoff.delivery_counter c
SET opened = t.opened, clicked = t.clicked, mirror = t.mirror, optout = t.optout,
    human_opened = t.human_opened, human_clicked = t.human_clicked
FROM (
    SELECT count(*) AS opened, count(clicked_at) AS clicked, count(mirror_at) AS mirror, count(optout_at) AS optout,
           count(human_opened_at) AS human_opened, count(human_clicked_at) AS human_clicked
    FROM tracked
) t
WHERE c.delivery_id = $1 AND c.shard = 0;

-- name: block_profiles
-- Every hundredth profile; its address is in quarantine as well.
WITH blocked AS (
    SELECT n, 'p' || n AS profile_id, 'user' || n || '@mail.example' AS address
    FROM generate_series(0, $1::int, 100) n
), denied AS (
    INSERT INTO sendoff.denylisted_profile (channel, profile_id, cause)
    SELECT 'email', profile_id, 'optout' FROM blocked
    ON CONFLICT (channel, profile_id) DO NOTHING
), held AS (
    INSERT INTO sendoff.lane_report (
        owner, channel, relay, domain, connections, per_minute, deferred_until, why, reported_at)
    VALUES ('filling', 'email', 'relay.example:25', 'mail.example', 0, 12, 'infinity', '450 4.7.1 try later', 'infinity')
    ON CONFLICT DO NOTHING
)
INSERT INTO sendoff.quarantined_address (channel, address_key, address, cause)
SELECT 'email', address, address, 'user_unknown' FROM blocked
ON CONFLICT (channel, address_key) DO NOTHING;
