-- What people read through the command line.

-- name: read_audience
SELECT to_deliver, purged_at FROM sendoff.delivery WHERE delivery_id = :delivery_id;

-- name: read_sending_log
-- A range of recipients, not a cursor over all: numbers are dense, so a range is a page, and a reader who takes
-- an hour over a log ("| less") holds no snapshot that would keep vacuum from the outcomes.
SELECT *
FROM sendoff.sending_log
WHERE delivery_id = :delivery_id AND recipient BETWEEN :first AND :last AND (:status::text IS NULL OR status = :status)
  AND (:bounce_kind::text IS NULL OR bounce_kind = :bounce_kind) AND (:reason::text IS NULL OR reason = :reason)
  AND (:domain::text IS NULL OR lower(split_part(address, '@', 2)) = lower(:domain))
  AND (:since::timestamptz IS NULL OR at >= :since) AND (:until::timestamptz IS NULL OR at < :until)
ORDER BY recipient;

-- name: read_recipient
SELECT address, variables FROM sendoff.recipient WHERE delivery_id = :delivery_id AND recipient = :recipient;

-- name: read_recipients
-- Some recipients, to try a content with.
SELECT recipient, address, variables
FROM sendoff.recipient
WHERE delivery_id = :delivery_id AND recipient = ANY (:recipients::int[])
ORDER BY recipient;
