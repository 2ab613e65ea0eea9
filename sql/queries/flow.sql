-- What senders hold back now: the reports of the processes.

-- name: report_lanes
-- All lanes of a process that are held back; those that it does not name any more are deleted, and what processes that
-- are gone have left for an hour.
WITH gone AS (
    DELETE FROM sendoff.lane_report
    WHERE (owner = :owner AND channel = :channel AND domain <> ALL (:domains::text[]))
       OR reported_at < now() - interval '1 hour'
)
INSERT INTO sendoff.lane_report AS r (owner, channel, domain, connections, per_minute, deferred_until, why)
SELECT :owner, :channel, l.domain, l.connections, l.per_minute,
       CASE WHEN l.pause > 0 THEN now() + l.pause * interval '1 second' END, l.why
FROM unnest(:domains::text[], :connections::int[], :rates::float8[], :pauses::float8[], :whys::text[])
     AS l (domain, connections, per_minute, pause, why)
ORDER BY l.domain
ON CONFLICT (owner, channel, domain) DO UPDATE
SET connections = excluded.connections, per_minute = excluded.per_minute, deferred_until = excluded.deferred_until,
    why = excluded.why, reported_at = now();

-- name: read_flow
SELECT channel, domain, processes, connections, per_minute, deferred_until, why, reported_at
FROM sendoff.domain_flow
ORDER BY deferred_until DESC NULLS LAST, channel, domain;
