-- Preparation: the audience goes through a temporary table of the session into the delivery.

-- name: create_staged_target
-- Rows of the recipients file, checked one by one. Temporary: a process that dies leaves nothing, and
-- nothing of it is written to the log. Keys are compared byte by byte, which sorts a million in half the time.
CREATE TEMPORARY TABLE IF NOT EXISTS staged_target (
    line         integer NOT NULL,
    address      text,
    address_key  text COLLATE "C",
    profile_id   text,
    variables    text,
    cause        text,
    detail       text,
    due_at       timestamptz
);

-- name: empty_staged_target
-- A pooled session may have prepared another delivery before.
TRUNCATE pg_temp.staged_target;

-- name: analyze_staged_target
-- No autovacuum sees a temporary table; without this the planner thinks it is small.
ANALYZE pg_temp.staged_target;

-- name: read_span
-- When the first and the last row with its own time are due.
SELECT min(due_at) AS first, max(due_at) AS last FROM pg_temp.staged_target;

-- name: lock_preparation
-- A lock for one preparation of a delivery at a time. The session holds it, so that it ends with the process.
-- Below the ids of deliveries, which claims lock, and below the key of the migrations.
SELECT pg_try_advisory_lock(-1000000000 - :delivery_id::bigint);

-- name: keep_preparations_out
-- The same until the transaction ends; false while a preparation is under way, which locks recipients before the
-- delivery.
SELECT pg_try_advisory_xact_lock(-1000000000 - :delivery_id::bigint);

-- name: create_delivery
INSERT INTO sendoff.delivery_record (label, channel, created_by) VALUES (:label, :channel, :operator)
RETURNING delivery_id;

-- name: drop_audience
-- Deletes the rows of the preparation before. It has outcomes only for people who were erased since then.
WITH recipients AS (
    DELETE FROM sendoff.recipient WHERE delivery_id = :delivery_id
), exclusions AS (
    DELETE FROM sendoff.exclusion WHERE delivery_id = :delivery_id
), domains AS (
    DELETE FROM sendoff.delivery_domain WHERE delivery_id = :delivery_id
), domain_pages AS (
    DELETE FROM sendoff.domain_page WHERE delivery_id = :delivery_id
), waves AS (
    DELETE FROM sendoff.delivery_wave WHERE delivery_id = :delivery_id
), contents AS (
    DELETE FROM sendoff.delivery_content WHERE delivery_id = :delivery_id
), links AS (
    DELETE FROM sendoff.link WHERE delivery_id = :delivery_id
), erased AS (
    DELETE FROM sendoff.erased_recipient WHERE delivery_id = :delivery_id
), outcomes AS (
    DELETE FROM sendoff.outcome WHERE delivery_id = :delivery_id RETURNING status
)
SELECT sendoff.count_moves(:delivery_id, ARRAY(
           SELECT (status, 'pending', count(*))::sendoff.move FROM outcomes GROUP BY status));

-- name: exclude_duplicates
-- The first line with an address wins. The sort is of keys and lines alone, not of whole rows.
UPDATE pg_temp.staged_target t
SET cause = :cause, detail = 'the same address as in line ' || d.first
FROM (
    SELECT line, min(line) OVER (PARTITION BY address_key) AS first
    FROM pg_temp.staged_target
    WHERE cause IS NULL
) d
WHERE t.line = d.line AND d.line > d.first;

-- name: exclude_quarantined
UPDATE pg_temp.staged_target t
SET cause = :cause, detail = q.cause
FROM sendoff.quarantined_address q
WHERE t.cause IS NULL AND q.channel = :channel AND q.address_key = t.address_key;

-- name: exclude_denylisted
UPDATE pg_temp.staged_target t
SET cause = :cause, detail = x.cause
FROM sendoff.denylisted_profile x
WHERE t.cause IS NULL AND x.channel = :channel AND x.profile_id = t.profile_id;

-- name: insert_exclusions
INSERT INTO sendoff.exclusion (delivery_id, line, address, profile_id, cause, detail)
SELECT :delivery_id, line, address, profile_id, cause, detail
FROM pg_temp.staged_target
WHERE cause IS NOT NULL
ORDER BY line;

-- name: insert_recipients
-- Numbered densely in the order of the file.
INSERT INTO sendoff.recipient (delivery_id, recipient, profile_id, address, variables)
SELECT :delivery_id, row_number() OVER (ORDER BY line), profile_id, address, variables::json
FROM pg_temp.staged_target
WHERE cause IS NULL
ORDER BY line;

-- name: insert_recipients_by_time
-- Numbered densely in the order in which they are due, then of the file; so that each wave is a range.
INSERT INTO sendoff.recipient (delivery_id, recipient, profile_id, address, variables)
SELECT :delivery_id, row_number() OVER (ORDER BY due_at NULLS FIRST, line), profile_id, address, variables::json
FROM pg_temp.staged_target
WHERE cause IS NULL
ORDER BY due_at NULLS FIRST, line;

-- name: insert_waves_by_time
-- Recipients that are due together are a wave. Those without a time of their own are due at the start.
INSERT INTO sendoff.delivery_wave (delivery_id, wave, first, last, due_at, due_after)
SELECT :delivery_id, row_number() OVER due, sum(count(*)) OVER due - count(*) + 1, sum(count(*)) OVER due, due_at,
       CASE WHEN due_at IS NULL THEN interval '0' END
FROM pg_temp.staged_target
WHERE cause IS NULL
GROUP BY due_at
WINDOW due AS (ORDER BY due_at NULLS FIRST);

-- name: count_staged
SELECT count(*)::int FROM pg_temp.staged_target WHERE cause IS NULL;

-- name: insert_recipients_by_share
-- Divided by the hash of the delivery and the address: each share is like the whole audience, for any order
-- of the file. Another delivery divides differently, and the same one, prepared again, as before. :starts are
-- the places at which the waves after the first begin. Within a wave, recipients keep the order of the file.
WITH dealt AS (
    SELECT line, width_bucket(
               row_number() OVER (ORDER BY md5(:delivery_id::bigint || ' ' || address_key) COLLATE "C"),
               :starts::bigint[]) AS wave
    FROM pg_temp.staged_target
    WHERE cause IS NULL
)
INSERT INTO sendoff.recipient (delivery_id, recipient, profile_id, address, variables)
SELECT :delivery_id, row_number() OVER (ORDER BY d.wave, t.line), t.profile_id, t.address, t.variables::json
FROM dealt d
JOIN pg_temp.staged_target t ON t.line = d.line
ORDER BY d.wave, t.line;

-- name: insert_waves_by_share
-- A share without recipients is not a wave.
INSERT INTO sendoff.delivery_wave (delivery_id, wave, first, last, due_after)
SELECT :delivery_id, row_number() OVER (ORDER BY last), first, last, due_after
FROM unnest(:firsts::int[], :lasts::int[], :delays::interval[]) AS w (first, last, due_after)
WHERE first <= last;

-- name: insert_domains
-- What domain_breakdown counts by: the domains of the audience, and which of them each recipient's is. Without a
-- join, which would be planned for the few recipients that there are before. A million take a second and a half.
WITH numbered AS MATERIALIZED (
    SELECT recipient, domain, dense_rank() OVER (ORDER BY domain COLLATE "C") AS number
    FROM (
        SELECT recipient, lower(split_part(address, '@', 2)) AS domain
        FROM sendoff.recipient
        WHERE delivery_id = :delivery_id
    ) r
), domains AS (
    INSERT INTO sendoff.delivery_domain (delivery_id, number, domain, to_deliver)
    SELECT :delivery_id, number, min(domain), count(*) FROM numbered GROUP BY number
)
INSERT INTO sendoff.domain_page (delivery_id, page, numbers)
SELECT :delivery_id, (recipient - 1) / 1000, array_agg(number::int ORDER BY recipient)
FROM numbered
GROUP BY (recipient - 1) / 1000;

-- name: complete_preparation
-- The next snapshot: what the confirmation shows, and what it will freeze. If the contact date is local to
-- each recipient (:by_local_time), it is that of the first recipient.
UPDATE sendoff.delivery_record d
SET label = :label, channel = :channel,
    contact_date = coalesce(CASE WHEN :by_local_time THEN (SELECT min(due_at)
                                                           FROM sendoff.delivery_wave
                                                           WHERE delivery_id = :delivery_id) END, :contact_date),
    time_zone = :time_zone, valid_for = :valid_for, late_limit = :late_limit, messages_per_hour = :messages_per_hour,
    breaker_minimum = :breaker_minimum, hard_bounce_pct = :hard_bounce_pct, error_pct = :error_pct,
    refused_pct = :refused_pct, max_attempts = :max_attempts, preparation = d.preparation + 1,
    to_deliver = s.to_deliver, excluded = s.excluded, prepared_at = now(), updated_at = now()
FROM (
    SELECT count(*) FILTER (WHERE cause IS NULL) AS to_deliver, count(cause) AS excluded
    FROM pg_temp.staged_target
) s
WHERE d.delivery_id = :delivery_id;

-- name: insert_content
INSERT INTO sendoff.delivery_content (delivery_id, preparation, content, digest, findings)
SELECT delivery_id, preparation, :content::json, :digest::bytea, :findings::json
FROM sendoff.delivery_record
WHERE delivery_id = :delivery_id;

-- name: insert_links
INSERT INTO sendoff.link (delivery_id, preparation, number, part, target)
SELECT d.delivery_id, d.preparation, l.number, l.part, l.target
FROM unnest(:numbers::int[], :parts::text[], :targets::text[]) AS l (number, part, target)
JOIN sendoff.delivery_record d ON d.delivery_id = :delivery_id
ORDER BY l.number;

-- name: read_preparation
SELECT preparation, to_deliver FROM sendoff.delivery_record WHERE delivery_id = :delivery_id;

-- name: name_source
UPDATE sendoff.delivery_record
SET source_delivery_id = :source_delivery_id, source_criterion = :criterion
WHERE delivery_id = :delivery_id;
