"""What is looked at in a webhook delivery's content: at its preparation, and before the OK."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NoReturn

from worker.channels.webhook.content import BodyRenderer, WebhookContent
from worker.domain import template_checks
from worker.domain.link_names import MIRROR_URL
from worker.domain.preflight import look_at_links, untried_branches
from worker.domain.template_branches import untried_texts
from worker.domain.templates import Rendered, RenderFailed
from worker.domain.tracked_content import NotTrackable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from worker.domain.preflight import Found
    from worker.domain.tracked_content import Tracking

_READ: Final = 5
"""Messages whose links are read, as of emails."""


def problems(content: WebhookContent, columns: Collection[str], *, tracker: bool = False) -> list[str]:
    """Returns why nobody can be sent the content; see `worker.domain.template_checks.check`."""
    found = template_checks.check(content, columns, tracker=tracker)
    if found:
        return found
    names = BodyRenderer(content).names
    if "address" not in names:
        found.append(
            "body: it does not say who gets it: write “{{ address }}” in one of its texts, which is a proof's"
            " tester too."
        )
    if tracker and MIRROR_URL in names:
        found.append(f"body: “{MIRROR_URL}” shows an email, and this is none; leave it out.")
    return found


def try_out(content: WebhookContent, recipients: Iterable[tuple[int, Mapping[str, Any]]]) -> list[str]:
    """Fills the content in for some recipients; see `worker.domain.template_checks.try_rendering`."""
    return template_checks.try_rendering(BodyRenderer(content), recipients)


def look(content: WebhookContent, recipients: Sequence[tuple[int, Mapping[str, Any]]]) -> list[Found]:
    """Returns what the preflight finds in a content: links that lead nowhere, and branches nobody takes."""
    renderer = BodyRenderer(content)
    links = renderer.links.examples()
    messages: list[Rendered] = []
    for number, values in recipients[:_READ]:
        try:
            texts = renderer.texts({**values, **links, "recipient": number, "delivery_id": 1})
        except RenderFailed:
            continue
        messages.append(_shown("\n".join(texts)))
    found = list(look_at_links(messages, "\n".join(content.parts.values())))
    return found + list(untried_branches(untried_texts(content.parts, recipients)))


def show(content: Mapping[str, Any], variables: dict[str, Any]) -> Rendered:
    """Returns the body for one recipient as a person reads it, with links that count nothing.

    Raises:
        ValueError: The content is not valid.
        RenderFailed: It cannot be filled in with these values.
    """
    renderer = BodyRenderer(WebhookContent.model_validate(content))
    body = json.loads(renderer.render({**variables, **renderer.links.examples()}))
    return _shown(json.dumps(body, ensure_ascii=False, indent=2))


def _shown(text: str) -> Rendered:
    return Rendered(subject="", text_pieces=[text], html_pieces=None, to_name="", headers={})


def complete(content: WebhookContent, read: Callable[[str, int], bytes]) -> WebhookContent:  # noqa: ARG001
    """Returns the content: nothing is made of it beforehand."""
    return content


def track(content: WebhookContent, tracking: Tracking) -> NoReturn:  # noqa: ARG001
    """Refuses: a gateway's message has no pixel, and its links are not counted.

    Raises:
        NotTrackable: Always.
    """
    raise NotTrackable("opens and clicks of such messages are not counted; leave [tracking] out")
