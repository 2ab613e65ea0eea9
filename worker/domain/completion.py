"""What is made of an email content once, at the preparation: text out of HTML, and octets of files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.domain.attachments import MOST_OCTETS, Attachment
from worker.domain.content import ContentInvalid, EmailContent

if TYPE_CHECKING:
    from collections.abc import Callable


def completed(content: EmailContent, read: Callable[[str, int], bytes]) -> EmailContent:
    """Returns a content with all that is made of it once, at the preparation.

    Its attachments get their octets. If there is no text, it is made from the HTML.

    Args:
        content: The content as the delivery file gives it.
        read: Returns the first octets of a file, by its path in the delivery file, at most so many. It
            raises OSError.

    Raises:
        ContentInvalid: A file cannot be read, or the files are too large; the message says which.
    """
    room = MOST_OCTETS
    filled: list[Attachment] = []
    for one in content.attachments:
        if one.file is None:
            octets = one.octets
        else:
            try:
                octets = read(one.file, room + 1)
            except (OSError, ValueError) as error:
                why = (isinstance(error, OSError) and error.strerror) or str(error)
                raise ContentInvalid(f"the attachment {one.file} cannot be read: {why}") from None
        room -= len(octets)
        if room < 0:
            raise ContentInvalid(
                f"the attachments hold more than {MOST_OCTETS:,} octets, with {one.name or one.file}; "
                f"give a link instead"
            )
        filled.append(one if one.file is None else one.filled(octets))
    text = content.text
    if text is None and content.html is not None:
        from worker.domain.plain_text import text_of  # noqa: PLC0415 - it takes 0.1 s to load

        text = text_of(content.html)
    return content.model_copy(update={"attachments": tuple(filled), "text": text})
