"""What goes into a lease session and what can be seen of it: the values around lease_session.py, and its words.

Rule: a subnet that containers may be using is never left out of LeaseState, whatever has become of its record.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from netagent.model import Lease


class Attributes(NamedTuple):
    """What the node publishes in its lease: its addresses and the backend's data (contract.LeaseData)."""

    public_ip: str | None = None
    public_ip6: str | None = None
    backend: str = ""
    data: Mapping[str, Any] | None = None
    data6: Mapping[str, Any] | None = None


class Subnets(NamedTuple):
    """Subnets of an earlier run. `live`: containers of that run may still be using them (same boot of the host)."""

    v4: str | None = None
    v6: str | None = None
    live: bool = False


class LeaseState(msgspec.Struct, kw_only=True):
    """For status. Times are of the steady clock that the driver uses; 0.0: never."""

    state: str = "none"  # none, claiming, held, restored, lost, conflict
    key: str = ""
    v4: str | None = None
    v6: str | None = None
    lease_id: int = 0
    ttl: int = 0  # seconds, as etcd granted it; 0 for a reservation, or not known yet
    renewed: float = 0.0
    expires: float = 0.0
    reservation: bool = False
    source: str = ""  # by which rule the subnet was chosen (allocate.Choice.source)
    problem: str = ""
    create_revision: int = 0
    mod_revision: int = 0


def writer(key: str, lease: Lease | None, *, ours: str, here: bool) -> str:
    """Who has written the record under our key, in words. `ours` is our id; `here`: it names our own address."""
    if lease is None:
        return f"somebody has written something to {key} that is no lease"
    at = lease.public_ip or lease.public_ip6 or "no address"
    if lease.node_id == ours:
        return f"another agent at {at} with this node's id has written {key} (a copied state directory?)"
    if lease.node:
        return f"node {lease.node} at {at} has written {key}"
    if here:
        return f"another agent on this host, probably flanneld, has written {key}"
    return f"an agent at {at}, probably a flanneld, has written {key}"
