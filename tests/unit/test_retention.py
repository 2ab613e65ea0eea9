"""The age at which deliveries leave, as a person writes it."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.domain.retention import read_age


@pytest.mark.parametrize("text", ["", "0d", "12m", "1.5d", "-3d", "400", "400 d", "999999d", "٣d"])
def test_an_age_that_is_not_a_number_of_days_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^give a number of days, such as 400d\Z"):
        read_age(text)


@given(st.integers(1, 99_999), st.sampled_from(["{}d", " {}d", "{}d\n"]))
def test_an_age_is_a_number_of_days(days: int, form: str) -> None:
    assert read_age(form.format(days)) == timedelta(days=days)
