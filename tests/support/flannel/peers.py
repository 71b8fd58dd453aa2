"""What flannel hears of the other nodes' leases, and what follows from it."""

from __future__ import annotations

import http.client
import queue
import time
from collections.abc import Iterator
from ipaddress import IPv4Network
from typing import Any, NamedTuple

from tests.support.flannel.gateway import unb64
from tests.support.flannel.kernel import Backend
from tests.support.flannel.leases import RETRY, Lease, Subnets, key_subnet, read_lease
from tests.support.flannel.log import fatal, log


class Gone(NamedTuple):
    """A lease that was deleted."""

    subnet: IPv4Network


class Snapshot(NamedTuple):
    """All leases there are."""

    leases: list[Lease]


Event = Lease | Gone | Snapshot


def events(response: dict[str, Any]) -> Iterator[Event]:
    """What a WatchResponse tells. What cannot be parsed counts as a snapshot without leases, as in flannel."""
    for event in response.get("events", ()):
        key = unb64(event["kv"]["key"])
        found: Event | None
        if event.get("type") == "DELETE":
            found = Gone(subnet) if (subnet := key_subnet(key)) else None
        else:
            found = read_lease(key, unb64(event["kv"].get("value", "")))
        if found is None:
            log(f"not a subnet: {key}")
        yield found or Snapshot([])


def watch(subnets: Subnets, out: queue.Queue[list[Event]]) -> None:
    """Lists, then watches for ever: again where it was when the connection ends, anew when that was compacted."""
    revision = 0
    while True:
        try:
            if not revision:
                revision, leases = subnets.leases()
                out.put([Snapshot(leases)])
            for response in subnets.etcd.watch(subnets.directory, revision + 1):
                if response.get("canceled"):
                    revision = 0
                    break
                if found := list(events(response)):
                    revision = max(int(event["kv"]["mod_revision"]) for event in response["events"])
                    out.put(found)
        except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
            log(f"Watch of subnet leases failed: {error}")
        time.sleep(RETRY)


class Daemon:
    """What is known of the others, and what follows from an event."""

    def __init__(self, backend: Backend, own: Lease) -> None:
        self.backend = backend
        self.own = own
        self.known: dict[IPv4Network, Lease] = {}

    def take(self, found: list[Event]) -> None:
        added: dict[IPv4Network, Lease] = {}
        for event in found:
            if isinstance(event, Lease):
                if event.subnet != self.own.subnet:
                    self.known[event.subnet] = added[event.subnet] = event
                continue
            self._add(added)  # those before it
            if isinstance(event, Gone):
                if event.subnet == self.own.subnet:
                    raise fatal("Lease has been revoked. Shutting down daemon.", 2)
                if lease := self.known.pop(event.subnet, None):
                    self._remove([lease])
            else:
                added = self._reset(event)
        self._add(added)

    def _reset(self, snapshot: Snapshot) -> dict[IPv4Network, Lease]:
        """Only subnets are compared, not what is said of them; of an empty one this node's own counts as removed."""
        now = {lease.subnet: lease for lease in snapshot.leases}
        gone = [self.known.pop(subnet) for subnet in list(self.known) if subnet not in now]
        if not now:
            gone.append(self.own)
        self._remove(gone)
        new = {subnet: lease for subnet, lease in now.items() if subnet not in {*self.known, self.own.subnet}}
        self.known |= new
        return new

    def _add(self, leases: dict[IPv4Network, Lease]) -> None:
        for subnet in leases:
            log(f"Subnet added: {subnet} via {leases[subnet].address}")
        self.backend.add(self.backend.mine(leases.values()))
        leases.clear()

    def _remove(self, leases: list[Lease]) -> None:
        for lease in leases:
            log(f"Subnet removed: {lease.subnet} via {lease.address}")
        self.backend.remove(self.backend.mine(leases))
