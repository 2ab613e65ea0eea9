-- Commands and their recorded answers.

-- name: lock_command
-- Two deliveries of one command take turns: the second finds the answer of the first. The lock is on a hash
-- of the id, beside the ids of deliveries, which are positive.
SELECT pg_advisory_xact_lock(-1 - abs(hashtextextended($1, 0) / 2));

-- name: read_answer
SELECT command, publisher, body, reply::text AS reply FROM sendoff.command WHERE command_id = $1;

-- name: record_answer
INSERT INTO sendoff.command (command_id, command, delivery_id, operator, publisher, body, status, reason, reply)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9::json);
