"""Devices: what there is, which are ours, and how ours are made, changed and removed.

Rules: a device is ours when its name begins with `na-`, its kind is one that the reconciler makes, and its alias is
`netagent`; another owner's device of that name is reported and left alone. A device is never seen without its
alias: both go to the kernel in one send. What can be changed in place is; another VXLAN attribute means delete and
create. Every device is read back after it was made, for an old kernel drops an attribute without a word.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from pathlib import Path

from netagent.errors import KernelError
from netagent.kernel import tun
from netagent.kernel.base import Failure, Op
from netagent.kernel.netlink import RequestSocket
from netagent.kernel.wire import links as wire
from netagent.kernel.wire.message import Refusal
from netagent.model import Link, LinkFact, TunnelAttrs, VxlanAttrs

ALIAS = "netagent"
PREFIX = "na-"
KINDS = frozenset(("vxlan", "ipip", "sit", "tun", "bridge"))

_ABSENT = (errno.ENODEV, errno.ENOENT)


class Links:
    """The devices of this network namespace as last told by the kernel.

    `index` maps names to ifindexes, `own` the names of ours alone, `names` maps ifindexes to names.
    """

    def __init__(self, netlink: RequestSocket, alias: str = ALIAS) -> None:
        self.alias = alias
        self._netlink = netlink
        self._links: dict[int, wire.LinkMessage] = {}
        self.index: dict[str, int] = {}
        self.own: dict[str, int] = {}
        self.names: dict[int, str] = {}
        self.refresh()

    # ------------------------------------------------------------------------------------------ what there is

    def refresh(self) -> None:
        """Ask the kernel for all devices. KernelError when it refuses."""
        self._links = {found.ifindex: found for found in self._netlink.dump(wire.dump(), wire.NEWLINK, wire.decode)}
        self.index.clear()
        self.own.clear()
        self.names.clear()
        for found in self._links.values():
            self._enter(found)

    def learn(self, found: wire.LinkMessage) -> None:
        """Take over what an event says of a device."""
        self.forget(found.ifindex)
        self._links[found.ifindex] = found
        self._enter(found)

    def forget(self, ifindex: int) -> None:
        known = self._links.pop(ifindex, None)
        if known is not None and self.index.get(known.name) == ifindex:
            del self.index[known.name]
            self.own.pop(known.name, None)
        self.names.pop(ifindex, None)

    def _enter(self, found: wire.LinkMessage) -> None:
        self.index[found.name] = found.ifindex
        self.names[found.ifindex] = found.name
        if self.is_own(found):
            self.own[found.name] = found.ifindex
        else:
            self.own.pop(found.name, None)  # no two devices have one name: ours has lost it

    def is_own(self, found: wire.LinkMessage) -> bool:
        return found.alias == self.alias and found.kind in KINDS and found.name.startswith(PREFIX)

    def facts(self) -> dict[str, LinkFact]:
        return {found.name: self.fact(found) for found in self._links.values()}

    def fact(self, found: wire.LinkMessage) -> LinkFact:
        return LinkFact(
            name=found.name,
            index=found.ifindex,
            kind=found.kind,
            mtu=found.mtu,
            mac=found.mac,
            up=bool(found.flags & wire.IFF_UP),
            carrier=bool(found.flags & wire.IFF_LOWER_UP),
            alias=found.alias,
            own=self.is_own(found),
            master=self.names.get(found.master, ""),
            loopback=bool(found.flags & wire.IFF_LOOPBACK),
            vxlan=self._vxlan(found),
            tunnel=found.tunnel,
        )

    def _vxlan(self, found: wire.LinkMessage) -> VxlanAttrs | None:
        attrs = found.vxlan
        if attrs is None:
            return None
        return VxlanAttrs(
            vni=attrs.vni,
            port=attrs.port,
            local=attrs.local,
            dev=self.names.get(found.parent),
            learning=attrs.learning,
            gbp=attrs.gbp,
        )

    def _attributes(self, found: wire.LinkMessage) -> tuple[VxlanAttrs | None, TunnelAttrs | None]:
        """What cannot be changed in place."""
        return self._vxlan(found), found.tunnel

    def dump(self) -> list[Link]:
        """Devices of ours. One that is down has MTU 0, which nobody can want."""
        self.refresh()
        return [
            Link(
                kind=found.kind,
                name=found.name,
                mtu=found.mtu if found.flags & wire.IFF_UP else 0,
                mac=found.mac or None,
                vxlan=self._vxlan(found),
                tunnel=found.tunnel,
                tun_vnet_hdr=found.vnet_hdr,
            )
            for found in map(self._links.__getitem__, self.own.values())
        ]

    # ------------------------------------------------------------------------------------------ changing ours

    def put(self, op: Op) -> Failure | None:
        """Make the device, or make it what it must be."""
        link = op.object
        assert isinstance(link, Link)
        try:
            self.refresh()
            present = self._links.get(self.index.get(link.name, 0))
            if present is not None and link.name not in self.own:
                return Failure(op, errno.EEXIST, "a device of another owner has this name", _describe(present))
            if present is None or self._must_be_made_anew(present, link):
                self._create(link, present)
            else:
                self._change(present, link)
            self.refresh()
        except KernelError as error:
            return Failure(op, error.errno, error.message, self._in_the_way(link, error.errno))
        except OSError as error:
            return Failure(op, error.errno or errno.EIO, f"{error.filename or tun.DEVICE}: {error.strerror}")
        except (ValueError, struct.error) as error:
            return Failure(op, errno.EINVAL, f"not to be encoded: {error}")
        return self._check(op, link)

    def delete(self, op: Op) -> Failure | None:
        """Remove the device if it is ours; everything on it goes too."""
        link = op.object
        assert isinstance(link, Link)
        try:
            self.refresh()
            ifindex = self.own.get(link.name)
            if ifindex is not None:
                self._send(wire.delete(ifindex))
                self.forget(ifindex)
        except KernelError as error:
            if error.errno not in _ABSENT:
                return Failure(op, error.errno, error.message)
        return None

    def _must_be_made_anew(self, present: wire.LinkMessage, link: Link) -> bool:
        return present.kind != link.kind or present.tap or self._attributes(present) != (link.vxlan, link.tunnel)

    def _create(self, link: Link, present: wire.LinkMessage | None) -> None:
        """Make the device, in place of `present` if there is one."""
        if link.kind not in KINDS:
            raise KernelError(f"no device of kind {link.kind!r} is made here", errno=errno.EOPNOTSUPP)
        before = () if present is None else (wire.delete(present.ifindex),)
        marks = wire.change(link.name, alias=self.alias, mtu=link.mtu)
        if link.kind == "tun":
            self._send(*before)
            tun.create(link.name, link.tun_vnet_hdr, lambda: self._send(marks))
        else:
            parent = 0
            if link.vxlan is not None and link.vxlan.dev is not None:
                if link.vxlan.dev not in self.index:
                    raise KernelError(f"there is no device {link.vxlan.dev}", errno=errno.ENODEV)
                parent = self.index[link.vxlan.dev]
            made = wire.create(link.kind, link.name, link.mtu, link.mac, link.vxlan, parent, link.tunnel)
            self._send(*before, made, marks)
        self._settle(link.name)
        self._send(wire.change(link.name, up=True))

    def _settle(self, name: str) -> None:
        """Nothing that others announce, and no address of the kernel's own making, has a place on our devices.

        Strict reverse path filtering goes before the device comes up: while a backend changes, packets arrive on it
        whose way back still leads elsewhere (RFC 3704; 2 is loose, and the kernel uses the larger of `all` and this).
        """
        self._netlink.transact([wire.no_made_up_address(name)])
        filters = Path("/proc/sys/net/ipv4/conf")
        with contextlib.suppress(OSError):
            if max(int((filters / dev / "rp_filter").read_text()) for dev in ("all", name)) == 1:
                (filters / name / "rp_filter").write_text("2")
        with contextlib.suppress(OSError):  # no IPv6 in the kernel, or none on a device with so small an MTU
            Path(f"/proc/sys/net/ipv6/conf/{name}/accept_ra").write_text("0")

    def _change(self, present: wire.LinkMessage, link: Link) -> None:
        mtu = link.mtu if link.mtu != present.mtu else None
        mac = link.mac if link.mac is not None and link.mac.lower() != present.mac else None
        if mtu is not None or mac is not None:
            self._send(wire.change(link.name, mtu=mtu, mac=mac))
        if link.kind == "tun" and link.tun_vnet_hdr != present.vnet_hdr:
            tun.create(link.name, link.tun_vnet_hdr, lambda: None)
        if not present.flags & wire.IFF_UP:
            self._send(wire.change(link.name, up=True))

    def _send(self, *requests: bytes) -> None:
        refused = self._netlink.transact(requests)
        for said in refused.values():
            raise KernelError(_words(said), errno=said.errno)

    def _check(self, op: Op, link: Link) -> Failure | None:
        """Whether the kernel made what was asked for."""
        present = self._links.get(self.own.get(link.name, 0))
        if present is None:
            return Failure(op, errno.ENODEV, "the device went away while it was made")
        for made, wanted in zip(self._attributes(present), (link.vxlan, link.tunnel), strict=True):
            if made != wanted:
                return Failure(op, errno.EINVAL, f"the kernel made {made} of {wanted}")
        if link.mac is not None and present.mac != link.mac.lower():
            return Failure(op, errno.EAGAIN, f"the device has MAC {present.mac} instead of {link.mac}")
        return None

    def _in_the_way(self, link: Link, code: int) -> str:
        """The device that holds VNI and port, or the address, of one that could not be made."""
        if link.tunnel is not None and code == errno.EEXIST:
            same = (f for f in self._links.values() if (f.kind, f.tunnel) == (link.kind, link.tunnel))
            return next((_describe(found) for found in same if found.name != link.name), "")
        wanted = link.vxlan
        if wanted is None or code not in (errno.EEXIST, errno.EADDRINUSE):
            return ""
        for found in self._links.values():
            attrs = found.vxlan
            if attrs is None or found.name == link.name or attrs.port != wanted.port:
                continue
            if attrs.vni == wanted.vni or code == errno.EADDRINUSE:
                return _describe(found)
        return ""


def _describe(found: wire.LinkMessage) -> str:
    """A device in an operator's words."""
    attrs = found.vxlan
    what = f"device {found.name}"
    if attrs is not None:
        what += f", VXLAN with VNI {attrs.vni} on port {attrs.port}"
    elif found.kind:
        what += f" of kind {found.kind}"
    return f"{what}, alias {found.alias}" if found.alias else f"{what}, without alias"


def _words(said: Refusal) -> str:
    return said.text or os.strerror(said.errno)
