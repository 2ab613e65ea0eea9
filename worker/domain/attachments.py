"""Attachments and inline images of a delivery: what its file says of them, and their octets."""

from __future__ import annotations

import base64
import binascii
import mimetypes
import re
from pathlib import PurePath
from typing import Annotated, Final, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

MOST_OCTETS: Final = 5_000_000
"""The most octets of all attachments of a delivery together. In a message they are a third longer (base64).
Many relays take 10 MB. Every sender keeps them in memory."""
MOST_FILES: Final = 20
_TYPE: Final = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]*/[a-z0-9][a-z0-9!#$&^_.+-]*")
_CID: Final = re.compile(r"[A-Za-z0-9_+-]+(?:\.[A-Za-z0-9_+-]+)*")
_WHOLE_MESSAGES: Final = ("multipart/", "message/")
"""Types that must not be sent in base64 (RFC 2045 section 6.4)."""
_OTHER: Final = "application/octet-stream"


def _file_name(value: str) -> str:
    if not value.isprintable() or not value.strip() or "/" in value or "\\" in value:
        raise ValueError("it must be one line that is not blank, without / and \\")
    return value


class Attachment(BaseModel):
    """A file that goes with every message, or an image that the HTML shows.

    A delivery file gives `file`. The preparation replaces it by `data`, so that a sender needs no file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: Annotated[str, Field(min_length=1)] | None = None
    """The path, relative to the delivery file."""
    name: Annotated[str, Field(max_length=200), AfterValidator(_file_name)] | None = None
    """The name that the recipient sees; the file's own if it is left out."""
    type: str | None = None
    """The media type, such as `application/pdf`; by the file's name if it is left out."""
    cid: str | None = None
    """For an inline image: the HTML shows it as `<img src="cid:…">` with these characters."""
    data: str | None = None
    """The octets in base64."""

    @field_validator("type")
    @classmethod
    def _check_type(cls, value: str | None) -> str | None:
        if value is not None and not _TYPE.fullmatch(value.lower()):
            raise ValueError(f"“{value}” is not a media type such as application/pdf")
        if value is not None and value.lower().startswith(_WHOLE_MESSAGES):
            raise ValueError(f"“{value}” cannot be attached; leave the type out, or give {_OTHER}")
        return value.lower() if value else value

    @field_validator("cid")
    @classmethod
    def _check_cid(cls, value: str | None) -> str | None:
        if value is not None and not (len(value) <= 100 and _CID.fullmatch(value)):  # noqa: PLR2004 - one line
            raise ValueError("give letters, digits and the characters . _ + - only")
        return value

    @field_validator("data")
    @classmethod
    def _check_data(cls, value: str | None) -> str | None:
        try:
            if value is not None:
                binascii.a2b_base64(value, strict_mode=True)
        except binascii.Error as error:
            raise ValueError(f"it is not base64: {error}") from None
        return value

    @model_validator(mode="after")
    def _has_octets(self) -> Self:
        if (self.file is None) is (self.data is None):
            raise ValueError("give `file`")
        if self.file is None and not (self.name and self.type):
            raise ValueError("with `data`, give `name` and `type`")
        return self

    @property
    def octets(self) -> bytes:
        """The octets; none before the file was read."""
        return binascii.a2b_base64(self.data or "")

    def filled(self, octets: bytes) -> Attachment:
        """Returns the attachment with the octets of its file, and with its name and type."""
        name = self.name or PurePath(self.file or "").name
        kind = self.type or mimetypes.guess_type(name)[0] or _OTHER
        if kind.startswith(_WHOLE_MESSAGES):
            kind = _OTHER
        if kind.startswith("text/") and not _is_utf8(octets):
            kind = _OTHER  # its character set is not known
        data = base64.b64encode(octets).decode("ascii")
        return Attachment(name=name, type=kind, cid=self.cid, data=data)


def _is_utf8(octets: bytes) -> bool:
    try:
        octets.decode()
    except UnicodeDecodeError:
        return False
    return True
