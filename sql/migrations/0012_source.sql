-- A delivery whose audience comes out of the outcomes of another names it.
-- works with code from: 5

ALTER TABLE sendoff.delivery_record ADD COLUMN source_delivery_id bigint, ADD COLUMN source_criterion text;

CREATE OR REPLACE VIEW sendoff.delivery AS
SELECT d.delivery_id, d.label, d.channel, d.state, d.state_reason, d.preparation, d.to_deliver, d.excluded,
       d.contact_date, d.time_zone, d.valid_for, d.valid_until, d.created_by, d.created_at, d.prepared_at,
       d.confirmed_by, d.confirmed_at, d.started_at, d.finished_at, d.cancelled_at, d.updated_at, d.purged_at,
       CASE WHEN sendoff.first_approval_counts(d) THEN d.first_approval_by END AS first_approval_by,
       CASE WHEN sendoff.first_approval_counts(d) THEN d.first_approval_at END AS first_approval_at,
       CASE WHEN sendoff.first_approval_counts(d) THEN d.first_approval_until END AS first_approval_until,
       d.source_delivery_id, d.source_criterion
FROM sendoff.delivery_record d;

COMMENT ON COLUMN sendoff.delivery.source_delivery_id IS
    'The delivery out of whose outcomes its audience came; null where it came from a file.';
COMMENT ON COLUMN sendoff.delivery.source_criterion IS
    'Who of them: failed, unknown, soft, not-opened, not-clicked or clicked=URL, with “, persons” where machines did not count.';
