"""Peers that nobody lists: who connects from inside a prefix becomes one (a reflector's clients).

Rule: such a peer exists from its first connection until its session is over and none of its routes is kept; never
more than `limit` of a range at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from bgp.message import Family, nlri
from bgp.peer import PeerConfig
from bgp.policy import PrefixRange


@dataclass(frozen=True, slots=True)
class PeerRange:
    """Addresses whose owners may connect, and what their peers are told."""

    name: str
    family: Family
    prefix: bytes
    template: PeerConfig
    """As for any peer; name and address are the connecting one's own, and it is passive."""
    limit: int = 100

    def contains(self, address: bytes) -> bool:
        if len(address) != (4 if self.family is Family.IPV4 else 16):
            return False
        bits = 8 * len(address)
        return PrefixRange(self.family, self.prefix, self.prefix[0], bits).matches(
            self.family, bytes((bits,)) + address
        )

    def member(self, address: bytes) -> PeerConfig:
        """The configuration of the peer with that address, which is also its name."""
        return replace(self.template, name=nlri.address_text(address), address=address, passive=True)


def range_of(ranges: Iterable[PeerRange], address: bytes) -> PeerRange | None:
    """The narrowest range that the address lies in."""
    fitting = [each for each in ranges if each.contains(address)]
    return max(fitting, key=lambda each: each.prefix[0], default=None)
