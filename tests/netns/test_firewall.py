"""Our nft table in a namespace: what is put there, found there, taken away by others, and never half done."""

from __future__ import annotations

import errno
import select
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from netagent.errors import KernelError
from netagent.kernel import firewall, nft
from netagent.kernel.base import Change, Op
from netagent.kernel.firewall import Firewall
from netagent.model import Network, NftElement, NftTable, Node
from netagent.plan import hostplan
from tests.support.netns import Namespace, Namespaces, need_tool

pytestmark = pytest.mark.netns

NETWORK = Network(v4="10.5.0.0/16", subnet_len=24, v6="fc00::/48", subnet_len6=64)
NODE = Node(name="a", id="0" * 32, uplink="eth0", mtu=1500, v4="10.5.59.0/24", v6="fc00:0:0:1::/64")
BODY = hostplan.table_body(NETWORK, NODE, ip_masq=True, ports=(8472,))
TABLE = NftTable("inet", "netagent", BODY)
PEER = NftElement("peers4", "192.168.50.12")
PEER6 = NftElement("peers6", "fd00::12")


@pytest.fixture
def host(namespaces: Namespaces) -> Iterator[Namespace]:
    need_tool("nft")
    space = namespaces.make("host")
    with space.entered():
        yield space


@pytest.fixture(params=["libnftables", "nft"])
def wall(request: pytest.FixtureRequest, host: Namespace) -> Iterator[Firewall]:
    runner = nft.runner() if request.param == "libnftables" else nft.NftCommand(need_tool("nft"))
    assert runner.name == request.param
    wall = Firewall(nft=runner)
    yield wall
    wall.close()


def put(wall: Firewall, *objects: NftTable | NftElement) -> None:
    assert wall.apply([Op("put", obj) for obj in objects]) == []


def everything(wall: Firewall) -> list[object]:
    return sorted(wall.dump(("nft", "element")), key=repr)


def changes(wall: Firewall, wanted: Change, *, seconds: float = 1.0) -> set[Change]:
    """What is reported until `wanted` is among it; fails at the deadline."""
    seen: set[Change] = set()
    deadline = time.monotonic() + seconds
    while wanted not in seen:
        ready, _, _ = select.select([wall.fileno()], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"{wanted} not within {seconds} s, only {seen}"
        seen.update(wall.read())
    return seen


def test_put_and_dump(wall: Firewall, host: Namespace) -> None:
    assert everything(wall) == []
    put(wall, TABLE, PEER, PEER6)
    assert everything(wall) == sorted([TABLE, PEER, PEER6], key=repr)
    listing = host.run("nft", "list", "table", "inet", "netagent").stdout
    assert "192.168.50.12" in listing
    assert "masquerade fully-random" in listing


def test_delete_and_delete_again(wall: Firewall, host: Namespace) -> None:
    put(wall, TABLE, PEER, PEER6)
    gone = [Op("delete", PEER), Op("delete", NftElement("peers4", "192.168.50.99"))]
    assert wall.apply(gone) == []
    assert everything(wall) == sorted([TABLE, PEER6], key=repr)
    assert wall.apply(gone) == []
    for _ in range(2):
        assert wall.apply([Op("delete", TABLE)]) == []
        assert everything(wall) == []
    assert host.run("nft", "list", "ruleset").stdout.strip() == ""


def test_new_rules_keep_the_elements(wall: Firewall, host: Namespace) -> None:
    put(wall, TABLE, PEER)
    changed = NftTable("inet", "netagent", hostplan.table_body(NETWORK, NODE, ip_masq=False, ports=(8285,)))
    put(wall, changed)
    assert everything(wall) == sorted([changed, PEER], key=repr)
    listing = host.run("nft", "list", "table", "inet", "netagent").stdout
    assert "masquerade" not in listing
    assert "8472" not in listing


def test_another_shape_of_sets(wall: Firewall) -> None:
    """A set cannot be changed in place: the table is made anew, with the elements that still fit."""
    put(wall, TABLE, PEER, PEER6)
    body = BODY.replace("type ipv6_addr;", "type ipv6_addr; size 100;").replace("type ipv4_addr;", "type ipv4_addr; ")
    other = NftTable("inet", "netagent", body)
    put(wall, other)
    assert everything(wall) == sorted([other, PEER, PEER6], key=repr)


def test_a_bad_body_changes_nothing(wall: Firewall) -> None:
    put(wall, TABLE, PEER)
    for body in ("chain input { no such thing }\n", BODY + "chain x { jump nowhere; }\n"):
        failures = wall.apply([Op("put", NftTable("inet", "netagent", body))])
        assert [f.op.object.key for f in failures] == [TABLE.key]
        assert failures[0].errno > 0
        assert failures[0].message
    assert everything(wall) == sorted([TABLE, PEER], key=repr)


def test_one_bad_element_holds_up_no_other(wall: Firewall) -> None:
    put(wall, TABLE)
    bad = [NftElement("peers4", "not an address"), NftElement("peers4", "fd00::1"), NftElement("nowhere", "1.2.3.4")]
    good = [PEER, PEER6]
    failures = wall.apply([Op("put", obj) for obj in (bad[0], good[0], bad[1], good[1])])
    assert {f.op.object for f in failures} == set(bad[:2])
    failures = wall.apply([Op("put", bad[2])])
    assert [(f.op.object, f.errno) for f in failures] == [(bad[2], errno.ENOENT)]
    assert everything(wall) == sorted([TABLE, *good], key=repr)


def test_elements_without_a_table(wall: Firewall) -> None:
    failures = wall.apply([Op("put", PEER), Op("put", PEER6)])
    assert {(f.op.object, f.errno) for f in failures} == {(PEER, errno.ENOENT), (PEER6, errno.ENOENT)}
    assert wall.apply([Op("delete", PEER)]) == []


def test_another_table_is_refused(wall: Firewall) -> None:
    failures = wall.apply([Op("put", NftTable("ip", "filter", ""))])
    assert [f.errno for f in failures] == [errno.EINVAL]


def test_a_table_of_another_name(host: Namespace) -> None:
    """Two agents on one host keep apart."""
    one, two = Firewall("na-one"), Firewall("na-two")
    put(one, NftTable("inet", "na-one", BODY), PEER)
    put(two, NftTable("inet", "na-two", BODY), PEER6)
    assert one.dump(("element",)) == [PEER]
    assert two.dump(("element",)) == [PEER6]
    assert one.apply([Op("delete", NftTable("inet", "na-one", BODY))]) == []
    assert len(two.dump(("nft", "element"))) == 2
    one.close()
    two.close()


def test_own_changes_are_not_reported(wall: Firewall) -> None:
    put(wall, TABLE, PEER, PEER6)
    assert wall.apply([Op("delete", PEER)]) == []
    put(wall, TABLE)
    assert wall.read() == []


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        ("delete table inet netagent", "nft"),
        ("flush table inet netagent", "nft"),
        ("flush ruleset", "nft"),
        ("flush chain inet netagent input", "nft"),
        ("add rule inet netagent input counter accept", "nft"),
        ("insert rule inet netagent forward drop", "nft"),
        ("add chain inet netagent forward { policy drop; }", "nft"),
        ("add table inet netagent { flags dormant; }", "nft"),
        ("add set inet netagent more { type ipv4_addr; }", "nft"),
        ("delete element inet netagent peers4 { 192.168.50.12 }", "element"),
        ("add element inet netagent peers4 { 192.168.50.66 }", "element"),
        ("flush set inet netagent peers4", "element"),
    ],
)
def test_meddling_is_seen_and_undone(wall: Firewall, host: Namespace, command: str, kind: str) -> None:
    put(wall, TABLE, PEER, PEER6)
    host.run("nft", command)
    wanted = Change("nft", TABLE.key) if kind == "nft" else Change("element")
    changes(wall, wanted)
    now = everything(wall)
    assert now != sorted([TABLE, PEER, PEER6], key=repr)
    if kind == "nft":
        assert TABLE not in now
        put(wall, TABLE)
    strange = [obj for obj in wall.dump(("element",)) if obj not in (PEER, PEER6)]
    assert wall.apply([Op("delete", obj) for obj in strange]) == []
    put(wall, PEER)
    assert everything(wall) == sorted([TABLE, PEER, PEER6], key=repr)
    assert wall.read() == []


def test_a_rule_deleted_by_its_handle(wall: Firewall, host: Namespace) -> None:
    put(wall, TABLE)
    listing = host.run("nft", "-a", "list", "chain", "inet", "netagent", "input").stdout
    handle = next(line.split("# handle ")[1] for line in listing.splitlines() if "drop" in line)
    host.run("nft", "delete", "rule", "inet", "netagent", "input", "handle", handle)
    changes(wall, Change("nft", TABLE.key))
    assert wall.dump(("nft",)) == [NftTable("inet", "netagent", firewall.CHANGED)]


def test_a_missing_table_comes_back_with_its_elements(wall: Firewall, host: Namespace) -> None:
    """The guard's set is full before the guard stands: a known peer's packet never meets an empty set."""
    put(wall, TABLE, PEER, PEER6)
    host.run("nft", "delete table inet netagent")
    put(wall, TABLE)
    assert everything(wall) == sorted([TABLE, PEER, PEER6], key=repr)


def test_others_rules_are_reported_as_such(wall: Firewall, host: Namespace) -> None:
    put(wall, TABLE)
    host.run("nft", "add table ip filter")
    assert changes(wall, Change("accept")) == {Change("accept")}
    host.run("nft", "add table ip sets { set s { type ipv4_addr; }; }")
    changes(wall, Change("accept"))
    host.run("nft", "add element ip sets s { 1.2.3.4 }")  # of no interest
    host.run("nft", "delete element inet netagent peers4 { 192.168.50.12 }", check=False)
    host.run("nft", "add element inet netagent peers4 { 192.168.50.13 }")
    assert changes(wall, Change("element")) == {Change("element")}


def test_traffic_counters_are_no_change(wall: Firewall, host: Namespace) -> None:
    put(wall, TABLE)
    host.run("python3", "-c", "import socket; socket.socket(2, 2).sendto(b'x', ('127.0.0.1', 8472))")
    listing = host.run("nft", "list", "chain", "inet", "netagent", "input").stdout
    assert "counter packets 1" in listing
    assert wall.dump(("nft",)) == [TABLE]


def test_a_table_of_an_earlier_run_is_known_again(host: Namespace, tmp_path: Path) -> None:
    state = tmp_path / "firewall.json"
    first = Firewall(state=state)
    put(first, TABLE, PEER)
    first.close()
    second = Firewall(state=state)
    assert everything(second) == sorted([TABLE, PEER], key=repr)
    host.run("nft", "add rule inet netagent input counter")
    assert second.dump(("nft",)) == [NftTable("inet", "netagent", firewall.CHANGED)]
    second.close()
    third = Firewall(state=tmp_path / "elsewhere.json")
    assert third.dump(("nft",)) == [NftTable("inet", "netagent", firewall.CHANGED)]
    put(third, TABLE)
    assert everything(third) == sorted([TABLE, PEER], key=repr)
    third.apply([Op("delete", TABLE)])
    assert not (tmp_path / "elsewhere.json").exists()
    third.close()
    state.write_text("{")
    fourth = Firewall(state=state)
    assert fourth.dump(("nft",)) == []
    fourth.close()


def test_lost_notifications_ask_for_everything(host: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nft, "_BUFFER", 4096)
    wall = Firewall()
    monkeypatch.undo()
    host.run("nft", "-f", "-", input="".join(f"add table ip t{n}\nadd chain ip t{n} c\n" for n in range(2000)))
    assert changes(wall, Change("nft")) == {Change("nft"), Change("element"), Change("accept")}
    wall.close()


def test_five_thousand_peers(wall: Firewall) -> None:
    peers = [NftElement("peers4", f"10.1.{n // 250}.{n % 250 + 1}") for n in range(5000)]
    put(wall, TABLE, *peers)
    assert set(wall.dump(("element",))) == set(peers)
    put(wall, NftTable("inet", "netagent", BODY + "\n"))
    assert set(wall.dump(("element",))) == set(peers)
    assert wall.apply([Op("delete", peer) for peer in peers[::2]]) == []
    assert set(wall.dump(("element",))) == set(peers[1::2])
    assert wall.read() == []


def test_without_nft_the_operator_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nft, "load_library", lambda path="": None)
    with pytest.raises(KernelError, match="nftables"):
        nft.runner({"PATH": "/nowhere"})
