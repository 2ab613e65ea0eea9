-- Suppression: each entry of the quarantine and of the denylist says why, by which delivery, until when, and who added
-- it; and errors of an address are counted until they are enough for the quarantine.
-- works with code from: 5

ALTER TABLE sendoff.quarantined_address
    ADD COLUMN reason text, ADD COLUMN delivery_id bigint, ADD COLUMN expires_at timestamptz, ADD COLUMN added_by text;
ALTER TABLE sendoff.denylisted_profile
    ADD COLUMN reason text, ADD COLUMN delivery_id bigint, ADD COLUMN expires_at timestamptz, ADD COLUMN added_by text;
-- The scheduler deletes what has expired, so that claims need not look at a time.
CREATE INDEX quarantined_address_expiry ON sendoff.quarantined_address (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX denylisted_profile_expiry ON sendoff.denylisted_profile (expires_at) WHERE expires_at IS NOT NULL;

-- The entries that a delivery caused.
CREATE INDEX quarantined_address_delivery ON sendoff.quarantined_address (delivery_id) WHERE delivery_id IS NOT NULL;
CREATE INDEX denylisted_profile_delivery ON sendoff.denylisted_profile (delivery_id) WHERE delivery_id IS NOT NULL;

-- Addresses with soft errors that are the recipient's fault (worker/domain/suppression.py). A row that is older than
-- the rule looks back is deleted, so the table stays small.
CREATE TABLE sendoff.failing_address (
    channel        text NOT NULL,
    address_key    text NOT NULL,
    address        text NOT NULL,
    errors         integer NOT NULL,
    reason         text,
    last_error_at  timestamptz NOT NULL,
    PRIMARY KEY (channel, address_key)
);
CREATE INDEX failing_address_age ON sendoff.failing_address (last_error_at);

-- When the successes of a delivery were looked through for addresses that had failed before: once, a day after its end,
-- since what a relay took may come back. Of a whole delivery at once, because that costs a result nothing.
ALTER TABLE sendoff.delivery_record ADD COLUMN successes_at timestamptz;
CREATE INDEX delivery_record_successes ON sendoff.delivery_record (finished_at)
    WHERE successes_at IS NULL AND finished_at IS NOT NULL;

CREATE OR REPLACE VIEW sendoff.quarantine AS
SELECT channel, address, cause, since, reason, delivery_id, expires_at, added_by
FROM sendoff.quarantined_address;

COMMENT ON COLUMN sendoff.quarantine.cause IS
    'Why, as a word: hard_bounce, soft_bounce, mailbox_full, optout, complaint, or as an operator said.';
COMMENT ON COLUMN sendoff.quarantine.reason IS 'The reason of the last bounce, or the operator''s own words.';
COMMENT ON COLUMN sendoff.quarantine.delivery_id IS 'The delivery that brought it here; null where an operator did.';
COMMENT ON COLUMN sendoff.quarantine.expires_at IS 'Until when; null for no end.';
COMMENT ON COLUMN sendoff.quarantine.added_by IS 'The operator who added it; null where a rule did.';

CREATE OR REPLACE VIEW sendoff.denylist AS
SELECT channel, profile_id, cause, since, reason, delivery_id, expires_at, added_by
FROM sendoff.denylisted_profile;

COMMENT ON COLUMN sendoff.denylist.cause IS 'Why, as a word: optout, complaint, or as an operator said.';
COMMENT ON COLUMN sendoff.denylist.reason IS 'The operator''s own words.';
COMMENT ON COLUMN sendoff.denylist.delivery_id IS 'The delivery that brought it here; null where an operator did.';
COMMENT ON COLUMN sendoff.denylist.expires_at IS 'Until when; null for no end.';
COMMENT ON COLUMN sendoff.denylist.added_by IS 'The operator who added it; null where an event did.';

CREATE VIEW sendoff.suppression AS
SELECT channel, 'quarantine' AS list, cause, count(*) AS entries, max(since) AS newest, min(expires_at) AS next_expiry
FROM sendoff.quarantined_address
GROUP BY channel, cause
UNION ALL
SELECT channel, 'denylist', cause, count(*), max(since), min(expires_at)
FROM sendoff.denylisted_profile
GROUP BY channel, cause;

COMMENT ON VIEW sendoff.suppression IS 'How many are not written to, by channel, list and cause.';
COMMENT ON COLUMN sendoff.suppression.channel IS 'The channel.';
COMMENT ON COLUMN sendoff.suppression.list IS 'quarantine (of addresses) or denylist (of profiles).';
COMMENT ON COLUMN sendoff.suppression.cause IS 'As in that list.';
COMMENT ON COLUMN sendoff.suppression.entries IS 'How many entries there are.';
COMMENT ON COLUMN sendoff.suppression.newest IS 'When the newest was added.';
COMMENT ON COLUMN sendoff.suppression.next_expiry IS 'When the next of them expires; null where none does.';
