"""The cluster's view: joins, comparisons, what is skipped and said, a lost history, and the snapshot."""

from __future__ import annotations

import msgspec
import pytest

from netagent.model import Finding, NodeRecord
from netagent.plan.cluster import Cluster, ClusterChange
from netagent.store import schema
from netagent.store.base import Event, KeyValue, Listing
from netagent.store.resume import Delta, Resync

PREFIX = "/coreos.com/network"
KEYS = schema.Keys(PREFIX)
CONFIG = KeyValue(KEYS.config, b'{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}', 1, 1, 1, 0)


def subnet(name: str, ip: str = "192.168.50.11", revision: int = 5, lease: int = 7, vni: int = 1) -> KeyValue:
    value = schema.lease_value(ip, None, "vxlan", {"VNI": vni})
    return KeyValue(KEYS.subnet(name), value, revision, revision, 1, lease)


def owner(name: str, node: str = "h1", revision: int = 5, lease: int = 7) -> KeyValue:
    return KeyValue(
        KEYS.owner(name), schema.owner_value(schema.Owner(node, f"id-{node}")), revision, revision, 1, lease
    )


def alive(node: str, node_id: str = "") -> KeyValue:
    return KeyValue(KEYS.alive(node), schema.owner_value(schema.Owner(node, node_id or f"id-{node}")), 6, 6, 1, 9)


def record(node: str, node_id: str = "") -> KeyValue:
    return KeyValue(KEYS.node(node), schema.node_value(NodeRecord(name=node, id=node_id or f"id-{node}")), 6, 6, 1, 0)


def listed(*items: KeyValue, revision: int = 10, rewound: bool = False) -> Resync:
    return Resync(Listing(revision, tuple(sorted(items))), rewound)


def delta(*changes: KeyValue | str, revision: int = 11) -> Delta:
    """Puts, and deletes of the keys given as text."""
    events = tuple(
        Event(True, KeyValue(change, b"", mod_revision=revision)) if isinstance(change, str) else Event(False, change)
        for change in changes
    )
    return Delta(revision, events)


def cluster(*items: KeyValue) -> Cluster:
    view = Cluster(PREFIX)
    view.apply(listed(CONFIG, *items))
    return view


def codes(findings: tuple[Finding, ...]) -> list[str]:
    return sorted(finding.code for finding in findings)


# ------------------------------------------------------------------------------------------------- folding


def test_a_listing_is_everything() -> None:
    view = Cluster(PREFIX)
    change = view.apply(listed(CONFIG, subnet("10.5.1.0-24"), owner("10.5.1.0-24"), alive("h1"), record("h1")))
    assert (change.whole, change.config_changed, change.findings) == (True, True, ())
    assert list(change.leases_changed) == ["10.5.1.0-24"]
    assert (change.nodes_changed, change.alive_changed) == ({"h1"}, {"h1"})
    assert view.leases["10.5.1.0-24"].node == "h1"
    assert view.network is not None and view.network.v4 == "10.5.0.0/16"
    assert (view.revision, view.config_revision, view.confirmed) == (10, 1, True)
    assert view.findings() == ()


def test_a_lease_and_its_owner_are_joined_in_any_order_and_batch() -> None:
    pair = [subnet("10.5.1.0-24"), owner("10.5.1.0-24")]
    for batches in ([pair], [pair[::-1]], [pair[:1], pair[1:]], [pair[1:], pair[:1]]):
        view = cluster()
        changes = [view.apply(delta(*batch, revision=11 + n)) for n, batch in enumerate(batches)]
        assert view.leases["10.5.1.0-24"].node == "h1"
        assert changes[-1].leases_changed["10.5.1.0-24"].node_id == "id-h1"


def test_an_owner_record_that_goes_is_a_change_of_the_lease() -> None:
    view = cluster(subnet("10.5.1.0-24"), owner("10.5.1.0-24"))
    change = view.apply(delta(KEYS.owner("10.5.1.0-24")))
    assert change.leases_changed["10.5.1.0-24"].node == ""
    assert change.leases_removed == ()


def test_a_key_that_somebody_else_rewrote_loses_its_owner_and_is_reported() -> None:
    view = cluster(subnet("10.5.1.0-24"), owner("10.5.1.0-24"))
    change = view.apply(delta(subnet("10.5.1.0-24", "192.168.50.99", revision=11, lease=99)))
    assert change.leases_changed["10.5.1.0-24"].node == ""
    (finding,) = view.findings()
    assert (finding.code, finding.subject) == ("lease-two-owners", "10.5.1.0-24")
    assert "h1" in finding.message and "192.168.50.99" in finding.message
    view.apply(delta(KEYS.subnet("10.5.1.0-24")))
    assert view.findings() == ()


def test_events_of_one_key_in_one_batch_end_as_the_last() -> None:
    view = cluster()
    change = view.apply(delta(subnet("10.5.1.0-24"), KEYS.subnet("10.5.1.0-24"), subnet("10.5.1.0-24", "10.0.0.9")))
    assert change.leases_changed["10.5.1.0-24"].public_ip == "10.0.0.9"
    change = view.apply(delta(subnet("10.5.1.0-24"), KEYS.subnet("10.5.1.0-24")))
    assert (dict(change.leases_changed), change.leases_removed) == ({}, ("10.5.1.0-24",))


@pytest.mark.parametrize("changed", [{"ip": "10.0.0.9"}, {"vni": 2}, {"lease": 8}, {"revision": 6}])
def test_a_relist_compares_every_attribute(changed: dict[str, object]) -> None:
    view = cluster(subnet("10.5.1.0-24"), subnet("10.5.2.0-24", "10.0.0.2"), subnet("10.5.3.0-24", "10.0.0.3"))
    now = subnet("10.5.1.0-24", **changed)  # type: ignore[arg-type]
    change = view.apply(listed(CONFIG, now, subnet("10.5.2.0-24", "10.0.0.2"), subnet("10.5.4.0-24", "10.0.0.4")))
    assert set(change.leases_changed) == {"10.5.1.0-24", "10.5.4.0-24"}
    assert change.leases_removed == ("10.5.3.0-24",)
    assert not change.config_changed


def test_liveness_is_told_as_liveness_only() -> None:
    view = cluster(subnet("10.5.1.0-24"), owner("10.5.1.0-24"), alive("h1"), record("h1"))
    change = view.apply(delta(KEYS.alive("h1")))
    assert change == ClusterChange(alive_changed=frozenset({"h1"}))
    assert view.alive == {}
    assert "10.5.1.0-24" in view.leases


def test_node_records() -> None:
    view = cluster(record("h1"))
    change = view.apply(delta(record("h2"), KEYS.node("h1")))
    assert change.nodes_changed == {"h1", "h2"}
    assert set(view.nodes) == {"h2"}


def test_keys_that_are_not_ours_to_read_change_nothing() -> None:
    view = cluster()
    change = view.apply(delta(KeyValue(f"{PREFIX}/else", b"x"), KeyValue(f"{PREFIX}/netagent/else", b"x")))
    assert change == ClusterChange()


# --------------------------------------------------------------------------------------- what is malformed


def test_malformed_records_are_skipped_each_with_a_finding_and_stop_no_other() -> None:
    bad = [
        KeyValue(KEYS.subnet("garbage"), b"x"),
        KeyValue(KEYS.subnet("10.5.2.0-24"), b"x"),
        KeyValue(KEYS.subnets + "X/10.5.9.0-24", b"x"),
        KeyValue(KEYS.owner("10.5.1.0-24"), b"x"),
        KeyValue(KEYS.node("h1"), b"x"),
        KeyValue(KEYS.alive("h1"), b"x"),
    ]
    expected = [
        "alive-malformed",
        "lease-malformed-key",
        "lease-malformed-key",
        "lease-malformed-value",
        "node-malformed",
        "owner-malformed",
    ]
    whole = Cluster(PREFIX)
    change = whole.apply(listed(CONFIG, subnet("10.5.1.0-24"), *bad))
    assert list(whole.leases) == ["10.5.1.0-24"]
    assert codes(change.findings) == codes(whole.findings()) == expected
    single = cluster()
    change = single.apply(delta(*bad, subnet("10.5.1.0-24")))
    assert list(single.leases) == ["10.5.1.0-24"]
    assert codes(change.findings) == codes(single.findings()) == expected
    # Deleted or corrected, each is no longer reported.
    single.apply(
        delta(*(kv.key for kv in bad if kv.key != KEYS.subnet("10.5.2.0-24")), subnet("10.5.2.0-24", "10.0.0.2"))
    )
    assert single.findings() == ()
    whole.apply(listed(CONFIG))
    assert whole.findings() == ()


def test_a_good_record_that_turns_bad_is_removed() -> None:
    view = cluster(subnet("10.5.1.0-24"))
    change = view.apply(delta(KeyValue(KEYS.subnet("10.5.1.0-24"), b"x", 5, 11)))
    assert change.leases_removed == ("10.5.1.0-24",)


def test_a_bad_configuration_leaves_the_last_good_one_in_force() -> None:
    view = cluster()
    change = view.apply(delta(CONFIG._replace(value=b'{"Network":"10.5.0.0/16","SubnetLen":"x"}', mod_revision=11)))
    assert change.config_changed
    assert view.network is not None and view.network.v4 == "10.5.0.0/16"
    assert view.config_revision == 1
    assert "SubnetLen" in view.config_error
    assert codes(view.findings()) == ["config-invalid"]
    view.apply(delta(KEYS.config))
    assert "is gone" in view.config_error
    change = view.apply(delta(CONFIG._replace(value=b'{"Network":"10.6.0.0/16","Typo":1}', mod_revision=13)))
    assert change.config_changed
    assert (view.config_error, view.config_revision) == ("", 13)
    assert view.network.v4 == "10.6.0.0/16"
    assert codes(view.findings()) == ["config-unknown-key"]
    assert not view.apply(delta(CONFIG._replace(value=b'{"Network":"10.6.0.0/16","Typo":1}'))).config_changed


# ------------------------------------------------------------------------------------------ between leases


def test_shared_addresses_and_overlaps() -> None:
    view = cluster(subnet("10.5.1.0-24"), subnet("10.5.2.0-24"), subnet("10.5.1.128-25", "10.0.0.9"))
    found = {(finding.code, finding.subject) for finding in view.findings()}
    assert found == {("lease-shared-address", "192.168.50.11"), ("lease-overlap", "10.5.1.0-24 10.5.1.128-25")}
    view.apply(delta(subnet("10.5.2.0-24", "10.0.0.2"), KEYS.subnet("10.5.1.0-24")))
    assert view.findings() == ()
    # A wider one over both that are left, and one subnet under two keys.
    view.apply(delta(subnet("10.5.0.0-22", "10.0.0.3")))
    assert codes(view.findings()) == ["lease-overlap", "lease-overlap"]
    view.apply(delta(KEYS.subnet("10.5.0.0-22"), subnet("10.5.2.0-24&fc00::-64", "10.0.0.4")))
    assert {(f.code, f.subject) for f in view.findings()} == {
        ("lease-overlap", "10.5.2.0-24 10.5.2.0-24&fc00::-64"),
        ("lease-outside-network", "10.5.2.0-24&fc00::-64"),
    }


def test_one_node_with_two_leases_is_told_so() -> None:
    view = cluster(
        *(subnet(name) for name in ("10.5.1.0-24", "10.5.2.0-24")),
        *(owner(n) for n in ("10.5.1.0-24", "10.5.2.0-24")),
    )
    (finding,) = view.findings()
    assert finding.message == "h1 holds several leases: 10.5.1.0-24 (h1), 10.5.2.0-24 (h1)"


def test_leases_outside_the_network_follow_it() -> None:
    view = cluster(subnet("10.5.1.0-24"), subnet("10.77.1.0-24", "10.0.0.2"))
    assert view.outside == {"10.77.1.0-24"}
    assert codes(view.findings()) == ["lease-outside-network"]
    view.apply(delta(CONFIG._replace(value=b'{"Network":"10.77.0.0/16"}', mod_revision=11)))
    assert view.outside == {"10.5.1.0-24"}
    view.apply(delta(CONFIG._replace(value=b'{"Network":"10.0.0.0/8"}', mod_revision=12)))
    assert view.outside == frozenset()


def test_two_nodes_of_one_name() -> None:
    view = cluster(record("h1"), alive("h1", "another"))
    (finding,) = view.findings()
    assert (finding.code, finding.subject) == ("node-name-clash", "h1")
    view.apply(delta(record("h1", "another")))
    assert view.findings() == ()


def test_a_mistake_of_the_whole_cluster_is_told_in_few_findings() -> None:
    many = [subnet(f"10.77.{n}.0-24") for n in range(1, 201)]
    junk = [KeyValue(KEYS.subnet(f"junk{n}"), b"") for n in range(100)]
    view = cluster(*many, *junk)
    found = view.findings()
    assert len(found) < 60
    said = {(finding.code, finding.message) for finding in found if finding.subject == "more"}
    assert said == {
        ("lease-outside-network", "180 more like these"),
        ("lease-malformed-value", "80 more like these"),
    }
    (shared,) = [finding for finding in found if finding.code == "lease-shared-address"]
    assert shared.message.endswith("and 180 more")


def test_leases_are_found_by_address() -> None:
    view = cluster(subnet("10.5.1.0-24"))
    assert [lease.key for lease in view.node_of("192.168.50.11")] == ["10.5.1.0-24"]
    assert view.node_of("192.168.50.12") == ()


# -------------------------------------------------------------------------------------------- lost history


def test_leases_that_vanish_with_etcds_history_are_withheld() -> None:
    view = cluster(subnet("10.5.1.0-24"), subnet("10.5.2.0-24", "10.0.0.2"), subnet("10.5.3.0-24", "10.0.0.3"))
    change = view.apply(listed(subnet("10.5.1.0-24", revision=2), revision=2, rewound=True))
    assert change.withheld
    assert change.leases_removed == ()
    assert view.withheld == {"10.5.2.0-24", "10.5.3.0-24"}
    assert set(view.leases) == {"10.5.1.0-24", "10.5.2.0-24", "10.5.3.0-24"}
    assert view.network is not None
    assert codes(view.findings()) == ["config-invalid", "lease-withheld", "lease-withheld"]
    # Claimed again: withheld no longer, and no change but its revisions.
    change = view.apply(delta(subnet("10.5.2.0-24", "10.0.0.2", revision=3), revision=3))
    assert list(change.leases_changed) == ["10.5.2.0-24"]
    assert view.withheld == {"10.5.3.0-24"}
    # Another list does not end the grace, the end of it does.
    view.apply(listed(*(subnet(f"10.5.{n}.0-24", f"10.0.0.{n}", 3) for n in (1, 2)), revision=4))
    assert view.withheld == {"10.5.3.0-24"}
    assert view.release().leases_removed == ("10.5.3.0-24",)
    assert view.withheld == set()
    assert set(view.leases) == {"10.5.1.0-24", "10.5.2.0-24"}


def test_a_withheld_lease_gives_way_to_one_that_is_there() -> None:
    view = cluster(subnet("10.5.1.0-24"))
    view.apply(listed(revision=2, rewound=True))
    change = view.apply(delta(subnet("10.5.1.0-25", "10.0.0.2", revision=3), revision=3))
    assert change.leases_removed == ("10.5.1.0-24",)
    assert set(view.leases) == {"10.5.1.0-25"}


def test_a_listing_older_than_the_view_is_a_lost_history() -> None:
    view = cluster(subnet("10.5.1.0-24"))
    assert view.apply(listed(CONFIG, revision=3)).withheld


# ---------------------------------------------------------------------------------------------- on disk


def test_a_snapshot_restores_the_view() -> None:
    view = cluster(subnet("10.5.1.0-24"), owner("10.5.1.0-24"), subnet("10.5.2.0-24", "10.0.0.2"), record("h1"))
    again = Cluster(PREFIX)
    change = again.load(view.dump())
    assert (change.whole, change.config_changed, change.nodes_changed) == (True, True, {"h1"})
    assert dict(change.leases_changed) == view.leases == again.leases
    assert (again.network, again.nodes, again.revision) == (view.network, view.nodes, view.revision)
    assert not again.confirmed
    assert again.findings() == ()
    # What etcd then says is compared with it.
    change = again.apply(listed(CONFIG, subnet("10.5.1.0-24"), owner("10.5.1.0-24"), record("h1")))
    assert (dict(change.leases_changed), change.leases_removed) == ({}, ("10.5.2.0-24",))
    assert again.confirmed


def test_the_snapshot_keeps_the_configuration_in_force_not_the_bad_one() -> None:
    view = cluster()
    view.apply(delta(CONFIG._replace(value=b"{", mod_revision=11)))
    again = Cluster(PREFIX)
    again.load(view.dump())
    assert again.network == view.network


def test_a_damaged_snapshot_is_a_finding_and_changes_nothing() -> None:
    good = cluster(subnet("10.5.1.0-24")).dump()
    head, _, payload = good.partition(b"\n")
    other = Cluster("/elsewhere").dump()
    for data, said in (
        (b"", "not a snapshot"),
        (b"\xff" * 100, "not a snapshot"),
        (good[:-1], "checksum"),
        (good.replace(b"10.5.1.0-24", b"10.5.1.0-25"), "checksum"),
        (good.replace(b"snapshot 1 ", b"snapshot 2 "), "version"),
        (other, "another prefix"),
        (_signed(b"{}"), "cannot be read"),
        (_signed(b"[" * 50_000), "cannot be read"),
        (head, "checksum"),
    ):
        view = Cluster(PREFIX)
        change = view.load(data)
        assert codes(change.findings) == ["snapshot-unusable"]
        assert said in change.findings[0].message
        assert (view.leases, view.network) == ({}, None)
    assert payload


def test_a_snapshot_with_bad_records_yields_the_good_ones() -> None:
    view = cluster(subnet("10.5.1.0-24"))
    document = msgspec.json.decode(view.dump().partition(b"\n")[2])
    document["leases"].append(["nonsense", "e30=", 0, 0, 0, "", ""])
    document["config"] = "e30="
    again = Cluster(PREFIX)
    change = again.load(_signed(msgspec.json.encode(document)))
    assert list(again.leases) == ["10.5.1.0-24"]
    assert codes(change.findings) == ["lease-malformed-key"]
    assert again.network is None


def _signed(payload: bytes) -> bytes:
    import hashlib

    return f"netagent-snapshot 1 {hashlib.sha256(payload).hexdigest()}\n".encode() + payload
