-- The accounts: how many recipients of a delivery have which status. The rows of 0002 have the status of
-- each, the counters the numbers.

-- Counters move in the transaction of the outcomes that they count. A delivery has a few rows, one per shard, because
-- one hot row would serialise every commit of every worker; the sum is what counts, so a single row may well be
-- negative. closed counts recipients with a final outcome: a delivery is finished when it counts all
-- recipients.
CREATE TABLE sendoff.delivery_counter (
    delivery_id      bigint NOT NULL REFERENCES sendoff.delivery_record,
    shard            smallint NOT NULL,
    sending          integer NOT NULL DEFAULT 0,
    sent             integer NOT NULL DEFAULT 0,
    bounced_hard     integer NOT NULL DEFAULT 0,
    bounced_soft     integer NOT NULL DEFAULT 0,
    bounced_ignored  integer NOT NULL DEFAULT 0,
    errors           integer NOT NULL DEFAULT 0,
    unknown          integer NOT NULL DEFAULT 0,
    excluded_late    integer NOT NULL DEFAULT 0,
    cancelled        integer NOT NULL DEFAULT 0,
    retrying         integer NOT NULL DEFAULT 0,
    opened           integer NOT NULL DEFAULT 0,
    clicked          integer NOT NULL DEFAULT 0,
    optout           integer NOT NULL DEFAULT 0,
    mirror           integer NOT NULL DEFAULT 0,
    updated_at       timestamptz NOT NULL DEFAULT now(),
    human_opened     integer NOT NULL DEFAULT 0,
    human_clicked    integer NOT NULL DEFAULT 0,
    closed           integer NOT NULL GENERATED ALWAYS AS (
                         sent + bounced_hard + bounced_soft + bounced_ignored + errors + unknown + excluded_late
                         + cancelled) STORED,
    PRIMARY KEY (delivery_id, shard)
) WITH (fillfactor = 20);

-- So many recipients of a delivery went from one status to another. A null `was` is no row: pending, or cancelled where
-- the delivery is. In a cancelled delivery 'retrying' counts as cancelled too. Statuses
-- without a counter, such as 'pending' and 'nothing', are not counted. So a fact is a move from nothing to 'opened'.
-- Drift is a move from pending to the status whose counter is wrong, with a negative number if the counter is too
-- high.
CREATE TYPE sendoff.move AS (was text, status text, recipients integer);

-- Moves the counters of a delivery. Nothing else writes them. Call it once in a statement, with the sums of
-- its rows, so that the counter's row is locked last and for the shortest time. The connection chooses the
-- row: the connections of all workers are spread over all 16. In PL/pgSQL, which plans it once a connection.
CREATE FUNCTION sendoff.count_moves(delivery bigint, moves sendoff.move[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO sendoff.delivery_counter AS c (
        delivery_id, shard, sending, sent, bounced_hard, bounced_soft, bounced_ignored, errors, unknown, excluded_late,
        cancelled, retrying, opened, clicked, optout, mirror, human_opened, human_clicked)
    SELECT delivery, pg_backend_pid() % 16,
           coalesce(sum(k.moved) FILTER (WHERE k.status = 'sending'), 0),
           coalesce(sum(k.moved) FILTER (WHERE k.status = 'sent'), 0),
           coalesce(sum(k.moved) FILTER (WHERE k.status = 'bounced_hard'), 0),
           coalesce(sum(k.moved) FILTER (WHERE k.status = 'bounced_soft'), 0),
           coalesce(sum(k.moved) FILTER (WHERE k.status = 'bounced_ignored'), 0),
           coalesce(sum(k.moved) FILTER (WHERE k.status IN ('error', 'errors')), 0),
           coalesce(sum(k.moved) FILTER (WHERE k.status = 'unknown'), 0),
           coalesce(sum(k.moved) FILTER (WHERE k.status IN ('excluded', 'excluded_late')), 0),
           coalesce(sum(k.moved) FILTER (WHERE k.status = 'cancelled'), 0),
           coalesce(sum(k.moved) FILTER (WHERE k.status = 'retrying'), 0),
           coalesce(sum(k.moved) FILTER (WHERE k.status = 'opened'), 0),
           coalesce(sum(k.moved) FILTER (WHERE k.status = 'clicked'), 0),
           coalesce(sum(k.moved) FILTER (WHERE k.status = 'optout'), 0),
           coalesce(sum(k.moved) FILTER (WHERE k.status = 'mirror'), 0),
           coalesce(sum(k.moved) FILTER (WHERE k.status = 'human_opened'), 0),
           coalesce(sum(k.moved) FILTER (WHERE k.status = 'human_clicked'), 0)
    FROM unnest(moves) m
    CROSS JOIN LATERAL (VALUES
        (m.status, m.recipients),
        (CASE WHEN m.was IS NULL OR m.was = 'retrying'
              THEN coalesce((SELECT 'cancelled' FROM sendoff.delivery_record d
                             WHERE d.delivery_id = delivery AND d.cancelled_at IS NOT NULL), m.was)
              ELSE m.was END, -m.recipients)
    ) k (status, moved)
    WHERE m.status IS DISTINCT FROM m.was
    HAVING bool_or(k.moved <> 0)
    ON CONFLICT (delivery_id, shard) DO UPDATE
    SET sending = c.sending + excluded.sending,
        sent = c.sent + excluded.sent,
        bounced_hard = c.bounced_hard + excluded.bounced_hard,
        bounced_soft = c.bounced_soft + excluded.bounced_soft,
        bounced_ignored = c.bounced_ignored + excluded.bounced_ignored,
        errors = c.errors + excluded.errors,
        unknown = c.unknown + excluded.unknown,
        excluded_late = c.excluded_late + excluded.excluded_late,
        cancelled = c.cancelled + excluded.cancelled,
        retrying = c.retrying + excluded.retrying,
        opened = c.opened + excluded.opened,
        clicked = c.clicked + excluded.clicked,
        optout = c.optout + excluded.optout,
        mirror = c.mirror + excluded.mirror,
        human_opened = c.human_opened + excluded.human_opened,
        human_clicked = c.human_clicked + excluded.human_clicked,
        updated_at = now();
END $$;

-- The account of a delivery by its outcomes, to compare the counters with. Reads every outcome once, wherever it lies
-- (outcome_place) and in parallel. Nearly all are sent, so the sent are computed: all less the others. The
-- others are counted together, with ten digits of one number for each status. That takes 156 ms of processor
-- time a million rows, a GROUP BY 183, a count per status 215. A single SELECT, as the next one is, so that
-- it becomes part of the plan.
CREATE FUNCTION sendoff.recount(delivery bigint) RETURNS TABLE (
    as_of timestamptz, cancelled_at timestamptz, purged boolean, sending bigint, sent bigint, bounced_hard bigint,
    bounced_soft bigint, bounced_ignored bigint, errors bigint, unknown bigint, excluded_late bigint, retrying bigint,
    cancelled bigint
) LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT now(), d.cancelled_at, d.purged_at IS NOT NULL, c.sending,
           o.n - c.sending - c.bounced_hard - c.bounced_soft - c.bounced_ignored - c.errors - c.unknown
               - c.excluded_late - c.retrying,
           c.bounced_hard, c.bounced_soft, c.bounced_ignored, c.errors, c.unknown, c.excluded_late,
           CASE WHEN d.cancelled_at IS NULL THEN c.retrying ELSE 0 END,
           CASE WHEN d.cancelled_at IS NULL THEN 0 ELSE d.to_deliver - (o.n - c.retrying) END
    FROM sendoff.delivery_record d
    CROSS JOIN (
        SELECT count(*) AS n,
               coalesce(sum(CASE k.status WHEN 'sent' THEN NULL WHEN 'sending' THEN 1 WHEN 'bounced_hard' THEN 1e10
                                          WHEN 'bounced_soft' THEN 1e20 WHEN 'bounced_ignored' THEN 1e30
                                          WHEN 'error' THEN 1e40 WHEN 'unknown' THEN 1e50 WHEN 'excluded' THEN 1e60
                                          WHEN 'retrying' THEN 1e70 END), 0) AS others
        FROM sendoff.outcome k
        WHERE k.delivery_id = delivery
    ) o
    CROSS JOIN LATERAL (
        SELECT (o.others % 1e10)::bigint AS sending, (div(o.others, 1e10) % 1e10)::bigint AS bounced_hard,
               (div(o.others, 1e20) % 1e10)::bigint AS bounced_soft,
               (div(o.others, 1e30) % 1e10)::bigint AS bounced_ignored,
               (div(o.others, 1e40) % 1e10)::bigint AS errors, (div(o.others, 1e50) % 1e10)::bigint AS unknown,
               (div(o.others, 1e60) % 1e10)::bigint AS excluded_late, div(o.others, 1e70)::bigint AS retrying
    ) c
    WHERE d.delivery_id = delivery
$$;

-- The same for the tracking facts. Reads each row of a tracked recipient once, in any block
-- (tracked_recipient_place).
CREATE FUNCTION sendoff.recount_tracking(delivery bigint) RETURNS TABLE (
    opened bigint, clicked bigint, optout bigint, mirror bigint, human_opened bigint, human_clicked bigint
) LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT count(*), count(t.clicked_at), count(t.optout_at), count(t.mirror_at), count(t.human_opened_at),
           count(t.human_clicked_at)
    FROM sendoff.tracked_recipient t
    WHERE t.delivery_id = delivery
$$;

-- The lease of claims that were granted together. The holder of the token may hand them over until it
-- expires, and then waits for their results. It is a row for each batch of claims, not a column of each
-- claim, so that expired leases are found without reading outcomes. The row is deleted when none of its
-- claims is open.
CREATE TABLE sendoff.claim_lease (
    token        bigint PRIMARY KEY,
    delivery_id  bigint NOT NULL,
    recipients   integer[] NOT NULL,
    expires_at   timestamptz NOT NULL
);
CREATE INDEX claim_lease_expired ON sendoff.claim_lease (expires_at);
CREATE INDEX claim_lease_delivery ON sendoff.claim_lease (delivery_id);

-- What may be claimed of what is asked for, and who of them is excluded instead, with the cause; nobody where the delivery
-- does not run. Recipients are dense, so that "exists" is a comparison with to_deliver. A scalar sub-select looks one
-- row up, where a join would read the whole quarantine or denylist for each batch. The profile of a recipient
-- is looked up too, unless the channel has no denylist. Sorted here, so that what is looked up is looked up once,
-- and not each time that a statement speaks of it. One SELECT, so that it becomes part of the plan.
CREATE FUNCTION sendoff.judge_claims(
    delivery bigint, numbers integer[], attempts smallint[], address_keys text[]
) RETURNS TABLE (recipient integer, attempt smallint, cause text, denied text) LANGUAGE sql STABLE AS $$
    SELECT a.recipient, a.attempt,
           (SELECT q.cause
            FROM sendoff.quarantined_address q
            WHERE q.channel = d.channel AND q.address_key = a.address_key),
           CASE WHEN (SELECT true
                      FROM sendoff.denylisted_profile y
                      WHERE y.channel = (SELECT c.channel FROM sendoff.delivery_record c WHERE c.delivery_id = delivery)
                      LIMIT 1)
                THEN (SELECT x.cause
                      FROM sendoff.denylisted_profile x
                      WHERE x.channel = d.channel
                        AND x.profile_id = (SELECT r.profile_id FROM sendoff.recipient r
                                            WHERE r.delivery_id = delivery AND r.recipient = a.recipient))
           END
    FROM unnest(numbers, attempts, address_keys) AS a (recipient, attempt, address_key)
    JOIN sendoff.delivery_record d ON d.delivery_id = delivery AND a.recipient <= d.to_deliver
    WHERE d.running AND d.valid_until > now() AND d.cancelled_at IS NULL
    ORDER BY a.recipient
$$;

-- Marks claims as handed over, just before a relay can have the message, and returns the recipients that it
-- marked. The others must not be sent to: the lease expires soon, another sender has the claim, or the
-- delivery does not run. A repeat marks the same: the answer to a commit may have been lost. It is a
-- function, because the lock must be held before the next statement reads whether the delivery runs: after a
-- stop is answered nothing is handed over. It takes one round trip instead of four.
CREATE FUNCTION sendoff.hand_over(delivery bigint, numbers integer[], tokens bigint[], margin interval)
RETURNS integer[] LANGUAGE plpgsql AS $$
DECLARE
    marked integer[] := '{}';
BEGIN
    PERFORM pg_advisory_xact_lock_shared(delivery);
    IF NOT EXISTS (SELECT FROM sendoff.delivery_record d
                   WHERE d.delivery_id = delivery AND d.running AND d.cancelled_at IS NULL AND d.valid_until > now()) THEN
        RETURN marked;
    END IF;
    -- One by one, by the whole key: of many, a plan that was made while the table was empty would read the delivery.
    FOR i IN 1 .. cardinality(numbers) LOOP
        UPDATE sendoff.outcome o
        SET handed_over_at = coalesce(o.handed_over_at, now())
        WHERE o.delivery_id = delivery AND o.recipient = numbers[i] AND o.status = 'sending' AND o.claim_token = tokens[i]
          AND (SELECT l.expires_at > now() + margin FROM sendoff.claim_lease l WHERE l.token = tokens[i]);
        IF FOUND THEN
            marked := marked || numbers[i];
        END IF;
    END LOOP;
    RETURN marked;
END $$;

-- The status of a recipient that waits for a retry that will not come: the fact of its precedence
-- (worker/domain/outcomes.py) is now the outcome, as it is for a later result. A bare expression, as the next
-- one is, so that it becomes part of the plan.
CREATE FUNCTION sendoff.status_of(precedence integer) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE precedence % 16 WHEN 1 THEN 'unknown' WHEN 2 THEN 'error' ELSE 'bounced_soft' END
$$;

-- The status of a recipient as the views show it, where cancelled_at is the delivery's; without a row there is none.
CREATE FUNCTION sendoff.shown_status(status text, cancelled_at timestamptz) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN status IS NULL THEN CASE WHEN cancelled_at IS NULL THEN 'pending' ELSE 'cancelled' END
                WHEN status = 'retrying' AND cancelled_at IS NOT NULL THEN 'cancelled'
                WHEN status LIKE 'bounced%' THEN 'bounced'
                ELSE status END
$$;
