"""BFD at 3 x 100 ms: how soon a silent peer is found, and that none is found while everything is busy.

    python -m tests.bench bfd [--minutes 1] [--rounds 5] [--peers bird frr ours] [--routes 100000] [--hogs N]
                              [--bird-first]

One daemon of ours and its peers, on one bridge, all of the same AS. Two things are measured:

- detection: what keeps the time of one side is stopped (SIGSTOP), and the other is asked all the time until it says
  that BFD is down, in milliseconds from the stop. What had passed since the last packet, 50 ms on average, is in
  everybody's favour. `--rounds 0` leaves it out.
- false downs: for so many minutes each core has a process that only computes (`--hogs`), and a neutral sender tells
  ours all its routes, over and over, each time with other attributes; ours reflects them to the peers. Counted is how
  often a session with BFD went down on either side, and how late ours was at most. `--minutes 0` leaves it out.
  Whose fault each was is seen on the wire (tests/bench/bfdwire.py): the one found down had been silent for the
  detection time, or the finder had not listened. `--bird-first` gives BIRD a real-time priority, as ours has.

Exit status 1 when a bar is missed: a silent peer is found within 350 ms, and ours is never to blame for a down: it is
not silent, and finds nobody down who is not.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.bench.bfdwire import Wire
from tests.bench.bgpload import ASN, Load, Peer, address, cpu, next_hop, prefix
from tests.bench.report import progress, table
from tests.support.bgp_ours import Ours
from tests.support.bgp_probe import attributes, update
from tests.support.bird import Bird
from tests.support.frr import Frr
from tests.support.netns import Namespaces
from tests.support.routers import Bfd, Peering, Router, Site, directory

KINDS: dict[str, type[Router]] = {"bird": Bird, "frr": Frr, "ours": Ours}
UNDER_LOAD = ("bird", "ours")
"""Peers that are in time themselves on a busy machine: bfdd of FRR 8.4 is sometimes late for lack of a priority."""
BAR = 0.350
DETECTION = 0.300
PATIENCE = 30.0
DUT = "10.98.0.1"


@asynccontextmanager
async def stand(names: Sequence[str]) -> AsyncIterator[tuple[Ours, dict[str, Router], Load, Wire]]:
    """Ours, its peers by name, the sender of routes and the wire of ours; all sessions stand, all BFD is up."""
    with Namespaces() as net, directory() as path:
        bridge = net.switch("bridge", {})
        spaces = []
        places = [DUT, *(f"10.98.0.{number}" for number in range(2, 2 + len(names))), address(0)]
        for number, place in enumerate(places):
            space = net.make(f"n{number}")
            net.veth(space, "eth0", bridge, f"p{number}")
            bridge.ip(f"link set p{number} master br0")
            space.ip(f"address add {place}/16 dev eth0")
            space.ip(f"address add fd98::{number + 1}/64 dev eth0")
            spaces.append(space)
        peerings = [Peering(place, ASN, ("ipv4",), bfd=Bfd()) for place in places[1:-1]]
        sender = Peering(address(0), ASN, ("ipv4",), client=True, passive=True, hold_time=240)
        ours = Ours(Site(spaces[0], path / "dut", ASN, DUT, "fd98::1", (*peerings, sender), options={"quiet": True}))
        peers = {}
        for number, name in enumerate(names, 1):
            back = (Peering(DUT, ASN, ("ipv4",), bfd=Bfd()),)
            site = Site(spaces[number], path / name, ASN, places[number], f"fd98::{number + 1}", back)
            peers[name] = KINDS[name](site)
        load = Load(spaces[-1], DUT)
        wire = Wire(bridge, "p0", DETECTION)
        try:
            await asyncio.gather(*(router.start() for router in (ours, *peers.values())))
            await all_up(ours, peers)
            yield ours, peers, load, wire
        finally:
            wire.close()
            load.close()
            await asyncio.gather(*(router.kill() for router in (ours, *peers.values())))
            await asyncio.gather(*(router.clean() for router in (ours, *peers.values())))


async def all_up(ours: Ours, peers: dict[str, Router]) -> None:
    for peer in peers.values():
        await ours.established(peer.site.address)
        await ours.bfd_is(peer.site.address, "up", lambda view: view.detection == DETECTION * 1000)
        await peer.bfd_is(DUT, "up", lambda view: view.detection == DETECTION * 1000)


# ------------------------------------------------------------------------------------------------------- detection


async def detect(names: Sequence[str], rounds: int) -> bool:
    """Print how soon each finds the other silent; whether ours is within the bar."""
    rows: list[list[str]] = []
    met = True
    async with stand(names) as (ours, peers, _, _):
        for name, peer in peers.items():
            found: dict[str, list[float]] = {"ours": [], name + " ": []}
            for number in range(rounds):
                progress(f"detection: ours and {name}, round {number + 1} of {rounds}")
                found["ours"].append(await silence(pids(peer, await engine(peer)), ours, peer.site.address))
                await all_up(ours, peers)
                found[name + " "].append(await silence([await ours.engine()], peer, DUT))
                await all_up(ours, peers)
            for finder, times in found.items():
                if not times:
                    continue
                bar = "" if finder != "ours" else "met" if max(times) <= BAR else "MISSED"
                met = met and bar != "MISSED"
                silent = name if finder == "ours" else "ours"
                milliseconds = (statistics.median(times) * 1000, max(times) * 1000)
                rows.append([finder.strip(), silent, *(f"{value:.0f}" for value in milliseconds), bar])
    print(f"From the stop, {rounds} rounds; the bar is {BAR * 1000:.0f} ms.\n")
    print(table(["who finds", "who is silent", "median, ms", "worst, ms", ""], rows), flush=True)
    return met


async def engine(peer: Router) -> int | None:
    return await peer.engine() if isinstance(peer, Ours) else None


def pids(peer: Router, more: int | None) -> list[int]:
    return [process.pid for process in peer.processes] + ([more] if more else [])


async def silence(stopped: Sequence[int], finder: Router, place: str) -> float:
    """Stop these, and see how long the finder takes; they go on afterwards."""
    try:
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        while (await finder.bfd(place)).up:
            if time.monotonic() - began > PATIENCE:
                raise RuntimeError(f"{finder} does not find the other one silent")
            await asyncio.sleep(0.001)
        return time.monotonic() - began
    finally:
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


# ---------------------------------------------------------------------------------------------------- false downs


def streams(count: int) -> tuple[bytes, bytes]:
    """The same prefixes twice, with other attributes."""

    def one(local_pref: int) -> bytes:
        return b"".join(
            update(attributes(next_hop=next_hop(number), local_pref=local_pref), prefix(number))
            for number in range(count)
        )

    return one(100), one(200)


async def soak(names: Sequence[str], minutes: float, count: int, hogs: int, bird_first: bool) -> bool:
    """Print what was found down while all was busy, and whose fault it was; whether none was ours."""
    progress("false downs: making the routes")
    first, second = streams(count)
    async with stand(names) as (ours, peers, load, wire):
        for peer in peers.values():
            if bird_first and isinstance(peer, Bird):
                put_first(peer.processes[0].pid)
        sender = Peer(0)
        load.open([sender])
        wire.read()
        engine_pid, main_pid = await ours.engine(), ours.processes[0].pid
        used = {pid: cpu(pid) for pid in (engine_pid, main_pid)}
        busy = [burn() for _ in range(hogs)]
        began, rounds, latest, told = time.monotonic(), 0, 0.0, 0.0
        health: dict[str, Any] = {}
        try:
            while time.monotonic() - began < 60 * minutes:
                if load.unsent(sender) == 0:
                    load.send(sender, second if rounds % 2 else first)
                    rounds += 1
                load.run(0.1)
                sender.forget()
                wire.read()
                if time.monotonic() - told > 4:  # the process tells every five seconds
                    told = time.monotonic()
                    health = (await ours.command("summary"))[0]["bfd"]
                    latest = max(latest, health["latest"])
                    progress(
                        f"false downs: {told - began:4.0f} s, {rounds} times {count:,} routes, late {latest} ms, "
                        f"found down {len(wire.downs)} times"
                    )
        finally:
            for each in busy:
                each.kill()
                each.wait()
        seconds = time.monotonic() - began
        for_bfd, for_bgp = (100 * (cpu(pid) - used[pid]) / seconds for pid in (engine_pid, main_pid))
    print(
        f"{seconds / 60:.1f} minutes, {hogs} processes that only compute, {rounds} times {count:,} routes begun. "
        f"Ours: {health['scheduling']}, {latest} ms late at most; {for_bfd:.1f}% of a core for BFD, {for_bgp:.0f}% "
        "for BGP.\n"
    )
    places = [(name, peer.site.address) for name, peer in peers.items()]
    blame = wire.blame()
    rows = []
    for name, place in places:
        other = name if name != "ours" else "another of ours"
        for of, to, source, destination in (("ours", other, DUT, place), (other, "ours", place, DUT)):
            silence = f"{wire.longest(source, destination) * 1000:.0f}"
            rows.append(
                [of, to, silence, str(blame[destination, source, True]), str(blame[destination, source, False])]
            )
    columns = ["from", "to", "longest gap, ms", "found down, silent", "found down, not silent"]
    print(table(columns, rows), flush=True)
    return not any(is_ours(*key) for key in blame)


def is_ours(finder: str, found: str, silent: bool) -> bool:
    """Whose fault it was: of who had been silent, or of who had not listened."""
    return (found if silent else finder) == DUT


def put_first(pid: int) -> None:
    """All threads of a process get the least of the real-time priorities."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setscheduler(int(thread.name), os.SCHED_FIFO, os.sched_param(1))


def burn() -> subprocess.Popen[bytes]:
    """A process that only computes, and ends with us."""
    return subprocess.Popen(["setpriv", "--pdeathsig", "KILL", sys.executable, "-S", "-c", "while True: pass"])


async def run(args: argparse.Namespace) -> int:
    met = True
    if args.rounds:
        met = await detect(args.peers or list(KINDS), args.rounds)
    if args.minutes:
        print()
        met = await soak(args.peers or UNDER_LOAD, args.minutes, args.routes, args.hogs, args.bird_first) and met
    print(f"\n{'met' if met else 'MISSED'}", flush=True)
    return 0 if met else 1


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="tests.bench bfd", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", nargs="+", choices=list(KINDS), help="default: all, under load without frr")
    parser.add_argument("--routes", type=int, default=100_000)
    parser.add_argument("--hogs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--bird-first", action="store_true")
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    return asyncio.run(run(args))
