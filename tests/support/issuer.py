"""An issuer of OpenID Connect, on a port of its own: it signs in each person that a test names."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import secrets
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlencode

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from starlette.applications import Starlette
from starlette.responses import JSONResponse, RedirectResponse
from starlette.routing import Route

from worker.web.server import WebServer, listen

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request
    from starlette.responses import Response

CLIENT = "sendoff"
SECRET = "the client's secret"  # noqa: S105 - made for this test


class Issuer:
    """Signs in, and checks that its client keeps to the flow."""

    def __init__(self) -> None:
        self.address = ""
        self.key = rsa.generate_private_key(65537, 2048)
        self.claims: dict[str, Any] = {"sub": "ana", "roles": ["start_deliveries"]}
        self.says: dict[str, Any] = {}
        """What it says of itself, instead of the truth."""
        self._asked: dict[str, dict[str, str]] = {}

    async def metadata(self, _: Request) -> Response:
        paths = {"authorization_endpoint": "authorize", "token_endpoint": "token", "jwks_uri": "keys"}
        told = {name: f"{self.address}/{path}" for name, path in paths.items()}
        return JSONResponse({"issuer": self.address, **told, **self.says})

    async def keys(self, _: Request) -> Response:
        public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(self.key.public_key()))
        return JSONResponse({"keys": [{**public, "kid": "k1", "use": "sig", "alg": "RS256"}]})

    async def authorize(self, request: Request) -> Response:
        asked = dict(request.query_params)
        assert asked["response_type"] == "code"
        assert asked["client_id"] == CLIENT
        assert asked["code_challenge_method"] == "S256"
        assert "openid" in asked["scope"].split()
        code = secrets.token_urlsafe(8)
        self._asked[code] = asked
        return RedirectResponse(
            f"{asked['redirect_uri']}?{urlencode({'code': code, 'state': asked['state']})}"
        )

    async def token(self, request: Request) -> Response:
        form = {name: values[0] for name, values in parse_qs((await request.body()).decode()).items()}
        asked = self._asked.pop(form.get("code", ""), None)
        basic = base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        if asked is None or asked["code_challenge"] != challenge:
            return JSONResponse({"error": "invalid_grant"}, 400)
        assert request.headers["authorization"] == f"Basic {basic}"
        assert form["redirect_uri"] == asked["redirect_uri"]
        claims = {
            "iss": self.address,
            "aud": CLIENT,
            "exp": time.time() + 3_600,
            "nonce": asked["nonce"],
            **self.claims,
        }
        token = jwt.encode(claims, self.key, "RS256", headers={"kid": "k1"})
        return JSONResponse({"access_token": "x", "token_type": "Bearer", "id_token": token})


@asynccontextmanager
async def issuing() -> AsyncIterator[Issuer]:
    """Runs an issuer."""
    issuer = Issuer()
    routes = [
        Route("/.well-known/openid-configuration", issuer.metadata),
        Route("/keys", issuer.keys),
        Route("/authorize", issuer.authorize),
        Route("/token", issuer.token, methods=["POST"]),
    ]
    server = WebServer("issuer", Starlette(routes=routes), await listen("127.0.0.1", 0, named="the test"))
    issuer.address = f"http://127.0.0.1:{server.port}"
    stop = asyncio.Event()
    task = asyncio.create_task(server.run(stop))
    try:
        yield issuer
    finally:
        stop.set()
        await asyncio.wait_for(task, 10)
