"""How to follow a prefix of etcd without a gap: what to do next, decided without I/O.

    list at r ──▶ watch from r+1 ──error──▶ wait ──▶ check the history ──▶ watch from the last revision + 1
      ▲                │ compacted                         │ not ours
      └────────────────┴───────────────────────────────────┘

Rules: pure (`now` is seconds of any steady clock); nothing is skipped and nothing is believed: after each
interruption the newest key that we know is read at the last revision that we know. If etcd has another one there, it
was wiped or restored meanwhile, even if its revisions have already overtaken ours, and all is listed again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import msgspec

from netagent.errors import StoreCompacted, StoreError
from netagent.store.base import Batch, Event, Listing

BACKOFF = (0.05, 5.0)  # seconds: the first wait, which doubles, and the longest


class Resync(NamedTuple):
    """All there is. `rewound`: the store's history is another one than before (wiped, restored)."""

    listing: Listing
    rewound: bool = False


class Delta(NamedTuple):
    """Events in order, up to and including `revision`; several of one key are possible."""

    revision: int
    events: tuple[Event, ...]


class FollowState(msgspec.Struct, kw_only=True):
    """For status. Times are of the steady clock that the driver uses (seconds); 0.0: never."""

    connected: bool = False
    revision: int = 0  # the last one seen
    alive: float = 0.0  # last proof of life
    event: float = 0.0  # last event
    error: str = ""  # why it is not connected, in an operator's words
    resyncs: int = 0
    failures: int = 0  # interruptions since the start


class Step(NamedTuple):
    """What the driver is to do: list, check (list `prefix` at `revision`), watch from `revision`, or wait."""

    do: Literal["list", "check", "watch", "wait"]
    prefix: str = ""
    revision: int = 0
    seconds: float = 0.0


class Follow:
    """The state machine. The driver carries out `step()` and reports with listed, checked, batch or failed.

    `jitter` returns numbers from 0 to 1.
    """

    def __init__(self, prefix: str, jitter: Callable[[], float], backoff: tuple[float, float] = BACKOFF) -> None:
        self.state = FollowState()
        self._prefix = prefix
        self._jitter = jitter
        self._first, self._last = backoff
        # Each key that exists and the revision that wrote it; the last entry is the anchor of a check.
        self._written: dict[str, int] = {}
        self._listed = False  # there is a revision to go on from
        self._doubt = False  # it has to be checked first
        self._other = False  # the check has found another history
        self._attempt = 0
        self._since = 0.0  # when the watch was accepted
        self._delay = 0.0

    def step(self) -> Step:
        if self._delay > 0:
            return Step("wait", seconds=self._delay)
        if not self._listed:
            return Step("list", self._prefix)
        if self._doubt:
            return Step("check", self._anchor() or self._prefix, self.state.revision)
        return Step("watch", self._prefix, self.state.revision + 1)

    def waited(self) -> None:
        self._delay = 0.0

    def listed(self, listing: Listing, now: float) -> Resync:
        """A listing at a new revision: all there is."""
        state = self.state
        rewound = self._other or listing.revision < state.revision
        state.revision = listing.revision
        state.resyncs += 1
        state.alive = now
        self._written = {kv.key: kv.mod_revision for kv in listing.items}
        self._listed, self._doubt, self._other = True, False, False
        return Resync(listing, rewound)

    def checked(self, listing: Listing) -> None:
        """What etcd has at the last revision that we know, of the anchor; or of the whole, if we know no key."""
        anchor = self._anchor()
        if anchor is None:
            same = not listing.items
        else:
            same = any(kv.key == anchor and kv.mod_revision == self._written[anchor] for kv in listing.items)
        self._doubt = False
        if not same:
            self._listed, self._other = False, True

    def batch(self, batch: Batch, now: float) -> Delta | None:
        """A batch of the watch; None when it only proves that the watch lives."""
        state = self.state
        state.alive = now
        if not state.connected:
            state.connected, state.error = True, ""
            self._since = now
        if not batch.events:
            return None
        self._attempt = 0
        state.event = now
        state.revision = batch.revision
        written = self._written
        for deleted, kv in batch.events:
            written.pop(kv.key, None)
            if not deleted:
                written[kv.key] = kv.mod_revision
        return Delta(batch.revision, batch.events)

    def failed(self, error: StoreError, now: float) -> None:
        """A call or the watch failed. Compaction is an answer, not a failure: list again."""
        state = self.state
        lived = state.connected and now - self._since >= self._last
        state.connected = False
        state.error = str(error)
        state.failures += 1
        if lived:
            self._attempt = 0  # else a watch that is accepted and dropped at once would be retried in a tight loop
        if isinstance(error, StoreCompacted):
            self._listed = False
        self._doubt = self._listed
        self._delay = min(self._last, self._first * 2 ** min(self._attempt, 20)) * (0.5 + self._jitter() / 2)
        self._attempt += 1

    def _anchor(self) -> str | None:
        return next(reversed(self._written), None)
