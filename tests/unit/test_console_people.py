"""Who comes into the console, and under which name."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import jwt
import pytest
from starlette.responses import Response

from tests.support.tokens import SECRET, TOKENS, token
from worker.auth.tokens import open_verifier
from worker.domain.operators import Operator, Role
from worker.settings import Settings
from worker.web.console import people
from worker.web.console.people import LocalGate, NotSignedIn, Owner, Person, ProxyGate

KNOWN = {
    "ana": Operator("ana", active=True, roles=frozenset({Role.START_DELIVERIES})),
    "bob": Operator("bob", active=True, roles=frozenset({Role.PREPARE_DELIVERIES})),
    "eve": Operator("eve", active=False, roles=frozenset({Role.START_DELIVERIES})),
}
VERIFIER = open_verifier(Settings(_env_file=None, **TOKENS))


async def find(name: str) -> Operator | None:
    return KNOWN.get(name)


def local(**options: Any) -> LocalGate:
    return LocalGate(find, lambda: None, **options)


async def come(gate: LocalGate, session: str | None) -> Person:
    return await gate.identify({}, {"sendoff_console": session or ""})


async def test_a_link_signs_in_once() -> None:
    told: list[str] = []
    gate = LocalGate(find, lambda: told.append(gate.link))
    link = gate.link
    person = await come(gate, gate.sign_in(link, "ana", read_only=False))
    assert (person.name, person.read_only, person.cannot_start) == ("ana", False, "")
    assert gate.sign_in(link, "ana", read_only=False) is None
    assert told == [gate.link], "the next link is told, and it is another one"
    assert gate.link != link


async def test_who_only_looks_may_change_nothing() -> None:
    gate = local()
    person = await come(gate, gate.sign_in(gate.link, "ana", read_only=True))
    assert person.read_only
    assert person.cannot_start == "You may look at everything here, and change nothing."


@pytest.mark.parametrize("name", ["bob", "eve"])
async def test_who_lacks_the_role_or_is_inactive_hears_why(name: str) -> None:
    gate = local()
    person = await come(gate, gate.sign_in(gate.link, name, read_only=False))
    assert not person.read_only
    assert name in person.cannot_start


async def test_somebody_who_is_no_operator_may_only_look() -> None:
    gate = local()
    assert (await come(gate, gate.sign_in(gate.link, "mallory", read_only=False))).read_only


async def test_a_session_of_another_process_a_forged_and_an_old_one_are_none() -> None:
    gate = local()
    other = local()
    foreign = other.sign_in(other.link, "ana", read_only=False)
    unsigned = jwt.encode({"sub": "ana", "ro": False, "exp": time.time() + 60}, None, algorithm="none")
    for session in (foreign, unsigned, "", "x.y.z"):
        with pytest.raises(NotSignedIn, match="Open the link"):
            await come(gate, session)


async def test_a_session_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(people, "SESSION", timedelta(seconds=-1))
    gate = local()
    session = gate.sign_in(gate.link, "ana", read_only=False)
    with pytest.raises(NotSignedIn):
        await come(gate, session)


def test_the_cookie_is_not_for_scripts_nor_for_other_sites() -> None:
    answer = Response()
    LocalGate.remember(answer, "session")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert "path=/" in cookie


async def test_where_commands_need_a_token_the_person_is_its_owner() -> None:
    assert VERIFIER is not None
    gate = local(own=Owner(token("bob"), VERIFIER))
    assert gate.own_name == "bob"
    person = await come(gate, gate.sign_in(gate.link, "ana", read_only=False))
    assert (person.name, person.cannot_start) == ("bob", ""), "the roles are the token's"
    assert person.token == token("bob") or person.token


async def test_an_owner_whose_token_is_over_is_nobody() -> None:
    assert VERIFIER is not None
    gate = local(own=Owner(token(exp=time.time() - 3_600), VERIFIER))
    session = gate.sign_in(gate.link, "ana", read_only=False)
    with pytest.raises(NotSignedIn, match="SENDOFF_TOKEN: The token has expired"):
        await come(gate, session)


def proxy(header: str = "authorization") -> ProxyGate:
    assert VERIFIER is not None
    return ProxyGate(find, VERIFIER, header)


async def test_the_token_that_a_proxy_passes_says_who_comes() -> None:
    passed = token("bob")
    person = await proxy().identify({"authorization": f"Bearer {passed}"}, {})
    assert (person.name, person.cannot_start, person.token) == ("bob", "", passed)
    assert person.bearer is not None


async def test_it_may_be_passed_in_another_header() -> None:
    person = await proxy("X-Forwarded-Access-Token").identify({"x-forwarded-access-token": token()}, {})
    assert person.name == "ana"


async def test_a_token_without_a_role_of_ours_may_only_look() -> None:
    person = await proxy().identify({"authorization": token(roles=["sales"])}, {})
    assert person.read_only


async def test_an_operator_whom_the_directory_deactivated_may_only_look() -> None:
    assert (await proxy().identify({"authorization": token("eve")}, {})).read_only


@pytest.mark.parametrize(
    ("headers", "because"),
    [
        ({}, "passed no token"),
        ({"authorization": "Bearer nonsense"}, "not a signed JSON Web Token"),
        ({"authorization": token(exp=1)}, "expired"),
        ({"authorization": token(key=SECRET[::-1])}, "signature is wrong"),
    ],
)
async def test_without_a_good_token_nobody_comes_in(headers: dict[str, str], because: str) -> None:
    with pytest.raises(NotSignedIn, match=because):
        await proxy().identify(headers, {"sendoff_console": "x"})
