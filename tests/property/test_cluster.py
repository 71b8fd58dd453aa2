"""Properties of the view: single events and a listing of the end agree, and no record of any kind raises."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from netagent.plan.cluster import Cluster
from netagent.store import schema
from netagent.store.base import Event, KeyValue, Listing
from netagent.store.resume import Delta, Resync

PREFIX = "/n"
KEYS = schema.Keys(PREFIX)
NAMES = ["10.5.1.0-24", "10.5.1.0-25", "10.5.2.0-24", "10.5.2.0-24&fc00::-64", "0.0.0.0-0&fc00::-64", "10.9.0.0-16"]

configs = st.sampled_from([b'{"Network":"10.5.0.0/16"}', b'{"Network":"10.9.0.0/16"}', b"{}", b"", b'{"Network":1}'])
keys = st.sampled_from(
    [KEYS.config, f"{PREFIX}/other", f"{PREFIX}/subnetsX", KEYS.subnet("bad"), KEYS.node("h1"), KEYS.alive("h1")]
    + [KEYS.subnet(name) for name in NAMES] * 3
    + [KEYS.owner(name) for name in NAMES] * 2
)
addresses = st.sampled_from(["10.0.0.1", "10.0.0.2", "10.0.0.3"])
nodes = st.sampled_from(["h1", "h2"])
values = (
    st.builds(lambda ip, vni: schema.lease_value(ip, None, "vxlan", {"VNI": vni}), addresses, st.integers(1, 2))
    | st.builds(
        lambda node, number: schema.owner_value(schema.Owner(node, number)), nodes, st.sampled_from(["a", "b"])
    )
    | configs
    | st.binary(max_size=8)
)
puts = st.tuples(keys, values, st.integers(0, 2))
# Each step is one transaction: puts (key, value, etcd lease) and deletes (None).
steps = st.lists(st.lists(puts | st.tuples(keys, st.none(), st.just(0)), min_size=1, max_size=4), max_size=25)


def run(history: list[list[tuple[str, bytes | None, int]]], batch: int) -> tuple[Cluster, dict[str, KeyValue], int]:
    """Fold a history in batches of so many transactions."""
    view = Cluster(PREFIX)
    view.apply(Resync(Listing(1, ())))
    store: dict[str, KeyValue] = {}
    revision = 1
    waiting: list[Event] = []
    for number, step in enumerate(history, 1):
        revision += 1
        for key, value, lease in step:
            if value is not None:
                created = store[key].create_revision if key in store else revision
                store[key] = KeyValue(key, value, created, revision, 1, lease)
                waiting.append(Event(False, store[key]))
            elif store.pop(key, None) is not None:
                waiting.append(Event(True, KeyValue(key, b"", mod_revision=revision)))
        if number % batch == 0 and waiting:
            view.apply(Delta(revision, tuple(waiting)))
            waiting = []
    if waiting:
        view.apply(Delta(revision, tuple(waiting)))
    return view, store, revision


@given(steps, st.integers(1, 5))
def test_events_and_listing_agree(history: list[list[tuple[str, bytes | None, int]]], batch: int) -> None:
    view, store, revision = run(history, batch)
    listing = Listing(revision, tuple(sorted(store.values())))
    fresh = Cluster(PREFIX)
    fresh.apply(Resync(listing))
    assert view.leases == fresh.leases
    assert (view.nodes, view.alive) == (fresh.nodes, fresh.alive)
    # The configuration in force may be an older good one; without that, all that is said agrees too.
    if view.network == fresh.network:
        assert {f for f in view.findings() if f.code != "config-invalid"} == {
            f for f in fresh.findings() if f.code != "config-invalid"
        }
    again = view.apply(Resync(listing))
    assert (dict(again.leases_changed), again.leases_removed) == ({}, ())
    assert (again.nodes_changed, again.alive_changed) == (frozenset(), frozenset())


@given(steps)
def test_a_change_tells_exactly_what_differs(history: list[list[tuple[str, bytes | None, int]]]) -> None:
    view, store, revision = run(history, 1)
    before = dict(view.leases)
    change = view.apply(
        Resync(Listing(revision + 1, tuple(kv for kv in sorted(store.values()) if "1.0-24" in kv.key)))
    )
    for key in change.leases_removed:
        del before[key]
    assert before | dict(change.leases_changed) == view.leases


@given(steps)
def test_a_snapshot_is_the_view(history: list[list[tuple[str, bytes | None, int]]]) -> None:
    view, _, _ = run(history, 1)
    again = Cluster(PREFIX)
    again.load(view.dump())
    assert again.leases == view.leases
    assert (again.network, again.nodes) == (view.network, view.nodes)


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_no_snapshot_raises(head: bytes, tail: bytes) -> None:
    view = Cluster(PREFIX)
    assert view.load(head + tail).findings
    assert view.load(b"netagent-snapshot 1 " + head + b"\n" + tail).findings
    assert view.leases == {}
