-- Where a delivery lies, four times as fine. Vacuum leaves room in pages all over the table, and each that takes a row
-- of a new delivery has its whole range read: of a million recipients among eight, 145 such pages had 9,000 read beside
-- its own 28,000, and with 16 pages in a range 2,300. A recount takes 98 ms instead of 113.
DROP INDEX sendoff.outcome_place;
CREATE INDEX outcome_place ON sendoff.outcome USING brin (delivery_id) WITH (pages_per_range = 16);
DROP INDEX sendoff.tracked_recipient_place;
CREATE INDEX tracked_recipient_place ON sendoff.tracked_recipient USING brin (delivery_id) WITH (pages_per_range = 16);
