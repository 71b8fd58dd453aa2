"""flannel's configuration, keys, records and the way that it gets a subnet."""

from __future__ import annotations

import contextlib
import json
import random
import re
import time
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.flannel.gateway import Etcd
from tests.support.flannel.log import fatal, log

RETRY = 1.0  # seconds
TRIES = 10  # to get a subnet that nobody takes meanwhile
CHOICE = 100  # of so many free subnets one is drawn


class Config(NamedTuple):
    network: IPv4Network
    length: int
    first: IPv4Address
    last: IPv4Address
    backend: str
    options: dict[str, Any]  # of the backend, names in lower case

    def fits(self, subnet: IPv4Network) -> bool:
        return subnet.prefixlen == self.length and self.first <= subnet.network_address <= self.last


def folded(value: Any) -> dict[str, Any]:
    """Go's JSON finds a field whatever the case of its name."""
    return {name.lower(): each for name, each in value.items()}


def read_config(text: str) -> Config:
    """ValueError says what is wrong."""
    fields = folded(json.loads(text))
    if fields.get("enableipv6") or not fields.get("enableipv4", True):
        raise ValueError("this stand-in for flanneld does IPv4 alone")
    network = IPv4Network(fields["network"], strict=False)
    if network.prefixlen > 28:
        raise ValueError("Subnet length is too small")
    length = fields.get("subnetlen") or (24 if network.prefixlen <= 22 else network.prefixlen + 2)
    if not network.prefixlen + 2 <= length <= 30:
        raise ValueError("network must be able to accommodate at least four subnets")
    size = 1 << (32 - length)
    first = IPv4Address(fields.get("subnetmin") or network.network_address + size)
    last = IPv4Address(fields.get("subnetmax") or network.broadcast_address + 1 - size)
    for name, bound in (("SubnetMin", first), ("SubnetMax", last)):
        if bound not in network:
            raise ValueError(f"{name} is not in the range of the Network")
        if int(bound) % size:
            raise ValueError(f"{name} is not on a SubnetLen boundary: {bound}")
    options = folded(fields.get("backend") or {})
    return Config(network, length, first, last, options.get("type") or "udp", options)


KEY = re.compile(r"(\d+\.\d+.\d+.\d+)-(\d+)(?:&([a-f\d:]+)-(\d+))?$")


def key_subnet(key: str) -> IPv4Network | None:
    """The subnet that a key names; None if it names none."""
    if not (match := KEY.search(key)):
        return None
    try:
        return IPv4Network(f"{match[1]}/{match[2]}", strict=False)
    except ValueError:
        return None


class Lease(NamedTuple):
    subnet: IPv4Network
    attrs: dict[str, Any]

    @property
    def address(self) -> str:
        return str(self.attrs.get("PublicIP", ""))

    @property
    def kind(self) -> str:
        return str(self.attrs.get("BackendType", ""))

    @property
    def mac(self) -> str:
        return str(self.attrs["BackendData"]["VtepMAC"])


def read_lease(key: str, value: str) -> Lease | None:
    subnet = key_subnet(key)
    try:
        return Lease(subnet, dict(json.loads(value))) if subnet else None
    except (ValueError, TypeError):
        return None


def own_value(address: str, kind: str, data: dict[str, Any] | None) -> str:
    """LeaseAttrs as Go marshals them: in this order, PublicIPv6 always, the others only if there is something."""
    fields: dict[str, Any] = {"PublicIP": address, "PublicIPv6": None}
    if kind:
        fields["BackendType"] = kind
    if data:
        fields["BackendData"] = data
    return json.dumps(fields, separators=(",", ":"))


class Subnets:
    """flannel's etcd subnet manager: this node's lease, and everybody's."""

    def __init__(self, etcd: Etcd, prefix: str, subnet_file: Path) -> None:
        self.etcd = etcd
        self.prefix = prefix
        self.directory = f"{prefix}/subnets"  # without a slash at its end: listed and watched as it is
        self.subnet_file = subnet_file

    def config(self) -> Config:
        """Waits for one."""
        while True:
            try:
                if (text := self.etcd.get(f"{self.prefix}/config")) is None:
                    raise ValueError("key not found")
                return read_config(text)
            except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
                log(f"Couldn't fetch network config: {error}")
                time.sleep(RETRY)
                print("timed out", flush=True)

    def key(self, subnet: IPv4Network) -> str:
        return f"{self.directory}/{subnet.network_address}-{subnet.prefixlen}"

    def leases(self) -> tuple[int, list[Lease]]:
        revision, pairs = self.etcd.list(self.directory)
        return revision, [lease for key, value in pairs if (lease := read_lease(key, value))]

    def previous(self) -> IPv4Network | None:
        """FLANNEL_SUBNET of subnet.env."""
        with contextlib.suppress(OSError, ValueError):
            for line in self.subnet_file.read_text().splitlines():
                name, _, value = line.partition("=")
                if name == "FLANNEL_SUBNET":
                    return IPv4Network(value, strict=False)
        return None

    def acquire(self, config: Config, address: str, value: str) -> IPv4Network:
        for _ in range(TRIES):
            _, leases = self.leases()
            if mine := next((lease for lease in leases if lease.address == address), None):
                if config.fits(mine.subnet):
                    log(f"Found lease (ip: {mine.subnet}) for current IP ({address}), reusing")
                    self.etcd.put(self.key(mine.subnet), value)
                    return mine.subnet
                self.etcd.delete(self.key(mine.subnet))
            taken = {lease.subnet for lease in leases if lease is not mine}
            subnet = self.previous()
            if subnet and subnet not in taken and config.fits(subnet):
                log(f"Found previously leased subnet ({subnet}), reusing")
            else:
                subnet = self._free(config, taken)
            if self.etcd.create(self.key(subnet), value):
                return subnet
        raise fatal("Error registering network: failed to acquire lease: subnet already exists")

    def _free(self, config: Config, taken: set[IPv4Network]) -> IPv4Network:
        free: list[IPv4Network] = []
        size = 1 << (32 - config.length)
        for start in range(int(config.first), int(config.last) + 1, size):
            subnet = IPv4Network((start, config.length))
            if not any(subnet.overlaps(other) for other in taken):
                free.append(subnet)
                if len(free) == CHOICE:
                    break
        if not free:
            raise fatal("Error registering network: failed to acquire lease: out of subnets")
        return random.choice(free)


def write_subnet_env(path: Path, network: IPv4Network, subnet: IPv4Network, mtu: int, masquerade: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.parent / f".{path.name}"
    new.write_text(
        f"FLANNEL_NETWORK={network}\n"
        f"FLANNEL_SUBNET={subnet.network_address + 1}/{subnet.prefixlen}\n"
        f"FLANNEL_MTU={mtu}\n"
        f"FLANNEL_IPMASQ={'true' if masquerade else 'false'}\n"
    )
    new.rename(path)
