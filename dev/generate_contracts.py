"""Writes contracts/schemas/*.json and contracts/asyncapi.yaml from the models and the routing names.

`python -m dev.generate_contracts` writes them; with `--check` nothing is written, the files that differ are
named, and the exit status is 1 where there are any.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml
from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from contracts import routing
from contracts.batch import MAX_ITEMS
from contracts.claims import ClaimAnswer, ClaimRequest
from contracts.commands import ComputeStats, Confirm, Control, Reply
from contracts.events import DeliveryEvent, Event
from contracts.results import MODELS as RESULTS
from contracts.sends import Send, message_id
from contracts.stats import Stats
from contracts.tracking import TrackingEvent
from dev.contract_examples import EXAMPLES

if TYPE_CHECKING:
    from pydantic import BaseModel

CONTRACTS: Final = Path(__file__).resolve().parents[1] / "contracts"

_FILES: Final[dict[type[BaseModel], str]] = {
    Confirm: "confirm",
    Control: "control",
    ComputeStats: "compute-stats",
    Reply: "reply",
    Stats: "stats",
    Send: "send",
    ClaimRequest: "claim-request",
    ClaimAnswer: "claim-answer",
    **{model: key for key, model in RESULTS.items()},
    TrackingEvent: "tracking-event",
    DeliveryEvent: "delivery-event",
}

_EXCHANGE_TYPES: Final = {routing.EVENTS: "topic", routing.DEAD: "fanout"}

_RECEIVED: Final[list[tuple[str, str, type[BaseModel], str]]] = [
    (routing.COMMANDS, routing.CONFIRM, Confirm, "Confirms a delivery, or asks for its summary."),
    (routing.COMMANDS, routing.PAUSE, Control, "Pauses a delivery: once answered, no send is granted."),
    (routing.COMMANDS, routing.RESUME, Control, "Resumes a paused delivery."),
    (routing.COMMANDS, routing.STOP, Control, "Ends a delivery: once answered, no send is granted."),
    (routing.COMMANDS, routing.COMPUTE_STATS, ComputeStats, "Asks for a delivery's KPIs, recounted."),
    *((routing.RESULTS, key, model, inspect.getdoc(model) or "") for key, model in RESULTS.items()),
    (routing.TRACKING, routing.OPEN, TrackingEvent, "A recipient opened a message."),
    (routing.TRACKING, routing.CLICK, TrackingEvent, "A recipient followed a link."),
    (routing.TRACKING, routing.MIRROR, TrackingEvent, "A recipient looked at the copy on the web."),
    (routing.TRACKING, routing.OPTOUT, TrackingEvent, "A recipient unsubscribed."),
    (routing.TRACKING, routing.COMPLAINT, TrackingEvent, "A recipient took a message for spam."),
]
"""What Sendoff receives: exchange, routing key, model, what it says."""

_ANSWERS: Final[dict[str, list[str]]] = {
    key: ["Stats", "Reply"] if model is ComputeStats else ["Reply"]
    for exchange, key, model, _ in _RECEIVED
    if exchange == routing.COMMANDS
}

_TYPES: Final[dict[str, list[str]]] = {
    **{model.__name__: [k for _, k, m, _ in _RECEIVED if m is model] for _, _, model, _ in _RECEIVED},
    "Send": [routing.TYPE_SEND],
    "ClaimRequest": [routing.TYPE_CLAIM],
    "ClaimAnswer": [routing.TYPE_GRANT],
    "Reply": [routing.TYPE_REPLY],
    "Stats": [routing.TYPE_STATS],
    "DeliveryEvent": [event.value for event in Event],
}

_REQUIRED: Final[dict[str, list[str]]] = {
    **{name: ["message_id"] for name in ("Confirm", "Control", "ComputeStats", "Send", "DeliveryEvent")},
    "Reply": ["correlation_id"],
    "Stats": ["correlation_id"],
    "ClaimRequest": ["message_id", "reply_to"],
    "ClaimAnswer": ["correlation_id"],
}

_LISTS: Final = {*RESULTS.values(), TrackingEvent}
"""Messages whose body may be an array of them."""

_AUTHORISED: Final = {Confirm, Control}
"""Messages that carry a token where the installation asks for one."""

_PROPERTIES: Final = {
    "message_id": "AMQP property: the message's own identifier.",
    "correlation_id": "AMQP property: set by who asks, given back in the answer.",
    "reply_to": "AMQP property: the queue for the answer.",
    "app_id": "AMQP property: the program that published the message.",
    "user_id": "AMQP property: the broker user that published it; the broker checks it.",
    routing.TRACEPARENT: "Header: the trace that the message belongs to (W3C Trace Context); not read yet.",
}

_PREAMBLE: Final = (
    "Sendoff carries out the *confirm send* step of campaign messaging. "
    "This document is written from its side: "
    "it receives commands, requests for claims, results and tracking events, "
    "and sends send messages, replies and events. "
    "Bodies are JSON in UTF-8; unknown fields are ignored, missing or wrong ones refused. "
    "A configured prefix stands before every exchange and queue, with a dot."
)


class _Schema(GenerateJsonSchema):
    """Leaves out titles that only repeat the name of a field."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ANN401, ARG002
        return False


def _schema_files() -> dict[str, str]:
    files = {}
    for model, name in _FILES.items():
        schema = {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            **model.model_json_schema(schema_generator=_Schema),
            "examples": EXAMPLES[model],
        }
        files[f"schemas/{name}.json"] = json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
    return files


def _ref(kind: str, name: str) -> dict[str, str]:
    return {"$ref": f"#/{kind}/{name.replace('/', '~1')}"}


def _channel(address: str, description: str, messages: list[str], amqp: dict[str, Any]) -> dict[str, Any]:
    return {
        "address": address,
        "description": description,
        "messages": {name: _ref("components/messages", name) for name in messages},
        "bindings": {"amqp": {**amqp, "bindingVersion": "0.3.0"}},
    }


def _keyed(exchange: str, key: str, description: str, message: str) -> dict[str, Any]:
    kind = _EXCHANGE_TYPES.get(exchange, "direct")
    amqp = {"name": exchange, "type": kind, "durable": True, "autoDelete": False}
    return _channel(key, description, [message], {"is": "routingKey", "exchange": amqp})


def _queue(name: str, description: str, messages: list[str]) -> dict[str, Any]:
    amqp = {"name": name, "durable": True, "exclusive": False, "autoDelete": False}
    return _channel(name, f"Quorum queue. {description}", messages, {"is": "queue", "queue": amqp})


def _channels() -> dict[str, Any]:
    channel = {
        "channel": {"description": "The channel that a sender serves.", "examples": ["email", "null"]},
    }
    event = {"event": {"description": "What happened.", "enum": [event.value for event in Event]}}
    channels = {key: _keyed(exchange, key, text, model.__name__) for exchange, key, model, text in _RECEIVED}
    channels["send"] = {
        **_keyed(routing.SENDS, "{channel}", "One attempt for one recipient.", "Send"),
        "parameters": channel,
    }
    channels["claim"] = {
        **_keyed(routing.CLAIMS, "{channel}", "What a sender may try.", "ClaimRequest"),
        "parameters": channel,
    }
    channels["event"] = {
        **_keyed(
            routing.EVENTS,
            "{event}",
            "What happened to a delivery; bind a queue of your own.",
            "DeliveryEvent",
        ),
        "parameters": event,
    }
    channels["answer"] = {
        "address": None,
        "description": "The queue that a question names in `reply_to`, through the default exchange.",
        "messages": {name: _ref("components/messages", name) for name in ("Reply", "Stats", "ClaimAnswer")},
    }
    channels["queue:send"] = {
        **_queue(routing.send_queue("{channel}"), "What a channel's senders read.", ["Send"]),
        "parameters": channel,
    }
    channels[f"queue:{routing.CLAIMS_QUEUE}"] = _queue(
        routing.CLAIMS_QUEUE, f"Bound to `{routing.CLAIMS}` with every channel.", ["ClaimRequest"]
    )
    for queue, (exchange, keys) in routing.BINDINGS.items():
        models = dict.fromkeys(model.__name__ for e, k, model, _ in _RECEIVED if e == exchange and k in keys)
        text = f"Bound to `{exchange}` with {', '.join(f'`{key}`' for key in keys)}."
        channels[f"queue:{queue}"] = _queue(queue, text, list(models))
    channels[f"queue:{routing.DEAD_QUEUE}"] = _queue(
        routing.DEAD_QUEUE, f"Bound to `{routing.DEAD}`: what could not be handled.", ["Dead"]
    )
    return channels


def _operation(action: str, channel: str, messages: list[str], summary: str) -> dict[str, Any]:
    published = (
        {"deliveryMode": 2, "mandatory": True, "timestamp": True} if action == "send" else {"ack": True}
    )
    return {
        "action": action,
        "summary": summary,
        "channel": _ref("channels", channel),
        "messages": [_ref(f"channels/{channel}/messages", name) for name in messages],
        "bindings": {"amqp": {**published, "bindingVersion": "0.3.0"}},
    }


def _answered(names: list[str]) -> dict[str, Any]:
    return {
        "address": {"location": "$message.header#/reply_to"},
        "channel": _ref("channels", "answer"),
        "messages": [_ref("channels/answer/messages", name) for name in names],
    }


def _operations() -> dict[str, Any]:
    operations = {}
    for _, key, model, text in _RECEIVED:
        operation = _operation("receive", key, [model.__name__], text)
        if key in _ANSWERS:
            operation["reply"] = _answered(_ANSWERS[key])
        operations[key] = operation
    operations["claim"] = {
        **_operation("receive", "claim", ["ClaimRequest"], "Grants what a sender may try."),
        "reply": _answered(["ClaimAnswer"]),
    }
    operations["publishSend"] = _operation("send", "send", ["Send"], "Asks a sender to try one recipient.")
    operations["readSend"] = _operation("receive", "queue:send", ["Send"], "Tries one recipient.")
    operations["publishEvent"] = _operation("send", "event", ["DeliveryEvent"], "Tells what happened.")
    operations["publishEvent"]["bindings"]["amqp"]["mandatory"] = False
    return operations


def _message(model: type[BaseModel]) -> dict[str, Any]:
    name = model.__name__
    payload: dict[str, Any] = _ref("components/schemas", name)
    if model in _LISTS:
        payload = {"oneOf": [payload, {"type": "array", "items": payload, "maxItems": MAX_ITEMS}]}
    properties: dict[str, Any] = {
        "type": {
            "type": "string",
            "enum": _TYPES[name],
            "description": "AMQP property: the kind of message.",
        },
        "timestamp": {"type": "integer", "description": "AMQP property: when published, in Unix seconds."},
        routing.HEADER_SCHEMA_VERSION: {
            "type": "integer",
            "const": routing.SCHEMA_VERSION,
            "description": "Header: the version of the body.",
        },
        **{key: {"type": "string", "description": text} for key, text in _PROPERTIES.items()},
    }
    headers = {"type": "object", "properties": properties}
    if name in _REQUIRED:
        headers["required"] = _REQUIRED[name]
    message = {
        "name": name,
        "contentType": routing.CONTENT_TYPE,
        "headers": headers,
        "payload": payload,
        "examples": [{"payload": example} for example in EXAMPLES[model]],
    }
    if "correlation_id" in _REQUIRED.get(name, ()):
        message["correlationId"] = {"location": "$message.header#/correlation_id"}
    if model in _AUTHORISED:
        properties[routing.AUTHORIZATION] = {
            "type": "string",
            "description": "Header: the operator's token, `Bearer <token>`, where the workers ask for one.",
        }
    if model is Send:
        example = EXAMPLES[Send][0]
        named = message_id(example["delivery_id"], example["recipient"], example["attempt"])
        properties["message_id"] = {
            "type": "string",
            "description": "AMQP property: `<delivery>-<recipient>-<attempt>`.",
            "examples": [named],
        }
    return message


def _dead() -> dict[str, Any]:
    texts = {
        routing.HEADER_REASON: "Why the message is here.",
        routing.HEADER_EXCHANGE: "The exchange that it was first published to.",
        routing.HEADER_ROUTING_KEY: "The routing key that it was first published with.",
    }
    return {
        "name": "Dead",
        "summary": "A message that could not be handled, its body and properties untouched.",
        "headers": {
            "type": "object",
            "properties": {key: {"type": "string", "description": text} for key, text in texts.items()},
        },
        "payload": {},
    }


def _asyncapi() -> str:
    _, definitions = models_json_schema(
        [(model, "validation") for model in _FILES],
        ref_template="#/components/schemas/{model}",
        schema_generator=_Schema,
    )
    document = {
        "asyncapi": "3.0.0",
        "info": {"title": "Sendoff", "version": f"{routing.SCHEMA_VERSION}.0.0", "description": _PREAMBLE},
        "defaultContentType": routing.CONTENT_TYPE,
        "channels": _channels(),
        "operations": _operations(),
        "components": {
            "messages": {**{model.__name__: _message(model) for model in _FILES}, "Dead": _dead()},
            "schemas": definitions["$defs"],
        },
    }
    # The way through JSON leaves plain values, none of them shared: YAML then needs no anchors.
    plain = json.loads(json.dumps(document))
    head = "# Generated from the models by dev/generate_contracts.py: change those.\n"
    return head + yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=110)


def render() -> dict[str, str]:
    """Renders all files.

    Returns:
        The text of each file by its path under contracts/.
    """
    return {**_schema_files(), "asyncapi.yaml": _asyncapi()}


def differing(folder: Path) -> list[str]:
    """Names the files under a folder that are not as rendered: changed, missing, or no longer wanted."""
    wanted = render()
    there = {str(path.relative_to(folder)) for path in folder.glob("schemas/*.json")}
    changed = {name for name, text in wanted.items() if _read(folder / name) != text}
    return sorted(changed | (there - set(wanted)))


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


def main(arguments: list[str] | None = None) -> int:
    """Writes or checks the files; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing; name the files that differ")
    names = differing(CONTRACTS)
    if parser.parse_args(arguments).check:
        for name in names:
            print(f"contracts/{name} differs from the models: run python -m dev.generate_contracts")
        return 1 if names else 0
    wanted = render()
    for name in names:
        path = CONTRACTS / name
        if name in wanted:
            path.parent.mkdir(exist_ok=True)
            path.write_text(wanted[name], encoding="utf-8")
        else:
            path.unlink()
        print(f"contracts/{name} written" if name in wanted else f"contracts/{name} removed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
