"""flannel's udp backend: a TUN device, and datagrams with one bare IPv4 packet each. One packet at a time."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import struct
import threading
from ipaddress import IPv4Address, IPv4Network

from tests.support.flannel.kernel import Backend, Interface, ip
from tests.support.flannel.leases import Config, Lease
from tests.support.flannel.log import log


class Udp(Backend):
    overhead = 28

    def __init__(self, uplink: Interface, public: str, config: Config) -> None:
        super().__init__(uplink, public, config)
        self.port = config.options.get("port") or 8285
        self.lock = threading.Lock()
        self.routes: list[tuple[int, int, str]] = []  # network and mask as numbers, host; the last used one is first

    def start(self, subnet: IPv4Network) -> None:
        self.own = subnet.network_address
        self.tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        asked = struct.pack("16sH22x", b"flannel%d", 0x0001 | 0x1000)  # if_tun.h: IFF_TUN | IFF_NO_PI
        device = fcntl.ioctl(self.tun, 0x400454CA, asked)[:16].rstrip(b"\0").decode()  # TUNSETIFF
        ip("address", "add", f"{self.own}/32", "dev", device)
        ip("link", "set", device, "mtu", str(self.mtu), "up")
        ip("route", "add", str(self.config.network), "dev", device, "scope", "global")
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((self.uplink.address, self.port))
        self.socket.setblocking(False)
        threading.Thread(target=self._proxy, daemon=True).start()

    def add(self, leases: list[Lease]) -> None:
        for lease in leases:
            net, mask = int(lease.subnet.network_address), int(lease.subnet.netmask)
            with self.lock:
                self.routes = [route for route in self.routes if route[:2] != (net, mask)]
                self.routes.append((net, mask, lease.address))

    def remove(self, leases: list[Lease]) -> None:
        gone = {(int(lease.subnet.network_address), int(lease.subnet.netmask)) for lease in leases}
        with self.lock:
            self.routes = [route for route in self.routes if route[:2] not in gone]

    def _route(self, destination: int) -> str | None:
        with self.lock:
            for at, (net, mask, host) in enumerate(self.routes):
                if destination & mask == net:
                    if at:
                        self.routes[0], self.routes[at] = self.routes[at], self.routes[0]
                    return host
        return None

    def _proxy(self) -> None:
        poll = select.poll()
        poll.register(self.tun, select.POLLIN)
        poll.register(self.socket, select.POLLIN)
        while True:
            poll.poll()
            while self._outwards() | self._inwards():  # both are tried
                pass

    def _outwards(self) -> bool:
        """One packet from the TUN; whether there was one."""
        try:
            packet = bytearray(os.read(self.tun, self.mtu))
        except BlockingIOError:
            return False
        if len(packet) < 20 or packet[0] >> 4 != 4:
            return True
        host = self._route(int.from_bytes(packet[16:20], "big"))
        if host is None:
            if answer := net_unreachable(packet, self.own):
                self._to_tun(answer)
        elif aged(packet):
            try:
                self.socket.sendto(packet, (host, self.port))
            except OSError as error:
                log(f"UDP send to {host}:{self.port} failed: {error}")
        return True

    def _inwards(self) -> bool:
        """One datagram, from whomever, cut off at the MTU; whether there was one."""
        try:
            packet = bytearray(self.socket.recv(self.mtu))
        except OSError as error:
            return error.errno not in (errno.EAGAIN, errno.EWOULDBLOCK)
        if len(packet) >= 20 and aged(packet):
            self._to_tun(packet)
        return True

    def _to_tun(self, packet: bytes | bytearray) -> None:
        try:
            os.write(self.tun, packet)
        except OSError as error:
            log(f"TUN send failed: {error}")


def aged(packet: bytearray) -> bool:
    """Take one from the TTL of an IPv4 packet; whether it lives on. Its checksum follows (RFC 1624)."""
    if packet[8] <= 1:
        return False
    packet[8] -= 1
    total = int.from_bytes(packet[10:12], "big") + 0x100
    packet[10:12] = (total - 0xFFFF if total >= 0xFFFF else total).to_bytes(2, "big")
    return True


def checksum(data: bytes) -> int:
    """RFC 1071."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def net_unreachable(packet: bytes | bytearray, source: IPv4Address) -> bytes:
    """The answer to a packet that has no route; none to ICMP and to all but first fragments."""
    length = (packet[0] & 15) * 4
    if packet[9] == socket.IPPROTO_ICMP or int.from_bytes(packet[6:8], "big") & 0x1FFF or len(packet) < length + 8:
        return b""
    quoted = bytes(packet[: length + 8])
    icmp = struct.pack("!BBHI", 3, 0, 0, 0) + quoted
    icmp = icmp[:2] + checksum(icmp).to_bytes(2, "big") + icmp[4:]
    header = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(icmp), 0, 0, 8, socket.IPPROTO_ICMP, 0, source.packed, bytes(packet[12:16])
    )
    return header[:10] + checksum(header).to_bytes(2, "big") + header[12:] + icmp
