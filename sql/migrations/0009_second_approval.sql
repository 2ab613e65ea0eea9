-- Two approvals: a delivery to many recipients starts after the OK of two operators. The first is kept here until the
-- second comes, and after it. It lapses by its time, by another preparation, or when its operator loses the right.
-- works with code from: 7

ALTER TABLE sendoff.delivery_record
    ADD COLUMN first_approval_by text,
    ADD COLUMN first_approval_by_token boolean,
    ADD COLUMN first_approval_preparation integer,
    ADD COLUMN first_approval_at timestamptz,
    ADD COLUMN first_approval_until timestamptz,
    ADD CONSTRAINT first_approval_whole CHECK (num_nulls(
        first_approval_by, first_approval_by_token, first_approval_preparation, first_approval_at,
        first_approval_until) IN (0, 5));

CREATE FUNCTION sendoff.first_approval_counts(d sendoff.delivery_record) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT d.first_approval_preparation = d.preparation
           AND (d.confirmed_at IS NOT NULL OR (d.state = 'ready' AND d.first_approval_until > now()))
$$;

-- As in 0004, with the first OK at the end, as long as it counts.
CREATE OR REPLACE VIEW sendoff.delivery AS
SELECT d.delivery_id, d.label, d.channel, d.state, d.state_reason, d.preparation, d.to_deliver, d.excluded,
       d.contact_date, d.time_zone, d.valid_for, d.valid_until, d.created_by, d.created_at, d.prepared_at,
       d.confirmed_by, d.confirmed_at, d.started_at, d.finished_at, d.cancelled_at, d.updated_at, d.purged_at,
       CASE WHEN sendoff.first_approval_counts(d) THEN d.first_approval_by END AS first_approval_by,
       CASE WHEN sendoff.first_approval_counts(d) THEN d.first_approval_at END AS first_approval_at,
       CASE WHEN sendoff.first_approval_counts(d) THEN d.first_approval_until END AS first_approval_until
FROM sendoff.delivery_record d;

COMMENT ON COLUMN sendoff.delivery.first_approval_by IS
    'Where two operators must confirm it: who gave the first OK; null before, and after it lapsed.';
COMMENT ON COLUMN sendoff.delivery.first_approval_at IS 'When that was.';
COMMENT ON COLUMN sendoff.delivery.first_approval_until IS 'Until when another operator could give the second.';
