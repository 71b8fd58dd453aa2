"""Lease sessions of several nodes under every fault at once: what must hold in any history."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from netagent.plan.lease_session import Subnets
from netagent.store import schema
from netagent.store.base import Put
from tests.support.leases import KEYS, Node, World

V4 = '{"Network":"10.5.0.0/24","SubnetLen":28,"Backend":{"Type":"vxlan"}}'
DUAL = (
    '{"Network":"10.5.0.0/24","SubnetLen":28,"EnableIPv6":true,"IPv6Network":"fc00::/60","Backend":{"Type":"vxlan"}}'
)
MOVED = '{"Network":"10.77.0.0/24","SubnetLen":28,"Backend":{"Type":"vxlan"}}'
TTL = 30


class Sessions(RuleBasedStateMachine):
    nodes = Bundle("nodes")
    strangers = Bundle("strangers")

    def __init__(self) -> None:
        super().__init__()
        self.world = World(V4, seed=7)
        self.count = 0
        self.used: dict[str, Subnets] = {}  # what containers of each host may be using
        self.foreign: dict[str, bytes] = {}  # records that others wrote: nobody may touch them

    # ------------------------------------------------------------------------------------------ the nodes

    @rule(target=nodes)
    def join(self) -> object:
        if self.count == 5:
            return multiple()
        self.count += 1
        self.world.node(f"n{self.count}", ttl=TTL)
        return f"n{self.count}"

    def find(self, name: str) -> Node:
        return next(node for node in self.world.nodes if node.name == name)

    @rule(name=nodes, live=st.booleans(), keeps=st.booleans())
    def restart(self, name: str, live: bool, keeps: bool) -> None:
        node = self.find(name)
        if not (live and keeps):
            self.used.pop(name, None)
        elif not node.session.holds:
            live = False
        node.restart(live=live, keeps=keeps, ttl=TTL)

    @rule(name=nodes)
    def readdress(self, name: str) -> None:
        self.count += 1
        self.find(name).publish(public_ip=f"192.168.51.{self.count % 250}")

    @rule(name=nodes, cut=st.booleans(), deaf=st.booleans())
    def disturb(self, name: str, cut: bool, deaf: bool) -> None:
        node = self.find(name)
        node.cut, node.deaf = cut, deaf

    @rule(name=nodes, happened=st.booleans())
    def lose(self, name: str, happened: bool) -> None:
        self.find(name).lose = happened

    # -------------------------------------------------------------------------------------- etcd, and others

    @rule(name=nodes, owner=st.booleans())
    def delete_record(self, name: str, owner: bool) -> None:
        key = self.find(name).state.key
        if key and key not in self.foreign:
            self.world.delete(KEYS.owner(key) if owner else KEYS.subnet(key))

    @rule(target=strangers, name=nodes)
    def overwrite(self, name: str) -> object:
        key = self.find(name).state.key
        if not key or key in self.foreign:
            return multiple()
        value = schema.lease_value("172.16.0.9", None, "vxlan", {"VNI": 3})
        self.world.put(KEYS.subnet(key), value)
        self.foreign[key] = value
        return key

    @rule(target=strangers, number=st.integers(0, 15))
    def stranger(self, number: int) -> object:
        key = f"10.5.0.{number * 16}-28"
        if key in self.world.leases():
            return multiple()
        value = schema.lease_value(f"172.16.1.{number}", None)
        self.world.put(KEYS.subnet(key), value, self.world.etcd.grant(10_000).id)
        self.foreign[key] = value
        return key

    @rule(key=consumes(strangers))
    def stranger_leaves(self, key: str) -> None:
        if self.foreign.pop(key, None) is not None:
            self.world.delete(KEYS.subnet(key))

    @rule(name=nodes)
    def reserve(self, name: str) -> None:
        node = self.find(name)
        kv = self.world.leases().get(node.state.key)
        if kv is None or node.state.key in self.foreign or node.state.state != "held":
            return
        owner = schema.owner_value(schema.Owner(node.name, node.id))
        key = node.state.key
        self.world.etcd.txn((), (Put(KEYS.subnet(key), kv.value), Put(KEYS.owner(key), owner)), ())

    @rule(config=st.sampled_from([V4, DUAL, MOVED, "{", "{}"]))
    def configure(self, config: str) -> None:
        self.world.configure(config)

    @rule()
    def wipe(self) -> None:
        self.world.wipe()
        self.foreign.clear()

    @rule(seconds=st.sampled_from([0, 1, 12, 45]))
    def advance(self, seconds: int) -> None:
        self.world.settle()
        self.world.advance(seconds)

    @rule()
    def heal(self) -> None:
        """All disturbances end: soon everybody is at rest and etcd says what they think."""
        for node in self.world.nodes:
            node.cut = node.deaf = False
            node.lose = None
        self.world.advance(100)
        spans: list[tuple[int, int]] = []
        records = self.world.leases()
        for node in self.world.nodes:
            state = node.state
            if state.state != "held":
                # Only with a reason that an operator can read.
                if self.world.etcd.get(KEYS.config) is not None and self.world.config in (V4, DUAL):
                    assert state.state == "conflict" or node.codes & {"subnets-exhausted"}, (state, node.log[-5:])
                continue
            kv = records[state.key]
            assert (kv.mod_revision, kv.lease) == (state.mod_revision, state.lease_id)
            assert schema.Owner(node.name, node.id) == self.world.owner(state.key)
            spans += [schema.span(subnet) for subnet in (state.v4, state.v6) if subnet is not None]
        for n, (first, last) in enumerate(sorted(spans)):
            assert all(last < start or end < first for start, end in sorted(spans)[n + 1 :])

    # ------------------------------------------------------------------------------------------- invariants

    @invariant()
    def a_used_subnet_never_changes(self) -> None:
        for node in self.world.nodes:
            if not node.session.holds:
                continue
            known = self.used.get(node.name, Subnets())
            for was, now in ((known.v4, node.state.v4), (known.v6, node.state.v6)):
                assert was is None or was == now, (node.name, known, node.state)
            self.used[node.name] = node.subnets

    @invariant()
    def nobody_touches_what_others_wrote(self) -> None:
        records = self.world.leases()
        for key, value in self.foreign.items():
            if key in records:
                assert records[key].value == value

    @invariant()
    def only_keys_that_flannel_can_parse(self) -> None:
        for key in self.world.leases():
            assert not isinstance(schema.parse_subnet_key(key), str)


Sessions.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
test_sessions = Sessions.TestCase
