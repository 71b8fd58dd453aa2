"""subnet.env, flannel's file for container engines: the network, this host's subnet, the MTU, masquerading.

    FLANNEL_NETWORK=10.5.0.0/16
    FLANNEL_SUBNET=10.5.59.1/24              the first address of the subnet, with the subnet's length
    FLANNEL_IPV6_NETWORK=fc00::/48
    FLANNEL_IPV6_SUBNET=fc00:0:0:1::1/64
    FLANNEL_MTU=1450
    FLANNEL_IPMASQ=true

Rule: replaced atomically and only when its content changes, since path units and engines watch it.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import NamedTuple

from netagent import files
from netagent.model import Network


class Subnets(NamedTuple):
    """The subnets that a subnet.env names, as prefixes ("10.5.59.0/24"), and its MTU (0: not given)."""

    v4: str | None = None
    v6: str | None = None
    mtu: int = 0


def render(network: Network, v4: str | None, v6: str | None, mtu: int, ip_masq: bool) -> str:
    """The file's text for a node that holds `v4` and `v6`; lines of a family that it does not hold are left out."""
    lines: list[str] = []
    if v4 is not None:
        lines += [f"FLANNEL_NETWORK={network.v4 or v4}", f"FLANNEL_SUBNET={first_address(v4)}"]
    if v6 is not None:
        lines += [f"FLANNEL_IPV6_NETWORK={network.v6 or v6}", f"FLANNEL_IPV6_SUBNET={first_address(v6)}"]
    lines += [f"FLANNEL_MTU={mtu}", f"FLANNEL_IPMASQ={'true' if ip_masq else 'false'}"]
    return "".join(f"{line}\n" for line in lines)


def first_address(subnet: str) -> str:
    """The first host address of a subnet, with its length: "10.5.59.1/24"."""
    net = ipaddress.ip_network(subnet)
    return f"{net.network_address + 1}/{net.prefixlen}"


def write(path: Path, text: str) -> bool:
    """Replace the file if its content differs; whether it did. OSError names the path."""
    data = text.encode()
    try:
        if path.read_bytes() == data:
            return False
    except OSError:
        pass  # absent or unreadable: written anew
    files.replace(path, data)
    return True


def read(path: Path) -> Subnets:
    """What an earlier run, or a flanneld before us, left there. Nothing of a file that is absent or damaged."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return Subnets()
    values = dict(line.strip().split("=", 1) for line in text.splitlines() if "=" in line)
    mtu = values.get("FLANNEL_MTU", "").strip("\"'")
    return Subnets(
        _subnet(values.get("FLANNEL_SUBNET", ""), 4),
        _subnet(values.get("FLANNEL_IPV6_SUBNET", ""), 6),
        int(mtu) if mtu.isascii() and mtu.isdigit() and len(mtu) < 6 else 0,
    )


def _subnet(text: str, version: int) -> str | None:
    try:
        net = ipaddress.ip_interface(text.strip("\"'")).network
    except ValueError:
        return None
    if "%" in text:  # a zone: no subnet that could be leased
        return None
    return str(net) if net.version == version and 0 < net.prefixlen < net.max_prefixlen else None
