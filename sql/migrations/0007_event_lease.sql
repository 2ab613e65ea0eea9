-- Events are leased while they are published, as pages are: no transaction stays open meanwhile.

ALTER TABLE sendoff.event ADD COLUMN leased_until timestamptz;
