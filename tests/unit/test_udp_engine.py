"""The engine's loop without privileges: its clients, hostile ones among them, and the handover to a successor."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP

from backends.udp import control, handover, session
from backends.udp.control import ControlError, Decoder, encode
from backends.udp.engine import Engine
from backends.udp.handover import take_over
from backends.udp.table import Entry, digest

NEAR, FAR = "127.0.51.11", "127.0.51.12"


class Client:
    """A blocking client of the control socket."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(30)
        try:
            self.sock.connect(str(path))
        except OSError:
            self.sock.close()
            raise
        self._decoder = Decoder()
        self._answers: list[dict[str, Any]] = []

    def ask(self, name: str, **fields: Any) -> dict[str, Any]:
        self.sock.sendall(encode({"do": name, **fields}))
        return self.answer()

    def answer(self) -> dict[str, Any]:
        while not self._answers:
            data = self.sock.recv(1 << 16)
            if not data:
                raise ConnectionResetError
            self._answers += self._decoder.feed(data)
        return self._answers.pop(0)

    @property
    def closed(self) -> bool:
        """Whether the engine has closed the connection (waits for it)."""
        try:
            return self.sock.recv(1) == b""
        except ConnectionError:
            return True


class Rig:
    """Engines in threads, and clients, that are ended with the test."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / "udp.sock"
        self._clients: list[Client] = []
        self._threads: list[threading.Thread] = []

    def start(self) -> Engine:
        return self.run(Engine(self.path, session.listen(self.path), "one"))

    def run(self, engine: Engine) -> Engine:
        thread = threading.Thread(target=engine.run)
        thread.start()
        self._threads.append(thread)
        return engine

    def client(self) -> Client:
        client = Client(self.path)
        self._clients.append(client)
        return client

    def join(self) -> None:
        """Wait until all engines have ended."""
        for thread in self._threads:
            thread.join(5)
            assert not thread.is_alive()

    def close(self) -> None:
        for client in self._clients:
            client.sock.close()
        with contextlib.suppress(OSError, ConnectionError):
            last = Client(self.path)
            last.ask(control.DO_STOP)
            last.sock.close()
        self.join()


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    import gc

    monkeypatch.setattr(gc, "disable", lambda: None)  # the engine's process does without; this one does not
    rig = Rig(tmp_path)
    yield rig
    rig.close()
    gc.unfreeze()


ENTRIES = [Entry(f"10.5.{n}.0-24", (f"10.5.{n}.0/24",), (f"127.0.51.{n}",)) for n in range(2, 20)]


def config(port: int, **changes: Any) -> dict[str, Any]:
    return {
        "device": "na-naud-none",
        "mtu": 1472,
        "port": port,
        "addresses": [NEAR],
        "subnets": ["10.5.72.0/24"],
        **changes,
    }


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((NEAR, 0))
        port: int = sock.getsockname()[1]
        return port


def test_hello_peers_and_stats(rig: Rig) -> None:
    rig.start()
    client = rig.client()
    hello = client.ask(control.DO_HELLO)
    assert hello["ok"]
    assert (hello["protocol"], hello["tag"], hello["pid"]) == (control.PROTOCOL, "one", os.getpid())
    assert (hello["peers"], hello["config"], hello["digest"]) == (0, None, digest([]))
    assert client.ask(control.DO_SET_PEERS, peers=ENTRIES) == {"ok": True, "peers": len(ENTRIES)}
    assert client.ask(control.DO_REMOVE_PEERS, keys=["10.5.2.0-24", "nothing"])["peers"] == len(ENTRIES) - 1
    assert client.ask(control.DO_ADD_PEERS, peers=ENTRIES[:2])["peers"] == len(ENTRIES)
    assert client.ask(control.DO_HELLO)["digest"] == digest(ENTRIES)
    first = client.ask(control.DO_STATS, offset=0, limit=10)
    second = client.ask(control.DO_STATS, offset=10, limit=10)
    assert (first["more"], second["more"]) == (True, False)
    assert first["traffic"].keys() | second["traffic"].keys() == {entry.key for entry in ENTRIES}
    assert first["traffic"]["10.5.4.0-24"] == [0, 0, 0, 0, 0, -1]


def test_five_thousand_peers_in_one_message(rig: Rig) -> None:
    engine = rig.start()
    client = rig.client()
    many = [Entry(f"{a}.{b}", (f"10.{a}.{b}.0/24",), (f"127.{a}.{b}.1",)) for a in range(20) for b in range(250)]
    assert client.ask(control.DO_SET_PEERS, peers=many)["peers"] == 5000
    assert client.ask(control.DO_HELLO)["digest"] == digest(many)
    for entry in many[::100]:
        a, b = map(int, entry.key.split("."))
        peer = engine.table.route(bytes([10, a, b, 7]))
        assert peer is not None
        assert peer.entry == entry


def test_a_missing_device_and_a_taken_port_are_problems_until_they_go(rig: Rig) -> None:
    rig.start()
    client = rig.client()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind((NEAR, 0))
        port = other.getsockname()[1]
        problems = client.ask(control.DO_CONFIGURE, config=config(port))["problems"]
        assert problems["device"] == "na-naud-none does not exist"
        assert "Address already in use" in problems["socket4"]
    while "socket4" in client.ask(control.DO_STATS, offset=0, limit=1)["problems"]:
        pass  # each question is one turn of the loop, and the test has a time limit
    # A port that changes is left, and the old one is free again.
    client.ask(control.DO_CONFIGURE, config=config(free_port()))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind((NEAR, port))


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"do": 1},
        {"do": "nonsense"},
        {"do": control.DO_SET_PEERS},
        {"do": control.DO_SET_PEERS, "peers": [["a", ["10.5.1.1/24"], []]]},
        {"do": control.DO_ADD_PEERS, "peers": [1]},
        {"do": control.DO_REMOVE_PEERS, "keys": "abc"},
        {"do": control.DO_CONFIGURE, "config": {}},
        {"do": control.DO_STATS, "offset": -1, "limit": 5},
        {"do": control.DO_STATS, "offset": 0, "limit": 10**9},
        {"do": control.DO_RELEASE},
        {"do": control.DO_HANDOVER, "digest": "wrong"},
    ],
)
def test_a_wrong_request_is_answered_and_changes_nothing(rig: Rig, request_: dict[str, Any]) -> None:
    rig.start()
    client = rig.client()
    client.ask(control.DO_SET_PEERS, peers=ENTRIES)
    client.sock.sendall(encode(request_))
    answer = client.answer()
    assert answer["ok"] is False
    assert answer["error"]
    assert client.ask(control.DO_HELLO)["digest"] == digest(ENTRIES)


def test_garbage_ends_its_own_connection_only(rig: Rig) -> None:
    rig.start()
    good, bad, long = rig.client(), rig.client(), rig.client()
    bad.sock.sendall(b"\0\0\0\4oops")
    assert bad.closed
    long.sock.sendall(b"\xff\xff\xff\xff")
    assert long.closed
    assert good.ask(control.DO_HELLO)["ok"]


def test_too_many_clients_are_turned_away(rig: Rig) -> None:
    rig.start()
    clients = [rig.client() for _ in range(16)]
    assert all(client.ask(control.DO_HELLO)["ok"] for client in clients)
    assert rig.client().closed
    clients[0].sock.close()
    assert clients[1].ask(control.DO_HELLO)["ok"]


def test_a_client_that_does_not_read_holds_up_nobody(rig: Rig) -> None:
    rig.start()
    slow, quick = rig.client(), rig.client()
    quick.ask(control.DO_SET_PEERS, peers=[Entry(f"k{n}", (), ()) for n in range(5000)])
    for _ in range(50):  # more than the two sockets' buffers hold
        slow.sock.sendall(encode({"do": control.DO_EXPORT}))
    assert quick.ask(control.DO_HELLO)["ok"]
    sizes = {len(slow.answer()["peers"]) for _ in range(50)}
    assert sizes == {5000}


def test_a_dead_engines_socket_is_replaced_and_a_living_ones_is_not(rig: Rig) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(rig.path))
    rig.start()
    with pytest.raises(OSError, match="in use"):
        session.listen(rig.path)
    assert rig.client().ask(control.DO_HELLO)["ok"]
    assert rig.path.stat().st_mode & 0o777 == 0o600


def test_stop_ends_it_and_removes_the_socket(rig: Rig) -> None:
    rig.start()
    assert rig.client().ask(control.DO_STOP) == {"ok": True}
    rig.join()
    assert not rig.path.exists()


# -------------------------------------------------------------------------------------------------- handover


INNER = bytes(IP(src="10.5.62.2", dst="10.5.72.2") / UDP())


def send(port: int, count: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far:
        far.bind((FAR, 0))
        for _ in range(count):
            far.sendto(INNER, (NEAR, port))


def received(client: Client) -> int:
    traffic = client.ask(control.DO_STATS, offset=0, limit=100)["traffic"]
    return int(traffic["far"][2])


FAR_PEER = Entry("far", ("10.5.62.0/24",), (FAR,))


def test_nothing_is_lost_between_an_engine_and_its_successor(rig: Rig) -> None:
    """Packets that come while nobody reads wait in the socket; counters and later clients go to the successor."""
    old = rig.start()
    port = free_port()
    client = rig.client()
    client.ask(control.DO_CONFIGURE, config=config(port))
    client.ask(control.DO_SET_PEERS, peers=[*ENTRIES, FAR_PEER])
    send(port, 30)
    while received(client) < 30:
        pass
    inheritance = take_over(rig.path)
    send(port, 40)
    late = rig.client()  # waits in the listener that both have
    new = Engine(rig.path, inheritance.listener, "two")
    new.inherit(inheritance)
    rig.run(new)
    inheritance.release()
    assert client.closed
    hello = late.ask(control.DO_HELLO)
    assert (hello["tag"], hello["digest"]) == ("two", digest([*ENTRIES, FAR_PEER]))
    while received(late) < 70:
        pass
    send(port, 5)
    while received(late) < 75:
        pass
    assert received(late) == 75
    assert old.table.get("far").counters()[2] == 30  # type: ignore[union-attr]


def test_a_successor_that_dies_before_it_runs_leaves_the_old_one_at_work(rig: Rig) -> None:
    rig.start()
    port = free_port()
    client = rig.client()
    client.ask(control.DO_CONFIGURE, config=config(port))
    client.ask(control.DO_SET_PEERS, peers=[FAR_PEER])
    inheritance = take_over(rig.path)
    send(port, 10)
    inheritance.close()
    while received(client) < 10:
        pass
    assert received(client) == 10


def test_a_table_that_changes_meanwhile_is_exported_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.start()
    client = rig.client()
    client.ask(control.DO_SET_PEERS, peers=ENTRIES)
    ask, exports = handover._ask, []

    def asked(connection: socket.socket, request: Any) -> dict[str, Any]:
        answer = ask(connection, request)
        exports.append(len(answer["peers"]))
        if len(exports) == 1:
            client.ask(control.DO_ADD_PEERS, peers=[FAR_PEER])
        return answer

    monkeypatch.setattr(handover, "_ask", asked)
    inheritance = take_over(rig.path)
    assert exports == [len(ENTRIES), len(ENTRIES) + 1]
    assert FAR_PEER in inheritance.peers
    inheritance.close()


def test_only_one_successor_at_a_time(rig: Rig) -> None:
    """The second waits unheard until the first has gone."""
    rig.start()
    inheritance = take_over(rig.path)
    handover_deadline = handover._DEADLINE
    handover._DEADLINE = 0.2
    try:
        with pytest.raises((ControlError, TimeoutError)):
            take_over(rig.path)
    finally:
        handover._DEADLINE = handover_deadline
    inheritance.close()
    assert rig.client().ask(control.DO_HELLO)["ok"]
