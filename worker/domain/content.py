"""The content of an email delivery: the `[email]` table of its file."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Final, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from worker.domain.attachments import MOST_FILES, Attachment
from worker.domain.headers import refuse_name
from worker.domain.mailbox import named_mailbox

if TYPE_CHECKING:
    from collections.abc import Mapping

_OF_UNSUBSCRIBE: Final = frozenset({"list-unsubscribe", "list-unsubscribe-post"})
_SHOWN_CID: Final = re.compile(r"\bcid:([A-Za-z0-9_.+-]+)")
"""What the HTML names as an inline image (RFC 2392)."""
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
"""Characters that some program may read as the end of a header line."""


def _one_mailbox(value: str) -> str:
    named_mailbox(value)
    return value


def _one_line(value: str) -> str:
    if _CONTROL.search(value):
        raise ValueError("it must be one line, without line breaks or other control characters")
    return value


def _not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError("it must not be blank")
    if "\0" in value:
        raise ValueError("it holds a NUL character")  # Postgres does not store it
    return value


Line = Annotated[str, AfterValidator(_one_line), AfterValidator(_not_blank)]
"""A template of one line."""
Body = Annotated[str, AfterValidator(_not_blank)]
"""A template of any number of lines."""
Address = Annotated[str, AfterValidator(_one_mailbox)]
"""One address, with or without a display name; not a template."""


class ContentInvalid(ValueError):
    """A content cannot be sent to any recipient; the message says why."""


class EmailContent(BaseModel):
    """The content and the sender of an email delivery.

    `subject`, `text`, `html`, `to_name` and the values of `headers` are templates. `from` and `reply_to` are
    not: the sender is checked once, at the preparation. It must not depend on a value of the recipients file:
    otherwise the author of that file could choose the sender's name and domain (SPF, DKIM, DMARC).

    An unknown field is refused: otherwise a misspelt `htlm` would be ignored without a message.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", serialize_by_alias=True, validate_by_name=True)

    sender: Address = Field(alias="from")
    """The author's mailbox. It is the envelope sender too, so returned mail goes there."""
    subject: Line
    """The subject, as a template."""
    text: Body | None = None
    """The plain text, as a template."""
    html: Body | None = None
    """The HTML, as a template whose values are escaped."""
    to_name: Line | None = None
    """The recipient's display name, as a template; without it the header has only the address."""
    reply_to: Address | None = None
    """The address for answers, if it is not the author's."""
    headers: dict[str, Line] = Field(default_factory=dict)
    """Further headers by name, such as `List-Id` (RFC 2919); their values are templates."""
    unsubscribe: Line | None = None
    """Where one click unsubscribes (RFC 8058), as a template: for the header List-Unsubscribe."""
    attachments: tuple[Attachment, ...] = Field(default=(), max_length=MOST_FILES)
    """Files that go with every message, and images that the HTML shows."""

    @field_validator("headers")
    @classmethod
    def _check_headers(cls, headers: dict[str, str]) -> dict[str, str]:
        seen: set[str] = set()
        for name in headers:
            refused = refuse_name(name)
            if refused:
                raise ValueError(refused)
            if name.lower() in seen:
                raise ValueError(f"the header {name} is there twice")
            seen.add(name.lower())
        if "list-unsubscribe-post" in seen and "list-unsubscribe" not in seen:
            raise ValueError("the header List-Unsubscribe-Post needs List-Unsubscribe (RFC 8058)")
        return headers

    @model_validator(mode="after")
    def _check_body(self) -> Self:
        if self.text is None and self.html is None:
            raise ValueError("the message is empty: give `text`, `html` or both")
        if self.unsubscribe and any(name.lower() in _OF_UNSUBSCRIBE for name in self.headers):
            raise ValueError("give `unsubscribe` or the header List-Unsubscribe, not both")
        return self

    @model_validator(mode="after")
    def _check_inline(self) -> Self:
        given = [one.cid for one in self.attachments if one.cid is not None]
        shown = set(_SHOWN_CID.findall(self.html or ""))
        for cid in given:
            if cid not in shown:
                raise ValueError(f"attachments: `html` does not show the inline image, as “cid:{cid}”")
        if len(set(given)) < len(given):
            raise ValueError("attachments: two inline images have the same `cid`")
        for cid in sorted(shown - set(given)):
            raise ValueError(f"html: “cid:{cid}” is none of the attachments; give it as `cid` of one")
        return self

    def with_headers(self, defaults: Mapping[str, str]) -> EmailContent:
        """Returns the content with more headers, but for those that it gives itself."""
        own = {name.lower() for name in self.headers}
        own |= _OF_UNSUBSCRIBE if self.unsubscribe else set()
        more = {name: value for name, value in defaults.items() if name.lower() not in own}
        return self.model_copy(update={"headers": self.headers | more}) if more else self

    @property
    def parts(self) -> dict[str, str]:
        """Every template by its name for people, such as `subject` or `headers.List-Unsubscribe`."""
        parts = {"subject": self.subject, "to_name": self.to_name, "text": self.text, "html": self.html}
        parts |= {"unsubscribe": self.unsubscribe}
        parts |= {f"headers.{name}": value for name, value in self.headers.items()}
        return {name: source for name, source in parts.items() if source is not None}


def control_character(value: str) -> str | None:
    """Finds a line break or another control character, which a header must not contain."""
    found = None if value.isprintable() else _CONTROL.search(value)
    return found.group() if found else None
