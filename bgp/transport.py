"""How the TCP connection of a peer is made: values that the driver reads, and the core only compares.

Rule: nothing here opens a socket. A change of any of these values is a new session.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from bgp.message import LocalError

NO_TCP_AO = (
    "TCP-AO (RFC 5925) is not there: it needs a kernel with CONFIG_TCP_AO (Linux 6.7 and later), which Debian's "
    "kernels do not have"
)
"""What whoever asks for it is told, before what to use instead."""
LONGEST_PASSWORD = 80
"""TCP_MD5SIG_MAXKEYLEN of <linux/tcp.h>."""


@dataclass(frozen=True, slots=True)
class Transport:
    """The way to one peer, or to all of a range."""

    port: int = 179
    """Where the peer listens."""
    local_address: bytes = b""
    """Where our connections to it begin; empty leaves it to the kernel's routes."""
    password: bytes = field(default=b"", repr=False)
    """The key of TCP MD5 (RFC 2385), 1 to 80 octets; empty: unsigned."""
    security_hops: int = 0
    """GTSM (RFC 5082): how many hops away the peer may be, 1 for a neighbour on the link; 0: off."""
    multihop: int = 0
    """The TTL towards a peer of another AS that is not on the link; 0: on the link (TTL 1), of our AS: no limit."""

    def __post_init__(self) -> None:
        if not 0 < self.port < 65536:
            raise LocalError(f"port {self.port} is none")
        if len(self.password) > LONGEST_PASSWORD:
            raise LocalError(
                f"the password has {len(self.password)} octets; TCP MD5 takes {LONGEST_PASSWORD} at most"
            )
        if not 0 <= self.security_hops < 256 or not 0 <= self.multihop < 256:
            raise LocalError("hops are a number from 0 to 255")
        if self.security_hops and self.multihop:
            raise LocalError("TTL security has its own number of hops: give one of security_hops and multihop")

    def sent_ttl(self, *, external: bool) -> int:
        """The TTL of what we send; 0 is the kernel's own."""
        if self.security_hops:
            return 255
        return self.multihop or (1 if external else 0)

    @property
    def least_ttl(self) -> int:
        """What a segment's TTL must at least be to be heard; 0: anything."""
        return 256 - self.security_hops if self.security_hops else 0


DEFAULT_TRANSPORT = Transport()


class Dropped(NamedTuple):
    """Segments that the kernel has dropped for their MD5 signature, by kind: counters of the whole host."""

    wrong: int = 0
    missing: int = 0
    unwanted: int = 0
    """Signed, where no key was expected."""

    def since(self, before: Dropped) -> Dropped:
        return Dropped(*(max(now - then, 0) for now, then in zip(self, before, strict=True)))

    def __str__(self) -> str:
        kinds = (("with a wrong signature", self.wrong), ("unsigned", self.missing), ("signed", self.unwanted))
        return ", ".join(f"{count} {kind}" for kind, count in kinds if count)
