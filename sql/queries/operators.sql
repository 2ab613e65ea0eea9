-- The directory of operators.

-- name: share_operator
-- Runs before read_operator, as a statement of its own: a revocation waits for the command that uses the
-- role, or comes first. After we waited for a revocation, only a later statement sees it.
SELECT name FROM sendoff.operator WHERE name = :name FOR SHARE;

-- name: read_operator
SELECT o.name, o.active,
       ARRAY(SELECT r.role FROM sendoff.operator_role r WHERE r.operator = o.name ORDER BY r.role) AS roles
FROM sendoff.operator o
WHERE o.name = :name;

-- name: add_operator
INSERT INTO sendoff.operator (name) VALUES (:name)
ON CONFLICT (name) DO NOTHING
RETURNING name;

-- name: lock_operator
-- Taken by grant and revoke before they touch the roles: the other side of share_operator.
SELECT name FROM sendoff.operator WHERE name = :name FOR UPDATE;

-- name: grant_role
INSERT INTO sendoff.operator_role (operator, role) VALUES (:name, :role)
ON CONFLICT (operator, role) DO NOTHING
RETURNING role;

-- name: revoke_role
DELETE FROM sendoff.operator_role WHERE operator = :name AND role = :role
RETURNING role;

-- name: set_operator_active
UPDATE sendoff.operator SET active = :active WHERE name = :name AND active <> :active
RETURNING name;

-- name: list_operators
SELECT o.name, o.active, o.created_at,
       ARRAY(SELECT r.role FROM sendoff.operator_role r WHERE r.operator = o.name ORDER BY r.role) AS roles
FROM sendoff.operator o
ORDER BY o.name;
