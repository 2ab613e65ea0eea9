-- Unknown outcomes, and how an operator settles them.

-- name: read_unknown
-- Of a range of recipients, by the key.
SELECT recipient
FROM sendoff.outcome
WHERE delivery_id = :delivery_id AND recipient BETWEEN :first AND :last AND status = 'unknown'
ORDER BY recipient;

-- name: settle_unknown
-- Those of :recipients that are unknown still, with their counters. The precedence stays that of *unknown*, so that any real
-- outcome of the attempt wins, however late, and ends a resend that is not claimed yet. A fact is dated as the claim.
-- Nobody who was erased is sent to again.
WITH found AS (
    SELECT recipient
    FROM sendoff.outcome
    WHERE delivery_id = :delivery_id AND recipient = ANY (:recipients::int[]) AND status = 'unknown'
      AND (:become <> 'resend' OR (SELECT true FROM sendoff.erased_recipient x
                              WHERE x.delivery_id = :delivery_id AND x.recipient = outcome.recipient) IS NULL)
      AND recipient BETWEEN (SELECT min(r) FROM unnest(:recipients) AS r) AND (SELECT max(r) FROM unnest(:recipients) AS r)
    ORDER BY recipient
    FOR NO KEY UPDATE
), moved AS (
    UPDATE sendoff.outcome o
    SET was = o.status,
        status = CASE :become::text WHEN 'resend' THEN 'retrying' ELSE :become END,
        retry_at = CASE :become WHEN 'resend' THEN now() END,
        sent_at = CASE :become WHEN 'sent' THEN coalesce(o.sent_at, o.claimed_at) ELSE o.sent_at END,
        error_at = CASE :become WHEN 'error' THEN coalesce(o.error_at, o.claimed_at) ELSE o.error_at END,
        reason = :reason, reply = :reply
    FROM found
    WHERE o.delivery_id = :delivery_id AND o.recipient = found.recipient
      AND o.recipient BETWEEN (SELECT min(r) FROM unnest(:recipients) AS r) AND (SELECT max(r) FROM unnest(:recipients) AS r)
    RETURNING o.recipient
), counted AS (
    INSERT INTO sendoff.delivery_counter AS c (delivery_id, shard, unknown, retrying, sent, errors)
    SELECT :delivery_id, :shard, -count(*), count(*) FILTER (WHERE :become = 'resend'), count(*) FILTER (WHERE :become = 'sent'),
           count(*) FILTER (WHERE :become = 'error')
    FROM moved
    HAVING count(*) > 0
    ON CONFLICT (delivery_id, shard) DO UPDATE
    SET unknown = c.unknown + excluded.unknown, retrying = c.retrying + excluded.retrying,
        sent = c.sent + excluded.sent, errors = c.errors + excluded.errors, updated_at = now()
)
SELECT count(*)::int AS settled FROM moved;
