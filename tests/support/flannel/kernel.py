"""What flannel makes in the kernel for host-gw and vxlan, by `ip` and `bridge`."""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.flannel.leases import Config, Lease
from tests.support.flannel.log import fatal, log

HOST_GW_CHECK = 10.0  # seconds between two looks for missing routes


def ip(*words: str) -> None:
    """CalledProcessError when it fails."""
    subprocess.run(["ip", *words], check=True)


def show(*words: str) -> list[dict[str, Any]]:
    """What `ip -j` shows; empty if it shows nothing, or there is no such thing."""
    done = subprocess.run(["ip", "-j", *words], capture_output=True, text=True, check=False)
    return [each for each in json.loads(done.stdout or "[]") if each]


def batch(tool: str, lines: Iterable[str]) -> None:
    """`ip` or `bridge`, one command a line; each is tried, what fails is logged."""
    if text := "".join(f"{line}\n" for line in lines):
        subprocess.run([tool, "-force", "-batch", "-"], input=text, text=True, check=False)


class Interface(NamedTuple):
    name: str
    address: str
    mtu: int


def interface(wanted: list[str]) -> Interface:
    """The first one that is named by name or address; else that of the default route."""
    addresses = show("-4", "address", "show")
    if not wanted:
        wanted = [route["dev"] for route in show("-4", "route", "show", "default")][:1]
    for each in wanted:
        for link in addresses:
            own = [entry["local"] for entry in link["addr_info"]]
            if each == link["ifname"] and own:
                return Interface(each, own[0], link["mtu"])
            if each in own:
                return Interface(link["ifname"], each, link["mtu"])
    raise fatal(f"Failed to find any valid interface to use: {wanted or 'no default route'}")


class Backend:
    """What a backend writes in its record, what it makes for itself, and what it makes for each peer."""

    kind = ""  # of the record; none: it takes every lease for one of its own
    overhead = 0  # bytes
    check = math.inf  # seconds between two calls of `look`

    def __init__(self, uplink: Interface, public: str, config: Config) -> None:
        self.uplink = uplink
        self.public = public
        self.config = config
        self.mtu = uplink.mtu - self.overhead

    def data(self) -> dict[str, Any] | None:
        return None

    def start(self, subnet: IPv4Network) -> None:
        """The lease is held: what does not belong to a peer."""

    def add(self, leases: list[Lease]) -> None:
        raise NotImplementedError

    def remove(self, leases: list[Lease]) -> None:
        raise NotImplementedError

    def look(self) -> None:
        """Every `check` seconds: whether all is there still."""

    def mine(self, leases: Iterable[Lease]) -> list[Lease]:
        """Those that are of this backend."""
        found = []
        for lease in leases:
            if self.kind in ("", lease.kind):
                found.append(lease)
            else:
                log(f"Ignoring non-{self.kind} subnet: type={lease.kind}")
        return found


class HostGw(Backend):
    kind = "host-gw"
    check = HOST_GW_CHECK

    def __init__(self, uplink: Interface, public: str, config: Config) -> None:
        super().__init__(uplink, public, config)
        self.wanted: dict[IPv4Network, str] = {}
        if public != uplink.address:
            raise fatal("your PublicIP differs from interface IP, meaning that probably you're on a NAT")

    def _route(self, subnet: IPv4Network, gateway: str) -> str:
        return f"{subnet} via {gateway} dev {self.uplink.name}"

    def add(self, leases: list[Lease]) -> None:
        self.wanted |= {lease.subnet: lease.address for lease in leases}
        batch("ip", (f"route replace {self._route(lease.subnet, lease.address)}" for lease in leases))

    def remove(self, leases: list[Lease]) -> None:
        for lease in leases:
            self.wanted.pop(lease.subnet, None)
        batch("ip", (f"route del {self._route(lease.subnet, lease.address)}" for lease in leases))

    def look(self) -> None:
        there = {(route["dst"], route.get("gateway")) for route in show("-4", "route", "show")}
        missing = [pair for pair in self.wanted.items() if (str(pair[0]), pair[1]) not in there]
        batch("ip", (f"route add {self._route(*pair)}" for pair in missing))


class Vxlan(Backend):
    kind = "vxlan"
    overhead = 50

    def __init__(self, uplink: Interface, public: str, config: Config) -> None:
        super().__init__(uplink, public, config)
        options = config.options
        self.vni = options.get("vni", 1)
        self.port = options.get("port") or 8472
        self.gbp = bool(options.get("gbp"))
        self.learning = bool(options.get("learning"))
        self.direct = bool(options.get("directrouting"))
        self.mtu = (options.get("mtu") or uplink.mtu) - self.overhead
        self.device = f"flannel.{self.vni}"
        self.mac = self._ensure()

    def _ensure(self) -> str:
        """The device, one that is left from before if it is as it should be; its MAC."""
        for link in show("-d", "link", "show", "dev", self.device):
            info = link.get("linkinfo", {})
            has = info.get("info_data", {})
            found = (has.get("id"), has.get("link"), has.get("local"), has.get("port"), bool(has.get("gbp")))
            wanted = (self.vni, self.uplink.name, self.uplink.address, self.port, self.gbp)
            if info.get("info_kind") == "vxlan" and found == wanted and "group" not in has and not has.get("l2miss"):
                return str(link["address"])
            log(f'"{self.device}" already exists with incompatible configuration; recreating device')
            ip("link", "delete", self.device)
        octets = bytearray(os.urandom(6))
        octets[0] = octets[0] & 0xFE | 0x02  # unicast, locally administered
        mac = octets.hex(":")
        words = f"link add {self.device} mtu {self.mtu} address {mac} type vxlan id {self.vni} dev {self.uplink.name}"
        words += f" local {self.uplink.address} dstport {self.port} {'' if self.learning else 'no'}learning"
        ip(*words.split(), *(["gbp"] if self.gbp else []))
        with contextlib.suppress(OSError):
            Path(f"/proc/sys/net/ipv6/conf/{self.device}/accept_ra").write_text("0")
        return mac

    def data(self) -> dict[str, Any]:
        return {"VNI": self.vni, "VtepMAC": self.mac}

    def start(self, subnet: IPv4Network) -> None:
        wanted = str(subnet.network_address)
        for link in show("-4", "address", "show", "dev", self.device):
            for entry in link["addr_info"]:
                if entry["local"] != wanted:
                    ip("address", "del", f"{entry['local']}/{entry['prefixlen']}", "dev", self.device)
        ip("address", "replace", f"{wanted}/32", "dev", self.device)
        ip("link", "set", self.device, "up")

    def _split(self, leases: list[Lease]) -> tuple[list[Lease], list[Lease]]:
        """Those that are routed directly, and those that go through the tunnel."""
        direct = [lease for lease in leases if self.direct and self._on_link(lease.address)]
        return direct, [lease for lease in leases if lease not in direct]

    @staticmethod
    def _on_link(address: str) -> bool:
        routes = show("route", "get", address)
        return len(routes) == 1 and "gateway" not in routes[0]

    def _do(self, verb: str, leases: list[Lease]) -> None:
        """Neighbours, then FDB entries, then routes: the order of each single lease."""
        direct, tunnelled = self._split([lease for lease in leases if self._complete(lease)])
        at = f"dev {self.device}"
        gateways = [(lease, lease.subnet.network_address) for lease in tunnelled]
        batch("ip", (f"neigh {verb} {to} lladdr {lease.mac} {at} nud permanent" for lease, to in gateways))
        batch("bridge", (f"fdb {verb} {lease.mac} {at} dst {lease.address} self permanent" for lease in tunnelled))
        batch("ip", (f"route {verb} {lease.subnet} via {to} {at} onlink" for lease, to in gateways))
        batch("ip", (f"route {verb} {lease.subnet} via {lease.address}" for lease in direct))

    @staticmethod
    def _complete(lease: Lease) -> bool:
        try:
            return bool(lease.mac and IPv4Address(lease.address))
        except (KeyError, TypeError, ValueError):
            log(f"error decoding subnet lease JSON: {lease.attrs}")
            return False

    def add(self, leases: list[Lease]) -> None:
        self._do("replace", leases)

    def remove(self, leases: list[Lease]) -> None:
        self._do("del", leases)
