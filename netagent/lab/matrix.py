"""Who reaches whom: the result of a round of pings and how it is shown, and that of pinging on and on."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

import msgspec


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One ordered pair: from a container (or host) of `source` to the container of `target`."""

    source: str
    target: str
    family: int
    from_host: bool = False
    times: tuple[float, ...] = ()  # round-trip times of the replies, seconds


class Matrix(msgspec.Struct, frozen=True, kw_only=True):
    """`sent` echo requests went to each pair. A pair is well when every one was answered."""

    sent: int
    cells: tuple[Cell, ...]

    @property
    def ok(self) -> bool:
        return self.good == len(self.cells)

    @property
    def good(self) -> int:
        return sum(len(cell.times) == self.sent for cell in self.cells)

    @property
    def failed(self) -> tuple[Cell, ...]:
        return tuple(cell for cell in self.cells if len(cell.times) < self.sent)

    @property
    def median(self) -> float | None:
        """Median round-trip time, seconds."""
        times = [time for cell in self.cells for time in cell.times]
        return statistics.median(times) if times else None

    def rows(self, family: int, *, from_host: bool) -> tuple[list[str], list[list[str]]]:
        """Titles and rows of a table: sources down, targets across, each the median in milliseconds or the loss."""
        cells = {(c.source, c.target): c for c in self.cells if (c.family, c.from_host) == (family, from_host)}
        names = list(dict.fromkeys(name for pair in cells for name in pair))
        rows = []
        for source in names:
            row = [source]
            for target in names:
                cell = cells.get((source, target))
                row.append("-" if cell is None else self._text(cell))
            rows.append(row)
        title = f"IPv{family} ms, " + ("host to container" if from_host else "container to container")
        return [title, *names], rows

    def _text(self, cell: Cell) -> str:
        if len(cell.times) == self.sent:
            return f"{statistics.median(cell.times) * 1000:.2f}"
        return "no reply" if not cell.times else f"{self.sent - len(cell.times)}/{self.sent} lost"


class Flow(msgspec.Struct, kw_only=True):
    """Pairs that are pinged on and on. The counts are there when the flow has ended (`Lab.flow`)."""

    pairs: tuple[tuple[str, str], ...]  # source and target node
    sent: int = 0
    lost: int = 0
    gap: float = 0.0  # the longest time, seconds, between two answered requests of one pair
    when: dict[str, list[float]] = {}  # "h1>h2" -> when lost requests were sent, unix time, the first few

    def add(self, source: str, target: str, counts: Mapping[str, Any]) -> None:
        """What the pinger counted for one pair."""
        self.sent += counts["sent"]
        self.lost += counts["lost"]
        self.gap = max(self.gap, counts["gap"])
        if counts["when"]:
            self.when[f"{source}>{target}"] = counts["when"]
