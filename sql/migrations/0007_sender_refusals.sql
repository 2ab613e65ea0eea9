-- Refusals that blame the sender: the circuit breaker counts them, and gives them back when it trips by them.

-- The breaker's limit for this delivery; NULL uses that of the settings. And whether it tripped by such refusals:
-- until a resume, they count as not tried.
ALTER TABLE sendoff.delivery_record
    ADD COLUMN refused_pct float8 CHECK (refused_pct BETWEEN 0 AND 100),
    ADD COLUMN spares_refused boolean NOT NULL DEFAULT false;

-- How many attempts of a recipient do not count, since the sender was at fault.
ALTER TABLE sendoff.outcome ADD COLUMN spared smallint NOT NULL DEFAULT 0;

-- Finds the refusals that blame the sender; there are few, or the delivery pauses. Not on the status, which changes with
-- every outcome: see outcome_exception.
CREATE INDEX outcome_refused ON sendoff.outcome (delivery_id, recipient) WHERE fault = 'sender';
