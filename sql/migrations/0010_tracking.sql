-- Tracking: what recipients did with their messages, and how much of it was a machine's.

-- Every event, once: of those with the same event_id the first stands. machine_rule names the rule by which it is a
-- machine's, null for a person's; rules is the version of the rules that judged. link is the md5 of the url, so that
-- clicks of one url lie together in an index, however long it is.
CREATE TABLE sendoff.tracking_event (
    delivery_id   bigint NOT NULL,
    event_id      text COLLATE "C" NOT NULL,
    recipient     integer NOT NULL,
    kind          text NOT NULL CHECK (kind IN ('open', 'click', 'mirror', 'optout')),
    url           text,
    link          uuid,
    at            timestamptz NOT NULL,
    received_at   timestamptz NOT NULL DEFAULT now(),
    user_agent    text,
    machine_rule  text,
    rules         text NOT NULL,
    PRIMARY KEY (delivery_id, event_id)
) PARTITION BY RANGE (delivery_id);

-- All that one recipient did.
CREATE INDEX tracking_event_recipient ON sendoff.tracking_event (delivery_id, recipient);
-- The clicks of a delivery by url and recipient, read from the index alone.
CREATE INDEX tracking_event_click ON sendoff.tracking_event (delivery_id, link, recipient) INCLUDE (machine_rule)
    WHERE kind = 'click';

-- What is known of a recipient: the earliest time of each, any event counting as an open. was holds what was known
-- before the last change (1 open, 2 click, 4 mirror page, 8 opt-out, 16 a person's open, 32 a person's click), so
-- that one statement can move rows and counters together, as outcome.was does.
CREATE TABLE sendoff.tracked_recipient (
    delivery_id       bigint NOT NULL,
    recipient         integer NOT NULL,
    was               smallint NOT NULL DEFAULT 0,
    opened_at         timestamptz NOT NULL,
    clicked_at        timestamptz,
    mirror_at         timestamptz,
    optout_at         timestamptz,
    human_opened_at   timestamptz,
    human_clicked_at  timestamptz,
    PRIMARY KEY (delivery_id, recipient)
) PARTITION BY RANGE (delivery_id);

SELECT sendoff.add_partitioned_table('tracking_event', 'fillfactor = 100');
SELECT sendoff.add_partitioned_table('tracked_recipient', 'fillfactor = 70');

ALTER TABLE sendoff.delivery_counter
    ADD COLUMN human_opened integer NOT NULL DEFAULT 0,
    ADD COLUMN human_clicked integer NOT NULL DEFAULT 0;

CREATE OR REPLACE VIEW sendoff.deployment AS
SELECT d.delivery_id, d.label, d.channel, d.state, d.preparation, d.contact_date, d.confirmed_at, d.started_at,
       d.finished_at, d.to_deliver,
       c.sent, c.bounced, c.bounced_hard, c.bounced_soft, c.bounced_ignored, c.errors, c.unknown,
       c.excluded_late, c.cancelled, c.retrying, c.sending,
       d.to_deliver - (c.sent + c.bounced + c.errors + c.unknown + c.excluded_late + c.cancelled
                       + c.retrying + c.sending) AS pending,
       c.opened, c.clicked, c.optout, c.mirror,
       round(100.0 * c.sent / nullif(d.to_deliver, 0), 2) AS sent_pct,
       round(100.0 * (c.bounced + c.errors) / nullif(c.sent + c.bounced + c.errors, 0), 2) AS bounce_error_pct,
       round(100.0 * c.opened / nullif(c.sent, 0), 2) AS open_pct,
       round(100.0 * c.clicked / nullif(c.sent, 0), 2) AS click_pct,
       d.excluded, greatest(d.updated_at, c.updated_at) AS updated_at, d.state_reason,
       c.human_opened, c.human_clicked,
       round(100.0 * c.human_opened / nullif(c.sent, 0), 2) AS human_open_pct,
       round(100.0 * c.human_clicked / nullif(c.sent, 0), 2) AS human_click_pct
FROM sendoff.delivery_record d
CROSS JOIN LATERAL (
    SELECT coalesce(sum(k.sent), 0) AS sent,
           coalesce(sum(k.bounced_hard + k.bounced_soft + k.bounced_ignored), 0) AS bounced,
           coalesce(sum(k.bounced_hard), 0) AS bounced_hard,
           coalesce(sum(k.bounced_soft), 0) AS bounced_soft,
           coalesce(sum(k.bounced_ignored), 0) AS bounced_ignored,
           coalesce(sum(k.errors), 0) AS errors,
           coalesce(sum(k.unknown), 0) AS unknown,
           coalesce(sum(k.excluded_late), 0) AS excluded_late,
           coalesce(sum(k.cancelled), 0) AS cancelled,
           coalesce(sum(k.retrying), 0) AS retrying,
           coalesce(sum(k.sending), 0) AS sending,
           coalesce(sum(k.opened), 0) AS opened,
           coalesce(sum(k.clicked), 0) AS clicked,
           coalesce(sum(k.optout), 0) AS optout,
           coalesce(sum(k.mirror), 0) AS mirror,
           max(k.updated_at) AS updated_at,
           coalesce(sum(k.human_opened), 0) AS human_opened,
           coalesce(sum(k.human_clicked), 0) AS human_clicked
    FROM sendoff.delivery_counter k
    WHERE k.delivery_id = d.delivery_id
) c;

CREATE VIEW sendoff.tracking_log AS
SELECT e.delivery_id, e.event_id, e.recipient, r.profile_id, r.address, e.kind, e.url, e.at, e.received_at,
       e.user_agent, e.machine_rule, e.rules
FROM sendoff.tracking_event e
LEFT JOIN sendoff.recipient r ON r.delivery_id = e.delivery_id AND r.recipient = e.recipient;
COMMENT ON VIEW sendoff.tracking_log IS
    'One row per open, click, mirror-page view and opt-out; machine_rule is null where a person is behind it.';

-- Recipients first, then urls: both run along the index, where count(DISTINCT) would sort.
CREATE VIEW sendoff.tracked_url AS
SELECT c.delivery_id,
       (SELECT e.url FROM sendoff.tracking_event e
        WHERE e.delivery_id = c.delivery_id AND e.kind = 'click' AND e.link = c.link LIMIT 1) AS url,
       sum(c.clicks)::bigint AS clicks, count(*) AS clickers,
       sum(c.human_clicks)::bigint AS human_clicks, count(*) FILTER (WHERE c.human_clicks > 0) AS human_clickers
FROM (
    SELECT delivery_id, link, recipient, count(*) AS clicks,
           count(*) FILTER (WHERE machine_rule IS NULL) AS human_clicks
    FROM sendoff.tracking_event
    WHERE kind = 'click'
    GROUP BY delivery_id, link, recipient
) c
GROUP BY c.delivery_id, c.link;
COMMENT ON VIEW sendoff.tracked_url IS
    'Clicks and unique clickers of a delivery by url, all and those of persons; url is null where none was given.';
