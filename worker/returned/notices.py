"""Notices of bounces and complaints that a provider's notification service sends by mail, as JSON.

Amazon SES over SNS writes a JSON text into a JSON text, and mail servers break its lines. So fields are
looked for by their names, and no JSON is parsed.
"""

from __future__ import annotations

import re
from typing import Final

_FIELD: Final = r'"{name}"\s{{0,5}}:\s{{0,5}}"([^"\n]{{0,2000}})"'
_ADDRESS, _ACTION, _STATUS, _DIAGNOSIS, _SOURCE, _FEEDBACK = (
    re.compile(_FIELD.format(name=name))
    for name in ("emailAddress", "action", "status", "diagnosticCode", "source", "complaintFeedbackType")
)
_MOST: Final = 100


def bounced(text: str) -> list[dict[str, str]]:
    """Returns the recipients of a notice of bounces, as the fields of a report; none if it is none."""
    plain = _unescaped(text, "bouncedRecipients")
    found = []
    for part in re.split(r'(?="emailAddress")', plain)[1 : _MOST + 1]:
        fields = {
            "final-recipient": _ADDRESS.search(part),
            "action": _ACTION.search(part),
            "status": _STATUS.search(part),
            "diagnostic-code": _DIAGNOSIS.search(part),
        }
        found.append({name: match[1] for name, match in fields.items() if match})
    return found


def complained(text: str) -> tuple[str, str] | None:
    """Returns the type and the address of a notice of a complaint; None if it is none."""
    plain = _unescaped(text, "complainedRecipients")
    address, feedback = _ADDRESS.search(plain), _FEEDBACK.search(plain)
    return (feedback[1] if feedback else "abuse", address[1]) if address else None


def source(text: str) -> str | None:
    """Returns the envelope sender of the message that a notice is about."""
    found = _SOURCE.search(text.replace('\\"', '"'))
    return found[1] if found else None


def _unescaped(text: str, recipients: str) -> str:
    plain = text.replace('\\"', '"')
    start = plain.find(f'"{recipients}"')
    return "" if start < 0 else plain[start:]
