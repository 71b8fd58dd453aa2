"""A whole cluster of BGP speakers in one process under simulated time: reflectors beside a mesh.

    python -m tests.bench bgp-scale [--nodes 1000] [--reflectors 4] [--mesh 25,50,100]

Nodes tell each other of several ways to a prefix and use 16 at once, as those of the backend `bgp` do.
Rule: no socket and no clock: messages take 1 to 20 ms, and time jumps from event to event. So sessions, messages and
octets are exact, seconds until all know all are the protocol's own (connections, OPENs, delays), and CPU seconds are
those of all nodes together; a node's share is printed beside them.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from backends.bgp.sessions import EACH_WAY
from bgp.message import Family
from bgp.peer import PeerConfig, SpeakerConfig
from bgp.speaker import Speaker
from tests.bench.report import progress, table
from tests.support.bgp import Network

V4 = Family.IPV4
ASN = 65001
HOLD_TIME = 90
PATIENCE = 600.0
"""Simulated seconds."""


@dataclass
class Outcome:
    """What a cluster took to know itself, from the start of all nodes at once."""

    nodes: int
    sessions: int
    messages: int
    updates: int
    megabytes: float
    seconds: float
    """Simulated, until every node has a route to every other."""
    failure: float
    """Simulated, from the loss of a node until nobody has a route to it."""
    cpu: float
    memory: float
    """MiB that the process has grown by."""


def address(number: int) -> bytes:
    return bytes((10, 0, number >> 8, number & 255))


def prefix(number: int) -> bytes:
    """The subnet of a node, a /26."""
    return bytes((26,)) + (0x0B000000 | number << 6).to_bytes(4, "big")


def reflected(nodes: int, reflectors: int) -> Iterator[tuple[int, int, bool]]:
    """(node, peer, whether it reflects for it). The first numbers are the reflectors', which also peer."""
    for one in range(reflectors):
        for two in range(reflectors):
            if one != two:
                yield one, two, False
        for client in range(reflectors, reflectors + nodes):
            yield one, client, True
            yield client, one, False


def mesh(nodes: int) -> Iterator[tuple[int, int, bool]]:
    """Everybody with everybody."""
    for one in range(nodes):
        for two in range(nodes):
            if one != two:
                yield one, two, False


def simulate(pairs: Sequence[tuple[int, int, bool]], seed: int = 0) -> Outcome:
    """Run a cluster. Raises AssertionError when it does not come to know itself."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cpu = time.process_time()
    network = Network(seed, cuts=False)
    random = Random(seed).random
    numbers = sorted({one for one, _, _ in pairs})
    speakers: dict[int, Speaker] = {}
    for number in numbers:
        config = SpeakerConfig(ASN, address(number), (V4,), ((V4, address(number)),), paths=16, restart_time=0)
        speakers[number] = Speaker(config, random, now=network.now)
        speakers[number].originate(V4, prefix(number))
        network.add(str(number), speakers[number])
    reflecting = {one for one, _, client in pairs if client}
    for one, two, client in pairs:
        # Of two nodes one connects: the client to its reflector, in a mesh the one with the lower number.
        passive = one in reflecting if (one in reflecting) is not (two in reflecting) else one > two
        peer = PeerConfig(
            str(two),
            address(two),
            ASN,
            client=client,
            passive=passive,
            hold_time=HOLD_TIME,
            several_in=True,
            several_out=EACH_WAY,
        )
        speakers[one].add_peer(peer, network.now)
    began = network.now
    count = len(numbers)
    everybody_knows(network, speakers, count)
    seconds = network.now - began
    sessions = sum(
        peer.session.negotiated is not None for speaker in speakers.values() for peer in speaker.peers.values()
    )
    assert sessions == len(pairs)
    recorders = [peer.session.recorder for speaker in speakers.values() for peer in speaker.peers.values()]
    messages = sum(sum(recorder.sent) for recorder in recorders)
    updates = sum(recorder.sent[2] for recorder in recorders)
    octets = network.octets
    lost = numbers[-1]
    network.remove(str(lost))
    del speakers[lost]
    failed = network.now
    everybody_knows(network, speakers, count - 1)
    return Outcome(
        count,
        sessions // 2,
        messages,
        updates,
        octets / 1e6,
        seconds,
        network.now - failed,
        time.process_time() - cpu,
        (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
    )


def everybody_knows(network: Network, speakers: dict[int, Speaker], count: int) -> None:
    """Let time pass until every node has a route to so many subnets, and to none beside."""
    left = list(speakers.values())

    def known() -> bool:
        while left and len(left[-1].ribs[V4].chosen) == count:
            left.pop()
        return not left

    end = network.now + PATIENCE
    while not network.run(end - network.now, known):
        raise AssertionError(f"{len(left)} nodes do not know all after {PATIENCE:.0f} s")
    assert all(len(speaker.ribs[V4].chosen) == count for speaker in speakers.values())


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="tests.bench bgp-scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--reflectors", type=int, default=4)
    parser.add_argument("--mesh", default="25,50,100", help="sizes of the meshes beside; default: %(default)s")
    args = parser.parse_args(argv)
    cases = [(f"mesh of {size}", list(mesh(int(size)))) for size in args.mesh.split(",") if size]
    if args.nodes:
        name = f"{args.nodes} nodes, {args.reflectors} reflectors"
        cases.append((name, list(reflected(args.nodes, args.reflectors))))
    rows = []
    for name, pairs in cases:
        progress(f"simulating {name}: {len(pairs) // 2} sessions")
        outcome = simulate(pairs)
        rows.append(
            [
                name,
                f"{outcome.sessions:,}",
                f"{outcome.messages:,}",
                f"{outcome.updates:,}",
                f"{outcome.megabytes:.1f}",
                f"{outcome.seconds:.2f}",
                f"{outcome.failure * 1000:.0f}",
                f"{outcome.cpu:.1f}",
                f"{outcome.cpu / outcome.nodes * 1000:.0f}",
                f"{outcome.memory:.0f}",
            ]
        )
    columns = [
        *("cluster", "sessions", "messages", "of them UPDATEs", "MB", "all know all, s", "loss known, ms"),
        *("CPU s", "CPU ms a node", "MiB of all"),
    ]
    print(table(columns, rows), flush=True)
    return 0
