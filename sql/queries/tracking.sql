-- Tracking: one statement a batch and delivery; events, what is known of recipients, and counters move together.

-- name: record_tracking
-- Only new events change anything, so repeated events change nothing. The earliest times of a recipient are
-- kept, for any order of the events. was and the facts now say by how much each counter moves. Events are
-- locked by event_id, then recipients by number, then the counter row, in every process. For erased
-- recipients, of which there are mostly none, neither url nor user agent is stored. A complaint is no open: it says that
-- the subject was seen, and no more. Measured with 500 events a batch: 17 µs an event in the server, 3 of them for the
-- two further indexes.
WITH event AS (
    SELECT e.event_id, e.recipient, e.kind, CASE WHEN k.kept THEN e.url END AS url, e.at,
           CASE WHEN k.kept THEN e.user_agent END AS user_agent, e.machine_rule
    FROM unnest(:event_ids::text[], :recipients::int[], :kinds::text[], :urls::text[], :times::timestamptz[],
                :user_agents::text[], :machine_rules::text[])
         AS e (event_id, recipient, kind, url, at, user_agent, machine_rule)
    JOIN sendoff.delivery_record d ON d.delivery_id = :delivery_id
    CROSS JOIN (
        SELECT array_agg(x.recipient) AS recipients FROM sendoff.erased_recipient x WHERE x.delivery_id = :delivery_id
    ) x
    CROSS JOIN LATERAL (SELECT coalesce(e.recipient <> ALL (x.recipients), true) AS kept) k
    WHERE d.confirmed_at IS NOT NULL AND e.recipient <= d.to_deliver
), new AS (
    INSERT INTO sendoff.tracking_event (
        delivery_id, event_id, recipient, kind, url, link, at, user_agent, machine_rule, rules)
    SELECT :delivery_id, event_id, recipient, kind, url, md5(url)::uuid, at, user_agent, machine_rule, :rules
    FROM event
    ORDER BY event_id COLLATE "C"
    ON CONFLICT (delivery_id, event_id) DO NOTHING
    RETURNING event_id, recipient, kind, at, machine_rule
), changed AS (
    INSERT INTO sendoff.tracked_recipient AS t (
        delivery_id, recipient, opened_at, clicked_at, mirror_at, optout_at, human_opened_at, human_clicked_at, complained_at)
    SELECT :delivery_id, recipient, min(at) FILTER (WHERE kind <> 'complaint'), min(at) FILTER (WHERE kind = 'click'),
           min(at) FILTER (WHERE kind = 'mirror'), min(at) FILTER (WHERE kind = 'optout'),
           min(at) FILTER (WHERE machine_rule IS NULL AND kind <> 'complaint'),
           min(at) FILTER (WHERE kind = 'click' AND machine_rule IS NULL),
           min(at) FILTER (WHERE kind = 'complaint')
    FROM new
    GROUP BY recipient
    ORDER BY recipient
    ON CONFLICT (delivery_id, recipient) DO UPDATE
    SET was = (t.opened_at IS NOT NULL)::int + 2 * (t.clicked_at IS NOT NULL)::int + 4 * (t.mirror_at IS NOT NULL)::int
                + 8 * (t.optout_at IS NOT NULL)::int + 16 * (t.human_opened_at IS NOT NULL)::int
                + 32 * (t.human_clicked_at IS NOT NULL)::int + 64 * (t.complained_at IS NOT NULL)::int,
        opened_at = least(t.opened_at, excluded.opened_at), clicked_at = least(t.clicked_at, excluded.clicked_at),
        mirror_at = least(t.mirror_at, excluded.mirror_at), optout_at = least(t.optout_at, excluded.optout_at),
        human_opened_at = least(t.human_opened_at, excluded.human_opened_at),
        human_clicked_at = least(t.human_clicked_at, excluded.human_clicked_at),
        complained_at = least(t.complained_at, excluded.complained_at)
    WHERE excluded.opened_at < coalesce(t.opened_at, 'infinity') OR excluded.clicked_at < coalesce(t.clicked_at, 'infinity')
       OR excluded.mirror_at < coalesce(t.mirror_at, 'infinity') OR excluded.optout_at < coalesce(t.optout_at, 'infinity')
       OR excluded.human_opened_at < coalesce(t.human_opened_at, 'infinity')
       OR excluded.human_clicked_at < coalesce(t.human_clicked_at, 'infinity')
       OR excluded.complained_at < coalesce(t.complained_at, 'infinity')
    RETURNING t.was, t.opened_at, t.clicked_at, t.mirror_at, t.optout_at, t.human_opened_at, t.human_clicked_at,
              t.complained_at
)
SELECT count(*)::int AS recorded, count(machine_rule)::int AS machines,
       array_agg(event_id) FILTER (WHERE kind IN ('optout', 'complaint')) AS unwanted,
       sendoff.count_moves(:delivery_id, (
           SELECT ARRAY[('nothing', 'opened', count(opened_at) FILTER (WHERE was & 1 = 0)),
                        ('nothing', 'clicked', count(clicked_at) FILTER (WHERE was & 2 = 0)),
                        ('nothing', 'mirror', count(mirror_at) FILTER (WHERE was & 4 = 0)),
                        ('nothing', 'optout', count(optout_at) FILTER (WHERE was & 8 = 0)),
                        ('nothing', 'human_opened', count(human_opened_at) FILTER (WHERE was & 16 = 0)),
                        ('nothing', 'human_clicked', count(human_clicked_at) FILTER (WHERE was & 32 = 0)),
                        ('nothing', 'complained', count(complained_at) FILTER (WHERE was & 64 = 0))]::sendoff.move[]
           FROM changed))
FROM new;

-- name: read_unwilling
-- Each is looked up by the whole key: an opt-out or a complaint is rare, and must not read a whole delivery. Erased
-- recipients have no data.
SELECT r.profile_id, r.address
FROM unnest(:recipients::int[]) AS o (recipient)
CROSS JOIN LATERAL (
    SELECT k.profile_id, k.address
    FROM sendoff.recipient k
    WHERE k.delivery_id = :delivery_id AND k.recipient = o.recipient
    OFFSET 0
) r
WHERE r.address <> '';

-- name: denylist_unwilling
INSERT INTO sendoff.denylisted_profile (channel, profile_id, cause, delivery_id)
SELECT d.channel, o.profile_id, :cause, d.delivery_id
FROM unnest(:profile_ids::text[]) AS o (profile_id)
JOIN sendoff.delivery_record d ON d.delivery_id = :delivery_id
ORDER BY o.profile_id
ON CONFLICT (channel, profile_id) DO NOTHING;

-- name: quarantine_unwilling
-- Recipients without a profile: only their address is known.
INSERT INTO sendoff.quarantined_address (channel, address_key, address, cause, delivery_id)
SELECT d.channel, o.address_key, o.address, :cause, d.delivery_id
FROM unnest(:address_keys::text[], :addresses::text[]) AS o (address_key, address)
JOIN sendoff.delivery_record d ON d.delivery_id = :delivery_id
ORDER BY o.address_key
ON CONFLICT (channel, address_key) DO NOTHING;
