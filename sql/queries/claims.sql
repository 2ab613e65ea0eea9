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
-- unclaimed, or else by a look for each. If somebody else claims one of them meanwhile the statement fails, and is to
-- be repeated. A denylist takes 1.5 µs more.
-- asked is sorted where it is made, so that what it looks up is looked up once, and not each time it is spoken of.
WITH known AS MATERIALIZED (
    SELECT CASE WHEN EXISTS (SELECT FROM sendoff.outcome
                             WHERE delivery_id = :delivery_id
                               AND recipient BETWEEN (:recipients::int[])[1]
                                                 AND (:recipients::int[])[cardinality(:recipients::int[])])
                THEN EXISTS (SELECT FROM unnest(:recipients::int[]) AS a (recipient)
                             WHERE (SELECT true FROM sendoff.outcome k
                                    WHERE k.delivery_id = :delivery_id AND k.recipient = a.recipient))
                ELSE false
           END AS anybody
), delivery AS MATERIALIZED (
    SELECT channel, to_deliver
    FROM sendoff.delivery_record
    WHERE delivery_id = :delivery_id AND running AND valid_until > now() AND cancelled_at IS NULL
), asked AS NOT MATERIALIZED (
    SELECT a.recipient, a.attempt,
           (SELECT q.cause
            FROM sendoff.quarantined_address q
            WHERE q.channel = d.channel AND q.address_key = a.address_key) AS cause,
           CASE WHEN (SELECT true
                      FROM sendoff.denylisted_profile y
                      WHERE y.channel = (SELECT channel FROM delivery)
                      LIMIT 1)
                THEN (SELECT x.cause
                      FROM sendoff.denylisted_profile x
                      WHERE x.channel = d.channel
                        AND x.profile_id = (SELECT r.profile_id FROM sendoff.recipient r
                                            WHERE r.delivery_id = :delivery_id AND r.recipient = a.recipient))
           END AS denied
    FROM unnest(:recipients::int[], :attempts::smallint[], :address_keys::text[])
         AS a (recipient, attempt, address_key)
    JOIN delivery d ON a.recipient <= d.to_deliver
    ORDER BY a.recipient
), wanted AS NOT MATERIALIZED (
    SELECT :delivery_id::bigint AS delivery_id, recipient, attempt,
           CASE WHEN coalesce(cause, denied) IS NULL THEN 'sending' ELSE 'excluded' END AS status,
           attempt * 16 AS precedence, now() AS claimed_at,
           CASE WHEN coalesce(cause, denied) IS NOT NULL THEN now() END AS excluded_at,
           coalesce(cause, CASE WHEN denied IS NOT NULL THEN 'denylisted' END) AS reason, denied AS reply
    FROM asked
), fresh AS (
    INSERT INTO sendoff.outcome (
        delivery_id, recipient, attempt, status, precedence, claimed_at, excluded_at, reason, reply)
    SELECT * FROM wanted
    WHERE NOT (SELECT anybody FROM known) AND attempt = 1
    ORDER BY recipient
    RETURNING recipient, NULL AS was, status
), contested AS (
    INSERT INTO sendoff.outcome AS o (
        delivery_id, recipient, attempt, status, precedence, claimed_at, excluded_at, reason, reply)
    SELECT * FROM wanted
    WHERE (SELECT anybody FROM known)
      AND (attempt = 1 OR (SELECT true FROM sendoff.outcome k
                           WHERE k.delivery_id = :delivery_id AND k.recipient = wanted.recipient))
    ORDER BY recipient
    ON CONFLICT (delivery_id, recipient) DO UPDATE
    SET attempt = excluded.attempt, status = excluded.status, was = o.status, precedence = excluded.precedence,
        claimed_at = excluded.claimed_at, excluded_at = excluded.excluded_at, reason = excluded.reason,
        reply = coalesce(excluded.reply, o.reply), retry_at = NULL
    WHERE o.status = 'retrying' AND o.attempt = excluded.attempt - 1 AND o.retry_at <= now()
    RETURNING o.recipient, o.was, o.status
), taken AS (
    TABLE fresh UNION ALL TABLE contested
)
SELECT ARRAY(SELECT recipient FROM taken WHERE status = 'sending') AS granted,
       sendoff.count_moves(:delivery_id, ARRAY(
           SELECT (was, status, count(*))::sendoff.move FROM taken GROUP BY was, status));

-- name: read_absent_recipients
-- Numbers that are none of a confirmed delivery.
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
    WHERE delivery_id = :delivery_id AND recipient BETWEEN :first AND :last AND status = 'sending'
      AND claimed_at < now() - :lease::interval
    ORDER BY recipient
    FOR NO KEY UPDATE
), moved AS (
    UPDATE sendoff.outcome o
    SET status = 'unknown', was = o.status, precedence = o.attempt * 16 + 1, unknown_at = now()
    FROM expired e
    WHERE o.delivery_id = :delivery_id AND o.recipient = e.recipient AND o.recipient BETWEEN :first AND :last
      AND o.status = 'sending'
    RETURNING o.was, o.status
)
SELECT count(*)::int AS expired, sendoff.count_moves(:delivery_id, ARRAY(
           SELECT (was, status, count(*))::sendoff.move FROM moved GROUP BY was, status))
FROM moved;
