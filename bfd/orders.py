"""What the process and its owner tell each other: a JSON object a message, over a socket that keeps messages apart.

Rule: a report holds the whole state of a session, so that a later one makes an earlier one needless, and what must
not be missed is counted in it. Times are those of CLOCK_MONOTONIC, which all processes of a host share.

The owner orders (`do`): hello, outlive (seconds), set, remove, stop (AdminDown to all, then end), yield (end without
a word). The process answers hello with itself, each session that it has (found), and `found_all`; what it does not
understand, it refuses. Between releases no more than hello, its answer and yield are said.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from bfd.packet import Diag
from bfd.session import Resumed, Session, Timing
from bfd.sessions import Place

LONGEST = 65536
"""Octets of a message."""


@dataclass(frozen=True, slots=True)
class Status:
    """What is known of a session. Intervals in microseconds, addresses as text."""

    state: str = "starting"
    """Of RFC 5880: admin_down, down, init, up; starting until a process answers, waiting where none is wanted."""
    diag: str = "none"
    since: float | None = None
    remote_state: str = "down"
    remote_diag: str = "none"
    failures: int = 0
    """How often it went from Up to Down but for AdminDown."""
    failed_independent: bool = False
    """Whether the neighbour's BFD was independent of its control plane then (the C bit)."""
    ups: int = 0
    interval: int = 0
    """Between our packets."""
    remote_interval: int = 0
    """Between the neighbour's, as agreed on; 0 while it is not known."""
    detection: int = 0
    min_tx: int = 0
    min_rx: int = 0
    multiplier: int = 0
    remote_min_tx: int = 0
    remote_min_rx: int = 0
    remote_multiplier: int = 0
    remote_independent: bool = False
    remote_demand: bool = False
    polling: bool = False
    mine: int = 0
    yours: int = 0
    local: str = ""
    port: int = 0
    """Where our packets come from."""
    problem: str = ""
    sent: int = 0
    received: int = 0
    heard_at: float | None = None

    @property
    def up(self) -> bool:
        return self.state == "up"

    def resumable(self) -> dict[str, int] | None:
        """What a new process needs to go on with the session."""
        if not (self.up and self.mine and self.yours and self.remote_multiplier):
            return None
        timers = (self.remote_multiplier, self.remote_min_tx, self.remote_min_rx)
        return asdict(Resumed(self.mine, self.yours, *timers, self.port))


@dataclass(slots=True)
class Health:
    """How the process fares."""

    scheduling: str = ""
    slowdown: float = 1.0
    latest: float = 0.0
    """The most that it was late, in seconds, of late."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Packets discarded, by reason."""


def status(session: Session, local: str, port: int, problem: str) -> dict[str, Any]:
    """A report's content: the fields of Status."""
    return {
        "state": session.state.name.lower(),
        "diag": diag_name(session.diag),
        "since": session.since,
        "remote_state": session.remote_state.name.lower(),
        "remote_diag": diag_name(session.remote_diag),
        "failures": session.failures,
        "failed_independent": session.failed_independent,
        "ups": session.ups,
        "interval": round(session.interval * 1e6),
        "remote_interval": round(session.remote_interval * 1e6),
        "detection": round(session.detection_time * 1e6),
        "min_tx": session.tx,
        "min_rx": session.rx,
        "multiplier": session.timing.multiplier,
        "remote_min_tx": session.remote_tx,
        "remote_min_rx": session.remote_rx if session.remote_discriminator else 0,
        "remote_multiplier": session.remote_multiplier,
        "remote_independent": session.remote_independent,
        "remote_demand": session.remote_demand,
        "polling": session.polling,
        "mine": session.mine,
        "yours": session.remote_discriminator,
        "local": local,
        "port": port,
        "problem": problem,
    }


def diag_name(diag: int) -> str:
    """ "detection time expired"; the number where it has no name."""
    try:
        return Diag(diag).name.lower().replace("_", " ")
    except ValueError:
        return f"diagnostic {diag}"


def to_set(key: int, place: Place, timing: Timing, resumed: Mapping[str, int] | None = None) -> dict[str, Any]:
    """The order to keep a session."""
    order: dict[str, Any] = {"do": "set", "key": key, "place": _placed(place), "timing": asdict(timing)}
    if resumed is not None:
        order["resumed"] = dict(resumed)
    return order


def set_of(order: Mapping[str, Any]) -> tuple[int, Place, Timing, Resumed | None]:
    """The other way round."""
    place = place_of(order["place"])
    resumed = order.get("resumed")
    return int(order["key"]), place, Timing(**order["timing"]), Resumed(**resumed) if resumed else None


def found(place: Place, known: Mapping[str, Any]) -> dict[str, Any]:
    """What a process says of a session that it has for a new owner."""
    return {"found": _placed(place), "status": dict(known)}


def known_of(status: Mapping[str, Any]) -> Status:
    """What is understood of a status that another release tells."""
    return Status(**{each.name: status[each.name] for each in fields(Status) if each.name in status})


def _placed(place: Place) -> list[Any]:
    return [place.remote.hex(), place.local.hex(), place.multihop, place.least_ttl]


def place_of(placed: Sequence[Any]) -> Place:
    remote, local, multihop, least_ttl = placed
    return Place(bytes.fromhex(remote), bytes.fromhex(local), multihop, least_ttl)


def message(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def value_of(octets: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(octets)
    return found
