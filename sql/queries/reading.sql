-- What people read through the command line.

-- name: read_audience
SELECT to_deliver, purged_at FROM sendoff.delivery WHERE delivery_id = :delivery_id;

-- name: read_sending_log
-- A range of recipients, not a cursor over all: numbers are dense, so a range is a page, and a reader who takes
-- an hour over a log ("| less") holds no snapshot that would keep vacuum from the outcomes.
SELECT delivery_id, recipient, profile_id, address, status, attempt, bounce_kind, claimed_at, sent_at, bounced_at,
       error_at, unknown_at, retry_at, reason, code, fault, reply, provider_id, excluded_at
FROM sendoff.sending_log
WHERE delivery_id = :delivery_id AND recipient BETWEEN :first AND :last AND (:status::text IS NULL OR status = :status)
  AND (:bounce_kind::text IS NULL OR bounce_kind = :bounce_kind) AND (:reason::text IS NULL OR reason = :reason)
  AND (:domain::text IS NULL OR lower(split_part(address, '@', 2)) = lower(:domain))
  -- The time that the command shows as “at”: of the winning fact, or else of the claim.
  AND (:since::timestamptz IS NULL
       OR coalesce(bounced_at, sent_at, error_at, unknown_at, retry_at, excluded_at, claimed_at) >= :since)
  AND (:until::timestamptz IS NULL
       OR coalesce(bounced_at, sent_at, error_at, unknown_at, retry_at, excluded_at, claimed_at) < :until)
ORDER BY recipient;
