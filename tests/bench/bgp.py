"""The BGP speaker beside BIRD, FRR and GoBGP, against its bars.

    python -m tests.bench bgp [--daemons ours bird frr gobgp] [--routes 10000 100000] [--clients 100] [--rounds 3]

Each daemon stands alone in a network namespace; in another one, a cable away, are one sender and the receivers, all
its iBGP clients, made of bytes (bgpload.py). A daemon is started afresh for each figure. What is measured:

- receive: CPU seconds of the daemon from the first octet to its rest, with no other peer; validation and decision
  included. Then one more client opens a session, and must be given every route.
- sessions: sender and receivers connect at once; seconds until the last session stands.
- reflect: the sender's routes, one an UPDATE and each with a next hop of its own; seconds from the first octet sent
  to the last received by the last receiver. Every receiver's set is then held against what was sent.
- reset: one more client with one route ends by a TCP reset; milliseconds until the last receiver has the withdrawal.
- into the FIB: the sender's routes, from its first octet to the last one in the kernel's table (bgp_fib.py).

FRR runs with coalesce-time 0, which is its better figure. Where the kernel is not asked for it is bgpd without zebra,
as the others are there: of each next hop that zebra tells of, bgpd 8.4 walks through all that it has, with 16,384 of
them thirty times the work. Exit status 1 when a bar is missed; at other sizes than the defaults none is looked at.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from tests.bench import bgp_fib
from tests.bench.bgp_fib import Fib
from tests.bench.bgpload import ASN, HOLD_TIME, Incomplete, Load, Peer, address, cpu, read, routes
from tests.bench.report import progress, table
from tests.support.bgp_ours import Ours
from tests.support.bgp_probe import attributes, update
from tests.support.bird import Bird
from tests.support.frr import Frr
from tests.support.gobgp import GoBgp
from tests.support.netns import Namespaces
from tests.support.routers import Peering, Router, Site, directory

DAEMONS: dict[str, type[Router]] = {"ours": Ours, "bird": Bird, "frr": Frr, "gobgp": GoBgp}
RECEIVE_BARS = {10_000: 0.15, 100_000: 1.5}
REFLECT_BAR, SESSIONS_BAR, RESET_BAR, FIB_BAR = 0.6, 0.5, 0.020, 0.4
CLIENTS, ROUNDS = 100, 3
ALONE = {"quiet": True, "alone": True}
PATIENCE = 400.0
TRIES = 10
SLOW = 30.0
"""Seconds of a round after which there is no other one."""


class Received(NamedTuple):
    cpu: float
    rss: float
    """MiB."""


class Reflected(NamedTuple):
    sessions: float
    wall: float
    cpu: float
    reset: float


@asynccontextmanager
async def stand(kind: type[Router], clients: int) -> AsyncIterator[tuple[Load, int]]:
    """A daemon with so many clients configured, and the load before it; with the daemon's process id."""
    with Namespaces() as net, directory() as path:
        there, here = net.make("dut"), net.make("load")
        net.veth(there, "eth0", here, "eth0")
        there.ip("address add 10.98.0.1/16 dev eth0")
        there.ip("address add fd98::1/64 dev eth0")
        for number in range(clients):
            here.ip(f"address add {address(number)}/16 dev eth0")
        peerings = tuple(
            Peering(address(number), ASN, ("ipv4",), client=True, passive=True, hold_time=HOLD_TIME)
            for number in range(clients)
        )
        router = kind(Site(there, path / "dut", ASN, "10.98.0.1", "fd98::1", peerings, options=ALONE))
        load = Load(here, "10.98.0.1")
        try:
            await router.start()
            yield load, router.processes[-1].pid
        finally:
            load.close()
            await router.kill()


def memory(pid: int) -> float:
    """Resident MiB of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


async def receive(kind: type[Router], count: int) -> Received:
    octets, expected = routes(count)
    async with stand(kind, 2) as (load, pid):
        sender, late = Peer(0), Peer(1)
        load.open([sender])
        at_rest(load, pid, 0.2)
        before = cpu(pid)
        load.send(sender, octets)
        at_rest(load, pid, 0.5, lambda: load.unsent(sender) == 0)
        used = cpu(pid) - before
        resident = memory(pid)
        load.open([late])
        load.until_quiet([late], lambda: read(late.octets())[0] == expected, PATIENCE)
    return Received(used, resident)


def at_rest(load: Load, pid: int, window: float, done: Callable[[], bool] = lambda: True) -> None:
    """Until the process has used less than 2% of a core for a whole window, after `done` has held."""
    patience = time.monotonic() + PATIENCE
    marks = [(time.monotonic(), cpu(pid))]
    while True:
        load.run(0.02)
        marks.append((time.monotonic(), cpu(pid)))
        if not done():
            marks = marks[-1:]
        elif marks[-1][0] - marks[0][0] > window:
            if marks[-1][1] - marks[0][1] < 0.02 * window:
                return
            del marks[0]
        if time.monotonic() > patience:
            raise Incomplete


async def reflect(kind: type[Router], count: int, clients: int, rounds: int) -> Reflected:
    octets, expected = routes(count)
    async with stand(kind, clients + 2) as (load, pid):
        sender, receivers, other = Peer(0), [Peer(number + 1) for number in range(clients)], Peer(clients + 1)
        sessions = load.open([sender, *receivers])
        at_rest(load, pid, 0.3)
        complete: dict[int, bool] = {}

        def done() -> bool:
            for number, receiver in enumerate(receivers):
                if not complete.get(number) and not same(receiver, expected):
                    return False
                complete[number] = True
            return True

        cache: dict[bytes, bool] = {}

        def same(receiver: Peer, wanted: dict[bytes, bytes]) -> bool:
            stream = receiver.octets()
            if stream not in cache:
                if len(cache) > 3:
                    cache.clear()
                cache[stream] = read(stream)[0] == wanted
            return cache[stream]

        gc.disable()
        before, start = cpu(pid), time.monotonic()
        load.send(sender, octets)
        load.until_quiet(receivers, done, PATIENCE)
        used = cpu(pid) - before
        gc.enable()
        end = max(receiver.at(read(receiver.octets())[1]) for receiver in receivers)
        resets = [withdrawal(load, other, receivers) for _ in range(rounds)]
    return Reflected(sessions, end - start, used, statistics.median(resets))


def withdrawal(load: Load, other: Peer, receivers: list[Peer]) -> float:
    """Seconds from a client's TCP reset to the last receiver's withdrawal of its one route."""

    def told() -> bool:
        return other.state == "down" or all(len(read(each.octets())[0]) == 1 for each in receivers)

    for _ in range(TRIES):  # GoBGP ends the first session after a reset by itself, now and then
        for receiver in receivers:
            receiver.forget()
        load.open([other])
        load.send(other, update(attributes(next_hop=other.address), "10.99.0.0/24"))
        load.until_quiet(receivers, told, PATIENCE)
        if other.state == "up":
            break
    else:
        raise Incomplete
    for receiver in receivers:
        receiver.forget()
    start = time.monotonic()
    load.reset(other)
    load.until_quiet(receivers, lambda: all(read(each.octets())[1] for each in receivers), PATIENCE)
    return max(each.at(read(each.octets())[1]) for each in receivers) - start


async def run(args: argparse.Namespace) -> int:
    received: dict[tuple[str, int], Received] = {}
    reflected: dict[str, Reflected] = {}
    installed: dict[str, Fib] = {}
    alone: dict[int, float] = {}
    for round_ in range(args.rounds):
        for name in args.daemons:
            kind = DAEMONS[name]
            for count in args.routes:
                progress(f"{name}: receive {count:,} ({round_ + 1} of {args.rounds})")
                new = await receive(kind, count)
                progress(f"  {new}")
                received[name, count] = min(new, received.get((name, count), new))
            old = reflected.get(name)
            if old and old.wall > SLOW:
                continue
            progress(f"{name}: reflect {args.routes[0]:,} to {args.clients} ({round_ + 1} of {args.rounds})")
            one = await reflect(kind, args.routes[0], args.clients, args.rounds)
            progress(f"  {one}")
            reflected[name] = Reflected(*map(min, one, old)) if old else one
        for metrics in (1, bgp_fib.METRICS):
            took = bgp_fib.alone(args.routes[0], metrics=metrics)
            alone[metrics] = min(took, alone.get(metrics, took))
        for name in args.daemons:
            if name == bgp_fib.AGENT or name in bgp_fib.ROUTERS:
                progress(f"{name}: {args.routes[0]:,} into the FIB ({round_ + 1} of {args.rounds})")
                now = await bgp_fib.fib(name, args.routes[0])
                progress(f"  {now}")
                installed[name] = Fib(*map(min, now, installed.get(name, now)))
    print(tables(args, received, reflected), flush=True)
    print(bgp_fib.shown(args.routes[0], installed, alone), flush=True)
    return bars(args, received, reflected, installed)


def tables(
    args: argparse.Namespace, received: dict[tuple[str, int], Received], reflected: dict[str, Reflected]
) -> str:
    """The figures, each with its ratio to BIRD's of the same run."""
    beside = "bird" if "bird" in args.daemons else args.daemons[0]

    def cell(value: float, other: float, digits: int) -> str:
        return f"{value:.{digits}f} ({value / other:.2f})"

    rows = []
    for name in args.daemons:
        row = [name]
        row += [cell(received[name, count].cpu, received[beside, count].cpu, 3) for count in args.routes]
        row.append(f"{received[name, args.routes[-1]].rss:.0f}")
        mine, theirs = reflected[name], reflected[beside]
        row += [cell(mine.wall, theirs.wall, 2), cell(mine.cpu, theirs.cpu, 2)]
        row += [cell(mine.sessions, theirs.sessions, 2), cell(mine.reset * 1000, theirs.reset * 1000, 1)]
        rows.append(row)
    columns = ["daemon", *(f"receive {count:,}, CPU s" for count in args.routes), "RSS then, MiB"]
    columns += [f"reflect {args.routes[0]:,} to {args.clients}, s", "CPU s"]
    columns += [f"{args.clients + 1} sessions, s", "reset to withdrawal, ms"]
    return f"Best of {args.rounds}; in brackets the ratio to {beside}.\n\n" + table(columns, rows)


def bars(
    args: argparse.Namespace,
    received: dict[tuple[str, int], Received],
    reflected: dict[str, Reflected],
    installed: dict[str, Fib],
) -> int:
    if "ours" not in args.daemons or args.clients != CLIENTS or args.routes[0] != 10_000:
        return 0
    mine = reflected["ours"]
    held = [
        (f"receive {count:,}, CPU s", received["ours", count].cpu, bar)
        for count, bar in RECEIVE_BARS.items()
        if count in args.routes
    ]
    held += [
        ("reflect 10,000 to 100, s", mine.wall, REFLECT_BAR),
        ("101 sessions, s", mine.sessions, SESSIONS_BAR),
        ("reset to withdrawal, s", mine.reset, RESET_BAR),
        ("10,000 into the FIB, s", installed["ours"].wall, FIB_BAR),
    ]
    rows = [[name, f"{value:.3f}", f"{bar:.3f}", "met" if value <= bar else "MISSED"] for name, value, bar in held]
    print(f"\n{table(['bar', 'ours', 'at most', ''], rows)}", flush=True)
    return int(any(value > bar for _, value, bar in held))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="tests.bench bgp", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--daemons", nargs="+", choices=list(DAEMONS), default=list(DAEMONS))
    parser.add_argument(
        "--routes", nargs="+", type=int, default=list(RECEIVE_BARS), help="the first is reflected too"
    )
    parser.add_argument("--clients", type=int, default=CLIENTS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    return asyncio.run(run(args))
