"""The TUN device: attaching to one that exists (Documentation/networking/tuntap.rst, linux/if_tun.h).

Rule: the reconciler makes the device, persistent; this only takes hold of it and never creates one. Reading gives one
packet with complete checksums behind a virtio-net header, because no offload is asked for: the kernel cuts
super-packets in C, cheaper than it can be done here, and needs a longer queue for what it cuts. Writing may hand over
a joined packet (coalesce.py).
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct

_TUNSETIFF = 0x400454CA
_TUNGETIFF = 0x800454D2
_TUNSETOFFLOAD = 0x400454D0
_TUNSETVNETHDRSZ = 0x400454D8

_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_IFF_PERSIST = 0x0800

# linux/rtnetlink.h, linux/if_link.h
_RTM_SETLINK, _NLM_F_REQUEST, _IFLA_TXQLEN = 19, 1, 13

_IFREQ = struct.Struct("16sH22x")

# Packets that wait to be read. The kernel's 500 are one burst of a TCP stream: 64 KiB cut in 1,432 bytes are 46.
QUEUE_LENGTH = 4096


def attach(name: str, vnet_size: int) -> int:
    """A non-blocking descriptor of the persistent TUN device `name`; OSError says why there is none.

    ENODEV: it does not exist (yet). EBUSY: another process holds it. EINVAL: it is no TUN device.
    """
    try:
        index = socket.if_nametoindex(name)  # TUNSETIFF would make a device of that name
    except OSError:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV)) from None
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    try:
        wanted = _IFREQ.pack(name.encode(), _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR)
        fcntl.ioctl(descriptor, _TUNSETIFF, wanted)
        _, flags = _IFREQ.unpack(fcntl.ioctl(descriptor, _TUNGETIFF, bytes(_IFREQ.size)))
        if not flags & _IFF_PERSIST:  # it was deleted just now, and the call above made another
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        fcntl.ioctl(descriptor, _TUNSETOFFLOAD, 0)
        fcntl.ioctl(descriptor, _TUNSETVNETHDRSZ, struct.pack("i", vnet_size))
        _lengthen_queue(index)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _lengthen_queue(index: int) -> None:
    """By rtnetlink, because the ioctl is refused inside a user namespace. Without it bursts are cut, no more."""
    message = struct.pack("=BxHiIIHHI", 0, 0, index, 0, 0, 8, _IFLA_TXQLEN, QUEUE_LENGTH)
    header = struct.pack("=IHHII", 16 + len(message), _RTM_SETLINK, _NLM_F_REQUEST, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        netlink.send(header + message)
