-- Waves, the limit of the throughput, and how late a delivery may start.

ALTER TABLE sendoff.delivery_record
    ADD COLUMN late_limit interval CHECK (late_limit > '0'),
    ADD COLUMN messages_per_hour integer CHECK (messages_per_hour > 0);

-- Recipients are numbered in the order in which they are due, so that a wave is a range. A wave is due at a
-- time of its own, or so long after the start. A delivery without rows here is due as a whole at the start.
CREATE TABLE sendoff.delivery_wave (
    delivery_id  bigint NOT NULL REFERENCES sendoff.delivery_record,
    wave         integer NOT NULL CHECK (wave > 0),
    first        integer NOT NULL CHECK (first > 0),
    last         integer NOT NULL,
    due_at       timestamptz,
    due_after    interval,
    PRIMARY KEY (delivery_id, wave),
    CHECK (last >= first),
    CHECK ((due_at IS NULL) <> (due_after IS NULL))
);

-- The pace of a delivery with a limit: no page is leased before next_at. It moves with every page, so it is
-- no column of delivery_record, which commands lock.
CREATE TABLE sendoff.delivery_pace (
    delivery_id  bigint PRIMARY KEY REFERENCES sendoff.delivery_record,
    page_size    integer NOT NULL CHECK (page_size > 0),
    next_at      timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);

CREATE VIEW sendoff.wave AS
SELECT w.delivery_id, w.wave, w.first, w.last, w.last - w.first + 1 AS recipients,
       coalesce(w.due_at, coalesce(d.started_at, d.contact_date) + w.due_after) AS due_at, w.due_after
FROM sendoff.delivery_wave w
JOIN sendoff.delivery_record d ON d.delivery_id = w.delivery_id;
COMMENT ON VIEW sendoff.wave IS
    'The waves of a delivery: ranges of recipients and when they are due; due_after is counted from the start.';
