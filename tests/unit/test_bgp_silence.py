"""Why a session does not come up: attempts without an answer, and what the host has dropped for its signature."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from backends.bgp import reports
from backends.bgp.sessions import Peering
from bgp import views
from bgp.aio import signatures
from bgp.daemon import show
from bgp.silence import why_down
from bgp.transport import Dropped, Transport
from tests.unit.test_bgp_speaker import Cluster

SIGNED = Transport(password=b"hush")


def alone(transport: Transport = SIGNED, dropped: list[Dropped] | None = None, **options: object) -> Cluster:
    """Speaker 1, whose peer 2 is not to be reached: what is sent there is lost."""
    cluster = Cluster()
    counters = dropped if dropped is not None else [Dropped()]
    cluster.speaker(1, dropped=lambda: counters[-1])
    cluster.speaker(2)
    cluster.network.cut.add(frozenset(("1", "2")))
    cluster.peer(1, 2, transport=transport, connect_retry=10, **options)
    cluster.network.run(1)
    return cluster


def said(cluster: Cluster) -> str:
    (peer,) = views.peers(cluster.speakers[1], cluster.network.now)
    (_, line) = show.lines("peers", False, [peer])
    why: str = peer["why_down"]
    assert why in line
    return why


def test_attempts_without_an_answer_are_counted_until_there_is_one() -> None:
    cluster = alone(Transport())
    assert said(cluster) == "connects"
    cluster.network.run(10)
    assert said(cluster) == "no answer to an attempt to connect"
    cluster.network.run(10)
    assert said(cluster) == "no answer to 2 attempts to connect"
    (peer,) = views.peers(cluster.speakers[1], cluster.network.now)
    assert peer["unanswered"] == 2
    assert any("no answer" in entry.get("event", "") for entry in views.log(cluster.speakers[1], "2", 2000))
    cluster.network.cut.clear()
    cluster.network.run(15)
    assert said(cluster) == "connection refused"  # there is nobody who knows us
    cluster.peer(2, 1)
    cluster.network.run(60)
    (peer,) = views.peers(cluster.speakers[1], cluster.network.now)
    assert peer["state"] == "established"
    assert not {"why_down", "unanswered", "dropped_here"} & peer.keys()


def test_silence_towards_a_password_says_that_it_may_be_the_password() -> None:
    cluster = alone()
    assert said(cluster) == "connects"
    cluster.network.run(10)
    assert said(cluster) == (
        "no answer to an attempt to connect; it may have another password, or none: that is dropped in silence"
    )


@pytest.mark.parametrize(
    ("transport", "after", "words"),
    [
        (SIGNED, Dropped(7, 2, 9), "connects; this host has dropped 2 wrongly signed segments: the passwords differ"),
        (SIGNED, Dropped(5, 3, 9), "connects; this host has dropped 1 unsigned segment: a peer has no password, or"),
        (SIGNED, Dropped(5, 2, 10), "connects"),
        (
            Transport(),
            Dropped(5, 2, 10),
            "this host has dropped 1 signed segment: a peer has a password, and none is",
        ),
        (Transport(), Dropped(7, 3, 9), "connects"),
        (SIGNED, Dropped(0, 0, 0), "connects"),  # the counters of another namespace
    ],
)
def test_counters_say_what_came(transport: Transport, after: Dropped, words: str) -> None:
    counters = [Dropped(5, 2, 9)]
    cluster = alone(transport, counters)
    assert said(cluster) == "connects"
    counters.append(after)
    assert words in said(cluster)
    assert (words == "connects") == (said(cluster) == "connects")


def test_what_was_dropped_before_a_session_went_down_does_not_count() -> None:
    cluster = Cluster()
    counters = [Dropped()]
    cluster.speaker(1, dropped=lambda: counters[-1], restart_time=0)
    cluster.speaker(2)
    cluster.peer(1, 2, transport=SIGNED)
    cluster.peer(2, 1)
    cluster.everywhere(10, (1, 2))
    counters.append(Dropped(4))
    cluster.crash(2)
    cluster.network.run(5)
    assert "dropped" not in said(cluster)
    counters.append(Dropped(5))
    assert "this host has dropped 1 wrongly signed segment:" in said(cluster)


def test_a_session_that_is_shut_down_has_no_doubts() -> None:
    cluster = alone(dropped=[Dropped()], shutdown="tea")
    peer = cluster.speakers[1].peers["2"]
    assert why_down(peer, Dropped(9, 9, 9)) == "shut down here: tea"


def test_one_finding_names_all_that_it_may_be_about() -> None:
    counters = [Dropped()]
    cluster = alone(dropped=counters)
    for number in range(3, 9):
        cluster.peer(1, number, transport=SIGNED)
    cluster.peer(1, 9, transport=Transport())
    speaker, peering = cluster.speakers[1], Peering((), frozenset(), frozenset())

    def findings() -> list[tuple[str, str]]:
        found = reports.findings(peering, {}, None, speaker, cluster.network.now)
        return [(each.code, each.message + each.evidence) for each in found]

    cluster.network.run(reports.LONG_DOWN)
    assert findings() == []
    counters.append(Dropped(3, 1, 0))
    ((code, text),) = findings()
    assert code == "bgp-md5"
    assert "no session with 2, 3, 4, 5, 6 and 2 more" in text
    assert "dropped: 3 with a wrong signature, 1 unsigned" in text


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            "TcpExt: SyncookiesSent TCPMD5NotFound TCPMD5Unexpected TCPMD5Failure X\nTcpExt: 9 1 2 3 4\n"
            "IpExt: TCPMD5Failure\nIpExt: 8\n",
            Dropped(3, 1, 2),
        ),
        ("IpExt: A\nIpExt: 1\nTcpExt: TCPMD5Failure\nTcpExt: 12\n", Dropped(12)),
        ("TcpExt: TCPMD5Failure\nTcpExt: -\n", Dropped()),
        ("TcpExt: TCPMD5Failure\n", Dropped()),
        ("", Dropped()),
    ],
)
def test_the_counters_of_the_kernel(tmp_path: Path, text: str, found: Dropped) -> None:
    path = tmp_path / "netstat"
    path.write_text(text)
    assert signatures.dropped(path) == found


def test_where_there_are_no_counters_nothing_is_known(tmp_path: Path) -> None:
    assert signatures.dropped(tmp_path / "none") == Dropped()


def test_the_counters_are_looked_at_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(signatures, "time", SimpleNamespace(monotonic=lambda: now[0]))
    path = tmp_path / "netstat"
    for seconds, count, known in ((100.0, 1, 1), (100.5, 2, 1), (101.0, 3, 3)):
        now[0] = seconds
        path.write_text(f"TcpExt: TCPMD5Failure\nTcpExt: {count}\n")
        assert signatures.dropped(path) == Dropped(known)
