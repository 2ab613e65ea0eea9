-- The accounts: rows and counters move together, in one guarded statement. The old and new status of its rows
-- (was, status) give the amounts, and sendoff.count_moves moves the counters.

-- name: record_outcomes
-- A row is inserted for a result without a claim, and changed only by a fact of higher precedence or one that
-- is not known yet; so doubled, late and reordered results change nothing twice. A fact has the time of its
-- next attempt, if it may have one: within the delivery's limits it is *retrying*, with the fact's
-- precedence, otherwise it is final. For erased recipients, of which there are mostly none, no reply is
-- stored, and no attempt follows. Measured with 1,000 rows a batch: 6 µs a row.
WITH result AS (
    SELECT r.recipient, r.attempt, CASE WHEN again.planned THEN 'retrying' ELSE r.status END AS status, r.precedence,
           r.sent_at, r.bounced_at, r.error_at, CASE WHEN again.planned THEN now() + r.retry_after END AS retry_at, r.reason,
           r.code, r.fault, CASE WHEN NOT person.erased THEN r.reply END AS reply,
           CASE WHEN NOT person.erased THEN r.provider_id END AS provider_id
    FROM unnest(:recipients::int[], :attempts::smallint[], :statuses::text[], :precedences::int[],
                :sent_at::timestamptz[], :bounced_at::timestamptz[], :error_at::timestamptz[], :reasons::text[],
                :codes::text[], :faults::text[], :replies::text[], :provider_ids::text[], :retry_after::interval[])
         AS r (recipient, attempt, status, precedence, sent_at, bounced_at, error_at, reason, code, fault, reply,
               provider_id, retry_after)
    JOIN sendoff.delivery_record d ON d.delivery_id = :delivery_id
    CROSS JOIN (
        SELECT array_agg(x.recipient) AS recipients FROM sendoff.erased_recipient x WHERE x.delivery_id = :delivery_id
    ) e
    CROSS JOIN LATERAL (SELECT coalesce(r.recipient = ANY (e.recipients), false) AS erased) person
    CROSS JOIN LATERAL (
        SELECT r.retry_after IS NOT NULL AND now() + r.retry_after < d.valid_until
               AND d.cancelled_at IS NULL AND d.under_way AND NOT person.erased
               AND r.attempt - coalesce((SELECT k.spared FROM sendoff.outcome k
                                         WHERE k.delivery_id = :delivery_id AND k.recipient = r.recipient), 0)
                   < coalesce(d.max_attempts, :max_attempts::int) AS planned
    ) again
    WHERE d.confirmed_at IS NOT NULL AND r.recipient <= d.to_deliver
), changed AS (
    INSERT INTO sendoff.outcome AS o (
        delivery_id, recipient, attempt, status, precedence, sent_at, bounced_at, error_at, retry_at, reason, code,
        fault, reply, provider_id)
    SELECT :delivery_id, recipient, attempt, status, precedence, sent_at, bounced_at, error_at, retry_at, reason, code,
           fault, reply, provider_id
    FROM result
    ORDER BY recipient
    ON CONFLICT (delivery_id, recipient) DO UPDATE
    SET was = o.status,
        sent_at = coalesce(o.sent_at, excluded.sent_at),
        bounced_at = coalesce(o.bounced_at, excluded.bounced_at),
        error_at = coalesce(o.error_at, excluded.error_at),
        precedence = greatest(o.precedence, excluded.precedence),
        attempt = CASE WHEN excluded.precedence > o.precedence THEN excluded.attempt ELSE o.attempt END,
        status = CASE WHEN excluded.precedence > o.precedence THEN excluded.status ELSE o.status END,
        reason = CASE WHEN excluded.precedence > o.precedence THEN excluded.reason ELSE o.reason END,
        code = CASE WHEN excluded.precedence > o.precedence THEN excluded.code ELSE o.code END,
        fault = CASE WHEN excluded.precedence > o.precedence THEN excluded.fault ELSE o.fault END,
        reply = CASE WHEN excluded.precedence > o.precedence THEN excluded.reply ELSE o.reply END,
        provider_id = coalesce(excluded.provider_id, o.provider_id),
        retry_at = CASE WHEN excluded.precedence > o.precedence THEN excluded.retry_at ELSE o.retry_at END
    WHERE excluded.precedence > o.precedence
       OR (o.sent_at IS NULL AND excluded.sent_at IS NOT NULL)
       OR (o.bounced_at IS NULL AND excluded.bounced_at IS NOT NULL)
       OR (o.error_at IS NULL AND excluded.error_at IS NOT NULL)
    RETURNING o.recipient, o.was, o.status, o.fault
)
SELECT coalesce(sum(recipients), 0)::int AS moved,
       ARRAY(SELECT recipient FROM changed
             WHERE fault = 'recipient' AND status IN ('bounced_hard', 'bounced_soft', 'retrying')
               AND status IS DISTINCT FROM was
             ORDER BY recipient) AS failed,
       sendoff.count_moves(:delivery_id, array_agg((was, status, recipients)::sendoff.move))
FROM (
    SELECT was, status, count(*) AS recipients FROM changed WHERE status IS DISTINCT FROM was GROUP BY was, status
) m;

-- name: read_audience_sizes
-- For messages that may be for nobody: how many recipients confirmed deliveries have; no row where there is no
-- such delivery, it was never confirmed, or has left by retention. One by one a read takes 1 ms.
SELECT delivery_id, to_deliver FROM sendoff.delivery_record
WHERE delivery_id = ANY(:delivery_ids::bigint[]) AND confirmed_at IS NOT NULL AND purged_at IS NULL;

-- name: cancel_remaining
-- Cancels recipients that were not tried: at a stop, and when the validity is over. Run it with the claims
-- closed, so that "the rest" is a fixed number: the pending recipients, and those that wait for a retry. From
-- here on, a recipient without a row, or with one that is *retrying*, counts as cancelled. It reads one row of
-- outcomes at most: a stop takes as long for millions. end_retries changes the rows of those that wait.
WITH closed AS (
    UPDATE sendoff.delivery_record d
    SET cancelled_at = now(), updated_at = now(),
        ending_retries = EXISTS (
            SELECT FROM sendoff.outcome o WHERE o.delivery_id = :delivery_id AND o.retry_at IS NOT NULL)
    WHERE d.delivery_id = :delivery_id AND d.cancelled_at IS NULL
    RETURNING d.delivery_id
)
SELECT sendoff.count_moves(:delivery_id, ARRAY[
           ('pending', 'cancelled', d.pending + d.retrying)::sendoff.move,
           ('nothing', 'retrying', -d.retrying)::sendoff.move])
FROM closed
JOIN sendoff.deployment d ON d.delivery_id = closed.delivery_id;

-- name: read_deliveries_ending_retries
SELECT delivery_id FROM sendoff.delivery_record WHERE ending_retries ORDER BY delivery_id;

-- name: end_retries
-- In a cancelled delivery: a recipient that waited for a retry was tried, and its fact gives the status. So many
-- at a time, as a statement for a million would take a minute and lock them all. Asked with the claims shared.
WITH ended AS (
    UPDATE sendoff.outcome o
    SET status = sendoff.status_of(o.precedence), was = o.status, retry_at = NULL
    WHERE o.delivery_id = :delivery_id AND o.retry_at IS NOT NULL
      AND o.recipient = ANY (ARRAY(
          SELECT w.recipient
          FROM sendoff.outcome w
          WHERE w.delivery_id = :delivery_id AND w.retry_at IS NOT NULL
            AND (SELECT d.ending_retries FROM sendoff.delivery_record d WHERE d.delivery_id = :delivery_id)
          ORDER BY w.recipient
          LIMIT :recipients
          FOR NO KEY UPDATE))
    RETURNING o.was, o.status
)
SELECT count(*)::int AS ended, sendoff.count_moves(:delivery_id, ARRAY(
           SELECT (was, status, count(*))::sendoff.move FROM ended GROUP BY was, status))
FROM ended;

-- name: retries_ended
UPDATE sendoff.delivery_record
SET ending_retries = false
WHERE delivery_id = :delivery_id AND ending_retries
  AND NOT EXISTS (SELECT FROM sendoff.outcome o WHERE o.delivery_id = :delivery_id AND o.retry_at IS NOT NULL);

-- name: spare_refused
-- Those who were refused for a fault of the sender count as not tried: they wait for a retry that is due, and the attempt
-- does not count. The number of the attempt stays, so that a doubled result changes nothing. Run it with the
-- claims closed.
WITH spared AS (
    UPDATE sendoff.outcome o
    SET status = 'retrying', was = o.status, retry_at = now(), spared = o.spared + 1
    WHERE o.delivery_id = :delivery_id AND o.fault = 'sender' AND o.status = 'bounced_soft'
      AND (SELECT d.spares_refused FROM sendoff.delivery_record d WHERE d.delivery_id = :delivery_id)
      AND (SELECT true FROM sendoff.erased_recipient x
           WHERE x.delivery_id = :delivery_id AND x.recipient = o.recipient) IS NULL
    RETURNING o.was, o.status
)
SELECT count(*)::int AS spared, sendoff.count_moves(:delivery_id, ARRAY(
           SELECT (was, status, count(*))::sendoff.move FROM spared GROUP BY was, status))
FROM spared;

-- name: stop_sparing
UPDATE sendoff.delivery_record SET spares_refused = false WHERE delivery_id = :delivery_id AND spares_refused;

-- name: read_unknown
-- For a range of recipients, by the key.
SELECT recipient
FROM sendoff.outcome
WHERE delivery_id = :delivery_id AND recipient BETWEEN :first AND :last AND status = 'unknown'
ORDER BY recipient;

-- name: settle_unknown
-- Settles those of :recipients that are still unknown. The precedence stays that of *unknown*, so that any
-- real outcome of the attempt wins, even a late one, and ends a resend that is not claimed yet. A fact gets
-- the time of the claim. Erased recipients are not sent to again.
WITH found AS (
    SELECT recipient
    FROM sendoff.outcome
    WHERE delivery_id = :delivery_id AND recipient = ANY (:recipients::int[]) AND status = 'unknown'
      AND (:become <> 'resend' OR (SELECT true FROM sendoff.erased_recipient x
                                   WHERE x.delivery_id = :delivery_id AND x.recipient = outcome.recipient) IS NULL)
      AND recipient BETWEEN (SELECT min(r) FROM unnest(:recipients) AS r)
                        AND (SELECT max(r) FROM unnest(:recipients) AS r)
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
      AND o.recipient BETWEEN (SELECT min(r) FROM unnest(:recipients) AS r)
                          AND (SELECT max(r) FROM unnest(:recipients) AS r)
    RETURNING o.was, o.status
)
SELECT count(*)::int AS settled, sendoff.count_moves(:delivery_id, ARRAY(
           SELECT (was, status, count(*))::sendoff.move FROM moved GROUP BY was, status))
FROM moved;

-- name: erase_recipients
-- Overwrites personal data, and keeps the counts. Run it with the claims closed, so that a result under way
-- does not store a reply again. A number that was read before another preparation may belong to another
-- profile than :profile_id. If the delivery may still send to this audience (before *ready* it must be
-- prepared again), waiting recipients are not tried: a recipient that was never claimed is excluded, and one
-- that waits for a retry keeps its fact.
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
    -- A url that others clicked too is not personal, and keeps its count.
    UPDATE sendoff.tracking_event e
    SET user_agent = NULL, url = CASE WHEN s.shared THEN e.url END, link = CASE WHEN s.shared THEN e.link END
    FROM person p
    CROSS JOIN LATERAL (
        SELECT k.event_id, k.kind = 'click' AND coalesce((
                   SELECT true FROM sendoff.tracking_event c
                   WHERE c.delivery_id = :delivery_id AND c.kind = 'click' AND c.link = k.link
                     AND c.recipient <> ALL (:recipients::int[])
                   LIMIT 1), false) AS shared
        FROM sendoff.tracking_event k
        WHERE k.delivery_id = :delivery_id AND k.recipient = p.recipient
    ) s
    WHERE e.delivery_id = :delivery_id AND e.event_id = s.event_id
), changed AS (
    INSERT INTO sendoff.outcome AS o (delivery_id, recipient, attempt, status, precedence, reason, excluded_at)
    SELECT :delivery_id, recipient, 1, 'excluded', 16, 'erased', now()
    FROM person p
    WHERE (SELECT (d.under_way OR d.state = 'ready') AND d.cancelled_at IS NULL AND d.purged_at IS NULL
           FROM sendoff.delivery_record d WHERE d.delivery_id = :delivery_id)
       OR (SELECT true FROM sendoff.outcome k WHERE k.delivery_id = :delivery_id AND k.recipient = p.recipient)
    ORDER BY recipient
    ON CONFLICT (delivery_id, recipient) DO UPDATE
    SET was = o.status, reply = NULL, provider_id = NULL, retry_at = NULL,
        status = CASE o.status WHEN 'retrying' THEN sendoff.status_of(o.precedence) ELSE o.status END
    RETURNING o.was, o.status
)
SELECT (SELECT count(*)::int FROM person) AS messages, count(*)::int AS kept_from,
       sendoff.count_moves(:delivery_id, ARRAY(
           SELECT (was, status, count(*))::sendoff.move FROM changed GROUP BY was, status))
FROM changed
WHERE status IS DISTINCT FROM was;

-- name: repair_counters
-- Adds the drift that one snapshot showed. Outcomes, events and counters that moved since then moved
-- together, so the difference is still right. It is wrong if the rest was cancelled since, which is computed
-- from the counters with their drift, or if retention removes the rows, which changes every snapshot. Then no
-- row comes back, and the delivery must be counted again.
SELECT d.delivery_id, sendoff.count_moves(d.delivery_id, ARRAY(
           SELECT ('pending', counter, missing)::sendoff.move
           FROM unnest(:counters::text[], :missing::int[]) AS k (counter, missing)))
FROM sendoff.delivery_record d
WHERE d.delivery_id = :delivery_id AND d.cancelled_at IS NOT DISTINCT FROM :cancelled_at::timestamptz
  AND d.purged_at IS NULL;
