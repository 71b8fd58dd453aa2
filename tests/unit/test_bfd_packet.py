"""BFD control packets: held against scapy, and everything that RFC 5880 section 6.8.6 has discarded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.contrib.bfd import BFD

from bfd.packet import Packet, PacketError, State, decode_packet

GOOD = Packet(State.UP, 7, 9, 3, 100_000, 200_000, 0, 3, True, False, True, False)
numbers = st.integers(1, 0xFFFFFFFF)
packets = st.builds(
    Packet,
    st.sampled_from(State),
    numbers,
    numbers,
    st.integers(1, 255),
    st.integers(0, 0xFFFFFFFF),
    st.integers(0, 0xFFFFFFFF),
    st.integers(0, 0xFFFFFFFF),
    st.integers(0, 31),
    *(st.booleans() for _ in range(4)),
)


@given(packets)
def test_what_is_encoded_is_decoded(packet: Packet) -> None:
    assert decode_packet(packet.encode()) == packet
    assert decode_packet(packet.encode() + b"more") == packet


@given(packets)
def test_scapy_reads_the_same(packet: Packet) -> None:
    read = BFD(packet.encode())
    assert (read.version, read.diag, read.sta, read.detect_mult, read.len) == (
        1,
        packet.diag,
        packet.state,
        packet.multiplier,
        24,
    )
    assert (read.my_discriminator, read.your_discriminator) == (packet.mine, packet.yours)
    assert (read.min_tx_interval, read.min_rx_interval, read.echo_rx_interval) == (
        packet.desired_tx,
        packet.required_rx,
        packet.required_echo,
    )
    flags = {"P": packet.poll, "F": packet.final, "C": packet.independent, "D": packet.demand, "A": False, "M": False}
    assert {name: name in str(read.flags) for name in flags} == flags


def changed(position: int, value: int) -> bytes:
    octets = bytearray(GOOD.encode())
    octets[position] = value
    return bytes(octets)


@pytest.mark.parametrize(
    ("octets", "why"),
    [
        (b"", "too short"),
        (GOOD.encode()[:23], "too short"),
        (changed(0, 0x03), "another version"),
        (changed(0, 0x43), "another version"),
        (changed(3, 23), "length is too small"),
        (changed(3, 25), "cut off"),
        (changed(2, 0), "no multiplier"),
        (changed(1, 0xE1), "multipoint"),
        (GOOD._replace(mine=0).encode(), "no discriminator of its own"),
        (GOOD._replace(yours=0).encode(), "no discriminator of ours"),
        (GOOD._replace(yours=0, state=State.INIT).encode(), "no discriminator of ours"),
        (changed(1, 0xE4), "length is too small"),  # authenticated, without the section for it
        (changed(1, 0xE4)[:3] + b"\x1a" + GOOD.encode()[4:] + b"\1\2", "no authentication is agreed on"),
    ],
)
def test_what_is_discarded(octets: bytes, why: str) -> None:
    with pytest.raises(PacketError, match=why):
        decode_packet(octets)


@pytest.mark.parametrize("state", [State.DOWN, State.ADMIN_DOWN])
def test_a_first_packet_names_nobody(state: State) -> None:
    assert decode_packet(GOOD._replace(yours=0, state=state).encode()).yours == 0
