-- works with code from: 5

-- What senders hold back now, by lane (a provider of mailboxes, or a domain). Each process reports its own every few
-- seconds while there is something to say. What a process has not repeated is gone or out of date; the view leaves it out.
CREATE TABLE sendoff.lane_report (
    owner           text NOT NULL,
    channel         text NOT NULL,
    relay           text NOT NULL,
    domain          text NOT NULL,
    connections     integer,
    per_minute      double precision NOT NULL,
    deferred_until  timestamptz,
    why             text NOT NULL,
    reported_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (owner, channel, relay, domain)
) WITH (fillfactor = 50);

CREATE VIEW sendoff.domain_flow AS
SELECT channel, relay, domain, count(*) AS processes, sum(connections) AS connections,
       round(sum(per_minute)::numeric, 1)::float8 AS per_minute,
       max(deferred_until) FILTER (WHERE deferred_until > now()) AS deferred_until,
       (array_agg(why ORDER BY reported_at DESC, owner))[1] AS why, max(reported_at) AS reported_at
FROM sendoff.lane_report
WHERE reported_at > now() - interval '15 seconds'
GROUP BY channel, relay, domain;

COMMENT ON VIEW sendoff.domain_flow IS 'What senders hold back now, by provider or domain.';
COMMENT ON COLUMN sendoff.domain_flow.channel IS 'The channel.';
COMMENT ON COLUMN sendoff.domain_flow.relay IS 'The relay.';
COMMENT ON COLUMN sendoff.domain_flow.domain IS
    'The provider of mailboxes, or the domain where it belongs to none; * for the limit of the relay.';
COMMENT ON COLUMN sendoff.domain_flow.processes IS 'How many senders report it.';
COMMENT ON COLUMN sendoff.domain_flow.connections IS
    'How many connections they allow it now, all together; 0 while all of them pause.';
COMMENT ON COLUMN sendoff.domain_flow.per_minute IS 'Messages a minute that were answered since the report before.';
COMMENT ON COLUMN sendoff.domain_flow.deferred_until IS 'When the last of their pauses ends; null for none.';
COMMENT ON COLUMN sendoff.domain_flow.why IS 'Why it is held back, or the words of the refusal.';
COMMENT ON COLUMN sendoff.domain_flow.reported_at IS 'When that was last reported.';

-- What is left of each limit of messages that all processes share; see lease_messages.
CREATE TABLE sendoff.message_budget (
    name         text PRIMARY KEY,
    available    double precision NOT NULL DEFAULT 1,
    refilled_at  timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);

-- The part of each process of a limit of connections that all share; see lease_connections.
CREATE TABLE sendoff.connection_lease (
    name        text NOT NULL,
    owner       text NOT NULL,
    granted     integer NOT NULL,
    expires_at  timestamptz NOT NULL,
    PRIMARY KEY (name, owner)
) WITH (fillfactor = 50);
