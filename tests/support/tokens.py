"""Signed tokens, and the settings under which they are good."""

from __future__ import annotations

import time
from typing import Any

import jwt
from pydantic import SecretStr

SECRET = "a secret that is long enough, at 32+"  # noqa: S105 - made for this test
DAY = 86_400
TOKENS = {
    "auth": "token",
    "auth_key": SecretStr(SECRET),
    "auth_issuer": "https://id.example.org",
    "auth_audience": "sendoff",
}


def token(operator: str = "ana", key: str = SECRET, **changes: Any) -> str:
    claims = {
        "iss": "https://id.example.org",
        "aud": "sendoff",
        "sub": operator,
        "exp": time.time() + DAY,  # made when tests are collected, used when their turn comes
        "roles": ["start_deliveries"],
    }
    return jwt.encode({k: v for k, v in (claims | changes).items() if v is not None}, key, algorithm="HS256")


def bearing(bearer: str) -> dict[str, Any]:
    return {"headers": {"authorization": f"Bearer {bearer}"}}
