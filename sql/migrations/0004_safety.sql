-- The circuit breaker, and the profiles that are written to no more.

-- Limits of its own; where there are none, those of the settings hold. It trips once: who resumes the delivery
-- has seen the figures.
ALTER TABLE sendoff.delivery_record
    ADD COLUMN breaker_minimum integer CHECK (breaker_minimum >= 0),
    ADD COLUMN hard_bounce_pct float8 CHECK (hard_bounce_pct BETWEEN 0 AND 100),
    ADD COLUMN error_pct float8 CHECK (error_pct BETWEEN 0 AND 100),
    ADD COLUMN breaker_tripped_at timestamptz;

-- Persons, where quarantined_address is about mailboxes: an opt-out holds for every address of the profile.
CREATE TABLE sendoff.denylisted_profile (
    channel     text NOT NULL,
    profile_id  text NOT NULL,
    cause       text NOT NULL,
    since       timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (channel, profile_id)
);

CREATE VIEW sendoff.denylist AS
SELECT channel, profile_id, cause, since
FROM sendoff.denylisted_profile;
COMMENT ON VIEW sendoff.denylist IS 'Profiles that are not written to on a channel, with the cause.';
