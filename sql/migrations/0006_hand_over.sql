-- Hand-overs are marked in the lease of their claims, in one row for all that are marked together. A mark in each
-- outcome took 29 µs of the server a mail.

ALTER TABLE sendoff.claim_lease
    -- Those of recipients that a relay may have, or, where the claim itself is the hand-over, all that are claimed.
    ADD COLUMN handed_over integer[] NOT NULL DEFAULT '{}',
    ADD COLUMN handed_over_at timestamptz,
    -- The claims that were not handed over were given back: nothing more is handed over under this token.
    ADD COLUMN given_back boolean NOT NULL DEFAULT false;
-- Marks stay on their page (HOT). recipients, which does not change, leaves a row that grows over 2 kB.
ALTER TABLE sendoff.claim_lease SET (fillfactor = 30);
ALTER TABLE sendoff.claim_lease ALTER COLUMN recipients SET STORAGE EXTERNAL;

-- The senders that still hold these claims give them back.
UPDATE sendoff.claim_lease SET given_back = true;
UPDATE sendoff.claim_lease l
SET handed_over = m.recipients, handed_over_at = m.last
FROM (SELECT k.token, array_agg(o.recipient) AS recipients, max(o.handed_over_at) AS last
      FROM sendoff.claim_lease k
      JOIN sendoff.outcome o ON o.delivery_id = k.delivery_id AND o.recipient = ANY (k.recipients)
                            AND o.claim_token = k.token AND o.handed_over_at IS NOT NULL
      GROUP BY k.token) m
WHERE l.token = m.token;

-- The same view: it named every column of the table, also the one that goes.
CREATE OR REPLACE VIEW sendoff.profile_history AS
SELECT r.profile_id, r.delivery_id, r.recipient, d.label, d.channel, d.state, r.address,
       sendoff.shown_status(o.status, d.cancelled_at) AS status,
       coalesce(o.attempt, 0) AS attempt,
       CASE WHEN o.status LIKE 'bounced%' THEN substr(o.status, 9) END AS bounce_kind,
       o.claimed_at, o.sent_at, o.bounced_at, o.error_at, o.unknown_at, o.retry_at, o.reason, o.code, o.reply,
       o.excluded_at, t.opened_at, t.human_opened_at, t.clicked_at, t.human_clicked_at, t.mirror_at, t.optout_at,
       coalesce(o.bounced_at, o.sent_at, o.error_at, o.unknown_at, o.retry_at, o.excluded_at, o.claimed_at) AS at
FROM sendoff.recipient r
CROSS JOIN LATERAL (
    SELECT k.label, k.channel, k.state, k.cancelled_at
    FROM sendoff.delivery_record k
    WHERE k.delivery_id = r.delivery_id
    OFFSET 0
) d
LEFT JOIN LATERAL (
    SELECT k.status, k.attempt, k.claimed_at, k.sent_at, k.bounced_at, k.error_at, k.unknown_at, k.retry_at, k.reason,
           k.code, k.reply, k.excluded_at
    FROM sendoff.outcome k
    WHERE k.delivery_id = r.delivery_id AND k.recipient = r.recipient
    OFFSET 0
) o ON true
LEFT JOIN LATERAL (
    SELECT k.opened_at, k.human_opened_at, k.clicked_at, k.human_clicked_at, k.mirror_at, k.optout_at
    FROM sendoff.tracked_recipient k
    WHERE k.delivery_id = r.delivery_id AND k.recipient = r.recipient
    OFFSET 0
) t ON true
WHERE r.profile_id IS NOT NULL;

ALTER TABLE sendoff.outcome DROP COLUMN handed_over_at;

-- Marks claims as handed over, just before a relay can have the message, and returns the recipients that it
-- marked. The others must not be sent to: the lease expires soon, another sender may have the claim, or the
-- delivery does not run. A repeat marks the same: the answer to a commit may have been lost. It is a
-- function, because the lock must be held before the next statement reads whether the delivery runs: after a
-- stop is answered nothing is handed over. It takes one round trip instead of four.
CREATE OR REPLACE FUNCTION sendoff.hand_over(delivery bigint, numbers integer[], tokens bigint[], margin interval)
RETURNS integer[] LANGUAGE plpgsql AS $$
DECLARE
    marked integer[] := '{}';
    asked record;
BEGIN
    PERFORM pg_advisory_xact_lock_shared(delivery);
    IF NOT EXISTS (SELECT FROM sendoff.delivery_record d
                   WHERE d.delivery_id = delivery AND d.running AND d.cancelled_at IS NULL AND d.valid_until > now()) THEN
        RETURN marked;
    END IF;
    FOR asked IN SELECT a.token, array_agg(a.number) AS numbers FROM unnest(numbers, tokens) AS a (number, token)
                 GROUP BY a.token ORDER BY a.token LOOP
        UPDATE sendoff.claim_lease l
        SET handed_over = l.handed_over || asked.numbers, handed_over_at = now()
        WHERE l.token = asked.token AND NOT l.given_back AND l.expires_at > now() + margin;
        IF FOUND THEN
            marked := marked || asked.numbers;
        END IF;
    END LOOP;
    RETURN marked;
END $$;
