"""Joining TCP segments: what is joined can be cut into exactly what came, what must not be joined is not."""

from __future__ import annotations

import struct
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Raw

from backends.udp import coalesce

# What a packet of a batch is, beside the next one of its stream.
ODDITIES = [
    "gap",
    "psh",
    "fin",
    "syn",
    "port",
    "ttl",
    "df",
    "ack",
    "window",
    "options",
    "damaged",
    "damaged-ip",
    "udp",
]
kinds = st.one_of(st.just("next"), st.just("next"), st.sampled_from(ODDITIES))
batches = st.fixed_dictionaries(
    {
        "version": st.sampled_from([4, 6]),
        "kinds": st.lists(kinds, min_size=2, max_size=8),
        "payload": st.integers(1, 60),
        "last": st.integers(0, 60),
        "sequence": st.sampled_from([1000, 2**32 - 70]),
        "timestamps": st.booleans(),
    }
)


def build(batch: dict[str, Any]) -> list[bytes]:
    """The packets of a batch, all of one length but the last."""
    sequence, packets = batch["sequence"], []
    options = [("NOP", None), ("NOP", None), ("Timestamp", (1, 2))] if batch["timestamps"] else []
    for index, kind in enumerate(batch["kinds"]):
        last = index == len(batch["kinds"]) - 1
        length = min(batch["last"], batch["payload"]) if last else batch["payload"]
        if kind == "gap":
            sequence += 7
        tcp = TCP(
            sport=5 if kind == "port" else 4000,
            dport=80,
            seq=sequence & 0xFFFFFFFF,
            ack=8 if kind == "ack" else 7,
            flags={"psh": "PA", "fin": "FA", "syn": "SA"}.get(kind, "A"),
            window=9 if kind == "window" else 501,
            options=[(name, (3, 4) if kind == "options" and value else value) for name, value in options],
        )
        upper: Any = tcp / Raw(bytes([index % 256]) * length)
        if kind == "udp":
            upper = UDP(sport=4000, dport=80) / Raw(bytes(len(upper) - 8))
        hops = 9 if kind == "ttl" else 63
        if batch["version"] == 4:
            header: Any = IP(src="10.5.1.2", dst="10.5.2.2", ttl=hops, id=index, flags="" if kind == "df" else "DF")
        else:
            header = IPv6(src="fc00:0:0:1::2", dst="fc00:0:0:2::2", hlim=hops, fl=5 if kind == "df" else 0)
        data = bytearray(bytes(header / upper))
        if kind == "damaged" and length:
            data[-1] ^= 0x55
        elif kind == "damaged-ip" and batch["version"] == 4:
            data[10] ^= 0x55
        packets.append(bytes(data))
        sequence += length
    return packets


def cut(joined: bytes) -> list[bytes]:
    """What the kernel makes of a joined packet (tcp_gso_segment), by the letter and with scapy."""
    flags, gso, headers, size, start, offset = struct.unpack_from("=BBHHHH", joined)
    packet, out = joined[coalesce.VNET_SIZE :], []
    assert (flags, offset) == (1, 16)
    first = IP(packet) if gso == 1 else IPv6(packet)
    assert start == (20 if gso == 1 else 40)
    assert headers == start + first[TCP].dataofs * 4
    assert len(packet) == (first.len if gso == 1 else first.plen + 40)
    if gso == 1:
        told = first.chksum
        del first.chksum
        assert IP(bytes(first)).chksum == told
    payload = packet[headers:]
    pieces = [payload[at : at + size] for at in range(0, len(payload), size)]
    for index, piece in enumerate(pieces):
        part = (IP if gso == 1 else IPv6)(packet[:headers])
        if gso == 1:
            del part.len, part.chksum
            part.id += index
        else:
            del part.plen
        del part[TCP].chksum
        part[TCP].seq = (part[TCP].seq + index * size) & 0xFFFFFFFF
        if index < len(pieces) - 1:
            part[TCP].flags = str(part[TCP].flags).replace("P", "")
        part[TCP].remove_payload()
        out.append(bytes(part / Raw(piece)))
    return out


def partial_checksum_is_right(joined: bytes) -> bool:
    """Completing the partial checksum over the whole gives what a full computation gives."""
    packet = bytearray(joined[coalesce.VNET_SIZE :])
    start = 20 if packet[0] >> 4 == 4 else 40
    words = packet[start:] + b"\0" * (len(packet) % 2)
    total = sum(int.from_bytes(words[i : i + 2], "big") for i in range(0, len(words), 2))
    packet[start + 16 : start + 18] = (-total % 65535).to_bytes(2, "big")
    parsed = IP(bytes(packet)) if start == 20 else IPv6(bytes(packet))
    told = parsed[TCP].chksum
    del parsed[TCP].chksum
    return bool((IP if start == 20 else IPv6)(bytes(parsed))[TCP].chksum == told)


@given(batches)
@settings(max_examples=300, deadline=None)
def test_runs_cover_the_batch_and_cut_back_to_what_came(batch: dict[str, Any]) -> None:
    packets = build(batch)
    size = len(packets[0])
    view = memoryview(b"".join(packets))
    at = 0
    for run in coalesce.runs(view, size):
        assert run.start == at * size
        assert bytes(view[run.start : run.end]) == b"".join(packets[at : at + run.packets])
        if run.packets > 1:
            kinds_in = set(batch["kinds"][at + 1 : at + run.packets])
            assert not kinds_in & {"gap", "fin", "syn", "udp"}
            joined = coalesce.join(view, run, size)
            damaged = {"damaged", "damaged-ip"} & set(batch["kinds"][at : at + run.packets])
            if joined is None:
                assert damaged
            else:
                data = b"".join(bytes(part) for part in joined)
                assert partial_checksum_is_right(data)
                assert cut(data) == packets[at : at + run.packets]
        at += run.packets
    assert at == len(packets)


@given(version=st.sampled_from([4, 6]), count=st.integers(2, 12), payload=st.integers(1, 1400), push=st.booleans())
@settings(max_examples=50, deadline=None)
def test_a_plain_stream_is_one_run(version: int, count: int, payload: int, push: bool) -> None:
    """Not joining anything would pass the test above."""
    batch = {
        "version": version,
        "kinds": ["next"] * (count - 1) + ["psh" if push else "next"],
        "payload": payload,
        "last": payload,
        "sequence": 1,
        "timestamps": True,
    }
    packets = build(batch)
    view = memoryview(b"".join(packets))
    (run,) = coalesce.runs(view, len(packets[0]))
    assert run == (0, len(view), count)
    assert coalesce.join(view, run, len(packets[0])) is not None


@given(st.binary(min_size=1, max_size=600), st.integers(20, 200), st.sampled_from([0x45, 0x46, 0x60, 0x00]))
def test_any_bytes_are_covered_once(data: bytes, size: int, first: int) -> None:
    view = memoryview(bytes([first]) + data[1:])
    at = 0
    for run in coalesce.runs(view, size):
        assert run.start == at
        assert run.packets == -(-(run.end - run.start) // size)
        if run.packets > 1:
            coalesce.join(view, run, size)
        at = run.end
    assert at == len(view)
