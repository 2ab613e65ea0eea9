-- Suppression: who is not written to, and why.

-- name: read_failed
-- Recipients whose outcome a batch changed to a bounce, by the whole key. Erased ones have no address.
SELECT d.channel, r.address, o.status, o.reason
FROM unnest(:recipients::int[]) AS f (recipient)
JOIN sendoff.delivery_record d ON d.delivery_id = :delivery_id
CROSS JOIN LATERAL (
    SELECT k.address FROM sendoff.recipient k WHERE k.delivery_id = :delivery_id AND k.recipient = f.recipient OFFSET 0
) r
CROSS JOIN LATERAL (
    SELECT k.status, k.reason
    FROM sendoff.outcome k
    WHERE k.delivery_id = :delivery_id AND k.recipient = f.recipient
    OFFSET 0
) o
WHERE r.address <> '';

-- name: quarantine_hard
-- An address that is held for a time only is held without an end now.
INSERT INTO sendoff.quarantined_address AS q (channel, address_key, address, cause, reason, delivery_id)
SELECT :channel, f.address_key, f.address, :cause, f.reason, :delivery_id
FROM unnest(:address_keys::text[], :addresses::text[], :reasons::text[]) AS f (address_key, address, reason)
ORDER BY f.address_key
ON CONFLICT (channel, address_key) DO UPDATE
SET cause = excluded.cause, reason = excluded.reason, delivery_id = excluded.delivery_id, since = now(), expires_at = NULL
WHERE q.expires_at IS NOT NULL;

-- name: count_soft
-- An error within :apart of the last one is the same trouble. One after more than :within begins anew. The last of
-- :enough puts the address into quarantine.
WITH counted AS (
    INSERT INTO sendoff.failing_address AS a (channel, address_key, address, errors, reason, last_error_at)
    SELECT :channel, f.address_key, f.address, 1, f.reason, now()
    FROM unnest(:address_keys::text[], :addresses::text[], :reasons::text[]) AS f (address_key, address, reason)
    ORDER BY f.address_key
    ON CONFLICT (channel, address_key) DO UPDATE
    SET errors = CASE WHEN a.last_error_at < now() - :within::interval THEN 1 ELSE a.errors + 1 END,
        reason = excluded.reason, last_error_at = now()
    WHERE a.last_error_at <= now() - :apart::interval
    RETURNING a.address_key, a.address, a.errors, a.reason
)
INSERT INTO sendoff.quarantined_address (channel, address_key, address, cause, reason, delivery_id, expires_at)
SELECT :channel, c.address_key, c.address, k.cause, c.reason, :delivery_id, now() + k.held
FROM counted c
CROSS JOIN LATERAL (
    SELECT CASE WHEN c.reason = :full_reason THEN :full_cause ELSE :cause END AS cause,
           CASE WHEN c.reason = :full_reason THEN :full_for::interval END AS held
) k
WHERE c.errors >= :enough
ORDER BY c.address_key
ON CONFLICT (channel, address_key) DO NOTHING;

-- name: find_successes
-- Deliveries that ended :settled ago or earlier, and not so long ago that no error counts any more.
SELECT d.delivery_id
FROM sendoff.delivery_record d
WHERE d.successes_at IS NULL AND d.finished_at < now() - :settled::interval
  AND d.finished_at > now() - :settled::interval - :within::interval AND d.purged_at IS NULL
  AND EXISTS (SELECT FROM sendoff.failing_address f WHERE f.channel = d.channel)
ORDER BY d.finished_at
LIMIT 20;

-- name: forgive
-- A success after the last error: the address works. Run it with the settings of plan_recount.
WITH seen AS (
    UPDATE sendoff.delivery_record d SET successes_at = now() WHERE d.delivery_id = :delivery_id AND d.successes_at IS NULL
    RETURNING d.channel
)
DELETE FROM sendoff.failing_address f
USING seen, sendoff.recipient r
JOIN sendoff.outcome o ON o.delivery_id = r.delivery_id AND o.recipient = r.recipient
WHERE f.channel = seen.channel AND lower(f.address) = lower(r.address) AND r.delivery_id = :delivery_id
  AND o.delivery_id = :delivery_id AND o.status = 'sent' AND o.sent_at > f.last_error_at;

-- name: find_expired
SELECT EXISTS (SELECT FROM sendoff.quarantined_address WHERE expires_at <= now()) AS quarantine,
       EXISTS (SELECT FROM sendoff.denylisted_profile WHERE expires_at <= now()) AS denylist,
       EXISTS (SELECT FROM sendoff.failing_address WHERE last_error_at < now() - :within::interval) AS failing;

-- name: lift_quarantine
-- Some at a time, in every process: a row that another one locks is left to it.
DELETE FROM sendoff.quarantined_address q
USING (SELECT channel, address_key FROM sendoff.quarantined_address WHERE expires_at <= now()
       ORDER BY expires_at LIMIT :rows FOR UPDATE SKIP LOCKED) e
WHERE q.channel = e.channel AND q.address_key = e.address_key;

-- name: lift_denylist
DELETE FROM sendoff.denylisted_profile x
USING (SELECT channel, profile_id FROM sendoff.denylisted_profile WHERE expires_at <= now()
       ORDER BY expires_at LIMIT :rows FOR UPDATE SKIP LOCKED) e
WHERE x.channel = e.channel AND x.profile_id = e.profile_id;

-- name: forget_failing
DELETE FROM sendoff.failing_address f
USING (SELECT channel, address_key FROM sendoff.failing_address WHERE last_error_at < now() - :within::interval
       ORDER BY last_error_at LIMIT :rows FOR UPDATE SKIP LOCKED) e
WHERE f.channel = e.channel AND f.address_key = e.address_key;

-- name: forget_errors_of
-- Before recipients are erased: their errors are personal, and no use without them.
DELETE FROM sendoff.failing_address f
USING sendoff.delivery_record d, sendoff.recipient r
WHERE d.delivery_id = :delivery_id AND r.delivery_id = :delivery_id AND r.recipient = ANY (:recipients::int[])
  AND f.channel = d.channel AND lower(f.address) = lower(r.address);

-- name: read_quarantine
-- A page by the key, so that a reader who takes an hour holds no snapshot.
SELECT channel, address, cause, reason, delivery_id, since, expires_at, added_by, address_key AS key
FROM sendoff.quarantined_address
WHERE (channel, address_key) > (:after_channel, :after_key) AND (:channel::text IS NULL OR channel = :channel)
  AND (:cause::text IS NULL OR cause = :cause)
ORDER BY channel, address_key
LIMIT :rows;

-- name: read_denylist
SELECT channel, profile_id, cause, reason, delivery_id, since, expires_at, added_by, profile_id AS key
FROM sendoff.denylisted_profile
WHERE (channel, profile_id) > (:after_channel, :after_key) AND (:channel::text IS NULL OR channel = :channel)
  AND (:cause::text IS NULL OR cause = :cause)
ORDER BY channel, profile_id
LIMIT :rows;

-- name: add_quarantined
-- What is there keeps its cause; an end is taken away or put off, never put forward.
WITH added AS (
    INSERT INTO sendoff.quarantined_address AS q (channel, address_key, address, cause, reason, expires_at, added_by)
    SELECT :channel, a.key, a.entry, a.cause, a.reason, a.expires_at, :operator
    FROM unnest(:keys::text[], :entries::text[], :causes::text[], :reasons::text[], :expiries::timestamptz[])
         AS a (key, entry, cause, reason, expires_at)
    ORDER BY a.key
    ON CONFLICT (channel, address_key) DO UPDATE
    SET expires_at = excluded.expires_at, cause = excluded.cause, reason = excluded.reason, added_by = excluded.added_by
    WHERE q.expires_at < coalesce(excluded.expires_at, 'infinity')
    RETURNING 1
)
SELECT count(*)::int FROM added;

-- name: add_denylisted
WITH added AS (
    INSERT INTO sendoff.denylisted_profile AS q (channel, profile_id, cause, reason, expires_at, added_by)
    SELECT :channel, a.key, a.cause, a.reason, a.expires_at, :operator
    FROM unnest(:keys::text[], :entries::text[], :causes::text[], :reasons::text[], :expiries::timestamptz[])
         AS a (key, entry, cause, reason, expires_at)
    ORDER BY a.key
    ON CONFLICT (channel, profile_id) DO UPDATE
    SET expires_at = excluded.expires_at, cause = excluded.cause, reason = excluded.reason, added_by = excluded.added_by
    WHERE q.expires_at < coalesce(excluded.expires_at, 'infinity')
    RETURNING 1
)
SELECT count(*)::int FROM added;

-- name: remove_quarantined
-- Its errors are forgotten too: the operator knows that the address works.
WITH forgotten AS (
    DELETE FROM sendoff.failing_address WHERE channel = :channel AND address_key = ANY (:keys::text[])
), removed AS (
    DELETE FROM sendoff.quarantined_address WHERE channel = :channel AND address_key = ANY (:keys::text[])
    RETURNING 1
)
SELECT count(*)::int FROM removed;

-- name: remove_denylisted
WITH removed AS (
    DELETE FROM sendoff.denylisted_profile WHERE channel = :channel AND profile_id = ANY (:keys::text[])
    RETURNING 1
)
SELECT count(*)::int FROM removed;
