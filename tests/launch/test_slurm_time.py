"""Durations in SLURM's spellings."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_recolor.launch.slurm_time import format_time, parse_time
from hpc_recolor.runtime.errors import UserError


@given(st.integers(1, 1_000_000))
def test_a_time_is_read_back_as_it_was_written(minutes: int) -> None:
    assert parse_time(format_time(minutes)) == minutes


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("1:30", 2), ("0:30", 1), ("2:00:00", 120), ("1-0", 1440), ("1-2:3", 1563), ("1-00:00:01", 1441)],
)
def test_all_spellings_of_a_time_are_read(text: str, minutes: int) -> None:
    assert parse_time(text) == minutes


@pytest.mark.parametrize("text", ["", "0", "soon", "1:2:3:4", "-1", "1-", "UNLIMITED", "1 0", "\u0661", "1\n", "1.5"])
def test_other_spellings_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="--time="):
        parse_time(text)
