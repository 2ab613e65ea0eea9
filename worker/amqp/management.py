"""Sets and compares the policy of our queues over the management API, which not every broker offers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlsplit

import httpx2

from worker.amqp.errors import ManagementFailed

if TYPE_CHECKING:
    from worker.amqp.policies import Policy

_SECONDS: Final = 10.0
_MOST_QUEUES: Final = 500
"""Queues of an installation: a dozen, and one for each channel and shard."""


class Management:
    """The management API of a broker."""

    def __init__(self, url: str, vhost: str) -> None:
        """Takes its address, with a user that has the tag `policymaker`, and the virtual host."""
        self._url = url.rstrip("/")
        self._vhost = quote(vhost, safe="")

    async def set(self, policy: Policy) -> None:
        """Sets a policy; one of the same name is replaced.

        Raises:
            ManagementFailed: it is out of reach or refuses.
        """
        await self._ask("PUT", f"policies/{self._vhost}/{quote(policy.name, safe='')}", policy.body())

    async def faults(self, policy: Policy) -> list[str]:
        """Returns what is not in force at the queues that a policy is for, a sentence for each queue.

        Raises:
            ManagementFailed: as `set`.
        """
        asked = f"use_regex=true&name={quote(policy.pattern, safe='')}&page=1&page_size={_MOST_QUEUES}"
        columns = "columns=name,policy,effective_policy_definition"
        answer = await self._ask("GET", f"queues/{self._vhost}?{asked}&{columns}")
        found = []
        for queue in answer.get("items", []):
            effective = queue.get("effective_policy_definition") or {}
            if lacking := policy.missing(effective if isinstance(effective, dict) else {}):
                named = f"the policy “{queue['policy']}”" if queue.get("policy") else "no policy"
                found.append(f"“{queue['name']}” has {named}: {', '.join(lacking)}")
        return found

    async def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        url = f"{self._url}/api/{path}"
        where = f"{urlsplit(url).hostname}:{urlsplit(url).port or urlsplit(url).scheme}"
        try:
            async with (
                asyncio.timeout(_SECONDS),
                httpx2.AsyncClient(follow_redirects=False, timeout=_SECONDS) as client,
            ):
                answer = await client.request(method, url, json=body)
        except (TimeoutError, httpx2.HTTPError, httpx2.InvalidURL) as error:
            reason = str(error) or type(error).__name__
            raise ManagementFailed(f"The management API at {where} is out of reach: {reason}") from error
        if answer.status_code in (httpx2.codes.UNAUTHORIZED, httpx2.codes.FORBIDDEN):
            raise ManagementFailed(
                f"The management API at {where} refuses the user of SENDOFF_MANAGEMENT_URL: it needs the tag"
                " “policymaker” and a permission for the virtual host."
            )
        if not answer.is_success:
            told = answer.text.strip()[:200] or "it does not say why"
            raise ManagementFailed(f"The management API at {where} refuses ({answer.status_code}): {told}")
        try:
            return dict(answer.json()) if answer.content else {}
        except ValueError as error:
            raise ManagementFailed(f"What answers at {where} is no management API of RabbitMQ.") from error
