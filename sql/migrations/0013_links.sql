-- works with code from: 5

-- The tracked links of each delivery's content, by number. target is the template of where it leads, in the language of
-- part; a token names the number, so that a link can lead nowhere else. Few rows and no data of persons: retention keeps
-- them, so that a link in an old message still leads somewhere.
CREATE TABLE sendoff.link (
    delivery_id  bigint NOT NULL REFERENCES sendoff.delivery_record,
    preparation  integer NOT NULL,
    number       integer NOT NULL CHECK (number > 0),
    part         text NOT NULL CHECK (part IN ('html', 'text')),
    target       text NOT NULL,
    PRIMARY KEY (delivery_id, preparation, number)
);
