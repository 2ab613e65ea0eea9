"""One message or an array of messages in one body. A bad message does not lose the others."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Final, Generic, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from contracts.base import Message, explain

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_ITEMS: Final = 1000
"""How many messages one body may carry."""

_FIRST_HALF: Final = re.compile("[\ud800-\udbff]")
"""One half of a character beyond 16 bits, as JSON escapes it, without the other half."""

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class Decoded(Generic[M]):
    """What a body held.

    Attributes:
        results: The messages that fit, in their order.
        rejected: What did not fit, each with a sentence that says why: the whole body, or items of its array
            as JSON.
    """

    results: list[M]
    rejected: list[tuple[bytes, str]] = field(default_factory=list)


def check_size(messages: Sequence[object]) -> None:
    """Refuses messages that are too many for one body.

    Raises:
        ValueError: There are more than `MAX_ITEMS`.
    """
    if len(messages) > MAX_ITEMS:
        raise ValueError(f"One body carries at most {MAX_ITEMS} messages, not {len(messages)}: split them.")


class Batch(Generic[M]):
    """Reads and writes bodies of one kind of message."""

    def __init__(self, model: type[M]) -> None:
        self._one = TypeAdapter(model)
        # mypy cannot follow a type that is made at run time. The annotation says what it is.
        many: Any = Annotated[list[model], Field(max_length=MAX_ITEMS)]  # type: ignore[valid-type]
        self._many: TypeAdapter[list[M]] = TypeAdapter(many)

    def encode(self, messages: Sequence[M]) -> bytes:
        """Writes messages as one array.

        Raises:
            ValueError: There are more than `MAX_ITEMS`.
        """
        check_size(messages)
        return self._many.dump_json(list(messages), warnings="error")

    def decode(self, body: bytes) -> Decoded[M]:
        """Reads a body: one JSON object, or an array of up to `MAX_ITEMS` of them."""
        try:
            if body.lstrip().startswith(b"{"):
                return Decoded([self._one.validate_json(body)])
            return Decoded(self._many.validate_json(body))
        except ValidationError:
            return self._decode_one_by_one(body)

    def _decode_one_by_one(self, body: bytes) -> Decoded[M]:
        # Bytes that are not UTF-8 become lone surrogates. They are refused with the item that holds them.
        try:
            read = json.loads(body.decode("utf-8", "surrogateescape"))
            items = read if isinstance(read, list) else [read]
            if len(items) > MAX_ITEMS:
                sentence = f"The array holds {len(items)} items; one message carries at most {MAX_ITEMS}."
                return Decoded([], [(body, sentence)])
            raws = [(json.dumps(item, separators=(",", ":")).encode(), _mended(item)) for item in items]
        except (ValueError, RecursionError) as error:
            return Decoded([], [(body, f"The body is not JSON that can be read: {error}.")])
        decoded: Decoded[M] = Decoded([])
        for raw, mended in raws:
            try:
                decoded.results.append(self._one.validate_json(mended))
            except ValidationError as error:
                decoded.rejected.append((raw, explain(error)))
        return decoded


def _mended(item: object) -> bytes:
    """Writes an item. A text that was cut within a character gets U+FFFD, so that no outcome is lost."""
    text = _FIRST_HALF.sub("\ufffd", json.dumps(item, ensure_ascii=False, separators=(",", ":")))
    return text.encode("utf-8", "surrogatepass")
