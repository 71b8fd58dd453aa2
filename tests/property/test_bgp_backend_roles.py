"""The topology changes while nodes learn of it in any order: at every moment everybody knows everybody's subnet.

A model of the cluster, in which a session stands when both ends want it, and a subnet is known by a session with its
node or through a reflector that has sessions with both and reflects for one of them. What a node does takes effect at
once; what it says in its record is heard by each other node when that node reads it.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.bgp import roles
from backends.bgp.members import Member
from backends.bgp.options import BgpOptions

MESH = BgpOptions()
ONE = BgpOptions(mesh=False, reflectors=("n0",))
TWO = BgpOptions(mesh=False, reflectors=("n0", "n1"))
OTHERS = BgpOptions(mesh=False, reflectors=("n2", "n3"))
BOTH = BgpOptions(mesh=True, reflectors=("n0",))
SHAPES = {"mesh": MESH, "one": ONE, "two": TWO, "others": OTHERS, "both": BOTH}


class Node:
    def __init__(self, name: str, options: BgpOptions, names: list[str]) -> None:
        self.name = name
        self.options = options
        self.role = roles.target(options, name, ())
        self.via = tuple(other for other in names if other != name and options.reflects(other, ()))
        self.heard: dict[str, Member] = {}

    @property
    def wanted(self) -> str:
        return roles.target(self.options, self.name, ())

    def partners(self) -> dict[str, bool]:
        return roles.partners(self.options, self.role, self.wanted, self.heard)


class Cluster:
    def __init__(self, size: int, options: BgpOptions, seed: int) -> None:
        self.random = random.Random(seed)
        names = [f"n{number}" for number in range(size)]
        self.nodes = {name: Node(name, options, names) for name in names}
        self.options = options
        for node in self.nodes.values():
            node.heard = {other: self.record(other) for other in names if other != node.name}

    def record(self, name: str) -> Member:
        """What a node says of itself now."""
        node = self.nodes[name]
        return Member(name=name, id=name, asn=1, role=node.role, via=node.via, v4="192.0.2.1")

    def sessions(self) -> dict[str, dict[str, bool]]:
        """For each node its standing sessions, and whether it reflects for the other end."""
        wanted = {name: node.partners() for name, node in self.nodes.items()}
        return {
            name: {other: client for other, client in partners.items() if name in wanted[other]}
            for name, partners in wanted.items()
        }

    def check(self) -> None:
        sessions = self.sessions()
        for one in self.nodes:
            for two in self.nodes:
                if one == two or two in sessions[one]:
                    continue
                assert two in self.knowing(one, sessions), f"{two} does not know {one}: {self.roles()}"

    def knowing(self, origin: str, sessions: dict[str, dict[str, bool]]) -> set[str]:
        """Who has the route of `origin`: with a session with it, or told by one who reflects."""
        told = dict.fromkeys(sessions[origin], origin)  # node -> from whom
        ahead = list(told)
        while ahead:
            node = ahead.pop()
            source = told[node]
            for other, client in sessions[node].items():
                if other not in told and other != origin and (client or sessions[node][source]):
                    told[other] = node
                    ahead.append(other)
        return set(told)

    def roles(self) -> dict[str, tuple[str, str]]:
        return {name: (node.role, node.wanted) for name, node in self.nodes.items()}

    def step(self) -> None:
        """One node learns the configuration, reads another's record, or plays its next part."""
        node = self.random.choice(list(self.nodes.values()))
        what = self.random.random()
        if what < 0.2:
            node.options = self.options
        elif what < 0.7:
            other = self.nodes[self.random.choice(list(node.heard))]
            node.heard[other.name] = self.record(other.name)
        else:
            seen = roles.Seen(self.sessions()[node.name])
            node.via = roles.via(node.options, node.via, node.heard, seen)
            if roles.may_play(node.options, node.role, node.wanted, node.heard, seen):
                node.role = node.wanted

    def finished(self) -> bool:
        return all(
            node.options == self.options
            and node.role == node.wanted
            and all(member == self.record(name) for name, member in node.heard.items())
            for node in self.nodes.values()
        )


@settings(deadline=None, max_examples=60)
@given(
    shapes=st.lists(st.sampled_from(sorted(SHAPES)), min_size=2, max_size=4),
    size=st.integers(4, 7),
    seed=st.integers(0, 2**32),
    hasty=st.booleans(),
)
def test_nobody_loses_a_route_while_the_topology_changes(
    shapes: list[str], size: int, seed: int, hasty: bool
) -> None:
    cluster = Cluster(size, SHAPES[shapes[0]], seed)
    cluster.check()
    for shape in shapes[1:]:
        cluster.options = SHAPES[shape]
        for _ in range(30 if hasty and shape is not shapes[-1] else 20000):
            cluster.step()
            cluster.check()
            if cluster.finished():
                break
    assert cluster.finished(), cluster.roles()


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_in_the_end_there_are_no_more_sessions_than_the_topology_has(shape: str) -> None:
    cluster = Cluster(5, MESH, 1)
    cluster.options = SHAPES[shape]
    for _ in range(20000):
        cluster.step()
    assert cluster.finished()
    count = sum(map(len, cluster.sessions().values())) // 2
    assert count == {"mesh": 10, "both": 10, "one": 4, "two": 7, "others": 7}[shape]
