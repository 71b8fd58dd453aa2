"""A speaker's process looks for garbage seldom, whoever embeds it."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from bgp.aio import collect_seldom


@pytest.fixture(autouse=True)
def thresholds() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((700, 10, 10), (50_000, 50, 1000)),
        ((60_000, 10, 2000), (60_000, 50, 2000)),  # only ever raised
        ((0, 10, 10), (0, 10, 10)),  # turned off
    ],
)
def test_thresholds_are_raised(before: tuple[int, int, int], after: tuple[int, int, int]) -> None:
    gc.set_threshold(*before)
    collect_seldom()
    assert gc.get_threshold() == after
