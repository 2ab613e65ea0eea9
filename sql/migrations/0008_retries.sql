-- Retries: how often a recipient of a delivery may be tried, and who waits for the next attempt.
ALTER TABLE sendoff.delivery_record ADD COLUMN max_attempts smallint CHECK (max_attempts > 0);

-- Few rows wait for a retry. On retry_at, and not on the status, which changes with every outcome: an outcome that
-- leaves retry_at alone stays on its page (HOT), as before.
CREATE INDEX outcome_retry ON sendoff.outcome (delivery_id, recipient) WHERE retry_at IS NOT NULL;
