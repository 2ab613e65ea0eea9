-- Who stands for a delivery that has yet to start: who confirmed it, or resumed it last. Their right is looked at
-- again when it starts; it came from the directory, or from a token, whose roles the directory does not know.
ALTER TABLE sendoff.delivery_record
    ADD COLUMN authorised_by text,
    ADD COLUMN authorised_by_token boolean NOT NULL DEFAULT false;
UPDATE sendoff.delivery_record SET authorised_by = confirmed_by WHERE confirmed_by IS NOT NULL;
