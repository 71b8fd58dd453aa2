"""BFD beside BGP (RFC 5882): which sessions the peers want, and what an operator sees of them.

Rule: a BGP session comes up, and stays, without BFD (RFC 5882 section 4.1): only a neighbour that BFD has once
reached can be found silent, so it may be set on one side first. BFD begins when BGP stands (FRR, which begins before,
ends its own session when BFD was the faster one) and goes on as long as it reaches the peer, BGP or not, and a moment
more.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
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


LINGER = 0.5
"""Seconds that a BFD session which does not reach the peer outlives the BGP session.

Long enough for a BGP session that is back at once, and too short for BFD to reach many a peer before BGP does.
"""


def wanted(peer: Peer, now: float) -> Wanted | None:
    """The BFD session that there should be with a peer now."""
    bfd = peer.config.bfd
    if bfd is None or not peer.session.started:
        return None
    if peer.session.negotiated is None and now >= kept_until(peer):
        return None
    return Wanted(_place(peer.config, bfd), bfd.timing)


def kept_until(peer: Peer) -> float:
    """Until when its BFD session is kept while the BGP session is away: for ever while it reaches the peer.

    One that does not is not begun anew at once. BGP may be back within milliseconds, and a peer that has taken up the
    session in between would hear another discriminator then, and wait in vain for the one that it knows: FRR does,
    for a detection time, then ends BGP for it, and so on.
    """
    if peer.bfd is None or peer.bfd.state == "waiting":
        return -inf
    return inf if peer.bfd.up else peer.since + LINGER


def ended(before: Status | None) -> Status | None:
    """What is left to know of a session that there is no more."""
    if before is None:
        return None
    return Status(
        "waiting",
        before.diag,
        failures=before.failures,
        ups=before.ups,
        sent=before.sent,
        received=before.received,
        heard_at=before.heard_at,
    )


def over_hops(asked: bool | None, multihop: int, security_hops: int) -> bool:
    """Whether it goes over several hops (RFC 5883): as asked, else as the BGP session does with these settings."""
    return (multihop > 0 or security_hops > 1) if asked is None else asked


def _place(config: PeerConfig, bfd: Bfd) -> Place:
    transport = config.transport
    multihop = over_hops(bfd.multihop, transport.multihop, transport.security_hops)
    return Place(config.address, transport.local_address, multihop, transport.least_ttl if multihop else 0)


def view(config: PeerConfig, status: Status | None, now: float) -> dict[str, Any] | None:
    """For people, intervals in milliseconds and times as in bgp.views; None where the peer has no BFD."""
    if config.bfd is None:
        return None
    status = status or Status("waiting")
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
