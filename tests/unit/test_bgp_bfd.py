"""BFD beside BGP: which sessions peers want, what its failing does to theirs (RFC 5882), how it is set and shown."""

from __future__ import annotations

import ast
import asyncio
import socket
import sys
from pathlib import Path

import pytest

import bfd
from bfd.orders import Status
from bfd.session import Timing
from bfd.sessions import Place, Wanted
from bgp import bfd as beside
from bgp import metrics, views
from bgp.aio.liveness import Liveness
from bgp.bfd import Bfd
from bgp.connection import Down
from bgp.daemon import show
from bgp.daemon.config import parse
from bgp.daemon.errors import ConfigError
from bgp.message import Cease, ErrorCode, Notification
from bgp.peer import Peer
from bgp.transport import Transport
from tests.unit.test_bgp_speaker import Cluster, address

UP = Status("up", detection=300_000, interval=100_000)
HEAD = '[speaker]\nasn = 65001\nrouter-id = "192.0.2.1"\n[[peers]]\naddress = "192.0.2.2"\n'


def watched(**options: object) -> tuple[Cluster, Peer]:
    """Two speakers whose session stands; the first watches the second."""
    cluster = Cluster()
    for number in (1, 2):
        cluster.speaker(number)
    cluster.peer(1, 2, bfd=Bfd(), **options)
    cluster.peer(2, 1)
    cluster.everywhere(10, (1, 2))
    cluster.network.run(20)
    return cluster, cluster.speakers[1].peers["2"]


# -------------------------------------------------------------------------------------------------- what is wanted


def test_it_begins_when_bgp_stands_and_goes_on_while_it_reaches_the_peer() -> None:
    cluster = Cluster()
    cluster.speaker(1)
    cluster.speaker(2)
    cluster.peer(1, 2, bfd=Bfd(Timing(50_000, 60_000, 4)), transport=Transport(local_address=address(1)))
    peer = cluster.speakers[1].peers["2"]
    assert beside.wanted(peer, cluster.network.now) is None
    cluster.peer(2, 1)
    cluster.everywhere(10, (1, 2))
    wanted = beside.wanted(peer, cluster.network.now)
    assert wanted == (Place(address(2), address(1)), Timing(50_000, 60_000, 4))
    peer.bfd = UP
    cluster.crash(2)
    cluster.network.run(2)
    assert peer.session.negotiated is None
    assert beside.wanted(peer, cluster.network.now) == wanted
    peer.bfd = Status("down", "detection time expired", failures=3)  # BGP may be back in a moment
    assert beside.wanted(peer, peer.since) == beside.wanted(peer, peer.since + 0.9 * beside.LINGER) == wanted
    assert beside.wanted(peer, beside.kept_until(peer)) is None
    peer.bfd = beside.ended(peer.bfd)
    assert beside.wanted(peer, cluster.network.now) is None
    assert peer.bfd == Status("waiting", "detection time expired", failures=3)


def test_a_peer_that_is_shut_down_or_has_none_wants_none() -> None:
    cluster, peer = watched()
    version = cluster.speakers[1].version
    cluster.speakers[1].stop_peer("2", cluster.network.now)
    assert beside.wanted(peer, cluster.network.now) is None
    assert cluster.speakers[1].version > version
    assert beside.wanted(cluster.speakers[2].peers["1"], cluster.network.now) is None


@pytest.mark.parametrize(
    ("transport", "bfd_", "expected"),
    [
        (Transport(), Bfd(), (False, 0)),
        (Transport(security_hops=1), Bfd(), (False, 0)),
        (Transport(multihop=4), Bfd(), (True, 0)),
        (Transport(security_hops=3), Bfd(), (True, 253)),
        (Transport(), Bfd(multihop=True), (True, 0)),
        (Transport(multihop=4), Bfd(multihop=False), (False, 0)),
    ],
)
def test_over_hops_as_the_session_is(transport: Transport, bfd_: Bfd, expected: tuple[bool, int]) -> None:
    cluster, peer = watched(transport=transport)
    cluster.speakers[1].set_peers([*_with(peer, bfd_)], cluster.network.now)
    wanted = beside.wanted(cluster.speakers[1].peers["2"], 0.0)
    assert wanted is not None
    assert (wanted.place.multihop, wanted.place.least_ttl) == expected


def _with(peer: Peer, bfd_: Bfd | None) -> list:
    from dataclasses import replace

    return [replace(peer.config, bfd=bfd_)]


def test_bfd_is_set_and_taken_away_under_a_session_that_stands() -> None:
    cluster, peer = watched()
    for bfd_ in (None, Bfd(Timing(10_000, 10_000, 2)), None):
        cluster.speakers[1].set_peers(_with(peer, bfd_), cluster.network.now)
        cluster.network.run(1)
        assert cluster.speakers[1].peers["2"] is peer
        assert (peer.config.bfd, peer.flaps) == (bfd_, 0)


# ---------------------------------------------------------------------------------------------- what its failing does


def test_the_session_ends_and_the_routes_go_at_once() -> None:
    cluster, peer = watched()
    assert cluster.known(1) == {1, 2}
    cluster.speakers[1].bfd_down("2", cluster.network.now, "detection time expired", independent=False)
    cluster.network.run(0.05)
    assert cluster.known(1) == {1}
    assert peer.restart_ends is None
    assert peer.session.last_down is not None
    sent = peer.session.last_down.sent
    assert sent is not None
    assert sent.is_hard  # graceful restart is not for this (RFC 8538), and both sides have it
    assert sent.inside == Notification(ErrorCode.CEASE, Cease.BFD_DOWN)
    events = [entry.get("event") for entry in views.log(cluster.speakers[1], "2", cluster.network.now)]
    assert "BFD down: detection time expired" in events
    cluster.everywhere(20, (1, 2))  # and comes back by itself
    (down,) = [news for news in cluster.events(2, Down) if news.received]
    assert down.received.inside == sent.inside


@pytest.mark.parametrize("independent", [False, True])
def test_a_graceful_restart_is_ended_only_by_bfd_that_is_no_part_of_it(independent: bool) -> None:
    """RFC 5882 section 4.3."""
    cluster, peer = watched()
    cluster.crash(2)
    cluster.network.run(3)
    assert cluster.known(1) == {1, 2}
    assert peer.restart_ends is not None
    cluster.speakers[1].bfd_down("2", cluster.network.now, "detection time expired", independent=independent)
    cluster.network.run(0.05)
    assert cluster.known(1) == ({1} if independent else {1, 2})
    assert (peer.restart_ends is None) is independent


def test_of_a_peer_that_is_gone_nothing_is_heard() -> None:
    cluster, _ = watched()
    cluster.speakers[1].bfd_down("nobody", cluster.network.now, "", independent=True)
    assert cluster.known(1) == {1, 2}


# ------------------------------------------------------------------------------------------------ as it is configured


def read(text: str) -> Bfd | None:
    return parse(HEAD + text, "speaker.toml", str).peers[0].bfd


def test_configuration() -> None:
    assert read("") is None
    assert read("bfd = false") is None
    assert read("bfd = true") == Bfd(Timing(300_000, 300_000, 3), None)
    assert read("bfd = { min-tx = 100, min-rx = 50, multiplier = 5, multihop = true }") == Bfd(
        Timing(100_000, 50_000, 5), True
    )
    ranges = parse(HEAD + '[[ranges]]\nprefix = "10.0.0.0/8"\nbfd = { multiplier = 9 }', "f", str).ranges
    assert ranges[0].template.bfd == Bfd(Timing(multiplier=9))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bfd = 3", r"peers\[1\]\.bfd = 3: must be a table"),
        ("bfd = { min-tx = 9 }", r"peers\[1\]\.bfd\.min-tx = 9: must lie between 10 and 60000"),
        ("bfd = { multiplier = 0 }", r"bfd\.multiplier = 0: must lie between 1 and 255"),
        ("bfd = { min_tx = 100 }", r"bfd\.min_tx: there is no such key; did you mean min-tx\?"),
        ("bfd = { multihop = 3 }", r"bfd\.multihop = 3: must be true or false"),
    ],
)
def test_wrong_configuration(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(text)


# ----------------------------------------------------------------------------------------------------- as it is shown


def test_views_and_metrics() -> None:
    cluster, peer = watched()
    now = cluster.network.now
    peer.bfd = Status("up", since=now - 5, detection=300_000, interval=100_000, failures=2, sent=7, received=8)
    (shown,) = views.peers(cluster.speakers[1], now, "2")
    assert (shown["bfd"]["state"], shown["bfd"]["since"], shown["bfd"]["detection"]) == ("up", 5.0, 300.0)
    assert "BFD up, 300 ms" in list(show.lines("peers", False, [shown]))[1]
    text = metrics.text(cluster.speakers[1], now)
    assert 'bgp_peer_bfd_up{peer="2"} 1.0' in text
    assert 'bgp_peer_bfd_failures_total{peer="2"} 2' in text
    assert 'bgp_peer_bfd_packets_total{peer="2",direction="received"} 8' in text
    peer.bfd = Status("down", "neighbor signaled down")
    (shown,) = views.peers(cluster.speakers[1], now, "2")
    assert "BFD down: neighbor signaled down" in list(show.lines("peers", False, [shown]))[1]
    peer.bfd = None
    (shown,) = views.peers(cluster.speakers[1], now, "2")
    assert shown["bfd"]["state"] == "waiting"
    (shown,) = views.peers(cluster.speakers[2], now, "1")
    assert "bfd" not in shown
    assert "bfd_up{" not in metrics.text(cluster.speakers[2], now)


# ------------------------------------------------------------------------------------------------------ as it is made

ROOT = Path(bfd.__file__).parent
PURE = {"packet.py", "session.py", "sessions.py", "orders.py", "__init__.py"}
IMPURE = {"asyncio", "os", "random", "select", "selectors", "socket", "subprocess", "threading", "time"}


@pytest.mark.parametrize("path", sorted(ROOT.glob("*.py")), ids=lambda path: path.name)
def test_the_library_needs_the_standard_library_alone(path: Path) -> None:
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            modules.add((node.module or "").partition(".")[0])
    assert modules <= sys.stdlib_module_names | {"bfd"}
    assert path.name not in PURE or not modules & IMPURE


@pytest.mark.parametrize(
    ("closed", "independent", "ends"), [(False, False, True), (True, False, False), (True, True, True)]
)
async def test_a_connection_that_the_peer_has_closed_says_more_than_bfd(
    closed: bool, independent: bool, ends: bool
) -> None:
    """It went by itself, which may be a graceful restart; what it sent before that is still to be read."""
    cluster, peer = watched()
    near, far = socket.socketpair()
    with near, far:
        far.send(b"unread")
        if closed:
            far.close()
        live = Liveness(cluster.speakers[1], lambda: cluster.network.now, lambda _: [near], lambda: None, _ignore)
        failed = Status("down", "detection time expired", failures=1, failed_independent=independent)
        live._changed("2", UP, failed)
    assert (peer.session.negotiated is None) is ends
    assert peer.bfd is failed


class Told:
    """Stands in for the client of BFD's process: what it was told last of each session."""

    def __init__(self) -> None:
        self.status: dict[str, Status] = {}

    def set(self, name: str, wanted: Wanted, past: Status | None) -> None:
        self.status.setdefault(name, Status("down"))

    def unset(self, name: str) -> None:
        del self.status[name]

    def outlive(self, seconds: float) -> None:
        pass


async def test_a_bgp_session_that_is_back_at_once_finds_the_bfd_session_that_it_had() -> None:
    """And one that is not does not: it is told so when the time is over, without anything else happening."""
    cluster, peer = watched()
    later = asyncio.Event()
    time = [cluster.network.now]
    live = Liveness(cluster.speakers[1], lambda: time[0], lambda _: (), later.set, _ignore)
    live.client = told = Told()  # type: ignore[assignment]
    live.follow()
    assert list(told.status) == ["2"]
    cluster.crash(2)
    cluster.network.run(2)
    assert peer.session.negotiated is None
    time[0] = peer.since
    live.heard("2")
    live.follow()
    assert list(told.status) == ["2"]
    async with asyncio.timeout(30):
        await later.wait()
    time[0] = peer.since + beside.LINGER
    live.follow()
    assert told.status == {}
    assert peer.bfd is not None
    assert peer.bfd.state == "waiting"


def _ignore(name: str, before: Status, now: Status) -> None:
    pass
