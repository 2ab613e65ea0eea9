-- What senders hold back now: the reports of the processes.

-- name: report_lanes
-- All lanes of a process that are held back; those that it does not name any more are deleted, and what processes that
-- are gone have left for an hour.
WITH gone AS (
    DELETE FROM sendoff.lane_report
    WHERE (owner = :owner AND channel = :channel
           AND (relay, domain) NOT IN (SELECT * FROM unnest(:relays::text[], :domains::text[])))
       OR reported_at < now() - interval '1 hour'
)
INSERT INTO sendoff.lane_report AS r (owner, channel, relay, domain, connections, per_minute, deferred_until, why)
SELECT :owner, :channel, l.relay, l.domain, l.connections, l.per_minute,
       CASE WHEN l.pause > 0 THEN now() + l.pause * interval '1 second' END, l.why
FROM unnest(:relays::text[], :domains::text[], :connections::int[], :rates::float8[], :pauses::float8[], :whys::text[])
     AS l (relay, domain, connections, per_minute, pause, why)
ORDER BY l.relay, l.domain
ON CONFLICT (owner, channel, relay, domain) DO UPDATE
SET connections = excluded.connections, per_minute = excluded.per_minute, deferred_until = excluded.deferred_until,
    why = excluded.why, reported_at = now();

-- name: read_flow
SELECT channel, relay, domain, processes, connections, per_minute, deferred_until, why, reported_at
FROM sendoff.domain_flow
ORDER BY deferred_until DESC NULLS LAST, channel, relay, domain;

-- name: lease_messages
-- A bucket for each limit: it fills with time, and holds what two seconds bring, one message at least. So no burst
-- follows a calm or an outage. Rows are locked by name; the time is read after the lock was had.
WITH asked AS (
    SELECT * FROM unnest(:names::text[], :rates::int[], :counts::int[]) AS a (name, per_minute, count)
), made AS (
    INSERT INTO sendoff.message_budget (name) SELECT name FROM asked ORDER BY name
    ON CONFLICT DO NOTHING
), locked AS MATERIALIZED (
    SELECT b.name, b.available, b.refilled_at, a.per_minute, a.count
    FROM sendoff.message_budget b
    JOIN asked a ON a.name = b.name
    ORDER BY b.name
    FOR NO KEY UPDATE OF b
), filled AS MATERIALIZED (
    SELECT name, count, t.at,
           least(available + greatest(extract(epoch FROM t.at - refilled_at), 0) * per_minute / 60,
                 greatest(per_minute / 30.0, 1)) AS available
    FROM locked, LATERAL (SELECT clock_timestamp() AS at OFFSET 0) t
)
UPDATE sendoff.message_budget b
SET available = f.available - least(floor(f.available), f.count), refilled_at = f.at
FROM filled f
WHERE b.name = f.name
RETURNING b.name, least(floor(f.available), f.count)::int AS granted;

-- name: lease_connections
-- All processes that use a limit have the same part of it, but for what the division leaves: that is for those whose names come
-- first. A process that is new gets nothing at first, and nobody more than the others have left: so there are never more
-- connections than the limit, also while parts change. A part that is not leased again within four seconds is free.
WITH asked AS (
    SELECT * FROM unnest(:names::text[], :limits::int[]) AS a (name, most)
), gone AS (
    DELETE FROM sendoff.connection_lease WHERE expires_at < now() - interval '1 hour'
), live AS MATERIALIZED (
    SELECT l.name, l.owner, l.granted
    FROM sendoff.connection_lease l
    WHERE l.name = ANY (:names) AND l.expires_at > now()
    ORDER BY l.name, l.owner
    FOR NO KEY UPDATE
), parts AS (
    SELECT a.name,
           CASE WHEN count(*) FILTER (WHERE l.owner = :owner) = 0 THEN 0
                ELSE greatest(least(
                    a.most / count(*)
                        + CASE WHEN count(*) FILTER (WHERE l.owner < :owner) < a.most % count(*) THEN 1 ELSE 0 END,
                    a.most - coalesce(sum(l.granted) FILTER (WHERE l.owner <> :owner), 0)), 0)
           END::int AS granted
    FROM asked a
    LEFT JOIN live l ON l.name = a.name
    GROUP BY a.name, a.most
)
INSERT INTO sendoff.connection_lease AS c (name, owner, granted, expires_at)
SELECT name, :owner, granted, clock_timestamp() + interval '4 seconds' FROM parts ORDER BY name
ON CONFLICT (name, owner) DO UPDATE SET granted = excluded.granted, expires_at = excluded.expires_at
RETURNING c.name, c.granted;
