-- Profiles: what is held of one, its history, and its erasure. Look-ups go by the indexes on profile_id, which every
-- partition has: one probe a set.

-- name: read_held
SELECT count(*)::int AS messages, count(DISTINCT r.delivery_id)::int AS deliveries,
       coalesce(sum((SELECT count(*) FROM sendoff.tracking_event e
                     WHERE e.delivery_id = r.delivery_id AND e.recipient = r.recipient)), 0)::int AS tracking_events,
       (SELECT count(*)::int FROM sendoff.exclusion x WHERE x.profile_id = :profile_id) AS exclusions,
       (SELECT count(*)::int FROM sendoff.denylisted_profile x WHERE x.profile_id = :profile_id) AS denylisted
FROM sendoff.recipient r
WHERE r.profile_id = :profile_id;

-- name: read_history
-- The newest deliveries first, a page at a time, so that memory stays flat and no snapshot is held. OFFSET 0, here
-- and below: the planner would follow the order, through every recipient that there is (118 ms, not 0.6, for 13 sets
-- of 30,000).
SELECT * FROM (SELECT * FROM sendoff.profile_history WHERE profile_id = :profile_id OFFSET 0) h
WHERE (delivery_id, recipient) < (:before_delivery::bigint, :before_number::int)
ORDER BY delivery_id DESC, recipient DESC
LIMIT :rows;

-- name: read_profile_messages
-- All that is held of messages: what profile_history leaves out.
SELECT r.delivery_id, r.recipient, r.address, r.variables::text AS variables, o.attempt, o.status, o.claimed_at,
       o.sent_at, o.bounced_at, o.error_at, o.unknown_at, o.retry_at, o.reason, o.code, o.fault, o.reply, o.provider_id,
       o.excluded_at
FROM (SELECT * FROM sendoff.recipient WHERE profile_id = :profile_id OFFSET 0) r
LEFT JOIN LATERAL (
    SELECT k.* FROM sendoff.outcome k WHERE k.delivery_id = r.delivery_id AND k.recipient = r.recipient OFFSET 0
) o ON true
WHERE (r.delivery_id, r.recipient) < (:before_delivery::bigint, :before_number::int)
ORDER BY r.delivery_id DESC, r.recipient DESC
LIMIT :rows;

-- name: read_profile_events
SELECT e.event_id, e.kind, e.url, e.at, e.received_at, e.user_agent, e.machine_rule
FROM sendoff.tracking_event e
WHERE e.delivery_id = :delivery_id AND e.recipient = :recipient
ORDER BY e.at, e.event_id;

-- name: read_profile_exclusions
SELECT delivery_id, line, address, cause, detail
FROM (SELECT * FROM sendoff.exclusion WHERE profile_id = :profile_id OFFSET 0) x
WHERE (delivery_id, line) < (:before_delivery::bigint, :before_number::int)
ORDER BY delivery_id DESC, line DESC
LIMIT :rows;

-- name: read_profile_denylist
SELECT channel, cause, since FROM sendoff.denylisted_profile WHERE profile_id = :profile_id ORDER BY channel;

-- name: read_quarantined
SELECT q.channel, q.address, q.cause, q.since
FROM sendoff.delivery_record d
JOIN sendoff.quarantined_address q ON q.channel = d.channel
WHERE d.delivery_id = :delivery_id AND q.address_key = :address_key;

-- name: read_erasable
-- The next messages of a profile; those that are erased have none any more.
SELECT delivery_id, array_agg(recipient ORDER BY recipient) AS recipients
FROM (
    SELECT delivery_id, recipient
    FROM (SELECT * FROM sendoff.recipient WHERE profile_id = :profile_id OFFSET 0) p
    ORDER BY delivery_id, recipient
    LIMIT :rows
) r
GROUP BY delivery_id
ORDER BY delivery_id;

-- name: erase_recipients
-- What is personal is overwritten, what is counted stays. Asked with the claims closed, so that no result that is
-- being recorded brings a reply back. A number that was read before another preparation may be of somebody else (:profile_id is
-- whom it was of). Who waits to be tried is not tried (in the states :states, which may still send):
-- excluded who was never claimed, and with the fact that stands who waits for a retry, as cancel_remaining does.
WITH person AS (
    UPDATE sendoff.recipient
    SET profile_id = NULL, address = '', variables = '{}'
    WHERE delivery_id = :delivery_id AND recipient = ANY (:recipients::int[]) AND profile_id = :profile_id
    RETURNING recipient
), marked AS (
    INSERT INTO sendoff.erased_recipient (delivery_id, recipient)
    SELECT :delivery_id, recipient FROM person
    ON CONFLICT (delivery_id, recipient) DO NOTHING
), events AS (
    -- A url that others clicked too says nothing of the person, and keeps its count.
    UPDATE sendoff.tracking_event e
    SET user_agent = NULL, url = CASE WHEN s.shared THEN e.url END, link = CASE WHEN s.shared THEN e.link END
    FROM person p
    CROSS JOIN LATERAL (
        SELECT k.event_id, k.kind = 'click' AND coalesce((
                   SELECT true FROM sendoff.tracking_event c
                   WHERE c.delivery_id = :delivery_id AND c.kind = 'click' AND c.link = k.link AND c.recipient <> ALL (:recipients::int[])
                   LIMIT 1), false) AS shared
        FROM sendoff.tracking_event k
        WHERE k.delivery_id = :delivery_id AND k.recipient = p.recipient
    ) s
    WHERE e.delivery_id = :delivery_id AND e.event_id = s.event_id
), changed AS (
    INSERT INTO sendoff.outcome AS o (delivery_id, recipient, attempt, status, precedence, reason, excluded_at)
    SELECT :delivery_id, recipient, 1, 'excluded', 16, 'erased', now()
    FROM person p
    WHERE (SELECT d.state = ANY (:states::text[]) AND d.cancelled_at IS NULL AND d.purged_at IS NULL
           FROM sendoff.delivery_record d WHERE d.delivery_id = :delivery_id)
       OR (SELECT true FROM sendoff.outcome k WHERE k.delivery_id = :delivery_id AND k.recipient = p.recipient)
    ORDER BY recipient
    ON CONFLICT (delivery_id, recipient) DO UPDATE
    SET was = o.status, reply = NULL, provider_id = NULL, retry_at = NULL,
        status = CASE WHEN o.status <> 'retrying' THEN o.status
                      ELSE CASE o.precedence % 16 WHEN 1 THEN 'unknown' WHEN 2 THEN 'error' ELSE 'bounced_soft' END END
    RETURNING o.was, o.status
), counted AS (
    INSERT INTO sendoff.delivery_counter AS c (
        delivery_id, shard, excluded_late, retrying, bounced_soft, errors, unknown)
    SELECT :delivery_id, :shard, count(*) FILTER (WHERE was IS NULL), -count(*) FILTER (WHERE was = 'retrying'),
           count(*) FILTER (WHERE status = 'bounced_soft'), count(*) FILTER (WHERE status = 'error'),
           count(*) FILTER (WHERE status = 'unknown')
    FROM changed
    WHERE status IS DISTINCT FROM was
    HAVING count(*) > 0
    ON CONFLICT (delivery_id, shard) DO UPDATE
    SET excluded_late = c.excluded_late + excluded.excluded_late, retrying = c.retrying + excluded.retrying,
        bounced_soft = c.bounced_soft + excluded.bounced_soft, errors = c.errors + excluded.errors,
        unknown = c.unknown + excluded.unknown, updated_at = now()
)
SELECT (SELECT count(*)::int FROM person) AS messages,
       (SELECT count(*)::int FROM changed WHERE status IS DISTINCT FROM was) AS kept_from;

-- name: erase_exclusions
-- By the key, a thousand at a time.
WITH person AS (
    SELECT delivery_id, line
    FROM (SELECT * FROM sendoff.exclusion WHERE profile_id = :profile_id OFFSET 0) x
    ORDER BY delivery_id, line
    LIMIT :rows
), erased AS (
    UPDATE sendoff.exclusion x
    SET address = NULL, profile_id = NULL, detail = NULL
    FROM person p
    WHERE x.delivery_id = p.delivery_id AND x.line = p.line
    RETURNING x.line
)
SELECT count(*)::int AS exclusions FROM erased;
