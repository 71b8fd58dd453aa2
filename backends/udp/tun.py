"""The TUN device: attaching to one that exists (Documentation/networking/tuntap.rst, linux/if_tun.h).

Rule: the reconciler makes the device, persistent; this only takes hold of it and never creates one. Reading gives one
packet with complete checksums behind a virtio-net header, because no offload is asked for: the kernel cuts
super-packets in C, cheaper than it can be done here. Writing may hand over a joined packet (coalesce.py).
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
_SIOCSIFTXQLEN = 0x8943

_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_IFF_PERSIST = 0x0800

_IFREQ = struct.Struct("16sH22x")

# Packets that wait to be read. The kernel's 500 are one burst of a TCP stream: 64 KiB cut in 1,432 bytes are 46.
QUEUE_LENGTH = 4096


def attach(name: str, vnet_size: int) -> int:
    """A non-blocking descriptor of the persistent TUN device `name`; OSError says why there is none.

    ENODEV: it does not exist (yet). EBUSY: another process holds it. EINVAL: it is no TUN device.
    """
    try:
        socket.if_nametoindex(name)  # TUNSETIFF would make a device of that name
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
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            fcntl.ioctl(control, _SIOCSIFTXQLEN, struct.pack("16si20x", name.encode(), QUEUE_LENGTH))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
