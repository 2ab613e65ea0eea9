-- Claims: the right to try one attempt, taken just before the channel is called.

-- name: lock_claims
-- Claims share this lock; pause and stop take it exclusively (close_claims). Unlike row locks it queues
-- fairly, so that a stop waits for earlier claims and not for later ones.
SELECT pg_advisory_xact_lock_shared(:delivery_id);

-- name: close_claims
SELECT pg_advisory_xact_lock(:delivery_id);

-- name: claim
-- Grants what nobody has: a first attempt where there is no row, a further one where its retry is due.
-- An address that is quarantined by now, or a profile that is on the denylist, is excluded instead of granted. A scalar
-- sub-select looks one row up, where EXISTS may read the whole delivery into a hash.
-- Mostly none of a batch has a row, and then they are inserted without asking each time whether there is one: 3.6 µs
-- each in the server, 1,000 a batch, instead of 5. That none has one is seen by a look at the range, where it is wholly
-- unclaimed, or else by a look for each. If somebody else claims one of them meanwhile the statement fails, and is to
-- be repeated. A denylist takes 1.5 µs more.
-- What this very token was granted before is granted again: the answer to that commit may have been lost. A
-- repeat may be granted more, whose retry is due by now: they join the lease, so that they end with it. It begins anew.
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
), asked AS NOT MATERIALIZED (
    SELECT * FROM sendoff.judge_claims(:delivery_id, :recipients, :attempts::smallint[], :address_keys::text[])
), wanted AS NOT MATERIALIZED (
    SELECT :delivery_id::bigint AS delivery_id, recipient, attempt,
           CASE WHEN coalesce(cause, denied) IS NULL THEN 'sending' ELSE 'excluded' END AS status,
           attempt * 16 AS precedence, now() AS claimed_at,
           CASE WHEN coalesce(cause, denied) IS NOT NULL THEN now() END AS excluded_at,
           coalesce(cause, CASE WHEN denied IS NOT NULL THEN 'denylisted' END) AS reason, denied AS reply,
           CASE WHEN coalesce(cause, denied) IS NULL THEN :token::bigint END AS claim_token
    FROM asked
), fresh AS (
    INSERT INTO sendoff.outcome (
        delivery_id, recipient, attempt, status, precedence, claimed_at, excluded_at, reason, reply, claim_token)
    SELECT * FROM wanted
    WHERE NOT (SELECT anybody FROM known) AND attempt = 1
    ORDER BY recipient
    RETURNING recipient, NULL AS was, status
), contested AS (
    INSERT INTO sendoff.outcome AS o (
        delivery_id, recipient, attempt, status, precedence, claimed_at, excluded_at, reason, reply, claim_token)
    SELECT * FROM wanted
    WHERE (SELECT anybody FROM known)
      AND (attempt = 1 OR (SELECT true FROM sendoff.outcome k
                           WHERE k.delivery_id = :delivery_id AND k.recipient = wanted.recipient))
    ORDER BY recipient
    ON CONFLICT (delivery_id, recipient) DO UPDATE
    SET attempt = excluded.attempt, status = excluded.status, was = o.status, precedence = excluded.precedence,
        claimed_at = excluded.claimed_at, excluded_at = excluded.excluded_at, reason = excluded.reason,
        reply = coalesce(excluded.reply, o.reply), retry_at = NULL, claim_token = excluded.claim_token,
        prior_precedence = CASE o.status WHEN 'retrying' THEN o.precedence ELSE o.prior_precedence END
    WHERE (o.status = 'retrying' AND o.attempt = excluded.attempt - 1 AND o.retry_at <= now())
       OR (o.status = 'sending' AND o.attempt = excluded.attempt AND o.claim_token = excluded.claim_token)
    RETURNING o.recipient, o.was, o.status
), taken AS (
    TABLE fresh UNION ALL TABLE contested
), leased AS (
    INSERT INTO sendoff.claim_lease AS l (token, delivery_id, recipients, handed_over, handed_over_at, expires_at)
    SELECT :token, :delivery_id, CASE WHEN :handed_over::boolean THEN '{}' ELSE t.granted END,
           CASE WHEN :handed_over THEN t.granted ELSE '{}' END, CASE WHEN :handed_over THEN now() END, now() + :lease::interval
    FROM (SELECT array_agg(recipient) AS granted FROM taken WHERE status = 'sending') t
    WHERE t.granted IS NOT NULL
    ON CONFLICT (token) DO UPDATE
    SET recipients = ARRAY(SELECT unnest(l.recipients) UNION SELECT unnest(excluded.recipients)),
        handed_over = ARRAY(SELECT unnest(l.handed_over) UNION SELECT unnest(excluded.handed_over)),
        handed_over_at = coalesce(excluded.handed_over_at, l.handed_over_at), expires_at = excluded.expires_at
)
SELECT ARRAY(SELECT recipient FROM taken WHERE status = 'sending') AS granted,
       sendoff.count_moves(:delivery_id, ARRAY(
           SELECT (was, status, count(*))::sendoff.move FROM taken GROUP BY was, status));

-- name: hand_over
SELECT sendoff.hand_over(:delivery_id, :recipients::int[], :tokens::bigint[], :margin::interval);

-- name: give_back_claims
-- Undoes claims that are not handed over, and cannot be any more: the row of a first attempt is deleted, and a further
-- attempt waits for its retry again, which is due. Their pages are opened; if their messages stay in hand (:in_hand),
-- only closed pages are looked at again, for the case that the holder dies and the queue is lost. A claim is a recipient
-- with its token, since another token may hold the recipient by now. :recipients is sorted, and its range given too: a plan that was made
-- while the table was empty looks no further than that, here and below. Run it with the claims shared or closed, since
-- a stop counts pending recipients. In a cancelled delivery the fact before the claim is final.
WITH delivery AS MATERIALIZED (
    SELECT cancelled_at IS NOT NULL AS cancelled, under_way AND cancelled_at IS NULL AS going
    FROM sendoff.delivery_record
    WHERE delivery_id = :delivery_id
), held AS MATERIALIZED (
    SELECT o.recipient, o.prior_precedence IS NULL AS first
    FROM sendoff.outcome o
    JOIN unnest(:recipients::int[], :tokens::bigint[]) AS c (recipient, token)
      ON c.recipient = o.recipient AND c.token = o.claim_token
    WHERE o.delivery_id = :delivery_id AND o.recipient = ANY (:recipients::int[]) AND o.status = 'sending'
      AND o.recipient BETWEEN (:recipients::int[])[1] AND (:recipients::int[])[cardinality(:recipients::int[])]
    ORDER BY o.recipient
    FOR UPDATE OF o
), removed AS (
    DELETE FROM sendoff.outcome o
    USING held h, delivery d
    WHERE o.delivery_id = :delivery_id AND o.recipient = h.recipient AND h.first
      AND o.recipient BETWEEN (:recipients::int[])[1] AND (:recipients::int[])[cardinality(:recipients::int[])]
    RETURNING o.status AS was, CASE WHEN d.cancelled THEN 'cancelled' ELSE 'pending' END AS status
), undone AS (
    UPDATE sendoff.outcome o
    SET was = o.status, attempt = o.prior_precedence / 16, precedence = o.prior_precedence, prior_precedence = NULL,
        claim_token = NULL,
        status = CASE WHEN d.cancelled THEN sendoff.status_of(o.prior_precedence) ELSE 'retrying' END,
        retry_at = CASE WHEN NOT d.cancelled THEN now() END
    FROM held h, delivery d
    WHERE o.delivery_id = :delivery_id AND o.recipient = h.recipient AND NOT h.first
      AND o.recipient BETWEEN (:recipients::int[])[1] AND (:recipients::int[])[cardinality(:recipients::int[])]
    RETURNING o.was, o.status
), opened AS (
    UPDATE sendoff.delivery_page p
    SET state = CASE WHEN :in_hand::boolean THEN 'published' ELSE 'open' END,
        due_at = CASE WHEN :in_hand THEN p.due_at ELSE now() END, look_at = CASE WHEN :in_hand THEN now() END
    FROM delivery d
    WHERE p.delivery_id = :delivery_id AND d.going AND (p.state = 'closed' OR (p.state = 'published' AND NOT :in_hand))
      AND EXISTS (SELECT FROM held h WHERE h.recipient BETWEEN p.first AND p.last)
), moved AS (
    TABLE removed UNION ALL TABLE undone
)
SELECT count(*)::int AS given_back, pg_notify('sendoff_pages', :delivery_id::text),
       sendoff.count_moves(:delivery_id, ARRAY(
           SELECT (was, status, count(*))::sendoff.move FROM moved GROUP BY was, status))
FROM moved;

-- name: read_deliveries_with_expired_claims
SELECT DISTINCT delivery_id FROM sendoff.claim_lease WHERE expires_at < now() ORDER BY delivery_id LIMIT 100;

-- name: read_expired_leases
-- The claims of expired leases: those that were not handed over, and those that were and have had no result for
-- too long. After this nothing more is handed over under their tokens.
WITH expired AS (
    SELECT token
    FROM sendoff.claim_lease
    WHERE delivery_id = :delivery_id AND expires_at < now()
    ORDER BY token
    LIMIT :leases
    FOR UPDATE SKIP LOCKED
)
UPDATE sendoff.claim_lease l
SET given_back = true
FROM expired e
WHERE l.token = e.token
RETURNING l.token, ARRAY(SELECT unnest(l.recipients) EXCEPT SELECT unnest(l.handed_over)) AS held, l.handed_over,
          l.handed_over_at < now() - :result_lease::interval AS overdue;

-- name: read_leases
-- The claims of a delivery that were not handed over; call it with the claims closed.
SELECT token, ARRAY(SELECT unnest(recipients) EXCEPT SELECT unnest(handed_over)) AS held
FROM sendoff.claim_lease
WHERE delivery_id = :delivery_id
ORDER BY token;

-- name: expire_claims
-- Claims that were handed over and have had no result for so long: the message may have been sent, so it is
-- never sent again automatically.
WITH expired AS (
    SELECT o.recipient
    FROM sendoff.outcome o
    JOIN unnest(:recipients::int[], :tokens::bigint[]) AS c (recipient, token)
      ON c.recipient = o.recipient AND c.token = o.claim_token
    WHERE o.delivery_id = :delivery_id AND o.recipient = ANY (:recipients::int[]) AND o.status = 'sending'
      AND o.recipient BETWEEN (:recipients::int[])[1] AND (:recipients::int[])[cardinality(:recipients::int[])]
    ORDER BY o.recipient
    FOR NO KEY UPDATE OF o
), moved AS (
    UPDATE sendoff.outcome o
    SET status = 'unknown', was = o.status, precedence = o.attempt * 16 + 1, unknown_at = now()
    FROM expired e
    WHERE o.delivery_id = :delivery_id AND o.recipient = e.recipient AND o.status = 'sending'
      AND o.recipient BETWEEN (:recipients::int[])[1] AND (:recipients::int[])[cardinality(:recipients::int[])]
    RETURNING o.was, o.status
)
SELECT count(*)::int AS expired, sendoff.count_moves(:delivery_id, ARRAY(
           SELECT (was, status, count(*))::sendoff.move FROM moved GROUP BY was, status))
FROM moved;

-- name: end_leases
-- Deletes expired leases, except those with a claim that waits for its result.
WITH open AS MATERIALIZED (
    SELECT DISTINCT claim_token AS token
    FROM sendoff.outcome
    WHERE delivery_id = :delivery_id AND recipient = ANY (:recipients::int[]) AND status = 'sending'
      AND recipient BETWEEN (:recipients::int[])[1] AND (:recipients::int[])[cardinality(:recipients::int[])]
      AND claim_token = ANY (:tokens::bigint[])
), kept AS (
    UPDATE sendoff.claim_lease l
    SET expires_at = l.handed_over_at + :result_lease::interval
    FROM open
    WHERE l.token = open.token
)
DELETE FROM sendoff.claim_lease l
WHERE l.token = ANY (:tokens) AND NOT EXISTS (SELECT FROM open WHERE open.token = l.token);
