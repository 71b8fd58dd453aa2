"""BFD's process and its owner: orders that are none, another make, whose path it is, and failures all counted."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict
from math import inf
from pathlib import Path
from typing import Any

import pytest

from bfd import client as module
from bfd import orders
from bfd.client import Client
from bfd.engine import Engine
from bfd.orders import Status
from bfd.packet import Packet, State
from bfd.session import Timing
from bfd.sessions import Place, Sessions, Wanted
from tests.support.bfd import FAR

OTHER = bytes((192, 0, 2, 2))
PLACED = [OTHER.hex(), "", False, 0]


class Owner:
    """An engine that runs no loop, and its owner's end of the socket."""

    def __init__(self, path: str = "") -> None:
        self.ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ours.setblocking(False)
        self.engine = Engine(its, path, "tag")

    def close(self) -> None:
        self.ours.close()
        self.engine._hang_up()
        self.engine._unlisten()

    def order(self, octets: bytes) -> list[dict[str, Any]]:
        """What is answered."""
        self.ours.send(octets)
        self.engine._owner(1)
        self.engine._report()
        return self.heard()

    def news(self) -> list[dict[str, Any]]:
        """What it says of what has changed, as in a turn of its loop."""
        self.engine._unreported.update(dict.fromkeys(self.engine.sessions.take_changes()))
        self.engine._report()
        return self.heard()

    def heard(self) -> list[dict[str, Any]]:
        """What it has said since."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while octets := self.ours.recv(orders.LONGEST):
                found.append(json.loads(octets))
        return found


@pytest.fixture
def owner() -> Iterator[Owner]:
    made = Owner()
    yield made
    made.close()


@pytest.mark.parametrize(
    "order",
    [
        b"rubbish",
        b"\xff\xfe",
        b"[]",
        b"7",
        b'"do"',
        b"{}",
        b'{"do":"dance"}',
        b'{"do":null}',
        b'{"do":"set"}',
        json.dumps({"do": "set", "key": 1, "place": PLACED, "timing": {"min_tx": 1}}).encode(),
        json.dumps({"do": "set", "key": 1, "place": PLACED, "timing": {"pace": 1}}).encode(),
        json.dumps({"do": "set", "key": 1, "place": ["x", "", False, 0], "timing": {}}).encode(),
        json.dumps({"do": "set", "key": 1, "place": PLACED, "timing": {}, "resumed": {"mine": 1}}).encode(),
        b'{"do":"remove"}',
        b'{"do":"remove","key":[]}',
        b'{"do":"outlive"}',
        b'{"do":"outlive","seconds":"long"}',
    ],
)
def test_an_order_that_is_none_is_refused(owner: Owner, order: bytes) -> None:
    """It ends neither the process nor a session."""
    owner.order(orders.message(orders.to_set(9, Place(FAR), Timing())))
    answers = owner.order(order)
    assert [list(answer) for answer in answers if "status" not in answer] == [["refused"]]
    assert list(owner.engine.sessions.members) == [9]
    assert not owner.engine._stopping


def test_an_order_for_nobody_changes_nothing(owner: Owner) -> None:
    owner.order(orders.message(orders.to_set(9, Place(FAR), Timing())))
    assert owner.order(b'{"do":"remove","key":77}') == []
    assert list(owner.engine.sessions.members) == [9]


# ---------------------------------------------------------------------------------------------------- whose path


def test_who_ends_later_leaves_its_successors_path(tmp_path: Path) -> None:
    """One that was stopped when its successor came wakes up and ends."""
    path = str(tmp_path / "bfd")
    first, second = Owner(path), Owner(path)
    first.engine._unlisten()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.connect(path)
    finally:
        first.close()
        second.close()
    assert not Path(path).exists()


def test_who_is_about_to_end_is_not_found(tmp_path: Path) -> None:
    """While it says goodbye nobody takes it over, to lose it a moment later."""
    path = tmp_path / "bfd"
    owner = Owner(str(path))
    assert path.exists()
    owner.order(b'{"do":"stop"}')
    assert not path.exists()
    owner.close()


# ------------------------------------------------------------------------------------------- one of another make


class Old:
    """A process of another release at that path: what it says, and what it is told."""

    def __init__(self, path: Path, *reports: dict[str, Any] | bytes) -> None:
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self.listener.bind(str(path))
        self.listener.listen()
        self.reports = reports
        self.told: list[Any] = []

    async def serve(self) -> None:
        loop = asyncio.get_running_loop()
        control, _ = await loop.sock_accept(self.listener)
        self.listener.close()
        with control:
            while octets := await loop.sock_recv(control, orders.LONGEST):
                order = json.loads(octets)["do"]
                self.told.append(order)
                if order == "yield":
                    return
                for report in self.reports:
                    control.send(report if isinstance(report, bytes) else json.dumps(report).encode())


@contextlib.asynccontextmanager
async def following(old: Old, path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[dict[str, Any]]]:
    """What a client that finds it tells the process that it starts instead."""
    loop = asyncio.get_running_loop()
    orders_given: list[dict[str, Any]] = []
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    its.setblocking(False)
    monkeypatch.setattr(module, "_ANSWER", 0.5)

    async def spawn(self: Client) -> socket.socket:
        return ours

    monkeypatch.setattr(Client, "_spawn", spawn)
    serving = loop.create_task(old.serve())
    client = Client(path=str(path))
    client.set("peer", Wanted(Place(FAR), Timing()))
    with its:
        async with asyncio.timeout(20):
            while not any(order["do"] == "set" and order["key"] > 0 for order in orders_given):
                orders_given.append(json.loads(await loop.sock_recv(its, orders.LONGEST)))
            await serving
        yield orders_given
        await client.leave()


KNOWN = {"state": "up", "mine": 5, "yours": 6, "remote_multiplier": 3, "remote_min_tx": 1, "remote_min_rx": 1}
TIMED = {"min_tx": 300_000, "min_rx": 300_000, "multiplier": 3}


@pytest.mark.parametrize(
    ("reports", "resumed"),
    [
        ([{"found": PLACED, "status": {**KNOWN, **TIMED, "new": 1}}, {"found_all": True}], [5]),
        ([{"found": PLACED, "status": {**KNOWN, **TIMED}}, {"found_all": True}], [5]),
        ([{"found": PLACED, "status": {**KNOWN, **TIMED, "mine": 0}}, {"found_all": True}], []),
        ([{"found": PLACED, "status": {**KNOWN, **TIMED, "min_tx": 1}}, {"found_all": True}], []),
        ([{"found": PLACED, "status": {}}, {"found_all": True}], []),
        ([{"found": [*PLACED, "eth0"], "status": KNOWN}, {"found_all": True}], []),
        ([{"found": PLACED, "status": [1]}, {"found_all": True}], []),
        ([[1]], []),
        ([{"found_all": True}], []),
        ([b"\0\1\2"], []),
        ([], []),
    ],
)
async def test_one_of_another_release_yields(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reports: list[Any], resumed: list[int]
) -> None:
    """However it speaks: else it would keep the ports for the restart time. What is understood is gone on with."""
    path = tmp_path / "bfd"
    old = Old(path, *([{"hello": 1, "tag": "old"}, *reports] if reports else []))
    async with following(old, path, monkeypatch) as given:
        assert old.told == ["hello", "yield"]
        assert [order["resumed"]["mine"] for order in given if order["do"] == "set" and order["key"] < 0] == resumed


async def test_timers_that_changed_while_there_was_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RFC 5880 section 6.8.3: what the neighbour believes counts until it has answered a poll."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    its.setblocking(False)

    async def spawn(self: Client) -> socket.socket:
        return ours

    monkeypatch.setattr(Client, "_spawn", spawn)
    client, slower = Client(), Timing(2_000_000, 2_000_000, 5)
    client.set("peer", Wanted(Place(FAR), slower))
    client.status["peer"] = Status(**{**KNOWN, **TIMED})
    given: list[dict[str, Any]] = []
    with its:
        async with asyncio.timeout(20):
            while len(given) < 2:
                order = json.loads(await asyncio.get_running_loop().sock_recv(its, orders.LONGEST))
                given += [order] if order["do"] == "set" else []
        await client.leave()
    assert [order["timing"] for order in given] == [TIMED, asdict(slower)]
    assert (given[0]["key"], given[0]["resumed"]["mine"], given[1]["key"]) == (1, 5, 1)
    sessions, clock = Sessions(lambda: 1.0), 0.0
    for order in given:
        sessions.set(*orders.set_of(order)[:3], clock, orders.set_of(order)[3])
    assert (sessions.members[1].session.interval, sessions.members[1].wanted) == (0.3, slower)


# ----------------------------------------------------------------------------------------------- what is counted


async def test_a_failure_before_the_first_report_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The owner was busy: a session came up, failed, and that is the first that is heard of it."""
    heard: list[tuple[Status, Status]] = []
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    told = asyncio.Event()

    async def spawn(self: Client) -> socket.socket:
        return ours

    def changed(name: str, before: Status, now: Status) -> None:
        heard.append((before, now))
        told.set()

    monkeypatch.setattr(Client, "_spawn", spawn)
    client = Client(changed)
    client.set("peer", Wanted(Place(FAR), Timing()), Status("waiting", failures=4))
    with its:
        its.send(json.dumps({"key": 1, "status": {"state": "down", "failures": 1}}).encode())
        async with asyncio.timeout(20):
            await told.wait()
        ((before, now),) = heard
        assert (before.failures, now.failures) == (4, 5)
        await client.leave()


def test_a_neighbour_that_changes_all_the_time_does_not_flood_the_owner(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A packet each millisecond, each another: the owner hears of it every 20, and of the last of it soon after."""
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    owner.order(orders.message(orders.to_set(9, Place(FAR), Timing())))
    told = owner.news()
    assert len(told) == 1
    for number in range(1, 200):
        now = 1000.0 + number / 1000
        octets = Packet(State.ADMIN_DOWN, 77, 0, 3, number, 100_000).encode()
        owner.engine.sessions.receive(octets, FAR, 255, now, multihop=False)
        told += owner.news()
    assert 9 <= len(told) <= 11
    assert owner.engine._tell_at == pytest.approx(1000.2, abs=0.002)
    now = owner.engine._tell_at
    told += owner.news()
    assert told[-1]["status"]["remote_min_tx"] == 199
    assert owner.engine._tell_at == inf


def test_the_next_owner_counts_its_own_failures(owner: Owner) -> None:
    sessions = owner.engine.sessions
    sessions.set(1, Place(FAR), Timing(), 0.0)
    sessions.members[1].session.failures = 3
    sessions.orphan()
    sessions.set(7, Place(FAR), Timing(), 1.0)
    assert sessions.members[7].session.failures == 0
