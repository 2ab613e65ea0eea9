-- How many a preparation left out, by cause: asked by every confirmation and every compute stats, and answered from
-- the index alone.
CREATE INDEX exclusion_delivery_cause ON sendoff.exclusion (delivery_id, cause);
