-- works with code from: 9
-- What the preflight found in a content, and by what the same content is known again.
ALTER TABLE sendoff.delivery_content ADD COLUMN findings json, ADD COLUMN digest bytea;
COMMENT ON COLUMN sendoff.delivery_content.findings IS
    'What the preparation found, as a list of check and message; null if an older version prepared it.';
COMMENT ON COLUMN sendoff.delivery_content.digest IS
    'SHA-256 of the content as it is stored; null without a content, or if an older version prepared it.';

-- For the preflight: deliveries with the same content, and the last of a label. Few rows a day.
CREATE INDEX delivery_content_digest ON sendoff.delivery_content (digest) WHERE digest IS NOT NULL;
CREATE INDEX delivery_record_label ON sendoff.delivery_record (label, delivery_id) WHERE confirmed_at IS NOT NULL;
