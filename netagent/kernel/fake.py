"""FakeHost: a kernel in memory, faithful where it matters to the reconciler. Twin of host.LinuxHost.

Rules: what the real kernel would refuse is refused here with the same errno; what it takes along silently vanishes
silently (everything on a deleted device, IPv4 routes of a deleted nexthop); own changes cause no hint, those of
others do. Everything is synchronous; `changes()` wakes its reader as the real one does. Methods below "somebody
else" stand for other programs and for an administrator, methods below "faults" for what goes wrong.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
from collections import deque
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from typing import Any, NamedTuple

from netagent.kernel.base import Change, Failure, Op
from netagent.model import (
    KINDS,
    Address,
    AddressFact,
    Facts,
    Family,
    FdbEntry,
    Finding,
    ForeignAccept,
    Hop,
    Inbound,
    Key,
    Link,
    LinkFact,
    Neighbour,
    NextHop,
    NftElement,
    NftTable,
    Object,
    Offload,
    Route,
    RouteFact,
    Sysctl,
)

UPLINK = LinkFact(name="eth0", index=2, mac="02:00:00:00:00:02", up=True, carrier=True)
UPLINK_ADDRESS = AddressFact(dev="eth0", ip="192.168.50.11", length=16)
SYSCTLS = {"net/ipv4/ip_forward": "0", "net/ipv6/conf/all/forwarding": "0", "net/ipv4/conf/all/rp_filter": "2"}
ABILITIES = frozenset({"nexthop", "vxlan", "ipip", "sit", "tun", "ipv6"})


class Fault(NamedTuple):
    errno: int
    times: int  # how often it strikes; -1: until `heal`


class FakeHost:
    """One host. `log` holds every operation that succeeded, `gone` the key of each object that one of them removed
    (by itself or because it stood on what was deleted), `batches` the length of every `apply`."""

    def __init__(
        self,
        links: Iterable[LinkFact] = (UPLINK,),
        addresses: Iterable[AddressFact] = (UPLINK_ADDRESS,),
        routes: Iterable[RouteFact] = (),
        abilities: frozenset[str] = ABILITIES,
    ) -> None:
        self.links = {link.name: link for link in links}
        self.addresses = list(addresses)
        self.routes = list(routes)
        self.abilities = abilities
        self.sysctls = dict(SYSCTLS)
        self.objects: dict[Key, Object] = {}
        self.down: set[str] = set()  # devices of ours that somebody set down
        self.foreign: dict[Key, str] = {}
        self.journal: dict[Key, str | bool | None] = {}  # old value of what carries no mark; None: was absent
        self.offloads: dict[tuple[str, str], bool] = {}
        self.lacks: set[str] = set()  # kinds of devices that this kernel refuses to make
        self._lost: set[str] = set()  # those of them that were tried
        self.faults: dict[Key, Fault] = {}
        self.dump_faults: dict[str, Fault] = {}
        self.log: list[Op] = []
        self.gone: list[Key] = []
        self.batches: list[int] = []
        self.dumps = 0
        self._hints: deque[Change] = deque()
        self._hinted = asyncio.Event()
        self._connected: dict[str, list[ipaddress.IPv4Network | ipaddress.IPv6Network]] | None = None

    # ------------------------------------------------------------------------------------------ Host

    def facts(self) -> Facts:
        ours = {
            link.name: LinkFact(
                name=link.name,
                index=1000 + position,
                kind=link.kind,
                mtu=link.mtu,
                mac=link.mac or "02:00:00:00:01:00",
                up=link.name not in self.down,
                carrier=link.name not in self.down,
                alias="netagent",
                own=True,
                vxlan=link.vxlan,
                tunnel=link.tunnel,
            )
            for position, link in enumerate(o for o in self.objects.values() if isinstance(o, Link))
        }
        own = [
            AddressFact(dev=a.dev, ip=a.ip, length=a.length, scope=a.scope)
            for a in self.objects.values()
            if isinstance(a, Address)
        ]
        return Facts(self.links | ours, (*self.addresses, *own), tuple(self.routes), self.abilities - self._lost)

    def dump(self, kinds: Collection[str], wanted: Iterable[Object] = ()) -> list[Object]:
        self.dumps += 1
        for kind in kinds:
            self._strike(self.dump_faults, kind)
        found = {
            key: obj
            for key, obj in self.objects.items()
            if key[0] in kinds and not (isinstance(obj, Link) and obj.name in self.down)
        }
        for key in [*(obj.key for obj in wanted), *self.journal]:
            if key[0] in kinds and key not in found:
                present = self._unmarked(key)
                if present is not None:
                    found[key] = present
        return list(found.values())

    def apply(self, ops: Sequence[Op]) -> list[Failure]:
        self.batches.append(len(ops))
        failures = []
        for op in ops:
            try:
                self._strike(self.faults, op.object.key)
                if op.verb == "put":
                    self._put(op.object)
                else:
                    self._delete(op.object.key)
            except OSError as error:
                code = error.errno or 0
                foreign = self.foreign.get(op.object.key, "") if code == errno.EEXIST else ""
                failures.append(Failure(op, code, error.strerror or "", foreign))
            else:
                self.log.append(op)
        return failures

    async def changes(self) -> AsyncIterator[list[Change]]:
        while True:
            await self._hinted.wait()
            yield self.hints()

    def hints(self) -> list[Change]:
        """Take what `changes` would yield next, without waiting."""
        batch = list(self._hints)
        self._hints.clear()
        self._hinted.clear()
        return batch

    def route_to(self, ip: str) -> RouteFact | None:
        address = ipaddress.ip_address(ip)
        found: tuple[int, RouteFact] | None = None
        for fact in [*self.routes, *self._own_routes()]:
            network = ipaddress.ip_network(fact.dst)
            better = found is None or network.prefixlen > found[0]
            if address.version == network.version and address in network and better:
                found = (network.prefixlen, fact)
        dev = self.facts().on_link(ip)
        if found is None and dev is not None:
            return RouteFact(dst=ip, dev=dev)
        return found[1] if found else None

    def findings(self, prefixes: Sequence[str], inbound: Sequence[Inbound]) -> list[Finding]:
        return []

    def places(self) -> list[tuple[str, Family]]:
        return []

    def close(self) -> None:
        """Nothing to close: the kernel's state stays, as it does when the agent goes."""

    # ------------------------------------------------------------------------------------------ somebody else

    def meddle_delete(self, key: Key) -> None:
        """Somebody deletes an object of ours."""
        obj = self.objects.pop(key, None)
        if obj is None:
            return
        self._connected = None
        self._cascade(obj)
        self.hint(key[0], key)

    def meddle_put(self, obj: Object) -> None:
        """Somebody changes an object of ours, or makes one that looks like ours."""
        if isinstance(obj, Sysctl):
            self.sysctls[obj.name] = obj.value
        else:
            self.objects[obj.key] = obj
        self._connected = None
        self.hint(obj.KIND, obj.key)

    def foreign_put(self, key: Key, text: str) -> None:
        """Somebody's own object takes a key: ours can then not be created. Replaces ours, if it was there."""
        self.meddle_delete(key)
        self.foreign[key] = text

    def foreign_delete(self, key: Key) -> None:
        if self.foreign.pop(key, None) is not None:
            self.hint(key[0], key)

    def set_link(self, link: LinkFact) -> None:
        """A device of another owner appears, or changes. Down or without carrier it loses its routes silently."""
        self.links[link.name] = link
        self._connected = None
        self.down.discard(link.name)
        if not link.up:
            self._cascade_device(link.name, ("nexthop", "route"))
        self.hint("link", ("link", link.name))
        self.hint("facts")

    def remove_link(self, name: str) -> None:
        if self.links.pop(name, None) is not None:
            self.addresses = [a for a in self.addresses if a.dev != name]
            self._connected = None
            self._cascade_device(name, KINDS)
            self.hint("link", ("link", name))
            self.hint("facts")

    def set_down(self, name: str) -> None:
        """Somebody sets a device of ours down."""
        self.down.add(name)
        self._cascade_device(name, ("nexthop", "neighbour", "route"))
        self.hint("link", ("link", name))

    def hint(self, kind: str, key: Key | None = None) -> None:
        self._hints.append(Change(kind, key))
        self._hinted.set()

    # ------------------------------------------------------------------------------------------ faults

    def fail(self, key: Key, code: int, times: int = -1) -> None:
        """Operations on the key fail with that errno, `times` times (-1: until `heal`)."""
        self.faults[key] = Fault(code, times)

    def fail_dump(self, kind: str, code: int, times: int = -1) -> None:
        self.dump_faults[kind] = Fault(code, times)

    def heal(self) -> None:
        self.faults.clear()
        self.dump_faults.clear()

    def overflow(self) -> None:
        """The event socket overflowed: whatever hints were under way are lost, all kinds may differ."""
        self._hints.clear()
        for kind in KINDS:
            self.hint(kind)

    # ------------------------------------------------------------------------------------------ the kernel

    @staticmethod
    def _strike(faults: dict[Any, Fault], key: Any) -> None:
        fault = faults.get(key)
        if fault is None:
            return
        if fault.times > 0:
            if fault.times == 1:
                del faults[key]
            else:
                faults[key] = fault._replace(times=fault.times - 1)
        raise _refused(fault.errno)

    def _put(self, obj: Object) -> None:
        key = obj.key
        if key in self.foreign or (isinstance(obj, Link) and obj.name in self.links):
            raise _refused(errno.EEXIST)
        match obj:
            case Sysctl():
                if obj.name not in self.sysctls:
                    raise _refused(errno.ENOENT)
                self.journal.setdefault(key, self.sysctls[obj.name])
                self.sysctls[obj.name] = obj.value
                return
            case Offload():
                self._device(obj.dev)
                self.journal.setdefault(key, self.offloads.get((obj.dev, obj.feature), True))
                self.offloads[obj.dev, obj.feature] = obj.on
                return
            case Link():
                self._put_link(obj)
            case Address():
                self._device(obj.dev)
                if obj.dev in self.links:
                    self.journal.setdefault(key, None)
                self._connected = None
            case NextHop():
                self._device(obj.dev, up=True, ours=True)
            case Neighbour() | FdbEntry():
                self._device(obj.dev, ours=True)
            case Route():
                self._check_route(obj)
            case NftTable():
                if key in self.objects and self.objects[key] != obj:
                    self._cascade(self.objects[key])
            case NftElement():
                if not any(k[0] == "nft" for k in self.objects):
                    raise _refused(errno.ENOENT)
            case ForeignAccept():
                pass
        self.objects[key] = obj

    def _put_link(self, link: Link) -> None:
        if link.kind in self.lacks:
            self._lost.add(link.kind)
            raise _refused(errno.EOPNOTSUPP)
        self._lost.discard(link.kind)
        if link.tunnel is not None and any(
            (other.kind, other.tunnel) == (link.kind, link.tunnel)
            for other in self.facts().links.values()
            if other.name != link.name
        ):
            raise _refused(errno.EEXIST)
        if link.vxlan is not None:
            if link.vxlan.dev is not None and link.vxlan.dev not in self.links:
                raise _refused(errno.ENODEV)
            for other in self.objects.values():
                if isinstance(other, Link) and other.name != link.name and _collide(link, other):
                    raise _refused(errno.EEXIST)
        was = self.objects.get(link.key)
        if isinstance(was, Link):
            before = (was.kind, was.vxlan, was.tunnel, was.tun_vnet_hdr)
            if before != (link.kind, link.vxlan, link.tunnel, link.tun_vnet_hdr):
                self._cascade(was)
        self.down.discard(link.name)

    def _check_route(self, route: Route) -> None:
        if route.nexthop is not None:
            if ("nexthop", *route.nexthop) not in self.objects:
                raise _refused(errno.EINVAL)
            return
        if not route.hops and route.type == "unicast":
            raise _refused(errno.EINVAL)
        for hop in route.hops:
            self._device(hop.dev, up=True)
            if hop.gateway is not None and not hop.onlink and not self._reaches(hop):
                raise _refused(errno.ENETUNREACH)

    def _device(self, name: str, *, up: bool = False, ours: bool = False) -> None:
        foreign = self.links.get(name)
        if ("link", name) not in self.objects and (foreign is None or ours):
            raise _refused(errno.ENODEV)
        if up and (name in self.down or (foreign is not None and not foreign.up)):
            raise _refused(errno.ENETDOWN)

    def _reaches(self, hop: Hop) -> bool:
        if self._connected is None:
            self._connected = {}
            for a in self.facts().addresses:
                self._connected.setdefault(a.dev, []).append(ipaddress.ip_network(f"{a.ip}/{a.length}", strict=False))
        gateway = ipaddress.ip_address(hop.gateway or "")
        return any(gateway in network for network in self._connected.get(hop.dev, ()))

    def _delete(self, key: Key) -> None:
        if key in self.journal:
            old = self.journal.pop(key)
            if key[0] == "sysctl":
                self.sysctls[key[1]] = str(old)
            elif key[0] == "offload":
                self.offloads[key[1], key[2]] = bool(old)
        obj = self.objects.pop(key, None)
        if obj is not None:
            self._connected = None
            self.gone.append(key)
            self.gone += self._cascade(obj)

    def _cascade(self, obj: Object) -> list[Key]:
        """What vanishes with an object. IPv6 routes tell, all others go silently."""
        if isinstance(obj, Link):
            self.down.discard(obj.name)
            return self._cascade_device(obj.name, KINDS)
        if isinstance(obj, NextHop):
            return self._vanish(
                [k for k, o in self.objects.items() if isinstance(o, Route) and o.nexthop == obj.key[1:]]
            )
        if isinstance(obj, NftTable):
            return self._vanish([k for k in self.objects if k[0] == "element"])
        return []

    def _cascade_device(self, dev: str, kinds: Collection[str]) -> list[Key]:
        return self._vanish([k for k, o in self.objects.items() if k[0] in kinds and dev in _devices(o)])

    def _vanish(self, keys: list[Key]) -> list[Key]:
        gone = []
        for key in keys:
            obj = self.objects.pop(key, None)
            if obj is None:
                continue
            self._connected = None
            gone.append(key)
            if isinstance(obj, Route) and ":" in obj.dst:
                self.hint("route", key)
            if isinstance(obj, NextHop | Link):
                gone += self._cascade(obj)
            if isinstance(obj, Address):
                self.journal.pop(key, None)
        return gone

    def _unmarked(self, key: Key) -> Object | None:
        """The present value of what carries no mark, whoever set it."""
        if key[0] == "sysctl" and key[1] in self.sysctls:
            return Sysctl(key[1], self.sysctls[key[1]])
        if key[0] == "offload" and (key[1] in self.links or ("link", key[1]) in self.objects):
            return Offload(key[1], key[2], self.offloads.get((key[1], key[2]), True))
        return None

    def _own_routes(self) -> list[RouteFact]:
        facts = []
        for obj in self.objects.values():
            if isinstance(obj, Route) and obj.type == "unicast":
                dev, gateway = obj.nexthop or obj.hops[0][:2]
                facts.append(RouteFact(dst=obj.dst, dev=dev, gateway=gateway, metric=obj.metric, protocol=110))
        return facts


def _refused(code: int) -> OSError:
    return OSError(code, os.strerror(code))


def _collide(one: Link, other: Link) -> bool:
    """Two VXLAN devices on one VNI and port, in one address family: the kernel refuses the second."""
    a, b = one.vxlan, other.vxlan
    if a is None or b is None:
        return False
    return (a.vni, a.port, ":" in (a.local or "")) == (b.vni, b.port, ":" in (b.local or ""))


def _devices(obj: Object) -> tuple[str, ...]:
    """The devices that an object stands on."""
    match obj:
        case Route():
            return (obj.nexthop[0],) if obj.nexthop else tuple(hop.dev for hop in obj.hops)
        case Address() | NextHop() | Neighbour() | FdbEntry() | Offload():
            return (obj.dev,)
        case Link():
            return (obj.vxlan.dev,) if obj.vxlan and obj.vxlan.dev else ()
    return ()
