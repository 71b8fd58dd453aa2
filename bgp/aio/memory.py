"""How often Python looks for garbage in a process that holds routing tables.

Rule: a table is large and holds no cycles, so looking through it again and again finds nothing and is a quarter of
the work; thresholds are only ever raised, and a collector that somebody has turned off stays off.
"""

from __future__ import annotations

import gc

_THRESHOLDS = 50_000, 50, 1000


def collect_seldom() -> None:
    """To be called once by a process that runs a speaker."""
    before = gc.get_threshold()
    if before[0]:
        gc.set_threshold(*map(max, before, _THRESHOLDS))
