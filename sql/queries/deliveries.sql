-- The delivery, its state and its content.

-- name: read_delivery_for_update
-- Locks the one row that every command and every move of state goes through, so that they take turns. The key
-- is not locked: the first counter of a shard refers to it, and would wait for a stop that waits for that
-- counter.
SELECT delivery_id, label, channel, state, preparation, to_deliver, contact_date, time_zone, valid_for, valid_until,
       confirmed_at, late_limit, messages_per_hour, purged_at, first_approval_by, first_approval_by_token,
       first_approval_preparation, first_approval_at, first_approval_until,
       (SELECT max(due_at) FROM sendoff.delivery_wave w WHERE w.delivery_id = d.delivery_id) AS last_due_at
FROM sendoff.delivery_record d
WHERE delivery_id = :delivery_id
FOR NO KEY UPDATE;

-- name: move_delivery
-- The one guarded move: :expected are the states that it expects; no row means that another process moved it
-- first. A pause remembers where it was paused; the first start and the first end set their times. Only this
-- statement and finish_delivery record the move and put its event (:event, if it has one) into the outbox.
WITH old AS (
    SELECT delivery_id, state
    FROM sendoff.delivery_record
    WHERE delivery_id = :delivery_id AND state = ANY (:expected::text[])
    FOR NO KEY UPDATE
), moved AS (
    UPDATE sendoff.delivery_record d
    SET state = :target,
        state_reason = :reason,
        paused_in = CASE WHEN :target = 'paused' THEN old.state END,
        started_at = CASE WHEN :target = 'in_progress' THEN coalesce(d.started_at, now()) ELSE d.started_at END,
        finished_at = CASE WHEN :over THEN now()
                           WHEN :target = 'in_progress' THEN NULL
                           ELSE d.finished_at END,
        updated_at = now()
    FROM old
    WHERE d.delivery_id = old.delivery_id
    RETURNING d.delivery_id, old.state AS from_state, d.state AS to_state
), recorded AS (
    INSERT INTO sendoff.delivery_transition (delivery_id, from_state, to_state, operator, reason, command_id, figures)
    SELECT delivery_id, from_state, to_state, :operator, :reason, :command_id, :figures::json
    FROM moved
    RETURNING delivery_id, number, to_state
), told AS (
    INSERT INTO sendoff.event (delivery_id, number, event)
    SELECT delivery_id, number, :event
    FROM recorded
    WHERE :event::text IS NOT NULL
)
SELECT to_state, pg_notify('sendoff_events', '') FROM recorded;

-- name: read_paused_in
SELECT paused_in FROM sendoff.delivery_record WHERE delivery_id = :delivery_id AND state = 'paused';

-- name: confirm_delivery
-- Freezes what the confirmation decides; the move to start_pending comes in the same transaction.
UPDATE sendoff.delivery_record
SET confirmed_at = now(), confirmed_by = :operator, valid_until = :valid_until
WHERE delivery_id = :delivery_id;

-- name: approve_delivery
-- The first of two OKs: as it is given, or null where it lapsed and one OK is enough by now.
UPDATE sendoff.delivery_record
SET first_approval_by = :operator, first_approval_by_token = :by_token, first_approval_preparation = :preparation,
    first_approval_at = :at, first_approval_until = :until, updated_at = now()
WHERE delivery_id = :delivery_id;

-- name: authorise_delivery
-- Written by a confirm and by a resume: the authority under which it starts.
UPDATE sendoff.delivery_record
SET authorised_by = :operator, authorised_by_token = :by_token
WHERE delivery_id = :delivery_id;

-- name: read_authority
SELECT authorised_by, authorised_by_token FROM sendoff.delivery_record WHERE delivery_id = :delivery_id;

-- name: read_nothing_open
-- The condition of finish_delivery, checked first without its locks. The sum reads at most 16 short rows, so
-- it may be checked after every batch.
SELECT d.delivery_id
FROM sendoff.delivery_record d
JOIN sendoff.deployment k ON k.delivery_id = d.delivery_id
WHERE d.delivery_id = :delivery_id AND d.state = ANY (:expected::text[]) AND NOT d.ending_retries
  AND k.pending + k.sending + k.retrying <= 0;

-- name: finish_delivery
-- A delivery is finished when nobody is pending, sending or retrying. Run it with the claims closed, so that
-- no result plans a retry meanwhile.
WITH old AS (
    SELECT delivery_id, state
    FROM sendoff.delivery_record
    WHERE delivery_id = :delivery_id AND state = ANY (:expected::text[]) AND NOT ending_retries
      AND (SELECT k.pending + k.sending + k.retrying <= 0
           FROM sendoff.deployment k WHERE k.delivery_id = :delivery_id)
    FOR NO KEY UPDATE
), moved AS (
    UPDATE sendoff.delivery_record d
    SET state = 'finished', state_reason = NULL, finished_at = now(), updated_at = now()
    FROM old
    WHERE d.delivery_id = old.delivery_id
    RETURNING d.delivery_id, old.state AS from_state
), recorded AS (
    INSERT INTO sendoff.delivery_transition (delivery_id, from_state, to_state)
    SELECT delivery_id, from_state, 'finished'
    FROM moved
    RETURNING delivery_id, number
), told AS (
    INSERT INTO sendoff.event (delivery_id, number, event)
    SELECT delivery_id, number, :event
    FROM recorded
)
SELECT delivery_id, pg_notify('sendoff_events', '') FROM recorded;

-- name: read_progress
-- After a batch: whether any recipient is open, and how many of the attempted bounced or failed. Reads at
-- most 16 short rows. Refusals that blame the sender are counted one by one, while the breaker looks at them: there are
-- few, or it trips.
SELECT d.running, k.pending + k.sending + k.retrying <= 0 AS complete, d.breaker_tripped_at IS NOT NULL AS tripped,
       coalesce(d.breaker_minimum, :minimum) AS minimum,
       coalesce(d.hard_bounce_pct, :hard_bounce_pct) AS hard_bounce_pct, coalesce(d.error_pct, :error_pct) AS error_pct,
       coalesce(d.refused_pct, :refused_pct) AS refused_pct,
       (k.sent + k.bounced + k.errors)::int AS attempted, k.bounced_hard::int AS bounced_hard, k.errors::int AS errors,
       CASE WHEN d.running AND d.breaker_tripped_at IS NULL AND k.bounced_soft > 0
                 AND (coalesce(d.refused_pct, :refused_pct) > 0 OR :by_domain::boolean)
            THEN (SELECT count(*)::int FROM sendoff.outcome o
                  WHERE o.delivery_id = :delivery_id AND o.fault = 'sender' AND o.status = 'bounced_soft')
            ELSE 0 END AS refused
FROM sendoff.delivery_record d
JOIN sendoff.deployment k ON k.delivery_id = d.delivery_id
WHERE d.delivery_id = :delivery_id;

-- name: trip_breaker
UPDATE sendoff.delivery_record
SET breaker_tripped_at = now(), spares_refused = :spares_refused
WHERE delivery_id = :delivery_id;

-- name: read_refusing_domains
-- The domains at which at least :least recipients were refused for a fault of the sender, and how many were attempted
-- there. The refused are found by their index; the attempted are counted over the delivery.
WITH refused AS MATERIALIZED (
    SELECT p.numbers[1 + (o.recipient - 1) % 1000] AS number, count(*)::int AS refused
    FROM sendoff.outcome o
    JOIN sendoff.domain_page p ON p.delivery_id = :delivery_id AND p.page = (o.recipient - 1) / 1000
    WHERE o.delivery_id = :delivery_id AND o.fault = 'sender' AND o.status = 'bounced_soft'
    GROUP BY 1
    HAVING count(*) >= :least
    ORDER BY 2 DESC
    LIMIT :domains
), attempted AS (
    SELECT p.numbers[1 + (o.recipient - 1) % 1000] AS number, count(*)::int AS attempted
    FROM sendoff.outcome o
    JOIN sendoff.domain_page p ON p.delivery_id = :delivery_id AND p.page = (o.recipient - 1) / 1000
    WHERE o.delivery_id = :delivery_id AND EXISTS (SELECT FROM refused)
      AND o.status IN ('sent', 'bounced_hard', 'bounced_soft', 'bounced_ignored', 'error')
    GROUP BY 1
)
SELECT d.domain, a.attempted, r.refused
FROM refused r
JOIN attempted a ON a.number = r.number
JOIN sendoff.delivery_domain d ON d.delivery_id = :delivery_id AND d.number = r.number
WHERE d.domain <> ''
ORDER BY r.refused DESC, d.domain;

-- name: read_due_deliveries
-- Confirmed deliveries whose contact date has come.
SELECT delivery_id
FROM sendoff.delivery_record
WHERE under_way AND state = 'start_pending' AND (contact_date IS NULL OR contact_date <= now())
ORDER BY contact_date NULLS FIRST, delivery_id
LIMIT 100;

-- name: read_seconds_to_next_start
-- How long a scheduler may sleep: until the next contact date, or not at all if one is past; null if none
-- waits.
SELECT extract(epoch FROM min(contact_date) - now())::float8
FROM sendoff.delivery_record
WHERE under_way AND state = 'start_pending';

-- name: read_clock
SELECT clock_timestamp();

-- name: read_waves
-- The first waves, as people see them. Each row has the number of all.
SELECT last - first + 1 AS recipients, due_at, due_after, count(*) OVER ()::int AS waves
FROM sendoff.delivery_wave
WHERE delivery_id = :delivery_id
ORDER BY wave
LIMIT :shown;

-- name: read_expired_deliveries
-- Deliveries under way whose validity is over: recipients that were not tried must be cancelled.
SELECT delivery_id
FROM sendoff.delivery_record
WHERE under_way AND valid_until <= now() AND cancelled_at IS NULL
ORDER BY delivery_id
LIMIT 100;

-- name: read_complete_deliveries
-- All at once: a question for each running delivery would take a scheduler of a thousand deliveries a tick and more.
-- With soft bounces it waits two seconds for the recorder of the last results: the circuit breaker may trip by them,
-- and a finished delivery cannot be resumed.
SELECT d.delivery_id
FROM sendoff.delivery_record d
JOIN sendoff.deployment k ON k.delivery_id = d.delivery_id
WHERE d.running AND NOT d.ending_retries AND k.pending + k.sending + k.retrying <= 0
  AND (k.bounced_soft = 0 OR d.breaker_tripped_at IS NOT NULL OR k.updated_at < now() - interval '2 seconds')
ORDER BY d.delivery_id;

-- name: read_confirmed_delivery
SELECT channel, state FROM sendoff.delivery_record WHERE delivery_id = :delivery_id AND confirmed_at IS NOT NULL;

-- name: read_content
SELECT c.content::text AS content, d.channel
FROM sendoff.delivery_record d
JOIN sendoff.delivery_content c ON c.delivery_id = d.delivery_id AND c.preparation = d.preparation
WHERE d.delivery_id = :delivery_id;

-- name: seconds_since_due
-- By one clock, the database's.
SELECT extract(epoch FROM clock_timestamp() - greatest(confirmed_at, contact_date))::float8
FROM sendoff.delivery_record
WHERE delivery_id = :delivery_id;

-- name: read_excluded_by_cause
SELECT cause, count(*)::int AS excluded
FROM sendoff.exclusion
WHERE delivery_id = :delivery_id
GROUP BY cause
ORDER BY cause;

-- name: read_others
-- What the preflight compares with: the findings of the preparation, the last confirmed delivery of the same label,
-- and the last with the same content within a day. One row, by three indexes.
SELECT d.to_deliver, c.findings, last.delivery_id AS last_id, last.to_deliver AS last_to_deliver,
       same.delivery_id AS same_id, same.confirmed_at AS same_confirmed_at
FROM sendoff.delivery_record d
LEFT JOIN sendoff.delivery_content c ON c.delivery_id = d.delivery_id AND c.preparation = d.preparation
LEFT JOIN LATERAL (
    SELECT o.delivery_id, o.to_deliver
    FROM sendoff.delivery_record o
    WHERE o.label = d.label AND o.channel = d.channel AND o.confirmed_at IS NOT NULL AND o.delivery_id <> d.delivery_id
    ORDER BY o.delivery_id DESC
    LIMIT 1
) last ON true
LEFT JOIN LATERAL (
    SELECT o.delivery_id, o.confirmed_at
    FROM sendoff.delivery_content oc
    JOIN sendoff.delivery_record o ON o.delivery_id = oc.delivery_id AND o.preparation = oc.preparation
    WHERE oc.digest IS NOT NULL AND oc.digest = c.digest AND o.channel = d.channel
      AND o.confirmed_at > now() - interval '1 day' AND o.delivery_id <> d.delivery_id
    ORDER BY o.confirmed_at DESC
    LIMIT 1
) same ON true
WHERE d.delivery_id = :delivery_id;
