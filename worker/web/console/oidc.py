"""Signs people in at an issuer: OpenID Connect Core 1.0, the code flow, with PKCE (RFC 7636).

It needs the extra `sendoff[oidc]`. What the issuer says is verified as the services verify the tokens of
commands: by its published keys, and by issuer, audience and expiry. Sessions are in a signed cookie, so that
any console of the installation knows them.
"""

from __future__ import annotations

import hmac
import secrets
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import httpx2
import jwt
import structlog
from authlib.integrations.base_client.errors import OAuthError
from authlib.integrations.httpx_client import AsyncOAuth2Client
from starlette.responses import RedirectResponse

from worker.auth.tokens import KeySet, TokenRefused, Verifier
from worker.domain.authority import Bearer, acting_operator
from worker.domain.operators import Role
from worker.web.console.people import SESSION, NotSignedIn, Person

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from starlette.responses import Response

    from worker.domain.operators import Operator

log = structlog.get_logger(__name__)

# The prefix makes browsers insist on Secure, on the whole path, and on no domain (RFC 6265bis, 4.1.3.2).
_SESSION_COOKIE: Final = "__Host-sendoff"
_FLOW_COOKIE: Final = "__Host-sendoff-signing-in"
_ALGORITHM: Final = "HS256"
_FLOW: Final = timedelta(minutes=10)
"""How long a person may take at the issuer."""
_KEYS_SECONDS: Final = 300
"""After so long the issuer is asked anew what it publishes."""
_COOKIE_MOST: Final = 3_800
"""What a browser keeps of one cookie is 4,096 octets, with its name."""
_BEGIN: Final = "/oidc/begin"


class SignIn(NotSignedIn):
    """Nobody is signed in, and the issuer can change that."""

    begin = _BEGIN


@dataclass(frozen=True, slots=True)
class Client:
    """Who we are at the issuer."""

    issuer: str
    client_id: str
    client_secret: str | None
    """None for a public client, which PKCE alone protects."""
    address: str
    """The address at which browsers see the console, without a slash at its end."""
    algorithms: frozenset[str]
    operator_claim: str
    roles_claim: str
    seconds: float
    """How long the issuer may take to answer."""


class OidcGate:
    """Knows people by their sessions, which it starts when the issuer has signed them in."""

    def __init__(
        self,
        find: Callable[[str], Awaitable[Operator | None]],
        client: Client,
        key: bytes,
        *,
        by_token: bool,
    ) -> None:
        """Takes what it works with.

        Args:
            find: Finds an operator in the directory.
            client: Who we are at the issuer.
            key: Signs the sessions.
            by_token: Whether commands carry the person's token, which then names their roles. Else the
                directory does.
        """
        self._find = find
        self._client = client
        self._key = key
        self._by_token = by_token
        self._published: tuple[float, dict[str, Any], Verifier] | None = None

    async def identify(self, headers: Mapping[str, str], cookies: Mapping[str, str]) -> Person:  # noqa: ARG002
        """Reads the session of the cookie."""
        told = self._read(cookies.get(_SESSION_COOKIE), "session")
        if told is None:
            raise SignIn("Sign in to see the deliveries.")
        name, token, bearer = told["sub"], told.get("token"), None
        if self._by_token:
            bearer = Bearer(name, frozenset(role for role in Role if role.value in told["roles"]))
        operator = acting_operator(await self._find(name), bearer)
        roles = operator.roles if operator is not None and operator.active else frozenset()
        return Person(name, operator, not roles, token, bearer)

    farewell = "You are signed out here. At the issuer you may still be signed in."

    def forget(self, answer: Response) -> None:
        """Removes the cookie. The session at the issuer is the issuer's."""
        answer.delete_cookie(_SESSION_COOKIE, path="/", secure=True, httponly=True, samesite="lax")

    async def begin(self, then: str) -> Response:
        """Leads to the issuer; what is needed when the person comes back is in a cookie of its own."""
        metadata, _ = await self._issuer()
        verifier, nonce = secrets.token_urlsafe(48), secrets.token_urlsafe(24)
        async with self._open() as client:
            address, state = client.create_authorization_url(
                metadata["authorization_endpoint"], code_verifier=verifier, nonce=nonce
            )
        answer = RedirectResponse(address, 303)
        flow = {"state": state, "nonce": nonce, "verifier": verifier, "then": _local(then)}
        self._set(answer, _FLOW_COOKIE, "flow", flow, _FLOW)
        return answer

    async def end(self, answer: Mapping[str, str], cookies: Mapping[str, str]) -> Response:
        """Starts a session by the issuer's answer.

        Raises:
            NotSignedIn: It cannot be believed, or says no.
        """
        flow = self._read(cookies.get(_FLOW_COOKIE), "flow")
        if flow is None or not hmac.compare_digest(flow["state"].encode(), answer.get("state", "").encode()):
            raise NotSignedIn("This was not begun in this browser, or took too long. Begin again.")
        if "code" not in answer:
            raise NotSignedIn(f"The issuer did not sign you in: {answer.get('error', 'no reason')[:100]}.")
        metadata, verifier = await self._issuer()
        token = await self._exchange(metadata, answer["code"], flow["verifier"])
        try:
            claims = verifier.claims(token)
            bearer = verifier.bearer(claims)
        except TokenRefused as error:
            self._published = None  # it may have other keys by now
            raise NotSignedIn(str(error)) from error
        if not hmac.compare_digest(str(claims.get("nonce", "")).encode(), flow["nonce"].encode()):
            raise NotSignedIn("The issuer's token is of another sign-in. Begin again.")
        log.info("signed in", operator=bearer.operator)
        return self._started(bearer, claims, token, flow["then"])

    def _started(self, bearer: Bearer, claims: Mapping[str, Any], token: str, then: str) -> Response:
        session: dict[str, Any] = {"sub": bearer.operator, "roles": sorted(bearer.roles)}
        lasts = SESSION
        if self._by_token:  # commands carry it, and are refused when it has expired
            session["token"] = token
            lasts = min(SESSION, timedelta(seconds=claims["exp"] - time.time()))
        answer = RedirectResponse(then, 303)
        answer.delete_cookie(_FLOW_COOKIE, path="/", secure=True, httponly=True, samesite="lax")
        self._set(answer, _SESSION_COOKIE, "session", session, lasts)
        return answer

    async def _exchange(self, metadata: Mapping[str, Any], code: str, verifier: str) -> str:
        try:
            async with self._open() as client:
                told = await client.fetch_token(
                    metadata["token_endpoint"],
                    grant_type="authorization_code",
                    code=code,
                    code_verifier=verifier,
                    redirect_uri=f"{self._client.address}/oidc/end",
                )
        except (OAuthError, httpx2.HTTPError, ValueError) as error:
            log.info("the issuer gave no token", because=str(error))
            raise NotSignedIn("The issuer does not know this sign-in any more. Begin again.") from error
        return str(told.get("id_token", ""))

    async def _issuer(self) -> tuple[dict[str, Any], Verifier]:
        """Returns what the issuer publishes (OpenID Connect Discovery 1.0, 4), and what verifies its tokens.

        Raises:
            NotSignedIn: It is out of reach, or is not the one that we mean.
        """
        if self._published is not None and time.monotonic() < self._published[0]:
            return self._published[1:]
        c = self._client
        try:
            async with httpx2.AsyncClient(timeout=c.seconds) as client:
                found = await client.get(f"{c.issuer.rstrip('/')}/.well-known/openid-configuration")
                metadata = found.raise_for_status().json()
                keys = (await client.get(metadata["jwks_uri"])).raise_for_status().json()["keys"]
            _check_issuer(metadata["issuer"], c.issuer)
            verifier = Verifier(
                KeySet(keys, c.algorithms),
                issuer=c.issuer,
                audience=c.client_id,
                operator_claim=c.operator_claim,
                roles_claim=c.roles_claim,
            )
        except (httpx2.HTTPError, ValueError, TypeError, KeyError) as error:
            log.warning("the issuer cannot be asked", issuer=c.issuer, because=repr(error))
            raise NotSignedIn("The issuer cannot be asked now. Try again soon.") from error
        self._published = (time.monotonic() + _KEYS_SECONDS, metadata, verifier)
        return metadata, verifier

    def _open(self) -> AsyncOAuth2Client:
        c = self._client
        return AsyncOAuth2Client(
            c.client_id,
            c.client_secret,
            scope="openid profile",
            redirect_uri=f"{c.address}/oidc/end",
            code_challenge_method="S256",
            token_endpoint_auth_method="client_secret_basic" if c.client_secret else "none",
            timeout=c.seconds,
        )

    def _set(self, answer: Response, name: str, use: str, told: Mapping[str, Any], lasts: timedelta) -> None:
        value = jwt.encode({**told, "use": use, "exp": datetime.now(UTC) + lasts}, self._key, _ALGORITHM)
        if len(value) > _COOKIE_MOST:
            raise NotSignedIn("The issuer's token is too large for a cookie: have it say less.")
        seconds = int(lasts.total_seconds())
        answer.set_cookie(name, value, seconds, path="/", secure=True, httponly=True, samesite="lax")

    def _read(self, cookie: str | None, use: str) -> dict[str, Any] | None:
        """Returns what a cookie of ours says; None for none, one of another use, and one that is over."""
        try:
            told: dict[str, Any] = jwt.decode(
                cookie or "", self._key, [_ALGORITHM], options={"require": ["exp"]}
            )
        except jwt.PyJWTError:
            return None
        return told if told.get("use") == use else None


def _check_issuer(found: object, meant: str) -> None:
    if found != meant:
        raise ValueError(f"it says that it is {found}")


def _local(then: str) -> str:
    """Returns an address of our own: another site must not be able to lead people away by ours."""
    fits = then.startswith("/") and not then.startswith("//") and "\\" not in then and then.isprintable()
    return then if fits else "/"
