"""Interface addresses: what there is, and ours on our own devices.

Rule: every address on a device of ours is ours, but those of link scope that the kernel makes. On a foreign device
nothing is added: no mark would tell it from the owner's.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Sequence

from netagent.errors import KernelError
from netagent.kernel.base import Failure, Op
from netagent.kernel.events import Ours
from netagent.kernel.links import Links
from netagent.kernel.netlink import RequestSocket
from netagent.kernel.wire import addresses as wire
from netagent.model import Address, AddressFact, Object

_GONE = (errno.EADDRNOTAVAIL, errno.ENODEV)


class Addresses:
    """Writes and reads addresses for `LinuxHost`."""

    def __init__(self, netlink: RequestSocket, links: Links, ours: Ours) -> None:
        self._netlink = netlink
        self._links = links
        self._ours = ours

    def facts(self) -> list[AddressFact]:
        """All addresses, in the kernel's order: of each device and family the primary one first."""
        return [
            AddressFact(
                dev=dev,
                ip=found.ip,
                length=found.length,
                scope=found.scope,
                deprecated=bool(found.flags & wire.DEPRECATED),
                tentative=bool(found.flags & wire.TENTATIVE),
                temporary=bool(found.flags & wire.TEMPORARY),
            )
            for found in self._netlink.dump(wire.dump(), wire.NEWADDR, wire.decode)
            if (dev := self._links.names.get(found.ifindex)) is not None
        ]

    def dump(self) -> list[Object]:
        objects: list[Object] = [
            Address(dev, found.ip, found.length, found.scope)
            for dev, found in self._present()
            if found.scope != "link"
        ]
        self._ours.keys["address"] = dict.fromkeys(obj.key for obj in objects)
        return objects

    def _present(self) -> list[tuple[str, wire.AddressMessage]]:
        names = {ifindex: name for name, ifindex in self._links.own.items()}
        return [
            (names[found.ifindex], found)
            for found in self._netlink.dump(wire.dump(), wire.NEWADDR, wire.decode)
            if found.ifindex in names
        ]

    def apply(self, ops: Sequence[Op]) -> list[Failure]:
        return [failure for op in ops if (failure := self._one(op)) is not None]

    def _one(self, op: Op) -> Failure | None:
        obj = op.object
        assert isinstance(obj, Address)
        ifindex = self._links.own.get(obj.dev)
        if ifindex is None:
            self._ours.keys["address"].pop(obj.key, None)
            if op.verb == "delete":
                return None
            return Failure(op, errno.ENODEV, f"there is no device {obj.dev} of ours")
        try:
            if op.verb == "delete":
                return self._delete(op, ifindex, obj.length)
            return self._put(op, obj, ifindex)
        except KernelError as error:
            return Failure(op, error.errno or errno.EIO, error.message)
        except KeyError:
            return Failure(op, errno.EINVAL, f"there is no scope {obj.scope!r}")
        except (ValueError, OSError, struct.error) as error:
            return Failure(op, errno.EINVAL, f"not to be encoded: {error}")

    def _put(self, op: Op, obj: Address, ifindex: int) -> Failure | None:
        """What has the address with another length or scope goes first: the kernel changes neither in place."""
        request = wire.put(ifindex, obj.ip, obj.length, obj.scope)
        said = self._netlink.transact([request]).get(0)
        others = [
            found
            for dev, found in self._present()
            if (dev, found.ip) == (obj.dev, obj.ip) and (found.length, found.scope) != (obj.length, obj.scope)
        ]
        if others:
            self._netlink.transact([wire.delete(ifindex, found.ip, found.length) for found in others])
            if said is not None and said.errno == errno.EEXIST:
                said = self._netlink.transact([request]).get(0)
        if said is not None and said.errno != errno.EEXIST:
            return Failure(op, said.errno, said.text or os.strerror(said.errno))
        self._ours.keys["address"][obj.key] = None
        return None

    def _delete(self, op: Op, ifindex: int, length: int) -> Failure | None:
        obj = op.object
        assert isinstance(obj, Address)
        said = self._netlink.transact([wire.delete(ifindex, obj.ip, length)]).get(0)
        if said is not None and said.errno not in _GONE:
            return Failure(op, said.errno, said.text or os.strerror(said.errno))
        self._ours.keys["address"].pop(obj.key, None)
        return None
