"""Lease sessions of several nodes on one etcd in memory, in virtual time and without an event loop.

    world = World('{"Network": "10.5.0.0/16"}')
    a = world.node("a")
    world.settle()
    assert a.state.state == "held"

Rule: everything a session asks goes through the transactions that the real driver sends; the watch is the cluster's
history, told in order, and can be held back (`deaf`) as can the connection (`cut`) or replies (`lose`).
"""

from __future__ import annotations

import random

from netagent.errors import LeaseNotFound
from netagent.plan.cluster import Cluster
from netagent.plan.lease_requests import (
    Answer,
    Failed,
    Gone,
    Inspect,
    Renew,
    Renewed,
    Request,
    Written,
    reads,
    record,
    transaction,
)
from netagent.plan.lease_session import Attributes, LeaseSession, LeaseState, Subnets
from netagent.store import schema
from netagent.store.base import Delete, Event, KeyValue, Put
from netagent.store.memory import MemoryCluster
from netagent.store.resume import Delta, Resync

PREFIX = "/coreos.com/network"
KEYS = schema.Keys(PREFIX)


class World:
    """One etcd, its nodes, and the clock."""

    def __init__(self, config: str = '{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}', seed: int = 1) -> None:
        self.etcd = MemoryCluster()
        self.epoch = 0  # another one is another history
        self.now = 1000.0
        self.nodes: list[Node] = []
        self.rng = random.Random(seed)
        self.config = config
        self.put(KEYS.config, config.encode())

    def node(self, name: str, **options: object) -> Node:
        node = Node(self, name, **options)  # type: ignore[arg-type]
        self.nodes.append(node)
        return node

    def put(self, key: str, value: bytes, lease: int = 0) -> None:
        self.etcd.txn((), (Put(key, value, lease),), ())

    def delete(self, *keys: str) -> None:
        self.etcd.txn((), tuple(Delete(key) for key in keys), ())

    def configure(self, config: str) -> None:
        self.config = config
        self.put(KEYS.config, config.encode())

    def wipe(self) -> None:
        self.etcd.wipe()
        self.epoch += 1

    def advance(self, seconds: float) -> None:
        """Time passes, in steps in which everybody acts."""
        while seconds > 0:
            step = min(seconds, 1.0)
            self.now += step
            self.etcd.advance(step)
            seconds -= step
            self.settle()

    def settle(self, rounds: int = 200) -> None:
        """Until nobody has anything to do at this instant."""
        for _ in range(rounds):
            steps = [step for node in self.nodes for step in (node.hear, node.act)]
            busy = [step() for step in self.rng.sample(steps, len(steps))]
            if not any(busy):
                return
        raise AssertionError(f"no rest after {rounds} rounds: {[n.log[-6:] for n in self.nodes]}")

    def leases(self) -> dict[str, KeyValue]:
        return {kv.key.rpartition("/")[2]: kv for kv in self.etcd.range(KEYS.subnets, 0).items}

    def owner(self, key: str) -> schema.Owner | None:
        kv = self.etcd.get(KEYS.owner(key))
        owner = schema.parse_owner(kv) if kv is not None else None
        return owner if isinstance(owner, schema.Owner) else None


class Node:
    """One node: its view, its session, what disturbs it. `log` is what it asked and was answered."""

    def __init__(
        self,
        world: World,
        name: str,
        *,
        ip: str | None = "",
        ip6: str | None = None,
        node_id: str = "",
        ttl: int = 86400,
        remembered: Subnets = Subnets(),  # noqa: B008
        env: Subnets = Subnets(),  # noqa: B008
    ) -> None:
        number = len(world.nodes) + 11
        self.world = world
        self.name = name
        self.id = node_id or f"{number:032x}"
        self.attributes = Attributes(f"192.168.50.{number}" if ip == "" else ip, ip6, "vxlan", {"VNI": 1})
        self.view = Cluster(PREFIX)
        self.session = LeaseSession(self.view, name, self.id, ttl=ttl, rng=world.rng, remembered=remembered, env=env)
        self.session.publish(self.attributes, world.now)
        self.cut = False  # no request arrives
        self.deaf = False  # no event arrives
        self.lose: bool | None = None  # the next write's reply is lost: it was carried out, or not
        self.stopped = False
        self.log: list[tuple[Request, Answer]] = []
        self._epoch = -1

    @property
    def state(self) -> LeaseState:
        return self.session.state

    @property
    def subnets(self) -> Subnets:
        return Subnets(self.state.v4, self.state.v6, True)

    @property
    def codes(self) -> set[str]:
        return {finding.code for finding in self.session.findings}

    def publish(self, **changes: object) -> None:
        self.attributes = self.attributes._replace(**changes)  # type: ignore[arg-type]
        self.session.publish(self.attributes, self.world.now)

    def restart(self, *, live: bool = True, keeps: bool = True, env: bool = False, **options: object) -> Node:
        """The next run of this node's agent, in its place. `live`: on the same boot; `keeps`: with its state."""
        self.stopped = True
        had = Subnets(self.state.v4, self.state.v6, live)
        given = {"ip": self.attributes.public_ip, "ip6": self.attributes.public_ip6, "node_id": self.id}
        given |= {"remembered": had} if keeps else {}
        given |= {"env": had} if env else {}
        world = self.world
        node = Node(world, self.name, **(given | options))  # type: ignore[arg-type]
        world.nodes[world.nodes.index(self)] = node
        return node

    def hear(self) -> bool:
        """Take in what etcd's watch tells."""
        etcd = self.world.etcd
        if self.deaf or self.cut or self.stopped:
            return False
        if self._epoch != self.world.epoch:
            rewound = self._epoch >= 0
            self._epoch = self.world.epoch
            change = self.view.apply(Resync(etcd.range(f"{PREFIX}/", 0), rewound))
            self.session.observe(change, self.world.now)
            return True
        events: list[Event] = []
        for batch in etcd.history:
            if batch.revision > self.view.revision:
                events += [event for event in batch.events if event.kv.key.startswith(PREFIX)]
        if not events:
            return False
        self.session.observe(self.view.apply(Delta(etcd.revision, tuple(events))), self.world.now)
        return True

    def act(self) -> bool:
        """Carry out the session's next request."""
        if self.stopped:
            return False
        request = self.session.next(self.world.now)
        if request is None:
            return False
        answer = self._answer(request)
        self.log.append((request, answer))
        self.session.done(answer, self.world.now)
        return True

    def _answer(self, request: Request) -> Answer:
        etcd = self.world.etcd
        if self.cut:
            return Failed("etcd does not answer")
        try:
            if isinstance(request, Renew):
                lease = etcd.lease(request.lease)
                lease.expires = etcd.now + lease.ttl
                return Renewed(lease.ttl)
            if isinstance(request, Inspect):
                return record(request.key, etcd.txn((), reads(KEYS, request.key), ()))
            lose, self.lose = self.lose, None
            if lose is False:
                return Failed("the reply is lost", unknown=True)
            lease_id, ttl = (request.lease, 0) if request.lease is not None else etcd.grant(request.ttl)
            guards, writes, shown = transaction(KEYS, request, lease_id)
            result = etcd.txn(guards, writes, reads(KEYS, shown))
            if lose:
                return Failed("the reply is lost", unknown=True)
            if result.succeeded:
                return Written(result.revision, lease_id, ttl)
            if ttl:
                etcd.drop_lease(lease_id)
            return record(shown, result)
        except LeaseNotFound:
            return Gone()
