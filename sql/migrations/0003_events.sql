-- Events: the outbox. A row is written with the move that it tells of, in one statement, and deleted once the
-- broker has confirmed it; what happened stays in delivery_transition. Moves of one delivery take turns at its
-- row, so their numbers rise in the order of their commits.

ALTER TABLE sendoff.delivery_transition ADD COLUMN figures json;

CREATE TABLE sendoff.event (
    delivery_id  bigint NOT NULL,
    number       bigint NOT NULL,
    event        text NOT NULL,
    PRIMARY KEY (delivery_id, number),
    FOREIGN KEY (delivery_id, number) REFERENCES sendoff.delivery_transition
);
