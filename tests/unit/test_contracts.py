"""The messages of the wire: what fits, what is refused, and with which sentence."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from enum import StrEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from contracts import results, routing, tracking
from contracts.base import explain
from contracts.commands import Confirm, Control, Reply, Status
from contracts.results import Bounce, BounceKind, BounceReason, Error, Fault, Sent
from contracts.routing import BOUNCE, ERROR, SENT, Names, send_queue
from contracts.sends import Send, message_id
from contracts.stats import Stats
from contracts.tracking import TrackingEvent, TrackingKind
from dev.contract_examples import EXAMPLES

NOW = datetime(2026, 12, 1, 8, tzinfo=UTC)
RESULT: dict[str, Any] = {"delivery_id": 42, "recipient": 17, "attempt": 1, "at": "2026-12-01T08:00:00Z"}

texts = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=50)
# Whole offsets: where clocks are put back, Python calls equal moments of two zones unequal (PEP 495).
zones = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
common = {
    "delivery_id": st.integers(1, 2**63 - 1),
    "recipient": st.integers(1, 2**31 - 1),
    "attempt": st.integers(1, 32767),
    "at": st.datetimes(datetime(1970, 1, 2), datetime(8999, 12, 30), timezones=zones),  # noqa: DTZ001
}
kinds: dict[str, st.SearchStrategy[Any]] = {
    SENT: st.builds(Sent, **common, provider_id=st.none() | texts, reply=st.none() | texts),
    BOUNCE: st.builds(
        Bounce,
        **common,
        kind=st.sampled_from(BounceKind),
        reason=st.sampled_from(BounceReason),
        status=st.none() | st.from_regex(r"[245]\.[0-9]{1,3}\.[0-9]{1,3}", fullmatch=True),
        reply=st.none() | texts,
        fault=st.none() | st.sampled_from(Fault),
    ),
    ERROR: st.builds(
        Error,
        **common,
        reason=texts.filter(bool),
        retryable=st.booleans(),
        detail=st.none() | texts,
    ),
}
batches = st.sampled_from(sorted(kinds)).flatmap(
    lambda key: st.tuples(st.just(key), st.lists(kinds[key], min_size=1, max_size=5))
)


def refusal(model: type[BaseModel], body: dict[str, Any]) -> str:
    with pytest.raises(ValidationError) as caught:
        model.model_validate_json(json.dumps(body))
    return explain(caught.value)


# --- one message


@pytest.mark.parametrize(
    ("model", "body"), [(model, body) for model, bodies in EXAMPLES.items() for body in bodies]
)
def test_a_message_comes_back_from_json_as_it_went(model: type[BaseModel], body: dict[str, Any]) -> None:
    message = model.model_validate_json(json.dumps(body))
    assert model.model_validate_json(message.model_dump_json()) == message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("delivery_id", "42"),
        ("delivery_id", True),
        ("delivery_id", 42.5),
        ("delivery_id", 0),
        ("delivery_id", 2**63),
        ("recipient", 0),
        ("recipient", 2**31),
        ("attempt", 0),
        ("attempt", 2**15),
        ("at", "2026-12-01T08:00:00"),
        ("at", 1796112000),
        ("at", "1969-12-31T23:59:59Z"),
        ("at", "9999-12-31T23:59:59-14:00"),
        ("reply", 3),
    ],
)
def test_a_wrong_value_is_refused_by_its_fields_name(field: str, value: object) -> None:
    assert refusal(Sent, {**RESULT, field: value}).startswith(f"{field}: Input should")


@pytest.mark.parametrize("operator", ["", "a" * 201, "a\x00b"])
def test_an_operator_that_no_column_could_hold_is_refused(operator: str) -> None:
    assert refusal(Control, {"delivery_id": 1, "operator": operator, "reason": "x"}).startswith("operator: ")


def test_unknown_fields_are_ignored() -> None:
    assert Sent.model_validate_json(json.dumps({**RESULT, "shoe_size": 43})).recipient == 17


def test_messages_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Sent.model_validate_json(json.dumps(RESULT)).recipient = 18  # type: ignore[misc]


def test_the_definitive_confirmation_names_its_preparation() -> None:
    asked = {"delivery_id": 42, "operator": "ana"}
    assert Confirm.model_validate_json(json.dumps({**asked, "definitive": False})).preparation is None
    assert refusal(Confirm, {**asked, "definitive": True}) == (
        "preparation: Field required when definitive is true."
    )


def test_the_sentence_tells_every_fault_of_a_short_list() -> None:
    assert refusal(Confirm, {"delivery_id": "42"}) == (
        "delivery_id: Input should be a valid integer; operator: Field required; definitive: Field required."
    )


def test_the_sentence_counts_what_it_leaves_out_and_repeats_no_value() -> None:
    sentence = refusal(Stats, {"label": ["a secret"]})
    assert "secret" not in sentence
    assert sentence.count(";") == 5
    assert sentence.endswith(f"and {len(Stats.model_fields) - 6} more.")


def test_a_body_that_is_not_json_is_told_as_such() -> None:
    with pytest.raises(ValidationError) as caught:
        Confirm.model_validate_json(b"{")
    assert explain(caught.value).startswith("Invalid JSON: EOF")


def test_a_bounce_reason_that_is_not_listed_is_not_defined() -> None:
    body = {**RESULT, "kind": "soft", "reason": "solar_flare"}
    assert Bounce.model_validate_json(json.dumps(body)).reason is BounceReason.NOT_DEFINED
    assert refusal(Bounce, {**body, "reason": 7}).startswith("reason: Input should be")


@pytest.mark.parametrize("status", ["5.1", "3.1.1", "5.1.1000", "5.1.1 no such user", "\u0665.1.1"])
def test_a_status_that_is_not_of_rfc_3463_is_refused(status: str) -> None:
    assert refusal(Bounce, {**RESULT, "kind": "hard", "status": status}).startswith("status: ")


def test_a_quoted_text_may_be_long_and_loses_only_its_nul() -> None:
    sent = Sent.model_validate_json(json.dumps({**RESULT, "reply": "a\x00b" * 100_000}))
    assert sent.reply == "a\ufffdb" * 100_000


def test_words_of_the_wire_may_come_as_plain_strings_or_as_anothers_enum() -> None:
    class Other(StrEnum):
        REFUSED = "refused"

    reply = Reply(command_id="c", status=Other.REFUSED, reason="wrong_state", message="No.", state="paused")  # type: ignore[arg-type]
    assert (reply.status, reply.reason, reply.state) == ("refused", "wrong_state", "paused")


def test_a_statistic_knows_its_status() -> None:
    body = EXAMPLES[Stats][0]
    assert Stats.model_validate_json(json.dumps(body)).status is Status.ACCEPTED
    assert refusal(Stats, {**body, "status": "refused"}).startswith("status: ")
    assert refusal(Stats, {**body, "open_pct": -1}).startswith("open_pct: ")


def test_a_send_carries_any_json_and_names_its_message() -> None:
    variables = {"a": [1, None, {"é": 2.5}], "first_name": "Ана"}
    send = Send(
        delivery_id=42,
        recipient=17,
        attempt=2,
        channel="email",
        address="ana@example.org",
        variables=variables,
    )
    assert Send.model_validate_json(send.model_dump_json()).variables == variables
    assert message_id(send.delivery_id, send.recipient, send.attempt) == "42-17-2"


@pytest.mark.parametrize("channel", ["", "E-mail", "a.b", "é", "x" * 33])
def test_a_channel_that_names_no_queue_is_refused(channel: str) -> None:
    assert refusal(Send, {**EXAMPLES[Send][0], "channel": channel}).startswith("channel: ")


# --- names


def test_a_prefix_stands_before_exchanges_and_queues() -> None:
    assert Names("blue").exchange(routing.COMMANDS) == "blue.sendoff.commands"
    assert Names("blue").queue(send_queue("email")) == "blue.sendoff.send.email"
    assert Names().queue(routing.SENT_QUEUE) == "sendoff.results.sent"


def test_our_headers_are_not_the_brokers() -> None:
    ours = {value for name, value in vars(routing).items() if name.startswith("HEADER_")}
    assert ours
    assert not [name for name in ours if name.startswith("x-death")]


# --- one or many


@given(batches)
def test_results_come_back_as_they_went(batch: tuple[str, list[Any]]) -> None:
    key, sent = batch
    decoded = results.decode(key, results.encode(sent))
    assert decoded.results == sent
    assert decoded.rejected == []
    assert {results.routing_key(result) for result in sent} == {key}


@given(batches, st.binary(max_size=40), st.data())
def test_a_bad_item_loses_no_other(batch: tuple[str, list[Any]], junk: bytes, data: st.DataObject) -> None:
    key, sent = batch
    at = data.draw(st.integers(0, len(sent)))
    items = [result.model_dump_json().encode() for result in sent]
    bad = b'{"reply":"' + bytes(byte for byte in junk if byte not in b'"\\' and byte >= 0x20) + b'"}'
    items.insert(at, bad)
    decoded = results.decode(key, b"[" + b",".join(items) + b"]")
    assert decoded.results == sent
    assert len(decoded.rejected) == 1


@given(
    st.binary() | st.sampled_from([b"", b"null", b"3", b'"x"', b"[[]", b"[" * 100_000, b"\xff\xfe[\x00]\x00"])
)
def test_no_body_whatever_raises(body: bytes) -> None:
    decoded = results.decode(SENT, body)
    assert decoded.results == []
    assert all(sentence.endswith(".") for _, sentence in decoded.rejected)


@pytest.mark.parametrize("depth", [150, 250, 980, 990, 995, 1000, 5000])
def test_a_deep_item_loses_no_other_that_can_be_read(depth: int) -> None:
    deep = b"[" * depth + b"]" * depth
    decoded = results.decode(SENT, b"[" + json.dumps(RESULT).encode() + b"," + deep + b"]")
    assert len(decoded.rejected) == 1


def test_one_result_needs_no_array() -> None:
    decoded = results.decode(SENT, b" \n" + json.dumps(RESULT).encode())
    assert [result.at for result in decoded.results] == [NOW]


def test_a_bad_row_is_given_back_with_its_sentence() -> None:
    body = json.dumps([RESULT, {**RESULT, "recipient": "18"}, 7, {**RESULT, "recipient": 19}]).encode()
    decoded = results.decode(SENT, body)
    assert [result.recipient for result in decoded.results] == [17, 19]
    assert [sentence for _, sentence in decoded.rejected] == [
        "recipient: Input should be a valid integer.",
        "Input should be an object.",
    ]
    assert [json.loads(raw) for raw, _ in decoded.rejected] == [{**RESULT, "recipient": "18"}, 7]


def test_half_a_character_costs_nothing_and_another_encoding_its_own_row_only() -> None:
    fine = json.dumps(RESULT).encode()
    half = json.dumps({**RESULT, "reply": "\ud83d"}).encode()
    latin = json.dumps({**RESULT, "reply": "é"}, ensure_ascii=False).encode("latin-1")
    decoded = results.decode(SENT, b"[" + b",".join([half, fine, latin]) + b"]")
    assert [r.reply for r in decoded.results] == ["\ufffd", RESULT.get("reply")]
    ((rejected, _),) = decoded.rejected
    assert json.loads(rejected)["reply"] == "\udce9"


@pytest.mark.parametrize(
    ("key", "body", "sentence"),
    [
        (SENT, b"{", "The body is not JSON that can be read: "),
        (SENT, b"3", "Input should be an object."),
        (
            SENT,
            b"[" + b",".join([b"1"] * 1001) + b"]",
            "The array holds 1001 items; one message carries at most",
        ),
        ("opened", b"[]", "No result has the routing key 'opened'."),
    ],
)
def test_a_body_that_cannot_be_read_is_given_back_whole(key: str, body: bytes, sentence: str) -> None:
    (rejected,) = results.decode(key, body).rejected
    assert rejected[0] == body
    assert rejected[1].startswith(sentence)


def test_an_array_holds_a_thousand() -> None:
    row = json.dumps(RESULT).encode()
    assert len(results.decode(SENT, b"[" + b",".join([row] * 1000) + b"]").results) == 1000
    sent = [Sent.model_validate_json(row)] * 1001
    with pytest.raises(ValueError, match="at most 1000 messages, not 1001"):
        results.encode(sent)
    with pytest.raises(ValueError, match="exactly one kind"):
        results.encode([])


@given(
    texts=st.lists(st.tuples(st.none() | st.text(), st.none() | st.text()), min_size=1, max_size=5),
    at=st.floats(0, 2**37).map(lambda seconds: datetime.fromtimestamp(seconds, UTC)),
)
def test_what_is_written_without_a_model_reads_as_a_model_does(
    texts: list[tuple[str | None, str | None]], at: datetime
) -> None:
    taken = [results.Taken(2**63 - 1, n, 7, at, reply, id_) for n, (reply, id_) in enumerate(texts, 1)]
    models = [Sent(**t._asdict()) for t in taken]
    assert {results.routing_key(t) for t in taken} == {SENT}
    assert results.decode(SENT, results.encode(taken)).results == models


def test_what_is_written_without_a_model_has_the_same_limits() -> None:
    one = results.Taken(1, 1, 1, datetime.now(UTC))
    assert len(results.decode(SENT, results.encode([one] * 1_000)).results) == 1_000
    with pytest.raises(ValueError, match="at most 1000"):
        results.encode([one] * 1_001)


def test_results_of_two_kinds_share_no_body() -> None:
    mixed: list[Any] = [
        Sent.model_validate_json(json.dumps(RESULT)),
        Error(delivery_id=1, recipient=1, attempt=1, at=NOW, reason="x", retryable=False),
    ]
    with pytest.raises(ValueError, match="exactly one kind"):
        results.encode(mixed)


def test_tracking_events_of_all_kinds_share_a_body() -> None:
    at = datetime(2026, 12, 1, 9, 30, tzinfo=timezone(timedelta(hours=1)))
    events = [
        TrackingEvent(event_id=kind, delivery_id=42, recipient=17, kind=kind, at=at, user_agent="a\x00b")
        for kind in TrackingKind
    ]
    body = tracking.encode(events)
    assert tracking.decode(body).results == events
    assert events[0].user_agent == "a\ufffdb"
    bad = tracking.decode(body[:-1] + b',{"kind":"glance"}]')
    assert bad.results == events
    assert "kind: Input should be 'open', 'click', 'mirror', 'optout' or 'complaint'" in bad.rejected[0][1]
