"""What is published of the wire: schemas, the AsyncAPI document and the guide, all true to the models."""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
import yaml

from contracts import routing
from contracts.claims import ClaimReason
from contracts.commands import Reason, Status
from contracts.events import Event
from contracts.results import BounceKind, BounceReason, Fault
from contracts.states import State
from dev import generate_contracts
from dev.contract_examples import EXAMPLES

if TYPE_CHECKING:
    from pydantic import BaseModel

ROOT = Path(__file__).resolve().parents[2]
ASYNCAPI_SCHEMA = ROOT / "tests/data/asyncapi/3.0.0.json"
GUIDE = (ROOT / "docs/contracts.md").read_text(encoding="utf-8")
SCHEMAS = {model.__name__: model for model in EXAMPLES}


def schema_of(model: type[BaseModel]) -> dict[str, Any]:
    for path in (ROOT / "contracts/schemas").glob("*.json"):
        schema: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if schema["title"] == model.__name__:
            return schema
    raise AssertionError(f"{model.__name__} has no schema")


def document() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "contracts/asyncapi.yaml").read_text(encoding="utf-8"))
    return loaded


def asyncapi_faults(checked: dict[str, Any]) -> list[str]:
    validator = jsonschema.Draft7Validator(json.loads(ASYNCAPI_SCHEMA.read_text(encoding="utf-8")))
    return [fault.message for fault in validator.iter_errors(checked)]


def test_the_files_are_as_generated() -> None:
    assert generate_contracts.differing(generate_contracts.CONTRACTS) == []


def test_a_changed_a_missing_and_an_old_file_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generate_contracts, "CONTRACTS", tmp_path)
    assert generate_contracts.main([]) == 0
    assert generate_contracts.main(["--check"]) == 0
    (tmp_path / "schemas/sent.json").write_text("{}", encoding="utf-8")
    (tmp_path / "schemas/old.json").write_text("{}", encoding="utf-8")
    (tmp_path / "asyncapi.yaml").unlink()
    capsys.readouterr()
    assert generate_contracts.main(["--check"]) == 1
    assert re.findall(r"^contracts/(\S+) differs", capsys.readouterr().out, re.MULTILINE) == [
        "asyncapi.yaml",
        "schemas/old.json",
        "schemas/sent.json",
    ]
    assert generate_contracts.main([]) == 0
    assert generate_contracts.differing(tmp_path) == []


@pytest.mark.parametrize("model", EXAMPLES, ids=lambda model: model.__name__)
def test_a_schema_is_sound_and_takes_what_the_model_writes(model: type[BaseModel]) -> None:
    schema = schema_of(model)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    for example in schema["examples"]:
        validator.validate(example)
        validator.validate(json.loads(model.model_validate_json(json.dumps(example)).model_dump_json()))
        for name in schema["required"]:
            assert not validator.is_valid({key: value for key, value in example.items() if key != name})


@pytest.mark.parametrize("model", EXAMPLES, ids=lambda model: model.__name__)
def test_every_field_is_described(model: type[BaseModel]) -> None:
    assert [name for name, field in model.model_fields.items() if not field.description] == []


def test_the_schema_wants_the_preparation_of_a_definitive_confirmation() -> None:
    validator = jsonschema.Draft202012Validator(
        schema_of(next(m for m in EXAMPLES if m.__name__ == "Confirm"))
    )
    assert not validator.is_valid({"delivery_id": 42, "operator": "ana", "definitive": True})
    assert validator.is_valid({"delivery_id": 42, "operator": "ana", "definitive": False})


def test_the_asyncapi_document_is_one() -> None:
    assert asyncapi_faults(document()) == []


def test_the_check_of_the_asyncapi_document_can_fail() -> None:
    broken = document()
    broken["operations"]["publishSend"]["action"] = "shout"
    assert asyncapi_faults(broken)


def test_the_asyncapi_document_names_every_queue_and_exchange() -> None:
    amqp = [
        channel["bindings"]["amqp"] for channel in document()["channels"].values() if "bindings" in channel
    ]
    queues = {binding["queue"]["name"] for binding in amqp if binding["is"] == "queue"}
    exchanges = {binding["exchange"]["name"] for binding in amqp if binding["is"] == "routingKey"}
    assert queues == {
        *routing.BINDINGS,
        routing.CLAIMS_QUEUE,
        routing.DEAD_QUEUE,
        routing.send_queue("{channel}"),
    }
    assert exchanges == {
        routing.COMMANDS,
        routing.SENDS,
        routing.CLAIMS,
        routing.RESULTS,
        routing.TRACKING,
        routing.EVENTS,
    }


def test_every_reference_of_the_asyncapi_document_leads_somewhere() -> None:
    whole = document()

    def references(node: Any) -> list[str]:
        if isinstance(node, dict):
            own = [node["$ref"]] if "$ref" in node else []
            return own + [found for value in node.values() for found in references(value)]
        return [found for value in node for found in references(value)] if isinstance(node, list) else []

    found = references(whole)
    assert found
    for reference in found:
        target: Any = whole
        for part in reference.removeprefix("#/").split("/"):
            target = target[part]


def test_the_published_files_lie_in_the_package() -> None:
    package = resources.files("contracts")
    assert package.joinpath("asyncapi.yaml").is_file()
    assert package.joinpath("schemas", "send.json").is_file()


def test_the_guides_examples_fit_their_schemas() -> None:
    blocks = re.findall(r"<!-- (\w+) -->\n```json\n(.*?)```", GUIDE, re.DOTALL)
    assert {name for name, _ in blocks} == set(SCHEMAS)
    assert len(blocks) == GUIDE.count("```json")
    for name, block in blocks:
        body = json.loads(block)
        for item in body if isinstance(body, list) else [body]:
            SCHEMAS[name].model_validate_json(json.dumps(item))
            jsonschema.validate(item, schema_of(SCHEMAS[name]))


@pytest.mark.parametrize(
    "words", [Status, Reason, ClaimReason, State, BounceKind, BounceReason, Fault, Event]
)
def test_the_guide_says_every_word(words: Any) -> None:
    assert [word.value for word in words if f"`{word.value}`" not in GUIDE] == []


def test_the_guide_names_every_queue_exchange_and_header() -> None:
    strings = {
        value
        for name, value in vars(routing).items()
        if name.isupper() and isinstance(value, str) and not name.startswith("TYPE_")
    }
    assert [value for value in sorted(strings) if f"`{value}`" not in GUIDE] == []
