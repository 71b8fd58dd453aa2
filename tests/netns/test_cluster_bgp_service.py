"""The service of the bgp backend without an agent, on the sockets of one namespace: starting, settling, leaving."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from backends.bgp import reports
from backends.bgp import service as module
from backends.bgp.planner import STATE
from backends.bgp.service import FAREWELL
from backends.bgp.ways import metric
from bgp.silence import why_down
from netagent.contract import STOPPING, Viewer
from netagent.errors import UsageError
from netagent.model import (
    Hop,
    NftElement,
    NodeRecord,
    Route,
)
from tests.support.bgp_service import PORT, Host, until
from tests.support.netns import Namespaces

pytestmark = [pytest.mark.netns]


@pytest.fixture
def block() -> Iterator[str]:
    """The beginning of the hosts' addresses; all are on the loopback device of a namespace that the test is in."""
    with Namespaces() as net:
        space = net.make("nodes")
        for number in (1, 2, 3):
            space.ip(f"address add 192.0.2.{number}/32 dev lo")
        with space.entered():
            yield "192.0.2."


@contextlib.asynccontextmanager
async def hosts(directory: Path, block: str, count: int = 2) -> AsyncIterator[list[Host]]:
    made = [Host(directory, block, number) for number in range(1, count + 1)]
    try:
        for host in made:
            host.start(*(other for other in made if other is not host))
        yield made
    finally:
        for host in made:
            await host.leave()


def asked(host: Host, name: str, arguments: Mapping[str, str]) -> list[Any]:
    """What a view of its service says, as values."""
    return list(host.service.view(name, arguments).values)


def told(host: Host, name: str, arguments: Mapping[str, str]) -> list[str]:
    """And as lines for people."""
    answer = host.service.view(name, arguments)
    return list(answer.lines(list(answer.values)))


def routed(host: Host, other: Host) -> bool:
    return bool(host.port.published.get(f"route/10.5.{other.number}.0/24"))


async def test_settled_when_everybody_has_told_everything(tmp_path: Path, block: str) -> None:
    async with hosts(tmp_path, block, 3) as made:
        await asyncio.gather(*(host.service.settled() for host in made))
        for host in made:
            assert host.up == 2
            assert all(host.knows(other) for other in made if other is not host)
            assert host.port.shared == {"bgp.as": "64512", "bgp.role": "mesh", "bgp.via": ""}
            assert host.port.findings == ()
        await until(lambda: all(h.service.status()["state"] == "running" for h in made), "all run")
        assert made[0].port.published["node/h2"] == (NftElement("peers4", f"{block}2"),)
        route = Route("10.5.2.0/24", (Hop("lo", f"{block}2"),), metric=metric("10.5.2.0/24"))
        await until(lambda: made[0].port.published.get("route/10.5.2.0/24") == (route,), "the route is published")
        summary = made[0].service.status()["summary"]
        assert summary.startswith("mesh: 2 of 2 BGP sessions up")


async def test_a_node_that_leaves_etcd_is_no_peer_any_more(tmp_path: Path, block: str) -> None:
    async with hosts(tmp_path, block) as (one, two):
        await one.service.settled()
        one.service.nodes({})
        await until(lambda: one.port.published.get("node/h2") == (), "the guard is closed")
        assert one.service.status()["gauges"]["sessions"] == 0
        await until(lambda: not two.up, "the other end sees it")


async def test_an_agent_that_goes_away_is_waited_for_and_says_nothing(
    tmp_path: Path, block: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with hosts(tmp_path, block) as (one, two):
        await asyncio.gather(one.service.settled(), two.service.settled())
        await until(
            lambda: json.loads((two.port.run_dir / STATE).read_bytes())["peers"] == ["h1"], "h1 is remembered"
        )
        await two.leave()
        await until(lambda: not one.up, "the session is gone")
        assert one.knows(two), "its routes are kept"
        again = Host(tmp_path, block, 2)
        again.start(one)
        try:
            await again.service.settled()
            assert "kept until 1 peers have told everything" in caplog.text
            assert again.service.speaker is not None
            assert not again.service.speaker.deferring
            assert one.up == again.up == 1
            assert one.knows(again)
            assert again.knows(one)
        finally:
            await again.leave()


async def test_a_backend_that_is_no_longer_wanted_says_farewell(tmp_path: Path, block: str) -> None:
    async with hosts(tmp_path, block) as (one, two):
        await asyncio.gather(one.service.settled(), two.service.settled())
        await two.leave(STOPPING)
        await two.service.stop()
        await until(lambda: not one.knows(two), "its routes are gone at once")
        speaker = one.service.speaker
        assert speaker is not None
        assert FAREWELL in why_down(speaker.peers["h2"])
        assert two.port.shared == {"bgp.as": "", "bgp.role": "", "bgp.via": ""}
        assert not (two.port.run_dir / STATE).exists()


async def test_where_the_port_is_taken_sessions_are_opened_from_here(
    tmp_path: Path, block: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY", 0.05)
    with socket.create_server((f"{block}2", PORT)) as taken:
        async with hosts(tmp_path, block) as (one, two):
            await until(lambda: [f.code for f in two.port.findings] == ["bgp-port"], "it is told")
            assert str(os.getpid()) in two.port.findings[0].message or "python" in two.port.findings[0].message
            await until(lambda: one.up and two.up, "h2 connects to h1")
            taken.close()
            await until(lambda: two.port.findings == (), "it listens")


async def test_nobody_there_is_waited_for_only_a_while(
    tmp_path: Path, block: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_TIME", 0.2)
    one, away = Host(tmp_path, block, 1), Host(tmp_path, block, 2)
    one.start(away)
    try:
        async with asyncio.timeout(10):
            await one.service.settled()
        await until(lambda: one.service.status()["state"] == "running", "it runs")
        assert one.up == 0
    finally:
        await one.leave()


async def test_what_can_be_asked(tmp_path: Path, block: str) -> None:
    async with hosts(tmp_path, block) as (one, two):
        await asyncio.gather(one.service.settled(), two.service.settled())
        assert isinstance(one.service, Viewer)
        (peer,) = asked(one, "peers", {})
        assert (peer["name"], peer["state"]) == ("h2", "established")
        assert any("h2" in line for line in told(one, "peers", {}))
        received = asked(one, "received", {"peer": "h2"})
        assert [route["prefix"] for route in received] == ["10.5.2.0/24"]
        advertised = asked(one, "advertised", {"peer": f"{block}2"})
        assert [route["prefix"] for route in advertised] == ["10.5.1.0/24"]
        assert any("received" in entry for entry in asked(one, "log", {"peer": "h2"}))
        unknown = {"prefix": "192.0.2.0/24"}
        assert asked(one, "routes", unknown) == []
        assert told(one, "routes", unknown) == ["no route to 192.0.2.0/24"]
        for name, arguments, word in (
            ("frob", {}, "no view"),
            ("log", {}, "which peer"),
            ("log", {"peer": "h9"}, "h9"),
            ("routes", {"prefix": "nonsense"}, "nonsense"),
        ):
            with pytest.raises(UsageError, match=word):
                asked(one, name, arguments)


async def test_a_speaker_that_does_not_run_yet_has_nothing_to_say(tmp_path: Path, block: str) -> None:
    idle = Host(tmp_path, block, 1)
    with pytest.raises(UsageError, match="does not run yet"):
        idle.service.view("peers", {})
    assert idle.service.status()["state"] == "starting"


async def test_a_password_that_appears_is_used(tmp_path: Path, block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_AGAIN", 0.05)
    secret = tmp_path / "secret"
    made = [Host(tmp_path, block, number, {"PasswordFile": str(secret)}) for number in (1, 2)]
    try:
        made[0].start(made[1])
        made[1].start(made[0])
        await until(lambda: [f.code for f in made[0].port.findings] == ["bgp-password"], "it is told")
        assert made[0].up == 0
        secret.write_text("hush\n")
        await until(lambda: made[0].up and made[1].up, "the signed session stands")
        await until(lambda: made[0].port.findings == (), "nothing is wrong any more")
    finally:
        for host in made:
            await host.leave()


@pytest.mark.parametrize(("theirs", "kind"), [("other", "wrong"), ("", "unwanted")])
async def test_passwords_that_differ_are_a_finding(
    tmp_path: Path, block: str, monkeypatch: pytest.MonkeyPatch, theirs: str, kind: str
) -> None:
    monkeypatch.setattr(module, "LOOK_AGAIN", 0.05)
    monkeypatch.setattr(reports, "LONG_DOWN", 0.1)
    made = []
    for number, password in ((1, theirs), (2, "hush")):
        (tmp_path / f"secret{number}").write_text(password)
        raw = {"PasswordFile": str(tmp_path / f"secret{number}")} if password else {}
        made.append(Host(tmp_path, block, number, raw))
    one, two = made
    try:
        one.start(two)
        two.start(one)
        await until(lambda: [f.code for f in one.port.findings] == ["bgp-md5"], "it is told")
        (finding,) = one.port.findings
        assert finding.message.endswith("there is no session with h2")
        await until(lambda: kind in asked(one, "peers", {})[0].get("dropped_here", {}), "as a value")
        (peer,) = asked(one, "peers", {})
        assert peer["dropped_here"][kind] > 0
        assert "this host has dropped" in peer["why_down"]
        # With one password everywhere the session comes up, and nothing is left of it.
        one.raw["PasswordFile"] = str(tmp_path / "secret2")
        one.service.configure(one.context())
        await until(lambda: one.up and two.up, "the signed session stands")
        await until(lambda: one.port.findings == (), "nothing is wrong any more")
    finally:
        for host in made:
            await host.leave()


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\0", b"{", b"[]", b"7", b'{"peers": 7}', b'{"peers": [[], 7, {}]}', b"[" * 100_000],
    ids=repr,
)
async def test_a_damaged_state_file_is_as_none(tmp_path: Path, block: str, content: bytes) -> None:
    one, two = Host(tmp_path, block, 1), Host(tmp_path, block, 2)
    (one.port.run_dir / STATE).write_bytes(content)
    one.start(two)
    two.start(one)
    try:
        await until(lambda: routed(one, two), "a route")
        await until(lambda: json.loads((one.port.run_dir / STATE).read_bytes())["peers"] == ["h2"], "a new file")
    finally:
        await one.leave()
        await two.leave()


async def test_a_router_near_its_limit_that_goes_down_is_told_as_down(
    tmp_path: Path, block: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_AGAIN", 0.05)
    monkeypatch.setattr(reports, "LONG_DOWN", 0.1)
    router = {"Address": f"{block}2", "AS": 64512, "Name": "tor", "MaxPrefixes": 1}
    one = Host(tmp_path, block, 1, {"Routers": [router]})
    two = Host(tmp_path, block, 2, {"Routers": [{"Address": f"{block}1", "AS": 64512}]})
    one.start()
    two.start()
    try:
        await until(lambda: [f.code for f in one.port.findings] == ["bgp-prefix-limit"], "it is told")
        assert one.up
        await two.leave()
        await until(lambda: [f.code for f in one.port.findings] == ["bgp-router-down"], "it is down")
    finally:
        await one.leave()
        await two.leave()


async def test_a_rotated_password_takes_no_route_away(
    tmp_path: Path, block: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_AGAIN", 0.05)
    secrets = [tmp_path / "secret1", tmp_path / "secret2"]
    made = [Host(tmp_path, block, number, {"PasswordFile": str(secrets[number - 1])}) for number in (1, 2)]
    one, two = made
    for secret in secrets:
        secret.write_text("hush\n")
    try:
        one.start(two)
        two.start(one)
        await until(lambda: routed(one, two) and routed(two, one), "routes both ways")
        speakers = [host.service.speaker for host in made]
        one.port.log.clear()
        two.port.log.clear()
        secrets[0].unlink()
        await until(lambda: [f.code for f in one.port.findings] == ["bgp-password"], "it is told")
        assert one.up, "the last one is used on"
        secrets[0].write_text("tell\n")
        await until(lambda: not one.up, "it ends the session")
        assert [f for f in one.port.findings if f.code == "bgp-password"] == []
        secrets[1].write_text("tell\n")
        await until(lambda: one.up and two.up and not one.keeps(two) and not two.keeps(one), "it stands again")
        assert [host.service.speaker for host in made] == speakers
        assert one.port.log == two.port.log == []
    finally:
        for host in made:
            await host.leave()


@pytest.mark.parametrize("change", [{"HoldTime": 30}, {"Port": 1179}, {"Port": 1179, "HoldTime": 30}], ids=str)
async def test_another_hold_time_or_port_takes_no_route_away(
    tmp_path: Path, block: str, change: dict[str, int]
) -> None:
    async with hosts(tmp_path, block, 3) as made:
        pairs = [(host, other) for host in made for other in made if host is not other]
        await until(lambda: all(routed(*pair) for pair in pairs), "routes everywhere")
        for host in made:
            host.port.log.clear()
            host.raw |= change
            host.service.configure(host.context())

        def renewed() -> bool:
            return all(
                peer.session.negotiated is not None
                and peer.session.negotiated.hold_time == change.get("HoldTime", 9)
                and peer.config.transport.port == change.get("Port", PORT)
                and peer.flaps == 1
                and peer.complete
                for host in made
                if host.service.speaker is not None
                for peer in host.service.speaker.peers.values()
            )

        await until(renewed, "every session stands anew")
        assert [host.port.log for host in made] == [[], [], []]


async def test_one_that_follows_late_takes_no_route_away(tmp_path: Path, block: str) -> None:
    async with hosts(tmp_path, block) as (one, two):
        await until(lambda: routed(one, two) and routed(two, one), "routes both ways")
        one.port.log.clear()
        two.port.log.clear()

        def stands(flaps: int) -> bool:
            peers = [next(iter(host.service.speaker.peers.values())) for host in (one, two) if host.service.speaker]
            return all(peer.flaps == flaps and peer.complete for peer in peers)

        for changes, host in enumerate((one, two), 1):
            host.raw["HoldTime"] = 30
            host.service.configure(host.context())
            await until(lambda changes=changes: stands(changes), "the session stands anew")  # type: ignore[misc]
        assert one.port.log == two.port.log == []


async def test_an_address_that_goes_and_returns(tmp_path: Path, block: str) -> None:
    """Nothing is done while there is none, and sessions are begun when it is there."""
    one, two = (Host(tmp_path, block, number) for number in (1, 2))
    looked = 0
    update = one.service._update

    async def counted() -> float | None:
        nonlocal looked
        looked += 1
        return await update()

    one.service._update = counted  # type: ignore[method-assign]
    one.address = None
    one.start(two)
    two.start(one)
    try:
        await until(lambda: [f.code for f in one.port.findings] == ["bgp-no-address"], "it is told")
        async with asyncio.timeout(10):
            await one.service.settled()
        for _ in range(1000):
            await asyncio.sleep(0)
        assert looked <= 2, "it waits"
        one.address = f"{block}1"
        one.service.configure(one.context())
        await until(lambda: routed(one, two) and routed(two, one), "sessions")
        assert one.port.findings == ()
        one.address = None
        one.service.configure(one.context())
        await until(lambda: [f.code for f in one.port.findings] == ["bgp-no-address"], "it is told again")
        assert one.up, "what stands is kept"
        one.address = f"{block}1"
        one.service.configure(one.context())
        await until(lambda: one.port.findings == (), "all is well")
        assert one.up
    finally:
        await one.leave()
        await two.leave()


async def test_what_cannot_be_put_in_force_ends_no_session(
    tmp_path: Path, block: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault that nobody has thought of, here of the policy: what stands goes on, until it is mended."""
    async with hosts(tmp_path, block) as (one, two):
        await until(lambda: routed(one, two), "a route")
        with monkeypatch.context() as patch:
            patch.setattr(module.sessions, "peering", lambda *_: 1 / 0)
            one.raw["HoldTime"] = 30
            one.service.configure(one.context())
            await until(lambda: [f.code for f in one.port.findings] == ["bgp-not-in-force"], "it is told")
            assert "division by zero" in one.port.findings[0].message
            assert one.task is not None
            assert not one.task.done()
            assert one.up
        one.raw["HoldTime"] = 9
        one.service.configure(one.context())
        await until(lambda: one.port.findings == (), "all is well")
        assert one.up


async def test_another_as_number_is_a_graceful_restart(tmp_path: Path, block: str) -> None:
    async with hosts(tmp_path, block) as (one, two):
        await asyncio.gather(one.service.settled(), two.service.settled())
        before = one.service.speaker
        for host, other in ((one, two), (two, one)):
            host.raw["AS"] = 65001
            host.service.configure(host.context())
            host.service.nodes(
                {
                    other.name: NodeRecord(
                        name=other.name,
                        id=f"{other.number:032x}",
                        addresses=(f"{block}{other.number}",),
                        attributes={"bgp.as": "65001", "bgp.role": "mesh"},
                    )
                }
            )
        await until(lambda: one.up and two.up and one.service.speaker is not before, "they meet again")
        assert one.service.speaker is not None
        assert one.service.speaker.config.asn == 65001
        assert one.port.shared["bgp.as"] == "65001"


async def test_the_as_number_changes_step_by_step_and_takes_no_route_away(
    tmp_path: Path, block: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each node is told of itself first and of the other a while later, as etcd has it."""
    async with hosts(tmp_path, block) as (one, two):
        await until(lambda: routed(one, two) and routed(two, one), "routes both ways")
        monkeypatch.setattr(module, "FIRST_TIME", 0.0)
        one.port.log.clear()
        two.port.log.clear()
        for host in (one, two):
            before = host.service.speaker
            host.raw["AS"] = 65001
            host.service.configure(host.context())
            await until(
                lambda host=host, before=before: host.service.speaker not in (None, before),  # type: ignore[misc]
                "it starts again",
            )
            await until(lambda host=host: host.port.shared["bgp.as"] == "65001", "it is shared")  # type: ignore[misc]
        for host, other in ((one, two), (two, one)):
            host.service.nodes({other.name: other.record()})
        await until(lambda: one.up and two.up and one.knows(two) and two.knows(one), "they meet again")
        await until(lambda: one.service.status()["state"] == two.service.status()["state"] == "running", "they run")
        gone = [
            entry for host in (one, two) for entry in host.port.log if entry[0].startswith("route/") and not entry[1]
        ]
        assert gone == []
