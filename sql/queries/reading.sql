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

-- name: read_source
SELECT state, purged_at, to_deliver, channel FROM sendoff.delivery_record WHERE delivery_id = :delivery_id;

-- name: read_retargeted
-- A range of recipients who fit a criterion (worker/domain/retarget.py), with all that they were prepared with.
SELECT r.address, r.variables::text AS variables
FROM sendoff.recipient r
LEFT JOIN LATERAL (
    SELECT k.status FROM sendoff.outcome k WHERE k.delivery_id = :delivery_id AND k.recipient = r.recipient OFFSET 0
) o ON true
LEFT JOIN LATERAL (
    SELECT k.optout_at, k.complained_at, CASE WHEN :persons THEN k.human_opened_at ELSE k.opened_at END AS opened_at,
           CASE WHEN :persons THEN k.human_clicked_at ELSE k.clicked_at END AS clicked_at
    FROM sendoff.tracked_recipient k
    WHERE k.delivery_id = :delivery_id AND k.recipient = r.recipient
    OFFSET 0
) t ON true
WHERE r.delivery_id = :delivery_id AND r.recipient BETWEEN :first AND :last AND r.address <> ''
  AND o.status IS DISTINCT FROM 'bounced_hard' AND t.optout_at IS NULL AND t.complained_at IS NULL
  AND CASE :who::text
          WHEN 'failed' THEN o.status IN ('error', 'bounced_soft')
          WHEN 'soft' THEN o.status = 'bounced_soft'
          WHEN 'unknown' THEN o.status = 'unknown'
          WHEN 'not-opened' THEN o.status = 'sent' AND t.opened_at IS NULL
          WHEN 'not-clicked' THEN o.status = 'sent' AND t.clicked_at IS NULL
          WHEN 'clicked' THEN coalesce(CASE WHEN :pattern::text IS NULL THEN (
              SELECT true
              FROM sendoff.tracking_event e
              WHERE e.delivery_id = :delivery_id AND e.kind = 'click'
                AND e.link = ANY (ARRAY(SELECT md5(u.url)::uuid FROM unnest(:urls::text[]) AS u (url)))
                AND e.recipient = r.recipient AND (e.machine_rule IS NULL OR NOT :persons)
              LIMIT 1)
          ELSE (  -- a link that is another one for each recipient
              SELECT true
              FROM sendoff.tracking_event e
              WHERE e.delivery_id = :delivery_id AND e.recipient = r.recipient AND e.kind = 'click'
                AND e.url LIKE :pattern AND (e.machine_rule IS NULL OR NOT :persons)
              LIMIT 1)
          END, false)
      END
ORDER BY r.recipient;
