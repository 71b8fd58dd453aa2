"""Devices (linux/if_link.h: struct ifinfomsg, IFLA_*, IFLA_VXLAN_*, IFLA_TUN_*; linux/if_tunnel.h: IFLA_IPTUN_*).

Rules: a device is made with its MAC and MTU in the first message, for the kernel would choose others; what it takes
only of an existing device (alias, IPv6 address generation) goes into a second one, for the same send. A VXLAN device
gets flannel's settings: TTL inherited, no learning unless asked for, outer UDP checksum on. A device that
puts packets into IPv4 sends with a TTL that reaches the other end whatever the packet's own is (RFC 2003, 3.1; RFC
4213, 3.3), and forbids fragments.
"""

from __future__ import annotations

import struct
from socket import inet_ntop, inet_pton
from typing import NamedTuple

from netagent.kernel.wire.message import (
    AF_INET,
    AF_INET6,
    AF_UNSPEC,
    CREATE,
    DUMP,
    EXCL,
    HEADER,
    REQUEST,
    U32,
    attribute,
    attribute_text,
    attribute_u8,
    attribute_u32,
    attributes,
    nest,
    text,
)
from netagent.kernel.wire.neighbours import mac_bytes
from netagent.model import TunnelAttrs, VxlanAttrs

NEWLINK, DELLINK, GETLINK, SETLINK = 16, 17, 18, 19

IFF_UP, IFF_LOOPBACK, IFF_LOWER_UP = 0x1, 0x8, 0x10000

_ADDRESS, _IFNAME, _MTU, _MASTER, _LINKINFO, _IFALIAS, _AF_SPEC, _EXT_MASK = 1, 3, 4, 10, 18, 20, 26, 29
_INFO_KIND, _INFO_DATA = 1, 2
_INET6_ADDR_GEN_MODE, _ADDR_GEN_NONE = 8, 1
_SKIP_STATS = 1 << 3  # RTEXT_FILTER_SKIP_STATS

_VXLAN_ID, _VXLAN_LINK, _VXLAN_LOCAL, _VXLAN_TTL, _VXLAN_LEARNING = 1, 3, 4, 5, 7
_VXLAN_PORT, _VXLAN_LOCAL6, _VXLAN_UDP_CSUM = 15, 17, 18
_VXLAN_ZERO_CSUM6_TX, _VXLAN_ZERO_CSUM6_RX, _VXLAN_GBP = 19, 20, 23
_TUN_TYPE, _TUN_VNET_HDR = 3, 5
_IPTUN_LOCAL, _IPTUN_REMOTE, _IPTUN_TTL, _IPTUN_PROTO, _IPTUN_PMTUDISC = 2, 3, 4, 9, 10
_IPTUN_HOPS = 64  # IP_DEFAULT_TTL; the device's own default, 0, takes the inner packet's
_TUNNELS = {"ipip": 4, "sit": 41}  # kind -> IP protocol of what is inside (IPPROTO_IPIP, IPPROTO_IPV6)
_TUN_TYPE_TUN = 1  # IFF_TUN; 2 is IFF_TAP

_IFINFOMSG = struct.Struct("=BBHiII")  # family, padding, type, ifindex, flags, mask of flags to change


class LinkMessage(NamedTuple):
    """A device as the kernel tells it.

    `parent` is the underlay's ifindex of a vxlan (0: none), `vxlan.dev` is None; `tap` and `vnet_hdr` are of a tun.
    """

    ifindex: int
    name: str
    kind: str
    flags: int
    mtu: int
    mac: str
    alias: str
    master: int
    parent: int
    vxlan: VxlanAttrs | None
    tunnel: TunnelAttrs | None
    tap: bool
    vnet_hdr: bool


def create(
    kind: str,
    name: str,
    mtu: int,
    mac: str | None,
    vxlan: VxlanAttrs | None = None,
    parent: int = 0,
    tunnel: TunnelAttrs | None = None,
) -> bytes:
    """NEWLINK of a device, down, never one that exists. `parent`: ifindex of `vxlan.dev`."""
    parts = [attribute_text(_IFNAME, name), attribute_u32(_MTU, mtu)]
    if mac is not None:
        parts.append(attribute(_ADDRESS, mac_bytes(mac)))
    data = (
        _vxlan_data(vxlan, parent) if vxlan is not None else _tunnel_data(kind, tunnel) if tunnel is not None else ()
    )
    parts.append(nest(_LINKINFO, attribute_text(_INFO_KIND, kind), *((nest(_INFO_DATA, *data),) if data else ())))
    return _message(NEWLINK, REQUEST | CREATE | EXCL, 0, 0, 0, parts)


def _vxlan_data(vxlan: VxlanAttrs, parent: int) -> list[bytes]:
    data = [attribute_u32(_VXLAN_ID, vxlan.vni)]
    if parent:
        data.append(attribute_u32(_VXLAN_LINK, parent))
    if vxlan.local is not None:
        six = ":" in vxlan.local
        data.append(
            attribute(_VXLAN_LOCAL6 if six else _VXLAN_LOCAL, inet_pton(AF_INET6 if six else AF_INET, vxlan.local))
        )
    data += [
        attribute_u8(_VXLAN_TTL, 0),
        attribute_u8(_VXLAN_LEARNING, vxlan.learning),
        attribute(_VXLAN_PORT, struct.pack(">H", vxlan.port)),
        attribute_u8(_VXLAN_UDP_CSUM, 1),
        attribute_u8(_VXLAN_ZERO_CSUM6_TX, 0),
        attribute_u8(_VXLAN_ZERO_CSUM6_RX, 0),
    ]
    if vxlan.gbp:
        data.append(attribute(_VXLAN_GBP, b""))
    return data


def _tunnel_data(kind: str, tunnel: TunnelAttrs) -> list[bytes]:
    ends = [
        attribute(number, inet_pton(AF_INET, address))
        for number, address in ((_IPTUN_LOCAL, tunnel.local), (_IPTUN_REMOTE, tunnel.remote))
        if address is not None
    ]
    return [
        *ends,
        attribute_u8(_IPTUN_TTL, _IPTUN_HOPS),
        attribute_u8(_IPTUN_PROTO, _TUNNELS[kind]),
        attribute_u8(_IPTUN_PMTUDISC, 1),
    ]


def no_made_up_address(name: str) -> bytes:
    """SETLINK by name: no IPv6 link-local address that the kernel makes up.

    Refused with EAFNOSUPPORT where the device has no IPv6 (none in the kernel, or an MTU below 1280).
    """
    inet6 = nest(AF_INET6, attribute_u8(_INET6_ADDR_GEN_MODE, _ADDR_GEN_NONE))
    return _message(SETLINK, REQUEST, 0, 0, 0, [attribute_text(_IFNAME, name), nest(_AF_SPEC, inet6)])


def change(
    name: str, *, mtu: int | None = None, mac: str | None = None, alias: str | None = None, up: bool | None = None
) -> bytes:
    """SETLINK by name of what is given."""
    parts = [attribute_text(_IFNAME, name)]
    if mtu is not None:
        parts.append(attribute_u32(_MTU, mtu))
    if mac is not None:
        parts.append(attribute(_ADDRESS, mac_bytes(mac)))
    if alias is not None:
        parts.append(attribute_text(_IFALIAS, alias))
    return _message(SETLINK, REQUEST, 0, IFF_UP if up else 0, 0 if up is None else IFF_UP, parts)


def delete(index: int) -> bytes:
    return _message(DELLINK, REQUEST, index, 0, 0, [])


def get(name: str) -> bytes:
    return _message(GETLINK, REQUEST, 0, 0, 0, [attribute_text(_IFNAME, name), attribute_u32(_EXT_MASK, _SKIP_STATS)])


def dump() -> bytes:
    return _message(GETLINK, REQUEST | DUMP, 0, 0, 0, [attribute_u32(_EXT_MASK, _SKIP_STATS)])


def _message(kind: int, flags: int, index: int, ifflags: int, mask: int, parts: list[bytes]) -> bytes:
    payload = _IFINFOMSG.pack(AF_UNSPEC, 0, 0, index, ifflags, mask) + b"".join(parts)
    return HEADER.pack(HEADER.size + len(payload), kind, flags, 0, 0) + payload


def decode(data: bytes, start: int, end: int) -> LinkMessage | None:
    """A device; None also for what the bridge says of its ports (family AF_BRIDGE) in the same kind of message."""
    if end - start < _IFINFOMSG.size:
        return None
    family, _, _, index, flags, _ = _IFINFOMSG.unpack_from(data, start)
    if family != AF_UNSPEC:
        return None
    found = attributes(data, start + _IFINFOMSG.size, end)
    try:
        info = _nested(found.get(_LINKINFO))
        kind = text(info.get(_INFO_KIND, b""))
        inner = _nested(info.get(_INFO_DATA))
        vxlan = _decode_vxlan(inner) if kind == "vxlan" else None
        parent = _u32(inner.get(_VXLAN_LINK)) if kind == "vxlan" else 0
        tun = inner if kind == "tun" else {}
        return LinkMessage(
            index,
            text(found[_IFNAME]),
            kind,
            flags,
            _u32(found.get(_MTU)),
            found.get(_ADDRESS, b"").hex(":") if kind not in _TUNNELS else "",  # theirs is the local IP address
            text(found.get(_IFALIAS, b"")),
            _u32(found.get(_MASTER)),
            parent,
            vxlan,
            _decode_tunnel(inner) if kind in _TUNNELS else None,
            tun.get(_TUN_TYPE, b"\1")[:1] != bytes((_TUN_TYPE_TUN,)),
            tun.get(_TUN_VNET_HDR, b"\0")[:1] == b"\1",
        )
    except (KeyError, ValueError, struct.error):
        return None


def _decode_vxlan(data: dict[int, bytes]) -> VxlanAttrs:
    local, local6 = data.get(_VXLAN_LOCAL), data.get(_VXLAN_LOCAL6)
    return VxlanAttrs(
        vni=_u32(data.get(_VXLAN_ID)),
        port=int.from_bytes(data.get(_VXLAN_PORT, b"")[:2], "big"),
        local=inet_ntop(AF_INET, local) if local else inet_ntop(AF_INET6, local6) if local6 else None,
        learning=data.get(_VXLAN_LEARNING, b"\0")[:1] == b"\1",
        gbp=_VXLAN_GBP in data,
    )


def _decode_tunnel(data: dict[int, bytes]) -> TunnelAttrs:
    return TunnelAttrs(local=_address(data.get(_IPTUN_LOCAL)), remote=_address(data.get(_IPTUN_REMOTE)))


def _address(value: bytes | None) -> str | None:
    """None where it is not given or any (all zeroes)."""
    return inet_ntop(AF_INET, value) if value is not None and any(value) else None


def _nested(value: bytes | None) -> dict[int, bytes]:
    return {} if value is None else attributes(value, 0, len(value))


def _u32(value: bytes | None) -> int:
    return 0 if value is None else int(U32.unpack(value)[0])
