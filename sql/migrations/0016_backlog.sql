-- works with code from: 5

-- What autoscalers read. It says what a sender could take this moment and has not taken: processes that are started for a
-- delivery that is paused, that is not due or that has a throughput limit would have nothing to do.
CREATE VIEW sendoff.backlog AS
SELECT d.channel,
       count(*) FILTER (WHERE now_due.delivery_id IS NOT NULL) AS deliveries,
       coalesce(sum(now_due.recipients), 0)::bigint AS recipients,
       coalesce(sum(now_due.pages), 0)::bigint AS pages
FROM sendoff.delivery_record d
LEFT JOIN LATERAL (
    SELECT d.delivery_id, p.pages,
           greatest(d.to_deliver - c.settled - p.later, 0) + r.due AS recipients
    FROM (
        SELECT coalesce(sum(k.closed + k.retrying + k.sending), 0) AS settled
        FROM sendoff.delivery_counter k
        WHERE k.delivery_id = d.delivery_id
    ) c
    CROSS JOIN (
        SELECT count(*) FILTER (WHERE o.due_at <= now()) AS pages,
               coalesce(sum(o.last - o.first + 1) FILTER (WHERE o.due_at > now()), 0) AS later
        FROM sendoff.delivery_page o
        WHERE o.delivery_id = d.delivery_id AND o.state = 'open'
    ) p
    CROSS JOIN (
        SELECT count(*) AS due
        FROM sendoff.outcome w
        WHERE w.delivery_id = d.delivery_id AND w.retry_at <= now()
    ) r
    WHERE d.running AND d.cancelled_at IS NULL AND d.valid_until > now() AND d.messages_per_hour IS NULL
) now_due ON true
WHERE d.under_way
GROUP BY d.channel;

COMMENT ON VIEW sendoff.backlog IS
    'Per channel with deliveries under way: what may be sent at this moment and is not; what autoscalers read.';
COMMENT ON COLUMN sendoff.backlog.channel IS 'What they are sent over.';
COMMENT ON COLUMN sendoff.backlog.deliveries IS
    'Deliveries that run without a throughput limit: not paused, started, not cancelled, still valid.';
COMMENT ON COLUMN sendoff.backlog.recipients IS
    'Their recipients who may be tried now and are not: due, and not yet claimed; retries that are due count too.';
COMMENT ON COLUMN sendoff.backlog.pages IS 'Their pages that are due and wait for the fan-out, or are with it.';
