"""The rule for addresses: telephone numbers, and whatever else a gateway knows somebody by."""

from __future__ import annotations

import re
from typing import Final

from worker.domain.audience import AddressInvalid

_PHONE: Final = re.compile(r"\+[1-9][0-9]{6,14}")
"""ITU-T E.164 section 6.2: up to 15 digits. No subscriber has fewer than seven with the country's code."""
_BETWEEN_DIGITS: Final = re.compile(r"[ \u00a0\u202f().\-\u2010\u2011/]")
"""What people write between the digits."""
_NOT_IN_TOKEN: Final = re.compile(r"[^!-~]")


def gateway_address(text: str) -> str:
    """Returns an address in its normal form.

    What begins with `+` is a telephone number, and becomes `+` and digits (E.164). Anything else is a token
    of the gateway, such as a device's: printable ASCII without blanks, which is kept as it is.

    Raises:
        AddressInvalid: It is neither.
    """
    if text.startswith("+"):
        number = _BETWEEN_DIGITS.sub("", text)
        if not _PHONE.fullmatch(number):
            raise AddressInvalid(
                "It begins as a telephone number and is none: + and 7 to 15 digits, with the country's code."
            )
        return number
    found = _NOT_IN_TOKEN.search(text)
    if found:
        raise AddressInvalid(
            f"It holds {found.group()!r}: a token is printable ASCII without blanks, a number begins with +."
        )
    return text
