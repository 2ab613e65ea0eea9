"""All metrics, in a registry that the composition root makes."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics

from contracts import routing
from contracts.claims import ClaimReason
from contracts.commands import Reason, Status
from contracts.events import Criterion
from sql import migrations
from worker.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client import CollectorRegistry

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60)
_LONG_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3_600, 14_400)
_RECIPIENTS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000)


OTHER: Final = "other"
"""The label for every routing key that is none of ours."""


@dataclass(frozen=True, slots=True)
class Metrics:
    """The metrics of one process. Counters begin at 0 with the process; add those of all processes."""

    commands: Counter
    sends_published: Counter
    sends_claimed: Counter
    sends_refused: Counter
    sends_in_flight: Gauge
    results_published: Counter
    results_recorded: Counter
    outcomes_moved: Counter
    tracking_recorded: Counter
    tracking_repeated: Counter
    optouts: Counter
    returned_mails: Counter
    tracker_requests: Counter
    tracker_events: Counter
    tracker_replayed: Counter
    tracker_spool: Gauge
    webhook_calls: Counter
    webhook_events: Counter
    pages_published: Counter
    pages_reopened: Counter
    claims_expired: Counter
    claims_given_back: Counter
    stats_drift: Counter
    breaker_trips: Counter
    alerts: Counter
    events_published: Counter
    dead_lettered: Counter
    claim_recipients: Histogram
    claim_seconds: Histogram
    record_recipients: Histogram
    record_seconds: Histogram
    tracking_batch: Histogram
    tracking_seconds: Histogram
    start_seconds: Histogram
    hand_over_seconds: Histogram
    record_lag: Histogram
    tracking_lag: Histogram
    send_queue: Gauge
    oldest_due_page: Gauge
    channel_up: Gauge
    broker_connected: Gauge
    database_connections: Gauge
    database_connections_most: Gauge
    database_failures: Counter
    database_busy: Counter
    duty_last_success: Gauge
    duty_timeouts: Counter
    loop_lag: Histogram
    build: Gauge

    @classmethod
    def create(cls, registry: CollectorRegistry, channels: Iterable[str] = ()) -> Metrics:
        """Creates every metric in a registry, and the series of every label that is known by now, at 0.

        A series that begins with its first event begins at 1: `increase()` does not see that event, and the
        rule that waits for it says nothing.

        Args:
            registry: A new one: a name can be registered only once.
            channels: The sending channels.
        """
        # Else each counter and histogram has a second series, which nobody reads.
        disable_created_metrics()  # type: ignore[no-untyped-call]

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"sendoff_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"sendoff_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"sendoff_{name}", text, registry=registry, buckets=buckets)

        metrics = cls(
            commands=counter(
                "commands", "Commands and requests answered, by answer.", "command", "status", "reason"
            ),
            sends_published=counter(
                "sends_published", "Send messages that the fan-out published.", "channel"
            ),
            sends_claimed=counter("sends_claimed", "Attempts that were granted.", "channel"),
            sends_refused=counter(
                "sends_refused",
                "Attempts not granted: doubled, or of a delivery paused, stopped or over.",
                "channel",
            ),
            sends_in_flight=gauge("sends_in_flight", "Messages with the channel at this moment.", "channel"),
            results_published=counter(
                "results_published", "Results that the senders published.", "channel", "kind"
            ),
            results_recorded=counter("results_recorded", "Recipients whose results were written."),
            outcomes_moved=counter("outcomes_moved", "Recipients whose outcome changed by their results."),
            tracking_recorded=counter(
                "tracking_recorded", "Tracking events that were written, by who is behind them.", "judged"
            ),
            tracking_repeated=counter("tracking_repeated", "Tracking events that were there already."),
            optouts=counter(
                "optouts_heeded", "Recipients put on the denylist or into quarantine as they asked."
            ),
            returned_mails=counter("returned_mails", "Returned mails, by what became of each.", "outcome"),
            tracker_requests=counter(
                "tracker_requests", "Requests that the tracker answered.", "link", "answer"
            ),
            tracker_events=counter(
                "tracker_events", "Events of the tracker, by who keeps them; lost: nobody.", "kept"
            ),
            tracker_replayed=counter(
                "tracker_replayed_messages", "Messages of the tracker's spool that were published."
            ),
            tracker_spool=gauge("tracker_spool_bytes", "Bytes in the folder of the tracker's spool."),
            webhook_calls=counter(
                "webhook_calls", "Calls of mail providers, by what became of each.", "provider", "outcome"
            ),
            webhook_events=counter("webhook_events", "The events that they told.", "provider", "outcome"),
            pages_published=counter("pages_published", "Pages that the fan-out published wholly."),
            pages_reopened=counter(
                "pages_reopened", "Pages to be published again: lost, or with retries due.", "reason"
            ),
            claims_expired=counter("claims_expired", "Recipients who became unknown: no result in time."),
            claims_given_back=counter("claims_given_back", "Claims that were not handed over in time."),
            stats_drift=counter("stats_drift_repaired", "By how much counters were wrong: must stay 0."),
            breaker_trips=counter("breaker_trips", "Deliveries that the circuit breaker paused."),
            alerts=counter("alerts", "Alerts told, each once per delivery in 24 hours.", "criterion"),
            events_published=counter("events_published", "Events that the broker confirmed."),
            dead_lettered=counter(
                "dead_lettered", "Messages that were put into the dead queue.", "routing_key"
            ),
            claim_recipients=histogram(
                "claim_batch_recipients", "Recipients asked for in one claim.", _RECIPIENTS
            ),
            claim_seconds=histogram("claim_duration_seconds", "Time for one claim.", _SECONDS),
            record_recipients=histogram(
                "record_batch_recipients", "Recipients written in one statement.", _RECIPIENTS
            ),
            record_seconds=histogram("record_duration_seconds", "Time for one write of results.", _SECONDS),
            tracking_batch=histogram(
                "tracking_batch_events", "Tracking events in one statement.", _RECIPIENTS
            ),
            tracking_seconds=histogram(
                "tracking_duration_seconds", "Time for one write of tracking events.", _SECONDS
            ),
            start_seconds=histogram(
                "delivery_start_seconds",
                "From the confirmation, or a later contact date, to the hand-over of the first recipient.",
                _LONG_SECONDS,
            ),
            hand_over_seconds=histogram(
                "hand_over_duration_seconds",
                "From the hand-over of a message until the broker has its result.",
                _SECONDS,
            ),
            record_lag=histogram(
                "record_lag_seconds",
                "From a result “sent” to its commit; of each write the oldest.",
                _LONG_SECONDS,
            ),
            tracking_lag=histogram(
                "tracking_lag_seconds",
                "From a tracking event to the commit that counts it; of each write the oldest.",
                _LONG_SECONDS,
            ),
            send_queue=gauge(
                "send_queue_messages",
                "Messages that wait in a send queue, as the fan-out sees it; NaN if it cannot.",
                "channel",
            ),
            oldest_due_page=gauge(
                "oldest_due_page_seconds",
                "How long the oldest due page waits for the fan-out; a process without schedule says 0.",
                "channel",
            ),
            channel_up=gauge(
                "channel_up", "1 while the channel takes messages; for email, a relay.", "channel"
            ),
            broker_connected=gauge("broker_connected", "1 while the connections to the broker stand."),
            database_connections=gauge(
                "database_connections", "Connections of the pool, busy or idle.", "state"
            ),
            database_connections_most=gauge(
                "database_connections_most", "The most connections that the pool may open."
            ),
            database_failures=counter(
                "database_failures", "Transactions that failed because the database was out of reach."
            ),
            database_busy=counter(
                "database_busy", "Work given up because the database was too busy for it.", "doing"
            ),
            duty_last_success=gauge(
                "duty_last_success_timestamp_seconds",
                "When a duty of the scheduler was last done for every delivery, in Unix time.",
                "duty",
            ),
            duty_timeouts=counter(
                "duty_timeouts", "Deliveries for which a duty of the scheduler took too long.", "duty"
            ),
            loop_lag=histogram("loop_lag_seconds", "How late the event loop comes to what is due.", _SECONDS),
            build=gauge("build_info", "1; the labels say what runs.", "version", "schema", "python"),
        )
        metrics._begin(channels)
        return metrics

    def _begin(self, channels: Iterable[str]) -> None:
        """Makes series before their first event: of closed sets of labels, and of the channels."""
        for command in (routing.CONFIRM, routing.PAUSE, routing.RESUME, routing.STOP):
            self.commands.labels(command, Status.ACCEPTED.value, "")
            for reason in Reason:
                status = Status.INVALID if reason is Reason.MALFORMED else Status.REFUSED
                self.commands.labels(command, status.value, reason.value)
        self.commands.labels(routing.CONFIRM, Status.FINALIZE.value, "")
        self.commands.labels(routing.COMPUTE_STATS, Status.ACCEPTED.value, "")
        self.commands.labels(routing.COMPUTE_STATS, Status.REFUSED.value, Reason.DELIVERY_UNKNOWN.value)
        self.commands.labels(routing.TYPE_CLAIM, Status.ACCEPTED.value, "")
        for asked in ClaimReason:
            refused = Status.INVALID if asked is ClaimReason.MALFORMED else Status.REFUSED
            self.commands.labels(routing.TYPE_CLAIM, refused.value, asked.value)
        self.build.labels(VERSION, str(len(migrations())), platform.python_version()).set(1)
        for channel in channels:
            self.oldest_due_page.labels(channel)
            for counter in (self.sends_published, self.sends_claimed, self.sends_refused):
                counter.labels(channel)
            for kind in (routing.SENT, routing.BOUNCE, routing.ERROR):
                self.results_published.labels(channel, kind)
        for judged in ("machine", "person"):
            self.tracking_recorded.labels(judged)
        for lost in ("lost", "retry"):
            self.pages_reopened.labels(lost)
        for criterion in Criterion:
            self.alerts.labels(criterion.value)
