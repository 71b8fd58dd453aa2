"""The udp backend: packets from the TUN and from peers, and what comes over the control socket."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import struct
from itertools import pairwise
from random import Random

from backends.udp import coalesce, control, icmp, packet
from backends.udp.control import ControlError
from backends.udp.icmp import Reason
from backends.udp.table import Entry, Peer, Table, digest, parse_prefix
from tests.fuzz.target import target

REASONS = tuple(Reason)


def plain_sum(data: bytes) -> int:
    """RFC 1071 by the letter: 0xFFFF for data whose checksum holds."""
    total = sum(struct.unpack(f">{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def pseudo(data: bytes, upper: int, protocol: int) -> bytes:
    """The pseudo header of a packet whose upper layer begins at `upper`."""
    addresses = data[12:20] if upper == 20 else data[8:40]
    return addresses + struct.pack(">II", len(data) - upper, protocol)


# ------------------------------------------------------------------------------------------- single packets


def ipv4(protocol: int, payload: bytes, *, flags: int = 0x4000, options: bytes = b"", ident: int = 7) -> bytes:
    size = 20 + len(options)
    head = struct.pack(
        ">BBHHHBBHII", 0x40 | size // 4, 0, size + len(payload), ident, flags, 63, protocol, 0, 0x0A053E02, 0x0A054802
    )
    total = 0xFFFF - plain_sum(head + options)
    return head[:10] + total.to_bytes(2, "big") + head[12:] + options + payload


def ipv6(protocol: int, payload: bytes, source: str = "fc00:0:0:1::2") -> bytes:
    ends = ipaddress.IPv6Address(source).packed + ipaddress.IPv6Address("fc00:0:0:2::2").packed
    return struct.pack(">IHBB", 6 << 28, len(payload), protocol, 63) + ends + payload


def _packet_seeds() -> dict[str, bytes]:
    fragment6 = b"\x11\0\0\x08\0\0\0\1"
    found = {
        "udp4": ipv4(17, bytes(8) + b"data"),
        "echo4": ipv4(1, b"\x08\0\0\0\0\1\0\1"),
        "error4": ipv4(1, b"\x03\1\0\0" + bytes(24)),
        "fragment4": ipv4(17, bytes(16), flags=0x2003),
        "options4": ipv4(6, bytes(20), options=b"\1\1\1\0"),
        "long4": ipv4(17, bytes(900)),
        "carry4": next(made for ident in range(1 << 16) if (made := ipv4(17, bytes(8), ident=ident))[10] == 0xFF),
        "udp6": ipv6(17, bytes(8)),
        "echo6": ipv6(58, b"\x80\0\0\0\0\1\0\1"),
        "error6": ipv6(58, b"\1\0\0\0" + bytes(44)),
        "extensions6": ipv6(0, b"\x2c\0\1\4\0\0\0\0" + fragment6 + bytes(16)),
        "hops6": ipv6(0, b"\x3a\1" + bytes(14) + b"\x80\0\0\0"),
        "long6": ipv6(17, bytes(1400)),
    }
    return {name: bytes((at,)) + data for at, (name, data) in enumerate(found.items())}


@target("udp-packet", covers=("backends.udp.packet:upper_layer", "backends.udp.icmp:error"), seeds=_packet_seeds)
def packets(data: bytes) -> None:
    """Any packet that the data path lets through: its headers are read within it; the error about it is whole.

    Ageing leaves a right checksum right.
    """
    reason, inner = REASONS[data[0] % len(REASONS)] if data else REASONS[0], data[1:]
    told = packet.total_length(inner)
    if not packet.IPV4_HEADER <= told <= len(inner):
        return  # dropped as malformed
    four = inner[0] >> 4 == 4
    packet.dont_fragment(inner)
    _, offset, _ = packet.upper_layer(inner)
    assert offset >= (20 if four else 40)
    answer = icmp.error(memoryview(inner), reason, mtu=1400 if reason is Reason.TOO_BIG else 0)
    if answer is not None:
        upper = 20 if four else 40
        assert packet.total_length(answer) == len(answer) <= (576 if four else 1280)
        ends = (12, 16, 20) if four else (8, 24, 40)
        sender, receiver = (answer[start:end] for start, end in pairwise(ends))
        assert (receiver, sender) == tuple(inner[start:end] for start, end in pairwise(ends))
        assert inner.startswith(answer[upper + 8 :])
        assert plain_sum((b"" if four else pseudo(answer, 40, 58)) + answer[upper:]) == 0xFFFF
        assert not four or plain_sum(answer[:20]) == 0xFFFF
    ttl = 8 if four else 7
    if inner[ttl]:
        aged = bytearray(inner)
        packet.age(aged, 0, len(aged), len(aged))
        assert aged[ttl] == inner[ttl] - 1
        size = (inner[0] & 15) * 4
        if four and size <= len(inner) and plain_sum(inner[:size]) == 0xFFFF:
            assert plain_sum(bytes(aged[:size])) == 0xFFFF


# ----------------------------------------------------------------------------------------- batches of segments


def tcp(payload: bytes, sequence: int, flags: int = 0x10, options: bytes = b"") -> bytes:
    head = struct.pack(">HHIIBBHHH", 4000, 80, sequence, 7, (20 + len(options)) << 2, flags, 501, 0, 0)
    return head + options + payload


def repaired(data: bytes) -> bytes:
    """The packet with right checksums, where it is TCP with whole headers."""
    size = len(data)
    if size >= 40 and data[0] == 0x45 and data[9] == 6:
        head = data[:10] + b"\0\0" + data[12:20]
        head = head[:10] + (0xFFFF - plain_sum(head)).to_bytes(2, "big") + head[12:]
        upper = 20
    elif size >= 60 and data[0] >> 4 == 6 and data[6] == 6:
        head, upper = data[:40], 40
    else:
        return data
    segment = data[upper : upper + 16] + b"\0\0" + data[upper + 18 :]
    told = 0xFFFF - plain_sum(pseudo(head + segment, upper, 6) + segment)
    return head + segment[:16] + told.to_bytes(2, "big") + segment[18:]


def segments(joined: bytes) -> list[bytes]:
    """What a kernel makes of a joined packet (tcp_gso_segment), checksums and all."""
    flags, gso, headers, size, start, offset = struct.unpack_from("=BBHHHH", joined)
    assert (flags, offset) == (1, 16)
    assert gso == (1 if start == 20 else 4)
    whole = joined[coalesce.VNET_SIZE :]
    assert len(whole) <= 65535
    payload, made = whole[headers:], []
    for index, at in enumerate(range(0, len(payload), size)):
        part, last = bytearray(whole[:headers]) + payload[at : at + size], at + size >= len(payload)
        if start == 20:
            part[2:4] = len(part).to_bytes(2, "big")
        else:
            part[4:6] = (len(part) - 40).to_bytes(2, "big")
        sequence = int.from_bytes(part[start + 4 : start + 8], "big") + index * size
        part[start + 4 : start + 8] = (sequence & 0xFFFFFFFF).to_bytes(4, "big")
        if not last:
            part[start + 13] &= ~0x08
        made.append(repaired(bytes(part)))
    return made


def comparable(data: bytes) -> bytes:
    """Without checksums, the IPv4 identification, which nobody uses of packets that are not fragmented, and the
    urgent pointer, which means nothing without its flag: the kernel joins over both.
    """
    upper = 20 if data[0] >> 4 == 4 else 40
    head = data[:4] + data[6:10] + data[12:20] if upper == 20 else data[:40]
    return head + data[upper : upper + 16] + data[upper + 20 :]


def wrong_by(data: bytes) -> int:
    """What a packet's checksums are out by, 0 if they hold."""
    upper = 20 if data[0] >> 4 == 4 else 40
    header = plain_sum(data[:20]) if upper == 20 else 0
    return (plain_sum(pseudo(data, upper, 6) + data[upper:]) + header) % 0xFFFF


def _batch_seeds() -> dict[str, bytes]:
    def batch(sizes: list[int], *, six: bool = False, options: bytes = b"", push: bool = False) -> bytes:
        sequence, made = 2**32 - 30, []
        for number, size in enumerate(sizes):
            flags = 0x18 if push and number == len(sizes) - 1 else 0x10
            upper = tcp(bytes((65 + number,)) * size, sequence & 0xFFFFFFFF, flags, options)
            made.append(repaired(ipv6(6, upper) if six else ipv4(6, upper)))
            sequence += size
        return len(made[0]).to_bytes(2, "big") + b"".join(made)

    return {
        "four": b"\1" + batch([20, 20, 20, 11]),
        "six": b"\1" + batch([21, 21, 7], six=True, push=True),
        "timestamps": b"\1" + batch([16, 16, 16], options=b"\1\1\x08\x0a" + bytes(8)),
        "bare-last": b"\0" + batch([9, 9, 0]),
        "udp": b"\0\0\x20" + ipv4(17, bytes(12)) * 3,
    }


@target("udp-segments", covers=("backends.udp.coalesce:runs", "backends.udp.coalesce:join"), seeds=_batch_seeds)
def batches(data: bytes) -> None:
    """Runs cover a batch in order; what is joined is cut by the kernel into what came, and damage is not
    joined, unless that of several packets cancels."""
    repair, size, rest = data[:1] > b"\0", int.from_bytes(data[1:3], "big"), data[3:]
    if not 20 <= size <= 2000 or not rest:
        return
    came = [rest[at : at + size] for at in range(0, len(rest), size)]
    if repair:
        came = [repaired(one) for one in came]
    view, at = memoryview(b"".join(came)), 0
    for run in coalesce.runs(view, size):
        assert run.start == at < run.end
        at = run.end
        assert run.packets == -(-(run.end - run.start) // size)
        if run.packets > 1:
            joined = coalesce.join(view, run, size)
            if joined is not None:
                cut = segments(b"".join(joined))
                parts = came[run.start // size : run.start // size + run.packets]
                damage = [*filter(None, map(wrong_by, parts))]
                assert len(damage) != 1
                assert sum(damage) % 0xFFFF == 0
                assert [*map(comparable, cut)] == [*map(comparable, parts)]
    assert at == len(rest)


# ---------------------------------------------------------------------------------------------- control socket


def _control_seeds() -> dict[str, bytes]:
    config = {
        "device": "na-tun",
        "mtu": 1472,
        "port": 8285,
        "addresses": ["192.168.50.11", "fd50::11"],
        "subnets": [],
    }
    peers = [["10.5.72.0-24", ["10.5.72.0/24", "fc00:0:0:2::/64"], ["192.168.50.12", "fd50::12"]]]
    requests = {
        "hello": {"do": "hello"},
        "configure": {"do": "configure", "config": {**config, "subnets": ["10.5.59.0/24"]}},
        "add": {"do": "add-peers", "peers": peers},
        "remove": {"do": "remove-peers", "keys": ["10.5.72.0-24"]},
        "stats": {"do": "stats", "offset": 0, "limit": 500},
        "export": {"config": config, "peers": peers, "traffic": {"10.5.72.0-24": [1, 2, 3, 4, 5, -1]}},
        "handover": {"do": "handover", "digest": "0" * 64},
    }
    seeds = {name: b"\1" + json.dumps(request).encode() for name, request in requests.items()}
    return {
        **seeds,
        "stream": b"\0" + b"".join(map(control.encode, requests.values())),
        "long": b"\0\xff\xff\xff\xff",
    }


_WORDS = tuple(f'"{word}"'.encode() for word in ("do", "config", "peers", "traffic", "keys", "device", "addresses"))


@target(
    "udp-control",
    covers=(
        "backends.udp.control:Decoder",
        "backends.udp.control:config_of",
        "backends.udp.control:peers_of",
        "backends.udp.control:traffic_of",
    ),
    seeds=_control_seeds,
    words=_WORDS,
)
def control_socket(data: bytes) -> None:
    """A stream cut anywhere gives the same requests; their fields are right, or a ControlError says what is wrong."""
    stream = len(data[1:]).to_bytes(4, "big") + data[1:] if data[:1] > b"\0" else data[1:]
    whole, pieces = _requests([stream]), _requests([stream[at : at + 3] for at in range(0, len(stream), 3)])
    assert whole == pieces
    for text in whole:
        request = json.loads(text)
        with contextlib.suppress(ControlError):
            config = control.config_of(request)
            assert control.config_of({"config": json.loads(json.dumps(config.to_json()))}) == config
        with contextlib.suppress(ControlError):
            counters = {key: tuple(numbers) for key, numbers in control.traffic_of(request).items()}
            for numbers in counters.values():
                Peer(Entry("", (), ())).restore(numbers)
        with contextlib.suppress(ControlError):
            control.texts(request, "keys")
            control.whole(request, "limit", 1, 1000)
        with contextlib.suppress(ControlError, ValueError):
            table = Table()
            table.set(control.peers_of(request))
            _check_table(table)


def _requests(chunks: list[bytes]) -> list[str]:
    """Each request as JSON (NaN is not equal to itself), up to the first error."""
    decoder, found = control.Decoder(), []
    with contextlib.suppress(ControlError):
        for chunk in chunks:
            found.extend(json.dumps(request) for request in decoder.feed(chunk))
    return found


def _check_table(table: Table) -> None:
    assert table.digest() == digest(peer.entry for peer in table)
    for peer in table:
        for family in (4, 6):
            address = peer.first_address(family)
            if address is not None:
                assert table.route(address) is not None
    table.remove([peer.key for peer in table])
    assert not len(table)
    assert not table.senders


# ------------------------------------------------------------------------------------------------------- table


@target(
    "udp-table",
    covers=("backends.udp.table:parse_prefix", "backends.udp.table:parse_address", "backends.udp.table:Table"),
    seeds=lambda: {
        "nested": b"a 10.5.0.0/16 192.168.50.12\nb 10.5.72.0/24 192.168.50.13\n-a\nb 10.5.0.0/16 192.168.50.13\n",
        "six": b"a fc00::/48,10.5.1.0/24 fd50::12,192.168.50.12\nb fc00:0:0:1::/64 fd50::13\n",
        "all": b"a 0.0.0.0/0 10.0.0.1\nb 255.255.255.255/32 10.0.0.2\nc ::/0 ::1\n",
        "wrong": b"a 10.5.0.1/16 x\nb 10.5.0.0/33 10.0.0.1\nc 10.5.0.0/ 10.0.0.1\n",
    },
    words=(b"/24", b"10.5.72.0", b"fc00:", b"::"),
    longest=1024,
)
def table(data: bytes) -> None:
    """Lines of peers to add and keys to remove: longest match and prefixes as `ipaddress` has them."""
    found, networks = Table(), {}
    for line in data.decode("utf-8", "surrogateescape").split("\n")[:20]:
        key, _, rest = line.partition(" ")
        if key.startswith("-"):
            found.remove([key[1:]])
            networks.pop(key[1:], None)
            continue
        subnets, _, endpoints = rest.partition(" ")
        entry = Entry(key, tuple(filter(None, subnets.split(","))), tuple(filter(None, endpoints.split(","))))
        try:
            parsed = tuple(map(parse_prefix, entry.subnets))
            for prefix, text in zip(parsed, entry.subnets, strict=True):
                network = ipaddress.ip_network(text)
                bits = int(network.network_address) >> (network.max_prefixlen - network.prefixlen)
                assert prefix == (network.version, bits, network.prefixlen)
            found.add([entry])
        except ValueError:
            continue
        networks[key] = [ipaddress.ip_network(text) for text in entry.subnets]
    assert {peer.key for peer in found} == networks.keys()
    random = Random(len(data))
    for network in [network for some in networks.values() for network in some]:
        address = network[random.randrange(min(network.num_addresses, 1 << 60))]
        held = [
            (-other.prefixlen, key)
            for key, some in networks.items()
            for other in some
            if other.version == address.version and address in other
        ]
        peer = found.route(address.packed)
        assert peer is not None
        assert peer.key == min(held)[1]
    _check_table(found)
