"""How a benchmark speaks: the machine, Markdown tables on standard output, progress on standard error.

Rule: no figure without its machine, its load and its peer.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

NOT_GIVEN = "not given (FLANNELD=/path)"


def machine() -> str:
    """What the figures were taken on, and how busy it was with something else, as a Markdown line."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    state = "quiet" if load < 0.3 * cores else "busy: trust ratios and CPU seconds, not wall times"
    return (
        f"Linux {platform.release()}, {cores} cores ({model}), Python {platform.python_version()}; "
        f"load {load:.1f} before the run ({state})"
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, aligned so that it reads well as it is."""
    lines = [list(columns), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    padded = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in lines
    ]
    padded.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(padded)


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def flanneld() -> str:
    """The flanneld to measure beside, "" if none is given. SystemExit if it cannot be run."""
    path = os.environ.get("FLANNELD", "")
    if path and not os.access(path, os.X_OK):
        sys.exit(f"FLANNELD={path} is no program that can be run here")
    return path and str(Path(path).resolve())
