-- The accounts: how many recipients of a delivery stand where. The rows of 0002 say it of each, the counters of all.

-- Counters move in the transaction of the outcomes that they count. A delivery has a few rows, one per shard, because
-- one hot row would serialise every commit of every worker; the sum is what counts, so a single row may well be
-- negative. closed are those of whom nothing is open any more: a delivery is finished when they are all.
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
-- the delivery is. What has no counter, as 'pending' and 'nothing', is not counted: so a fact is a move from nothing to
-- 'opened', and drift one from pending to where it is missing, of a negative number where there is too much.
CREATE TYPE sendoff.move AS (was text, status text, recipients integer);

-- Moves the counters of a delivery; nothing else writes them. To be called once in a statement, with what its rows came
-- to, so that the counter's row is locked last and for the shortest time. Which row hangs on the connection: at any
-- moment the connections of all workers are spread over all 16. In PL/pgSQL, which plans it once a connection.
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
        (coalesce(m.was, (SELECT 'cancelled' FROM sendoff.delivery_record d
                          WHERE d.delivery_id = delivery AND d.cancelled_at IS NOT NULL)), -m.recipients)
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

-- What becomes of somebody who waits for a retry that will not come: the fact that the precedence stands for
-- (worker/domain/outcomes.py) is the outcome now, as it is for a result that comes later. A bare expression, as the
-- next one is, so that it becomes part of the plan.
CREATE FUNCTION sendoff.standing_status(precedence integer) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE precedence % 16 WHEN 1 THEN 'unknown' WHEN 2 THEN 'error' ELSE 'bounced_soft' END
$$;

-- The status of a recipient as the views show it, where cancelled_at is the delivery's; without a row there is none.
CREATE FUNCTION sendoff.shown_status(status text, cancelled_at timestamptz) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN status IS NULL THEN CASE WHEN cancelled_at IS NULL THEN 'pending' ELSE 'cancelled' END
                WHEN status = 'retrying' AND cancelled_at IS NOT NULL THEN 'cancelled'
                WHEN status LIKE 'bounced%' THEN 'bounced'
                ELSE status END
$$;
