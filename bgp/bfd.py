"""BFD beside BGP (RFC 5882): which sessions the peers want, and what an operator sees of them.

Rule: a session with BFD comes up, and stays, without it: only a neighbour that BFD has once reached can be found
silent. So BFD may be set on one side first. It runs as long as the peer is not shut down, whatever state BGP is in.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bfd.orders import Status
from bfd.session import Timing
from bfd.sessions import Place, Wanted

if TYPE_CHECKING:
    from bgp.peer import Peer, PeerConfig

DEFAULT_TIMING = Timing()


@dataclass(frozen=True, slots=True)
class Bfd:
    """What a peer is told of BFD."""

    timing: Timing = DEFAULT_TIMING
    multihop: bool | None = None
    """Over several hops (RFC 5883); None: as the BGP session is."""


def wanted(peers: Iterable[Peer]) -> dict[str, Wanted]:
    """The BFD sessions that there should be, by the peers' names."""
    return {
        peer.name: Wanted(_place(peer.config, peer.config.bfd), peer.config.bfd.timing)
        for peer in peers
        if peer.config.bfd is not None and peer.session.started
    }


def _place(config: PeerConfig, bfd: Bfd) -> Place:
    transport = config.transport
    multihop = bfd.multihop
    if multihop is None:
        multihop = transport.multihop > 0 or transport.security_hops > 1
    return Place(config.address, transport.local_address, multihop, transport.least_ttl if multihop else 0)


def view(config: PeerConfig, status: Status | None, now: float) -> dict[str, Any] | None:
    """For people, intervals in milliseconds and times as in bgp.views; None where the peer has no BFD."""
    if config.bfd is None:
        return None
    status = status or Status()
    place = _place(config, config.bfd)
    shown: dict[str, Any] = {
        "state": status.state,
        "since": round(now - status.since, 1) if status.since is not None else None,
        "diag": status.diag,
        "remote_state": status.remote_state,
        "remote_diag": status.remote_diag,
        "problem": status.problem or None,
        "failures": status.failures,
        "multihop": place.multihop,
        "local": status.local or None,
        "interval": status.interval / 1000,
        "remote_interval": status.remote_interval / 1000,
        "detection": status.detection / 1000,
        "timers": {
            "ours": _timers(status.min_tx, status.min_rx, config.bfd.timing.multiplier),
            "theirs": _timers(status.remote_min_tx, status.remote_min_rx, status.remote_multiplier),
        },
        "remote_independent": status.remote_independent,
        "remote_demand": status.remote_demand,
        "polling": status.polling,
        "discriminators": [status.mine, status.yours],
        "packets": {"sent": status.sent, "received": status.received},
        "last_received": round(now - status.heard_at, 1) if status.heard_at is not None else None,
    }
    return {name: value for name, value in shown.items() if value is not None}


def _timers(tx: int, rx: int, multiplier: int) -> str:
    """ "100/100 ms x 3": what one side would send at, what it takes, and its multiplier."""
    return f"{tx / 1000:g}/{rx / 1000:g} ms x {multiplier}"
