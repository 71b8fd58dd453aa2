"""The service against a scripted engine: what it tells, when, and what it makes of the answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from backends.udp import control, launch, service
from backends.udp.control import ControlError, Decoder, encode
from backends.udp.service import UdpService
from backends.udp.table import Entry, digest
from netagent.model import Finding, Lease
from tests.support.netns import eventually
from tests.support.udp import host_context, lease_of

TIMEOUT = 5.0


class Port:
    """contract.ServicePort, as much as the service uses."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = self.state_dir = run_dir
        self.findings: list[Finding] = []

    def publish(self, objects: Mapping[str, Iterable[Any]]) -> None:
        raise AssertionError("nothing is to be published")

    def report(self, findings: Iterable[Finding]) -> None:
        self.findings = list(findings)

    async def share(self, attributes: Any) -> None:
        raise AssertionError("nothing is to be shared")

    @property
    def codes(self) -> list[str]:
        return [finding.code for finding in self.findings]


class Engine:
    """Listens as an engine does, keeps a table, and notes what it is told."""

    def __init__(self, path: Path, *, tag: str = "one", protocol: int = control.PROTOCOL) -> None:
        self.path, self.tag, self.protocol = path, tag, protocol
        self.told: list[tuple[str, Any]] = []
        self.peers: dict[str, Entry] = {}
        self.problems: dict[str, str] = {}
        self.deaf: set[str] = set()  # requests that get no answer
        self._writers: list[asyncio.StreamWriter] = []

    async def start(self) -> Engine:
        self._server = await asyncio.start_unix_server(self._client, self.path)
        return self

    async def die(self) -> None:
        self._server.close()
        for writer in self._writers:
            writer.close()
        await self._server.wait_closed()
        self.path.unlink(missing_ok=True)

    def verbs(self) -> list[str]:
        """What changed something, in order."""
        return [name for name, _ in self.told if name not in (control.DO_HELLO, control.DO_STATS)]

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        decoder = Decoder()
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                for request in decoder.feed(data):
                    name = request["do"]
                    answer = self._answer(name, request)
                    if name not in self.deaf:
                        writer.write(encode({"ok": True, **answer}))
        writer.close()

    def _answer(self, name: str, request: dict[str, Any]) -> dict[str, Any]:
        self.told.append((name, {k: v for k, v in request.items() if k != "do"}))
        if name == control.DO_HELLO:
            return {
                "protocol": self.protocol,
                "tag": self.tag,
                "pid": 1234,
                "uptime": 1.0,
                "digest": digest(self.peers.values()),
            }
        if name == control.DO_CONFIGURE:
            return {"problems": self.problems}
        if name == control.DO_STATS:
            page = list(self.peers)[request["offset"] : request["offset"] + request["limit"]]
            more = request["offset"] + request["limit"] < len(self.peers)
            traffic = {key: [1, 2, 3, 4, 5, 0.5] for key in page}
            return {"problems": self.problems, "drops": {"source": 5}, "traffic": traffic, "more": more}
        if name == control.DO_SET_PEERS:
            self.peers = {}
        for entry in control.peers_of(request) if "peers" in request else ():
            self.peers[entry.key] = entry
        for key in request.get("keys", ()):
            del self.peers[key]
        return {}


@pytest.fixture
def port(tmp_path: Path) -> Port:
    return Port(tmp_path)


@pytest.fixture
async def engine(port: Port, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Engine]:
    monkeypatch.setattr(service, "STATS_EVERY", 0.05)
    monkeypatch.setattr(service, "STATS_SOON", 0.02)
    engine = await Engine(port.run_dir / service.SOCKET).start()
    yield engine
    await engine.die()


@contextlib.asynccontextmanager
async def running(port: Port, leases: Iterable[Lease]) -> AsyncIterator[UdpService]:
    """A service that runs and has settled."""
    udp = UdpService(port, tag="one")
    udp.configure(host_context(1))
    udp.peers({lease.key: lease for lease in leases}, (), whole=True)
    task = asyncio.create_task(udp.run())
    try:
        async with asyncio.timeout(TIMEOUT):
            await udp.settled()
        yield udp
    finally:
        task.cancel()
        await asyncio.wait((task,))


def peers(*numbers: int) -> list[Lease]:
    return [lease_of(host_context(number)) for number in numbers]


def as_entry(lease: Lease) -> Entry:
    assert lease.v4 is not None
    assert lease.public_ip is not None
    return Entry(lease.key, (lease.v4,), (lease.public_ip,))


async def settle(udp: UdpService) -> None:
    async with asyncio.timeout(TIMEOUT):
        await udp.settled()


async def test_a_fresh_engine_is_told_all(engine: Engine, port: Port) -> None:
    async with running(port, peers(2, 3)):
        assert engine.verbs() == [control.DO_SET_PEERS, control.DO_CONFIGURE]
        assert list(engine.peers.values()) == [as_entry(lease) for lease in peers(2, 3)]
        (config,) = [fields["config"] for name, fields in engine.told if name == control.DO_CONFIGURE]
        assert config == {
            "device": "na-tun",
            "mtu": 1472,
            "port": 8285,
            "addresses": ["192.168.50.11"],
            "subnets": ["10.5.1.0/24"],
        }


async def test_an_engine_that_has_all_is_told_no_peer(engine: Engine, port: Port) -> None:
    engine.peers = {lease.key: as_entry(lease) for lease in reversed(peers(2, 3))}
    async with running(port, peers(2, 3)):
        assert engine.verbs() == [control.DO_CONFIGURE]


async def test_only_what_differs_is_told(engine: Engine, port: Port) -> None:
    async with running(port, peers(2, 3, 4)) as udp:
        engine.told.clear()
        two, three, four = peers(2, 3, 4)
        moved = msgspec.structs.replace(three, public_ip="192.168.50.99")
        renewed = msgspec.structs.replace(two, mod_revision=9)
        udp.peers({two.key: renewed, three.key: moved}, [four.key, "10.5.99.0-24"], whole=False)
        await settle(udp)
        assert engine.verbs() == [control.DO_REMOVE_PEERS, control.DO_ADD_PEERS]
        assert engine.peers == {two.key: as_entry(two), three.key: as_entry(moved)}
        # A resync that changes nothing says nothing, one that drops a peer says that.
        engine.told.clear()
        udp.peers({two.key: two, three.key: moved}, (), whole=True)
        await settle(udp)
        assert engine.verbs() == []
        udp.peers({two.key: two}, (), whole=True)
        await settle(udp)
        assert engine.verbs() == [control.DO_REMOVE_PEERS]
        assert engine.peers.keys() == {two.key}


async def test_leases_without_a_path_are_not_told_and_one_that_loses_it_is_removed(
    engine: Engine, port: Port
) -> None:
    two, three = peers(2, 3)
    silent = msgspec.structs.replace(three, public_ip=None)
    async with running(port, [two, silent]) as udp:
        assert engine.peers.keys() == {two.key}
        udp.peers({two.key: msgspec.structs.replace(two, public_ip=None), three.key: three}, (), whole=False)
        await settle(udp)
        assert engine.peers.keys() == {three.key}


async def test_many_changes_go_in_chunks(engine: Engine, port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "CHUNK", 4)
    monkeypatch.setattr(service, "STATS_PAGE", 3)
    async with running(port, []) as udp:
        leases = {lease.key: lease for lease in peers(*range(2, 12))}
        udp.peers(leases, (), whole=False)
        await settle(udp)
        assert engine.verbs()[-3:] == [control.DO_ADD_PEERS] * 3
        assert engine.peers.keys() == leases.keys()
        await eventually(lambda: udp.status()["peers"].keys() == leases.keys(), "counters of all pages")
        udp.peers({}, leases, whole=False)
        await settle(udp)
        assert engine.verbs()[-3:] == [control.DO_REMOVE_PEERS] * 3
        assert engine.peers == {}


async def test_a_new_context_is_told_and_the_same_one_is_not(engine: Engine, port: Port) -> None:
    async with running(port, peers(2)) as udp:
        engine.told.clear()
        udp.configure(host_context(1))
        udp.peers({}, (), whole=False)
        await settle(udp)
        assert engine.verbs() == []
        context = host_context(1)
        udp.configure(msgspec.structs.replace(context, node=msgspec.structs.replace(context.node, mtu=9000)))
        await settle(udp)
        assert engine.verbs() == [control.DO_CONFIGURE]
        assert engine.told[-1][1].get("config", {}).get("mtu", 8972) == 8972


async def test_status_says_what_the_engine_says(engine: Engine, port: Port) -> None:
    async with running(port, peers(2)) as udp:
        await eventually(lambda: udp.status()["peers"], "counters")
        status = udp.status()
        assert status["state"] == "running"
        assert status["engine"].pop("uptime") >= 1.0
        assert status["engine"] == {"pid": 1234, "tag": "one", "protocol": control.PROTOCOL}
        assert status["drops"] == {"source": 5}
        assert status["peers"] == {
            "10.5.2.0-24": {
                "tx_packets": 1,
                "tx_bytes": 2,
                "rx_packets": 3,
                "rx_bytes": 4,
                "drops": 5,
                "last_heard": 0.5,
            }
        }


async def test_a_problem_that_lasts_is_a_finding_until_it_is_gone(
    engine: Engine, port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "PATIENCE", 0.2)
    engine.problems = {
        "device": "na-tun does not exist",
        "socket4": "192.168.50.11 port 8285: Address already in use",
    }
    async with running(port, []) as udp:
        assert port.codes == []
        await eventually(lambda: sorted(port.codes) == ["udp-device", "udp-port"], "findings")
        assert all(finding.remedy for finding in port.findings)
        engine.problems = {}
        await eventually(lambda: port.codes == [], "the findings to go")
        assert udp.status()["problems"] == []


def starter(make: Callable[[], Engine]) -> Callable[..., Any]:
    """Stands for launch.start: an engine of this process."""

    async def start(path: Path, tag: str, *, takeover: bool = False) -> None:
        await make().start()

    return start


async def test_an_engine_that_dies_is_started_again_and_told_all(
    engine: Engine, port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = Engine(engine.path)
    monkeypatch.setattr(launch, "start", starter(lambda: fresh))
    async with running(port, peers(2, 3)) as udp:
        await engine.die()
        await eventually(lambda: fresh.peers.keys() == {lease.key for lease in peers(2, 3)}, "the new engine's table")
        await eventually(lambda: udp.status()["restarts"] == 1, "the count of restarts")
    await fresh.die()


async def test_an_engine_that_does_not_start_is_a_finding_and_is_tried_again(
    port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    async def start(path: Path, tag: str, *, takeover: bool = False) -> None:
        tries.append(tag)
        raise ControlError("no /dev/net/tun")

    monkeypatch.setattr(launch, "start", start)
    udp = UdpService(port, tag="one")
    udp.configure(host_context(1))
    task = asyncio.create_task(udp.run())
    await eventually(lambda: len(tries) >= 3, "three tries")
    assert port.codes == ["udp-engine-failed"]
    assert "no /dev/net/tun" in port.findings[0].evidence
    engine = Engine(port.run_dir / service.SOCKET)
    monkeypatch.setattr(launch, "start", starter(lambda: engine))
    await settle(udp)
    await eventually(lambda: port.codes == [], "the finding to go")
    task.cancel()
    await asyncio.wait((task,))
    await engine.die()


@pytest.mark.parametrize("takes", [True, False], ids=["hands-over", "refuses"])
async def test_an_engine_of_another_release(
    engine: Engine, port: Port, monkeypatch: pytest.MonkeyPatch, takes: bool
) -> None:
    """It hands over; where it does not, it carries on, and that is a finding."""
    engine.tag = "older"
    calls = []

    async def start(path: Path, tag: str, *, takeover: bool = False) -> None:
        calls.append(takeover)
        if not takes:
            raise ControlError("refused")
        engine.tag = tag

    monkeypatch.setattr(launch, "start", start)
    async with running(port, peers(2)) as udp:
        assert calls == [True]
        assert engine.peers.keys() == {"10.5.2.0-24"}
        await eventually(lambda: udp.status()["engine"]["tag"] == ("one" if takes else "older"))
        await eventually(lambda: port.codes == ([] if takes else ["udp-engine-old"]), "the finding")


async def test_an_engine_of_a_foreign_protocol_that_refuses_is_replaced(
    engine: Engine, port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.protocol = 99
    fresh = Engine(engine.path)

    async def start(path: Path, tag: str, *, takeover: bool = False) -> None:
        if takeover:
            raise ControlError("refused")
        await engine.die()
        await fresh.start()

    monkeypatch.setattr(launch, "start", start)
    async with running(port, peers(2)):
        assert control.DO_STOP in engine.verbs()
        assert fresh.peers.keys() == {"10.5.2.0-24"}
    await fresh.die()


async def test_an_engine_that_does_not_answer_is_ended(
    engine: Engine, port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    from backends.udp import client

    monkeypatch.setattr(client, "DEADLINE", 0.1)
    killed: list[int] = []
    monkeypatch.setattr(launch, "kill", killed.append)
    engine.deaf = {control.DO_HELLO}
    udp = UdpService(port, tag="one")
    udp.configure(host_context(1))
    task = asyncio.create_task(udp.run())
    await eventually(lambda: killed, "the engine to be ended")
    engine.deaf = set()
    await settle(udp)
    task.cancel()
    await asyncio.wait((task,))
