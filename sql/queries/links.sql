-- Links: where they lead, for the tracker, which keeps what it has read.

-- name: read_tracked_delivery
-- Whether its events count, and the links of what was prepared last. One row, as long as there is a delivery.
SELECT d.confirmed_at IS NOT NULL AS confirmed, l.numbers, l.parts, l.targets
FROM sendoff.delivery_record d
LEFT JOIN LATERAL (
    SELECT array_agg(k.number ORDER BY k.number) AS numbers, array_agg(k.part ORDER BY k.number) AS parts,
           array_agg(k.target ORDER BY k.number) AS targets
    FROM sendoff.link k
    WHERE k.delivery_id = :delivery_id AND k.preparation = d.preparation
) l ON true
WHERE d.delivery_id = :delivery_id;

-- name: read_link_variables
-- What one recipient's links are filled in with. Erased recipients have no data.
SELECT address, variables::text AS variables
FROM sendoff.recipient
WHERE delivery_id = :delivery_id AND recipient = :recipient AND address <> '';
