"""An erasure: only administrators may, and the record of it tells the profile to nobody."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from contracts.commands import Reason
from worker.domain.erasure import check_erasure, fingerprint
from worker.domain.operators import Operator, Role


def test_only_an_administrator_may_erase() -> None:
    assert check_erasure(Operator("ana", active=True, roles=frozenset({Role.ADMINISTRATION})), "ana") is None
    others = Operator("ana", active=True, roles=frozenset(Role) - {Role.ADMINISTRATION})
    refused = check_erasure(others, "ana")
    assert refused is not None
    assert refused.reason is Reason.ROLE_MISSING
    assert refused.message.startswith("Only operators with the Administration role can erase a profile:")


@given(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20))
def test_a_fingerprint_tells_two_profiles_apart_and_holds_neither(one: str, other: str) -> None:
    assert (fingerprint(one, "key") == fingerprint(other, "key")) == (one == other)


def test_a_fingerprint_is_the_hmac_that_openssl_computes_under_the_same_key() -> None:
    assert fingerprint("p-1", "k" * 32) == "3132cebf4a5c40f8a9c55084676bd87c3cb385bb28124d1a8808136ba8a93463"
    assert fingerprint("p-1", "l" * 32) != fingerprint("p-1", "k" * 32)
