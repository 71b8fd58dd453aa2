"""flannel's VXLAN on the wire, against a real agent: the captured frame reaches the container, and what comes back is
what flanneld's kernel would send.

The stand-in: h2 runs no agent and no flanneld. Its lease is what a flanneld node puts into etcd, byte for byte, and
its kernel's VXLAN device is played by scapy: the frame is the one captured between two flanneld hosts, given the
lab's addresses. So this proves formats, not how a flanneld behaves; tests/netns/test_flannel.py is for that.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Raw

from netagent.lab.lab import Lab
from tests.support.netns import current_namespace, eventually, set_namespace

pytestmark = [pytest.mark.netns, pytest.mark.etcd]

# An IPv4 packet from one flanneld host to another, as far as it was captured: 62 bytes of 102. What is missing, the
# rest of the inner IPv4 header and 32 bytes of ICMP, is an echo request of that length here.
CAPTURED = bytes.fromhex(
    "4500006676b4000040111e6bc0a8320b"
    "c0a8320caa3e21180052e5cb08000000"
    "000001007e20b6cfaa582a245dd02cc9"
    "080045000034579b40003f014a200a05"
)
INNER_AT = 20 + 8 + 8 + 14  # outer IPv4, UDP, VXLAN, inner Ethernet

PEER_MAC = "ba:d2:d9:65:1e:87"
PEER_SUBNET = "10.5.82.0"
PEER_CONTAINER = "10.5.82.2"
ETH_P_ALL = 3


def foreign_lease(address: str) -> str:
    """The value that flanneld writes (Go's encoder: this order, no blanks)."""
    return (
        f'{{"PublicIP":"{address}","PublicIPv6":null,"BackendType":"vxlan",'
        f'"BackendData":{{"VNI":1,"VtepMAC":"{PEER_MAC}"}}}}'
    )


def replayed(source: str, target: str, source_mac: str, target_mac: str, inner: tuple[str, str]) -> IP:
    """The captured frame between other hosts, MACs and containers; checksums anew, all else as it was."""
    head = IP(CAPTURED[:INNER_AT])
    frame = head[VXLAN].payload
    body = IP(CAPTURED[INNER_AT:] + bytes(2) + bytes(4))
    body.remove_payload()
    body.src, body.dst = inner
    body.chksum = None
    body = body / ICMP(type="echo-request", id=0x4E41, seq=1) / Raw(bytes(range(24)))
    head.src, head.dst = source, target
    head.chksum = head[UDP].chksum = None
    frame.src, frame.dst = source_mac, target_mac
    frame.remove_payload()
    return head / body


def test_the_frame_is_rebuilt_as_it_was_captured() -> None:
    """With the captured addresses the rebuilt frame has the captured bytes, but for the UDP and inner checksums."""
    frame = replayed(
        "192.168.50.11", "192.168.50.12", "2a:24:5d:d0:2c:c9", "7e:20:b6:cf:aa:58", ("10.5.59.2", PEER_CONTAINER)
    )
    built = bytes(frame)
    assert len(built) == 0x66
    unlike = [at for at in range(len(CAPTURED)) if built[at] != CAPTURED[at]]
    assert set(unlike) <= {26, 27, INNER_AT + 10, INNER_AT + 11}


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    """h1 with an agent, h2 with nothing but an address."""
    async with Lab(nodes=1, backend="vxlan", config={"SubnetMin": "10.5.100.0"}) as lab:  # and so never PEER_SUBNET
        await lab.add_node(agent=False)
        yield lab


async def test_a_flanneld_nodes_frame_is_understood_and_answered(lab: Lab) -> None:
    node, peer = lab["h1"], lab["h2"]
    address, peer_address = (host.host.v4.partition("/")[0] for host in (node, peer))
    await lab.etcd.ctl("put", f"{lab.etcd.prefix}/subnets/{PEER_SUBNET}-24", foreign_lease(peer_address))

    async def installed() -> str:
        fdb = (await node.exec("bridge", "fdb", "show", "dev", "na-vx1", check=False)).out
        return "" if f"{PEER_MAC} dst {peer_address}" in fdb else f"the fdb has {fdb!r}"

    async def leased() -> str:
        return "" if node.subnet_env() else "no subnet.env"

    await lab.until(installed, "the foreign lease is installed", 15)
    await lab.until(leased, "h1 has a subnet", 15)
    await node.attach()
    ours = json.loads(next(v for k, v in (await lab.etcd.leases()).items() if not k.startswith(PEER_SUBNET)))
    assert ours["BackendType"] == "vxlan"
    assert ours["BackendData"]["VNI"] == 1
    mac = ours["BackendData"]["VtepMAC"]

    request = replayed(peer_address, address, PEER_MAC, mac, (PEER_CONTAINER, node.container_ip()))
    async with sockets(lab, "h2") as (sender, sniffer), sockets(lab, "h1-c") as (_, inside):
        answer = asyncio.create_task(awaited(sniffer, is_answer))
        arrival = asyncio.create_task(awaited(inside, is_request))
        await asyncio.get_running_loop().sock_sendto(sender, bytes(request), (address, 0))
        arrived, answered = await asyncio.wait_for(asyncio.gather(arrival, answer), 10)

    # In the container: what was sent, one hop later.
    assert (arrived[IP].src, arrived[IP].dst) == (PEER_CONTAINER, node.container_ip())
    assert arrived[IP].ttl == 62
    assert bytes(arrived[Raw]) == bytes(range(24))

    outer, inner = answered[IP], answered[VXLAN][IP]
    assert (outer.src, outer.dst) == (address, peer_address)
    assert not outer.flags.DF
    assert answered[UDP].dport == 8472
    header = answered[VXLAN]
    assert (int(header.flags), header.vni, header.reserved1, header.reserved2) == (0x08, 1, 0, 0)
    assert (header[Ether].src, header[Ether].dst, header[Ether].type) == (mac, PEER_MAC, 0x0800)
    assert (inner.src, inner.dst, inner.ttl) == (node.container_ip(), PEER_CONTAINER, 63)
    assert (inner[ICMP].type, inner[ICMP].id, inner[ICMP].seq) == (0, 0x4E41, 1)
    assert bytes(inner[Raw])[:24] == bytes(range(24))


def is_answer(frame: Ether) -> bool:
    return VXLAN in frame and ICMP in frame[VXLAN] and frame[VXLAN][ICMP].type == 0


def is_request(frame: Ether) -> bool:
    return ICMP in frame and frame[ICMP].type == 8


async def awaited(sniffer: socket.socket, wanted: Callable[[Ether], bool]) -> Ether:
    """The first frame that is wanted."""
    loop = asyncio.get_running_loop()
    while True:
        frame = Ether(await loop.sock_recv(sniffer, 65535))
        if wanted(frame):
            return frame


@contextlib.asynccontextmanager
async def sockets(lab: Lab, netns: str) -> AsyncIterator[tuple[socket.socket, socket.socket]]:
    """Two sockets in a namespace of the lab: one that sends IPv4 packets as they are given, one that sees eth0."""
    name = f"hold {netns}"
    await lab.space.spawn(name, netns, ["sleep", "infinity"], lab.path / "hold.log", dict(os.environ))
    pid = await lab.space.pid_of(name)
    comm = Path(f"/proc/{pid}/comm")  # "ip", until it is inside
    await eventually(lambda: comm.read_text() == "sleep\n", f"a process in {netns}")
    with contextlib.ExitStack() as stack:
        with entered(f"/proc/{pid}/ns/net"):
            sender = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW))
            sniffer = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)))
            sniffer.bind(("eth0", ETH_P_ALL))
        for each in (sender, sniffer):
            each.setblocking(False)
        yield sender, sniffer


@contextlib.contextmanager
def entered(path: str) -> Iterator[None]:
    """This thread is in the namespace at `path` while the context lasts; sockets opened there stay there."""
    before, there = current_namespace(), os.open(path, os.O_RDONLY)
    try:
        set_namespace(there)
        yield
    finally:
        set_namespace(before)
        os.close(there)
        os.close(before)
