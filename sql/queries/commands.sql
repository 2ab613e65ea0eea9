-- Commands and their recorded answers.

-- name: lock_command
-- If the broker delivers a command twice, the two executions take turns: the second finds the answer of the
-- first. The lock's key is a hash of the id, apart from the ids of deliveries, which are positive.
SELECT pg_advisory_xact_lock(-1 - abs(hashtextextended(:command_id, 0) / 2));

-- name: limit_lock_waits
-- Until the transaction ends: one delivery that is held up must not hold a connection for long.
SELECT set_config('lock_timeout', :milliseconds, true);

-- name: read_answer
SELECT command, publisher, body, reply::text AS reply FROM sendoff.command WHERE command_id = :command_id;

-- name: record_answer
INSERT INTO sendoff.command (command_id, command, delivery_id, operator, publisher, body, status, reason, reply)
VALUES (:command_id, :command, :delivery_id, :operator, :publisher, :body, :status, :reason, :reply::json);

-- name: conclude_answer
-- Of a command that waits for somebody outside, such as a relay: it is recorded when it begins, so that it is not
-- carried out twice, and gets its answer when that is known.
UPDATE sendoff.command SET status = :status, reason = :reason, reply = :reply::json WHERE command_id = :command_id;
