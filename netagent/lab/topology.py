"""What a lab looks like, as one frozen value: racks, hosts, routers, the etcd host, the network's configuration.

Rule: this is the only description. Namespaces are wired from it here (wiring.py); containers or virtual machines
can be built from the same value. Addresses are "IP/LENGTH"; every router has a leg in every rack and is its default
gateway; nothing here does I/O.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any

import msgspec

from netagent.errors import UsageError

# More hosts than this in one rack would run into the gateway's and etcd's addresses.
RACK_SIZE = 200
FIRST_HOST = 11
ETCD_HOST = 2
GATEWAY_HOST = 1

DEFAULT_NETWORK: Mapping[str, Any] = {"Network": "10.5.0.0/16", "SubnetLen": 24}
IPV6_NETWORK: Mapping[str, Any] = {"EnableIPv6": True, "IPv6Network": "fc00:5::/48", "IPv6SubnetLen": 64}


class Rack(msgspec.Struct, frozen=True):
    """One layer-2 segment. `v4` and `v6` are its prefixes, `mtu` that of every interface in it (bytes)."""

    name: str
    v4: str
    v6: str
    mtu: int = 1500

    def address(self, number: int) -> tuple[str, str]:
        """The IPv4 and IPv6 address of host `number` in this rack, with prefix lengths."""
        v4 = ipaddress.IPv4Network(self.v4)
        v6 = ipaddress.IPv6Network(self.v6)
        # fd00:50::11, not ::b: the last part reads the same in both families.
        return f"{v4[number]}/{v4.prefixlen}", f"{v6[int(str(number), 16)]}/{v6.prefixlen}"


class Host(msgspec.Struct, frozen=True):
    """A machine with one uplink, eth0, in a rack."""

    name: str
    rack: str
    v4: str
    v6: str


class Router(msgspec.Struct, frozen=True):
    """Forwards between all racks; its leg in a rack is named like the rack and has host number `number` there."""

    name: str
    number: int = GATEWAY_HOST


class Topology(msgspec.Struct, frozen=True, kw_only=True):
    kind: str  # "flat" or "racks": how further hosts are placed
    racks: tuple[Rack, ...]
    routers: tuple[Router, ...]
    hosts: tuple[Host, ...]
    etcd: Host
    config: Mapping[str, Any]  # what stands in <prefix>/config, flannel's keys

    def rack(self, name: str) -> Rack:
        return next(rack for rack in self.racks if rack.name == name)

    def host(self, name: str) -> Host:
        for host in self.hosts:
            if host.name == name:
                return host
        names = ", ".join(host.name for host in self.hosts)
        raise UsageError(f"the lab has no node {name!r}", remedy=f"Its nodes are {names}")

    @property
    def backend(self) -> str:
        return str(self.config.get("Backend", {}).get("Type", "udp"))

    @property
    def families(self) -> tuple[int, ...]:
        v4 = self.config.get("EnableIPv4", True)
        return (*((4,) if v4 else ()), *((6,) if self.config.get("EnableIPv6") else ()))

    def with_backend(self, backend: str | Mapping[str, Any]) -> Topology:
        """The same lab with another backend: a type, or `Backend` of the configuration with its options."""
        value = {"Type": backend} if isinstance(backend, str) else dict(backend)
        return msgspec.structs.replace(self, config={**self.config, "Backend": value})

    def with_host(self, rack: str = "") -> Topology:
        """One more host, in `rack` or, if none is given, in the rack with the fewest hosts."""
        places = [r for r in self.racks if r.name != self.etcd.rack or self.kind == "flat"]
        if rack and rack not in [r.name for r in places]:
            raise UsageError(f"the lab has no rack {rack!r}", remedy=f"It has {', '.join(r.name for r in places)}")
        in_rack = {r.name: [h for h in self.hosts if h.rack == r.name] for r in places}
        chosen = self.rack(rack or min(in_rack, key=lambda name: len(in_rack[name])))
        taken = {host.v4 for host in in_rack[chosen.name]}
        for number in range(FIRST_HOST, FIRST_HOST + RACK_SIZE):
            v4, v6 = chosen.address(number)
            if v4 not in taken:
                break
        else:
            raise UsageError(f"rack {chosen.name} is full: it has {RACK_SIZE} hosts")
        # Names are never used twice while a later one exists, so that h4 stays "the fourth".
        last = max((int(h.name.removeprefix("h")) for h in self.hosts), default=0)
        return msgspec.structs.replace(self, hosts=(*self.hosts, Host(f"h{last + 1}", chosen.name, v4, v6)))

    def without_host(self, name: str) -> Topology:
        gone = self.host(name)
        return msgspec.structs.replace(self, hosts=tuple(host for host in self.hosts if host != gone))


def build(
    kind: str = "flat",
    nodes: int = 3,
    backend: str | Mapping[str, Any] = "vxlan",
    *,
    ipv4: bool = True,
    ipv6: bool = False,
    mtu: int = 1500,
    config: Mapping[str, Any] | None = None,
) -> Topology:
    """A topology by its kind. `config` holds further keys of the network's configuration, and wins.

    "flat": one rack with everything in it. "racks": two racks of hosts and one for etcd, joined by a router.
    """
    if kind == "flat":
        racks: tuple[Rack, ...] = (Rack("rack1", "192.168.50.0/24", "fd00:50::/64", mtu),)
    elif kind == "racks":
        racks = tuple(Rack(n, f"192.168.{i}.0/24", f"fd00:{i}::/64", mtu) for n, i in RACKS.items())
    else:
        raise UsageError(f"no topology {kind!r}", remedy="There are flat and racks")
    if not 1 <= nodes <= RACK_SIZE:
        raise UsageError(f"a lab has 1 to {RACK_SIZE} nodes, not {nodes}")
    network = {**(DEFAULT_NETWORK if ipv4 else {"EnableIPv4": False}), **(IPV6_NETWORK if ipv6 else {})}
    topology = Topology(
        kind=kind,
        racks=racks,
        routers=(Router("router"),),
        hosts=(),
        etcd=Host("etcd", racks[-1].name, *racks[-1].address(ETCD_HOST)),
        config={**network, **(config or {})},
    ).with_backend((config or {}).get("Backend") or backend)
    for _ in range(nodes):
        topology = topology.with_host()
    return topology


# Third octet and IPv6 group of each rack of the kind "racks".
RACKS = {"rack1": 60, "rack2": 70, "core": 80}
