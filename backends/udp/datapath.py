"""Packets between the TUN and the UDP sockets: flannel's wire format, one bare inner packet a datagram.

Rules: outer DF is set and TTL is 64; an inner packet's TTL is decremented once, on its way out; a datagram is taken
only from an address of a known peer, with an inner source of that peer and an inner destination of this node;
whatever is dropped is counted with its reason. Both directions work on batches (packet.py): what the TUN gives
for one peer goes out in one call with UDP_SEGMENT, what UDP_GRO gives comes in with one. A turn is bounded, so
that neither direction nor the control socket starves.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import time
from collections import Counter

from backends.udp import coalesce, icmp, tun
from backends.udp import packet as ip
from backends.udp.coalesce import PLAIN, VNET_SIZE
from backends.udp.icmp import Reason
from backends.udp.table import Peer, Table

# linux/udp.h, linux/in.h, linux/in6.h: not all in Python's socket module.
_SOL_UDP, _UDP_SEGMENT, _UDP_GRO = 17, 103, 104
_IP_MTU_DISCOVER, _IP_FREEBIND, _IP_MTU = 10, 15, 14
_IPV6_MTU_DISCOVER, _IPV6_FREEBIND, _IPV6_MTU = 23, 78, 24
_PMTUDISC_DONT, _PMTUDISC_DO = 0, 2
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33

OUTER_TTL = 64
BUFFER = 4 << 20  # bytes wanted for each socket and direction
SEND_TIMEOUT = 0.05  # seconds that a full socket may hold the sender up before the batch is dropped

_MAX_SEGMENTS = 64  # UDP_MAX_SEGMENTS of kernels before 6.9
_MAX_BATCH = 65535 - 28 - 20  # the datagram that the kernel cuts must fit 16 bits, over IPv6 too
_MAX_PACKET = 65535 + VNET_SIZE
_TURN = 256  # packets from the TUN, or batches from a socket, before others get their turn
_CHUNK = 1 << 18  # bytes of the outgoing buffer

_GRO_SIZE = struct.Struct("=i")
_SEGMENT = struct.Struct("=H")
_GRO_SPACE = socket.CMSG_SPACE(_GRO_SIZE.size)

# What a route that is gone, or a firewall of the host's own, answers.
_UNREACHABLE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EPERM, errno.EACCES, errno.EINVAL)


def open_socket(address: str, port: int) -> socket.socket:
    """A UDP socket bound to `address`:`port`; OSError (EADDRINUSE: somebody else has the port).

    The address need not be there yet (IP_FREEBIND): it may still be on its way, or come back after a flap.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_DO)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, OUTER_TTL)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
            sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DO)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, OUTER_TTL)
        for forced, plain in ((_SO_RCVBUFFORCE, socket.SO_RCVBUF), (_SO_SNDBUFFORCE, socket.SO_SNDBUF)):
            try:
                sock.setsockopt(socket.SOL_SOCKET, forced, BUFFER)
            except PermissionError:  # inside a user namespace the machine's limit holds
                sock.setsockopt(socket.SOL_SOCKET, plain, BUFFER)
        with contextlib.suppress(OSError):  # before Linux 5.0 there is none: one datagram at a time then
            sock.setsockopt(_SOL_UDP, _UDP_GRO, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 0, int(SEND_TIMEOUT * 1e6)))
        sock.bind((address, port))
    except BaseException:
        sock.close()
        raise
    return sock


class DataPath:
    """One TUN, at most one socket a family, and the table that leads from one to the other.

    `mtu` is the TUN's (bytes). The engine calls `outgoing` when the TUN is readable and `incoming` when a socket is.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        self.mtu = 1472
        self.port = 8285
        self.tun: int | None = None
        self.sockets: dict[int, socket.socket] = {}  # by outer family
        self.drops: Counter[str] = Counter()
        self.segmentation = True  # until a socket refuses UDP_SEGMENT
        self._limiter = icmp.Limiter()
        self._out = bytearray(_CHUNK + _MAX_PACKET)
        self._out_view = memoryview(self._out)
        self._in = bytearray(_MAX_PACKET)
        self._in_view = memoryview(self._in)
        self._vnet = bytearray(VNET_SIZE)

    # ------------------------------------------------------------------------------------- TUN to peers

    def outgoing(self) -> bool:
        """Send what waits in the TUN, at most one turn; False if the device is gone."""
        descriptor = self.tun
        if descriptor is None:
            return False
        buffer, view, vnet, readv = self._out, self._out_view, self._vnet, os.readv
        routes = self.table.routes
        start = end = size = count = 0  # the batch is buffer[start:end], `count` packets of `size`
        peer: Peer | None = None  # None: no batch, or one that takes no more
        alive = True
        for _ in range(_TURN):
            if end > _CHUNK:
                self._send(peer, start, end, size, count)
                start = end = count = 0
                peer = None
            try:
                length = readv(descriptor, (vnet, view[end:])) - VNET_SIZE
            except BlockingIOError:
                break
            except OSError:
                alive = False
                break
            version = buffer[end] >> 4
            if version == 4:
                destination, ttl = bytes(view[end + 16 : end + 20]), buffer[end + 8]
            elif version == 6:
                destination, ttl = bytes(view[end + 24 : end + 40]), buffer[end + 7]
            else:
                self.drops["malformed"] += 1
                continue
            to = routes.get(destination) or self.table.route(destination)
            if to is None or ttl <= 1:
                self._refuse(to, view[end : end + length])
                continue
            if (
                to is not peer
                or length > size
                or count == _MAX_SEGMENTS
                or (end - start) != count * size  # the last one was shorter
                or end + length - start > _MAX_BATCH
                or version != buffer[start] >> 4
            ):
                self._send(peer, start, end, size, count)
                start, size, count, peer = end, length, 0, to
            end += length
            count += 1
        self._send(peer, start, end, size, count)
        return alive

    def _send(self, peer: Peer | None, start: int, end: int, size: int, count: int) -> None:
        """Send the batch `_out[start:end]` to `peer`."""
        if not count or peer is None:
            return
        path = self._path(peer, self._out[start] >> 4)
        if path is None:
            self._drop(peer, "no-path", count)
            return
        ip.age(self._out, start, end, size)
        sock, address = path
        try:
            if count == 1:
                sock.sendto(self._out_view[start:end], address)
            elif self.segmentation:
                segment = (_SOL_UDP, _UDP_SEGMENT, _SEGMENT.pack(size))
                sock.sendmsg((self._out_view[start:end],), (segment,), 0, address)
            else:
                self._send_singly(peer, sock, address, start, end, size)
                return
        except BlockingIOError:
            self._drop(peer, "send-queue-full", count)
            return
        except OSError as error:
            if error.errno in (errno.EIO, errno.ENOPROTOOPT):
                self.segmentation = False
            self._send_singly(peer, sock, address, start, end, size)
            return
        peer.tx_packets += count
        peer.tx_bytes += end - start

    def _send_singly(
        self, peer: Peer, sock: socket.socket, address: tuple[str, int], start: int, end: int, size: int
    ) -> None:
        """The slow way: no segmentation offload, or a batch that did not pass as one."""
        for at in range(start, end, size):
            packet = self._out_view[at : min(at + size, end)]
            try:
                sock.sendto(packet, address)
            except BlockingIOError:
                self._drop(peer, "send-queue-full", 1)
                continue
            except OSError as error:
                if error.errno == errno.EMSGSIZE:
                    self._too_big(peer, sock, address, packet)
                else:
                    self._drop(peer, "unreachable" if error.errno in _UNREACHABLE else "send-failed", 1)
                    self._answer(packet, Reason.HOST_UNREACHABLE)
                continue
            peer.tx_packets += 1
            peer.tx_bytes += len(packet)

    def _too_big(self, peer: Peer, sock: socket.socket, address: tuple[str, int], packet: memoryview) -> None:
        """The path to the peer takes less than our MTU: tell the sender, or let the outer packet be fragmented.

        Fragmented are packets whose sender allows it, and IPv6 packets of the 1,280 bytes that any link must take.
        """
        outer = 4 if sock.family == socket.AF_INET else 6
        mtu = _path_mtu(sock, address) - ip.OUTER_HEADERS[outer]
        if ip.dont_fragment(packet) and (packet[0] >> 4 == 4 or len(packet) > ip.IPV6_MIN_MTU):
            if packet[0] >> 4 == 6:
                mtu = max(mtu, ip.IPV6_MIN_MTU)
            self._drop(peer, "too-big-for-path", 1)
            self._answer(packet, Reason.TOO_BIG, mtu=min(mtu, len(packet) - 1))
            return
        level, option = (
            (socket.IPPROTO_IP, _IP_MTU_DISCOVER) if outer == 4 else (socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER)
        )
        sock.setsockopt(level, option, _PMTUDISC_DONT)
        try:
            sock.sendto(packet, address)
        except OSError:
            self._drop(peer, "send-failed", 1)
        else:
            peer.tx_packets += 1
            peer.tx_bytes += len(packet)
        finally:
            sock.setsockopt(level, option, _PMTUDISC_DO)

    def _path(self, peer: Peer, inner: int) -> tuple[socket.socket, tuple[str, int]] | None:
        """Socket and address for the peer: the inner packet's own family where both ends have it, else the other."""
        sockets = self.sockets
        for outer in (4, 6) if inner == 4 else (6, 4):
            endpoint = peer.endpoint4 if outer == 4 else peer.endpoint6
            if endpoint is not None and outer in sockets:
                return sockets[outer], (endpoint, self.port)
        return None

    def _refuse(self, peer: Peer | None, packet: memoryview) -> None:
        """A packet from the TUN that goes to no peer, or whose TTL ends here."""
        if peer is None:
            multicast = packet[16] >= 224 if packet[0] >> 4 == 4 else packet[24] == 0xFF
            self.drops["multicast" if multicast else "no-route"] += 1
            if not multicast:
                self._answer(packet, Reason.NO_ROUTE)
            return
        self._drop(peer, "ttl", 1)
        self._answer(packet, Reason.TTL_EXCEEDED, source=peer.first_address(packet[0] >> 4))

    def _answer(self, packet: memoryview, reason: Reason, *, mtu: int = 0, source: bytes | None = None) -> None:
        if not self._limiter.allow(time.monotonic()):
            self.drops["icmp-limited"] += 1
            return
        message = icmp.error(packet, reason, mtu=mtu, source=source)
        if message is not None:
            self._write(message)

    def _drop(self, peer: Peer, reason: str, count: int) -> None:
        peer.drops += count
        self.drops[reason] += count

    # ------------------------------------------------------------------------------------- peers to TUN

    def incoming(self, sock: socket.socket) -> None:
        """Take what waits in the socket, at most one turn, and write it to the TUN."""
        senders, view, receive = self.table.senders, self._in_view, sock.recvmsg_into
        buffers = (self._in,)
        now = time.monotonic()
        for _ in range(_TURN):
            try:
                length, ancillary, _, address = receive(buffers, _GRO_SPACE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:  # an error that an ICMP message left on the socket; reading it clears it
                continue
            size = length
            if ancillary:
                (size,) = _GRO_SIZE.unpack(ancillary[0][2])
            known = senders.get(address[0])
            if known is None:
                self.drops["unknown-sender"] += -(-length // size) if size else 1
            elif size > self.mtu:
                self._drop(known[0], "too-large", -(-length // size))
            elif size < ip.IPV4_HEADER:
                self._drop(known[0], "too-short", -(-length // size) if size else 1)
            elif size >= length:
                self._deliver(known, view[:length], now)
            else:
                self._deliver_batch(known, view[:length], size, now)

    def _deliver_batch(self, known: tuple[Peer, ...], view: memoryview, size: int, now: float) -> None:
        for run in coalesce.runs(view, size):
            start, end, count = run
            if count == 1:
                self._deliver(known, view[start:end], now)
                continue
            peer = self._admit(known, view[start : start + size], count)
            if peer is None:
                continue
            joined = coalesce.join(view, run, size)
            if joined is None or not self._write_joined(joined):
                for at in range(start, end, size):
                    self._write(view[at : min(at + size, end)])
            peer.rx_packets += count
            peer.rx_bytes += end - start
            peer.heard = now

    def _deliver(self, known: tuple[Peer, ...], packet: memoryview, now: float) -> None:
        peer = self._admit(known, packet, 1)
        if peer is None:
            return
        self._write(packet)
        peer.rx_packets += 1
        peer.rx_bytes += len(packet)
        peer.heard = now

    def _admit(self, known: tuple[Peer, ...], packet: memoryview, count: int) -> Peer | None:
        """The peer that `count` packets like this may come from, one of `known`; else None, the drop counted."""
        if not ip.IPV4_HEADER <= ip.total_length(packet) <= len(packet):
            self._drop(known[0], "malformed", count)
            return None
        addresses = bytes(packet[12:20] if packet[0] >> 4 == 4 else packet[8:40])
        peer = self.table.flows.get(addresses) or self.table.admit(addresses)
        if isinstance(peer, str):
            self._drop(known[0], peer, count)
            return None
        if peer not in known:
            self._drop(known[0], "source", count)
            return None
        return peer

    def _write(self, packet: bytes | memoryview) -> None:
        """Hand one packet to the host."""
        if self.tun is None:
            self.drops["no-device"] += 1
            return
        try:
            os.writev(self.tun, (PLAIN, packet))
        except OSError:  # EIO: the device is down
            self.drops["device-refused"] += 1

    def _write_joined(self, buffers: list[bytes | bytearray | memoryview]) -> bool:
        """Hand a joined packet to the host; False if it does not take it."""
        if self.tun is None:
            return False
        try:
            os.writev(self.tun, buffers)
        except OSError:
            return False
        return True

    # ------------------------------------------------------------------------------------- descriptors

    def attach(self, device: str) -> None:
        """Take hold of the TUN; OSError as of tun.attach."""
        self.tun = tun.attach(device, VNET_SIZE)

    def detach(self) -> None:
        if self.tun is not None:
            os.close(self.tun)
            self.tun = None


def _path_mtu(sock: socket.socket, address: tuple[str, int]) -> int:
    """What the kernel has learnt of the path to `address` (bytes); only a connected socket may ask."""
    with socket.socket(sock.family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(address)
            if sock.family == socket.AF_INET:
                return probe.getsockopt(socket.IPPROTO_IP, _IP_MTU)
            return probe.getsockopt(socket.IPPROTO_IPV6, _IPV6_MTU)
        except OSError:
            return 576 if sock.family == socket.AF_INET else 1280
