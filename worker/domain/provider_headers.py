"""The header that carries a message's reference through a mail provider, into its webhooks. Pure."""

from __future__ import annotations

from typing import Final

NAME: Final = "sendoff"
"""The name under which the webhooks tell the reference."""

_LINES: Final = {
    "ses": "X-SES-MESSAGE-TAGS: {name}={token}",
    # JSON may be folded between its parts; so each line stays below 78 octets (RFC 5322 section 2.1.1).
    "sendgrid": 'X-SMTPAPI: {{"unique_args":\r\n {{"{name}": "{token}"}}}}',
    "mailgun": 'X-Mailgun-Variables: {{"{name}":\r\n "{token}"}}',
    "postmark": "X-PM-Metadata-{name}: {token}",
    "generic": "X-Sendoff-Reference: {token}",
}
PROVIDERS: Final = tuple(_LINES)
"""The providers by their names."""


def reference_line(provider: str, token: str) -> str:
    """Returns the header line, folded where that is needed, without its end.

    Args:
        provider: One of `PROVIDERS`.
        token: The reference, of `ReturnPath.token`.
    """
    return _LINES[provider].format(name=NAME, token=token)
