-- Claims: the right to try one attempt, taken just before the channel is called.

-- name: lock_claims
-- Claims share this lock; pause and stop take it alone (close_claims). Unlike row locks it queues fairly, so
-- that a stop waits for the claims before it and for none that came later.
SELECT pg_advisory_xact_lock_shared(:delivery_id);

-- name: close_claims
SELECT pg_advisory_xact_lock(:delivery_id);

-- name: claim
-- Grants what nobody has: a first attempt where there is no row, a further one where its retry is due.
-- Recipients are dense, so that "exists" is a comparison with to_deliver. An address that is quarantined by
-- now, or a profile that is on the denylist, is excluded instead of granted. A scalar sub-select looks one row
-- up, where EXISTS may read the whole delivery into a hash, and a join the whole quarantine or denylist for each
-- batch. Whose profile a recipient is has to be looked up too; where a channel has no denylist, nobody is.
-- Mostly none of a batch has a row, and then they are inserted without asking each time whether there is one: 3.6 µs
-- each in the server, 1,000 a batch, instead of 5. That none has one is seen by a look at the range, where it is wholly
-- unclaimed, or else by a look for each. If somebody else claims one of them meanwhile the statement fails, and is to be
-- repeated. A denylist takes 1.5 µs more.
-- asked is sorted where it is made, so that what it looks up is looked up once, and not each time it is spoken of.
-- The counter row of the shard comes last, to be locked for the shortest time.
WITH known AS MATERIALIZED (
    SELECT CASE WHEN EXISTS (SELECT FROM sendoff.outcome
                             WHERE delivery_id = :delivery_id
                               AND recipient BETWEEN (:recipients::int[])[1] AND (:recipients::int[])[cardinality(:recipients::int[])])
                THEN EXISTS (SELECT FROM unnest(:recipients::int[]) AS a (recipient)
                             WHERE (SELECT true FROM sendoff.outcome k
                                    WHERE k.delivery_id = :delivery_id AND k.recipient = a.recipient))
                ELSE false
           END AS anybody
), running AS MATERIALIZED (
    SELECT channel, to_deliver
    FROM sendoff.delivery_record
    WHERE delivery_id = :delivery_id AND state = ANY (:states::text[]) AND valid_until > now() AND cancelled_at IS NULL
), asked AS NOT MATERIALIZED (
    SELECT a.recipient, a.attempt,
           (SELECT q.cause
            FROM sendoff.quarantined_address q
            WHERE q.channel = d.channel AND q.address_key = a.address_key) AS cause,
           CASE WHEN (SELECT true
                      FROM sendoff.denylisted_profile y
                      WHERE y.channel = (SELECT channel FROM running)
                      LIMIT 1)
                THEN (SELECT x.cause
                      FROM sendoff.denylisted_profile x
                      WHERE x.channel = d.channel
                        AND x.profile_id = (SELECT r.profile_id FROM sendoff.recipient r
                                            WHERE r.delivery_id = :delivery_id AND r.recipient = a.recipient))
           END AS denied
    FROM unnest(:recipients::int[], :attempts::smallint[], :address_keys::text[]) AS a (recipient, attempt, address_key)
    JOIN running d ON a.recipient <= d.to_deliver
    ORDER BY a.recipient
), wanted AS NOT MATERIALIZED (
    SELECT recipient, attempt, CASE WHEN coalesce(cause, denied) IS NULL THEN 'sending' ELSE 'excluded' END AS status,
           attempt * 16 AS precedence, now() AS claimed_at,
           CASE WHEN coalesce(cause, denied) IS NOT NULL THEN now() END AS excluded_at,
           coalesce(cause, CASE WHEN denied IS NOT NULL THEN 'denylisted' END) AS reason, denied AS reply
    FROM asked
), fresh AS (
    INSERT INTO sendoff.outcome (
        delivery_id, recipient, attempt, status, precedence, claimed_at, excluded_at, reason, reply)
    SELECT :delivery_id, recipient, attempt, status, precedence, claimed_at, excluded_at, reason, reply
    FROM wanted
    WHERE NOT (SELECT anybody FROM known) AND attempt = 1
    ORDER BY recipient
    RETURNING recipient, status, NULL AS was
), contested AS (
    INSERT INTO sendoff.outcome AS o (
        delivery_id, recipient, attempt, status, precedence, claimed_at, excluded_at, reason, reply)
    SELECT :delivery_id, recipient, attempt, status, precedence, claimed_at, excluded_at, reason, reply
    FROM wanted
    WHERE (SELECT anybody FROM known)
      AND (attempt = 1
           OR (SELECT true FROM sendoff.outcome k WHERE k.delivery_id = :delivery_id AND k.recipient = wanted.recipient))
    ORDER BY recipient
    ON CONFLICT (delivery_id, recipient) DO UPDATE
    SET attempt = excluded.attempt, status = excluded.status, was = o.status, precedence = excluded.precedence,
        claimed_at = excluded.claimed_at, excluded_at = excluded.excluded_at, reason = excluded.reason,
        reply = coalesce(excluded.reply, o.reply), retry_at = NULL
    WHERE o.status = 'retrying' AND o.attempt = excluded.attempt - 1 AND o.retry_at <= now()
    RETURNING o.recipient, o.status, o.was
), granted AS (
    SELECT recipient, status, was FROM fresh UNION ALL SELECT recipient, status, was FROM contested
), counted AS (
    INSERT INTO sendoff.delivery_counter AS c (delivery_id, shard, sending, excluded_late, retrying)
    SELECT :delivery_id, :shard, count(*) FILTER (WHERE status = 'sending'), count(*) FILTER (WHERE status = 'excluded'),
           -count(*) FILTER (WHERE was = 'retrying')
    FROM granted
    HAVING count(*) > 0
    ON CONFLICT (delivery_id, shard) DO UPDATE
    SET sending = c.sending + excluded.sending, excluded_late = c.excluded_late + excluded.excluded_late,
        retrying = c.retrying + excluded.retrying, updated_at = now()
)
SELECT recipient FROM granted WHERE status = 'sending';

-- name: read_refusals
-- Why recipients were not granted: only the numbers that do not exist are of interest, all else is routine.
SELECT a.recipient
FROM unnest(:recipients::int[]) AS a (recipient)
LEFT JOIN sendoff.delivery_record d ON d.delivery_id = :delivery_id AND d.confirmed_at IS NOT NULL
WHERE d.delivery_id IS NULL OR a.recipient > d.to_deliver;

-- name: expire_claims
-- A claim whose lease ran out without a result: the message may have been sent, so it is never sent again by
-- itself. The rows are locked in key order, as everywhere. The range is given twice: a plan that was made while the
-- table was empty looks no further than that, and not at the whole delivery.
WITH expired AS (
    SELECT recipient
    FROM sendoff.outcome
    WHERE delivery_id = :delivery_id AND recipient BETWEEN :first AND :last AND status = 'sending' AND claimed_at < now() - :lease::interval
    ORDER BY recipient
    FOR NO KEY UPDATE
), moved AS (
    UPDATE sendoff.outcome o
    SET status = 'unknown', was = o.status, precedence = o.attempt * 16 + 1, unknown_at = now()
    FROM expired e
    WHERE o.delivery_id = :delivery_id AND o.recipient = e.recipient AND o.recipient BETWEEN :first AND :last AND o.status = 'sending'
    RETURNING o.recipient
), counted AS (
    INSERT INTO sendoff.delivery_counter AS c (delivery_id, shard, sending, unknown)
    SELECT :delivery_id, :shard, -count(*), count(*) FROM moved
    HAVING count(*) > 0
    ON CONFLICT (delivery_id, shard) DO UPDATE
    SET sending = c.sending + excluded.sending, unknown = c.unknown + excluded.unknown, updated_at = now()
)
SELECT recipient FROM moved;

-- name: cancel_remaining
-- Ends what was not tried: at a stop, and when the validity is over. Asked with the claims closed, so that
-- "the rest" is a number and not a race: what is neither settled nor under way. From here on, a recipient
-- without a row counts as cancelled. Who waits for a retry was tried: the fact that its precedence stands for
-- (worker/domain/outcomes.py) is the outcome now, as it is for a result that comes later.
WITH closed AS (
    UPDATE sendoff.delivery_record
    SET cancelled_at = now(), updated_at = now()
    WHERE delivery_id = :delivery_id AND cancelled_at IS NULL
    RETURNING delivery_id, to_deliver
), ended AS (
    UPDATE sendoff.outcome o
    SET status = CASE o.precedence % 16 WHEN 1 THEN 'unknown' WHEN 2 THEN 'error' ELSE 'bounced_soft' END,
        was = o.status, retry_at = NULL
    FROM closed
    WHERE o.delivery_id = :delivery_id AND o.retry_at IS NOT NULL
    RETURNING o.status
)
INSERT INTO sendoff.delivery_counter AS c (delivery_id, shard, cancelled, retrying, bounced_soft, errors, unknown)
SELECT closed.delivery_id, :shard, closed.to_deliver - s.settled, -e.retrying, e.bounced_soft, e.errors, e.unknown
FROM closed
CROSS JOIN (
    SELECT count(*) AS retrying,
           count(*) FILTER (WHERE status = 'bounced_soft') AS bounced_soft,
           count(*) FILTER (WHERE status = 'error') AS errors,
           count(*) FILTER (WHERE status = 'unknown') AS unknown
    FROM ended
) e
CROSS JOIN LATERAL (
    SELECT coalesce(sum(k.sent + k.bounced_hard + k.bounced_soft + k.bounced_ignored + k.errors + k.unknown
                        + k.excluded_late + k.cancelled + k.sending + k.retrying), 0) AS settled
    FROM sendoff.delivery_counter k
    WHERE k.delivery_id = closed.delivery_id
) s
ON CONFLICT (delivery_id, shard) DO UPDATE
SET cancelled = c.cancelled + excluded.cancelled, retrying = c.retrying + excluded.retrying,
    bounced_soft = c.bounced_soft + excluded.bounced_soft, errors = c.errors + excluded.errors,
    unknown = c.unknown + excluded.unknown, updated_at = now()
RETURNING c.delivery_id;

-- name: look_at_open_pages
-- Of a delivery that is cancelled: nobody leases its open pages any more, and only published ones are looked at,
-- which is where claims without a result run out.
UPDATE sendoff.delivery_page
SET state = 'published', published_at = coalesce(published_at, now()), look_at = now(), leased_until = NULL,
    leased_by = NULL
WHERE delivery_id = :delivery_id AND state = 'open';
