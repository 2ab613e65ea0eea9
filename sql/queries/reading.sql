-- What people read through the command line.

-- name: read_audience
SELECT to_deliver, purged_at FROM sendoff.delivery WHERE delivery_id = $1;

-- name: read_sending_log
-- A range of recipients, not a cursor over all: numbers are dense, so a range is a page, and a reader who takes
-- an hour over a log ("| less") holds no snapshot that would keep vacuum from the outcomes.
SELECT delivery_id, recipient, profile_id, address, status, attempt, bounce_kind, claimed_at, sent_at, bounced_at,
       error_at, unknown_at, retry_at, reason, code, fault, reply, provider_id, excluded_at
FROM sendoff.sending_log
WHERE delivery_id = $1 AND recipient BETWEEN $2 AND $3 AND ($4::text IS NULL OR status = $4)
  AND ($5::text IS NULL OR bounce_kind = $5) AND ($6::text IS NULL OR reason = $6)
  AND ($7::text IS NULL OR lower(split_part(address, '@', 2)) = lower($7))
ORDER BY recipient;
