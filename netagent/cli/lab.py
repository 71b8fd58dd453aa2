"""`netagent lab`: a whole cluster in network namespaces on this machine, with real agents and a real etcd."""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from netagent.cli import output

if TYPE_CHECKING:
    from netagent.lab.lab import Lab, Progress
    from netagent.lab.topology import Topology

DESCRIPTION = (
    "Runs a whole cluster on this machine: hosts, containers and switches are network namespaces, etcd and the "
    "agents are real. Everything lies inside one user, mount, network and PID namespace: no root is needed where "
    "the kernel allows that, nothing of the machine is touched, and when the lab goes down nothing is left."
)


def configure(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="lab_command", metavar="COMMAND")

    def add(name: str, text: str, do: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.add_argument("--name", default="lab", help="which lab; several may be up side by side (lab)")
        sub.set_defaults(do=do)
        return sub

    up = add("up", "make a lab and wait until its containers reach each other", _up)
    up.add_argument("--nodes", type=_count(200), default=3, metavar="N", help="number of hosts, at most 200 (3)")
    up.add_argument(
        "--backend",
        default="vxlan",
        metavar="B",
        help='backend, or its JSON: \'{"Type": "vxlan", "VNI": 7}\' (vxlan)',
    )
    up.add_argument(
        "--topology",
        choices=("flat", "racks"),
        default="flat",
        help="flat: one L2 segment; racks: two, joined by a router (flat)",
    )
    up.add_argument("--ipv6", action="store_true", help="IPv6 beside IPv4")
    up.add_argument("--no-ipv4", action="store_true", help="no IPv4 in the containers' network; needs --ipv6")
    add("demo", "take three hosts through host-gw, vxlan and udp, and leave vxlan up (make lab)", _demo)
    ping = add("ping", "ping every pair of containers, and from each host the others' containers", _ping)
    ping.add_argument("--count", type=_count(1000), default=1, metavar="N", help="echo requests to each pair (1)")
    ping.add_argument("--timeout", type=_seconds, default=1.0, metavar="SECONDS", help="wait for late replies (1)")
    ping.add_argument("--json", action="store_true", help="print JSON")
    status = add("status", "show each host, its subnet and what its agent says", _status)
    status.add_argument("--json", action="store_true", help="print JSON")
    run = add("exec", "run a command on a host, or in its container", _exec)
    run.add_argument("node", metavar="NODE", help="h1, h2 ...; also etcd, router and the racks' switches")
    run.add_argument("--container", action="store_true", help="in the host's container")
    run.add_argument("argv", metavar="CMD", nargs="+", help="the command, after --")
    logs = add("logs", "show what the agents (or etcd) log", _logs)
    logs.add_argument("node", metavar="NODE", nargs="?", help="h1, h2 ... or etcd (all agents)")
    logs.add_argument("-f", "--follow", action="store_true", help="stay, and show what comes")
    listing = add("list", "list the labs of this user", _list)
    listing.add_argument("--json", action="store_true", help="print JSON")
    down = add("down", "end a lab and remove everything of it, after a crash too", _down)
    down.add_argument("--all", action="store_true", help="end every lab of this user")


def run(args: argparse.Namespace) -> int:
    return int(args.do(args))


def _count(most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not re.fullmatch("[0-9]{1,4}", text) or not 1 <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {most}")
        return int(text)

    return read


def _seconds(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds below 1000")
    return float(text)


def _progress() -> Progress:
    """Says on standard error what is being done, and when (seconds since the start)."""
    begun = time.monotonic()
    return lambda text: print(f"{time.monotonic() - begun:5.1f} s  {text}", file=sys.stderr, flush=True)


async def _interruptible(job: Coroutine[Any, Any, int]) -> int:
    """Like Ctrl-C, SIGTERM ends the job by cancelling it, so that it clears away what it made."""
    task = asyncio.ensure_future(job)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


async def _make(name: str, lab: Lab, then: Callable[[], Coroutine[Any, Any, int]]) -> int:
    """Bring a lab up and go on with `then`. Whatever goes wrong on the way up, or Ctrl-C: nothing is left."""
    from netagent.lab import labs

    with labs.making(name) as lab.directory:
        try:
            await lab.up(ephemeral=False)
        except BaseException:
            await lab.down()
            raise
    try:
        return await then()
    except asyncio.CancelledError:
        await lab.down()
        raise
    except Exception:
        more = labs.suffix(name)
        print(
            f"The lab stays up to be looked at: `netagent lab logs{more}`; `netagent lab down{more}` ends it.",
            file=sys.stderr,
        )
        raise


# ----------------------------------------------------------------------------------------------- commands


def _plan(args: argparse.Namespace) -> Topology:
    """The lab that is asked for, with a configuration that agents would take: nothing is set up for any other."""
    import json

    from netagent import network_config
    from netagent.cli.config import backend_findings
    from netagent.errors import UsageError
    from netagent.lab import topology

    backend = args.backend
    if backend.lstrip().startswith("{"):
        try:
            backend = json.loads(backend)
        except (ValueError, RecursionError) as error:
            raise UsageError(
                f"not valid JSON: {error}", where="--backend", remedy='Write it like \'{"Type": "vxlan", "VNI": 7}\''
            ) from None
    if args.no_ipv4 and not args.ipv6:
        raise UsageError("--no-ipv4 leaves no family", remedy="Add --ipv6")
    plan = topology.build(args.topology, args.nodes, backend, ipv4=not args.no_ipv4, ipv6=args.ipv6)
    parsed = network_config.parse(json.dumps(plan.config), "--backend")
    for finding in (*parsed.findings, *backend_findings(parsed.network, "--backend")):
        output.warn(finding)
    return plan


def _up(args: argparse.Namespace) -> int:
    from netagent.lab import labs
    from netagent.lab.lab import Lab

    plan = _plan(args)
    lab = Lab(plan, progress=_progress())

    async def then() -> int:
        await lab.ready()
        matrix = await lab.ping(count=2)
        pairs = f"{matrix.good} of {len(matrix.cells)} pairs of containers"
        print(f"{len(lab.nodes)} hosts are up with {plan.backend}; {pairs} reach each other.")
        if not matrix.ok:
            cell = matrix.failed[0]
            print(
                f"{cell.source} does not reach {cell.target}'s container, for one: its agent's findings tell why "
                f"(`netagent lab exec {cell.source}{labs.suffix(args.name)} -- netagent status`)."
            )
        _hints(args.name)
        return 0

    return asyncio.run(_interruptible(_make(args.name, lab, then)))


def _hints(name: str) -> None:
    from netagent.lab.labs import suffix

    more = suffix(name)
    print("\nTry:")
    print(f"  netagent lab exec h1{more} -- netagent status")
    print(f"  netagent lab ping{more}")
    print(f"  netagent lab exec h1{more} --container -- ip route")
    print(f"\nnetagent is .venv/bin/netagent; `netagent lab down{more}` ends the lab.")


def _demo(args: argparse.Namespace) -> int:
    from netagent.lab import demo, labs, topology
    from netagent.lab.lab import Lab

    if asyncio.run(labs.end(args.name)):
        print("an earlier lab was taken down", file=sys.stderr)
    lab = Lab(topology.build("flat", 3, demo.BACKENDS[0]), progress=_progress())

    async def then() -> int:
        rows = await demo.run(lab)
        titles = ["backend", "pings", "RTT p50", "MTU", "a packet from h1 to h2's container takes"]
        table = [
            [row.backend, "not tried", "", "", row.why_not]
            if row.why_not
            else [row.backend, f"{row.good}/{row.pairs}", _milliseconds(row.median), str(row.mtu), row.route]
            for row in rows
        ]
        print()
        output.table(titles, table)
        print(f"\nThe lab is up with {demo.LEAVE}.")
        _hints(args.name)
        return 0 if all(row.ok for row in rows) else 1

    return asyncio.run(_interruptible(_make(args.name, lab, then)))


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.3f} ms"


def _ping(args: argparse.Namespace) -> int:
    from netagent.lab import labs

    lab = labs.find(args.name)
    matrix = asyncio.run(lab.ping(count=args.count, timeout=args.timeout, hosts=True))
    if args.json:
        output.json({"ok": matrix.ok, "median": matrix.median, "sent": matrix.sent, "pairs": matrix.cells})
        return 0 if matrix.ok else 1
    for family in lab.topology.families:
        for from_host in (False, True):
            titles, rows = matrix.rows(family, from_host=from_host)
            if rows:
                output.table(titles, rows)
                print()
    print(f"{matrix.good} of {len(matrix.cells)} pairs answered, RTT p50 {_milliseconds(matrix.median)}")
    return 0 if matrix.ok else 1


def _status(args: argparse.Namespace) -> int:
    from netagent.lab import labs, report

    lab = labs.find(args.name)
    nodes = asyncio.run(report.look(lab))
    if args.json:
        output.json({"backend": lab.topology.config.get("Backend"), "kind": lab.topology.kind, "nodes": nodes})
    else:
        output.table(
            ["host", "rack", "address", "subnet", "container", "agent", "says"],
            [[n.name, n.rack, n.address, n.subnet, n.container, n.state, n.says] for n in nodes],
            states=5,
        )
    return max((report.EXIT.get(node.state, 2) for node in nodes), default=0)


def _exec(args: argparse.Namespace) -> int:
    from netagent.lab import labs
    from netagent.lab.space import environment

    lab = labs.find(args.name)
    others = {"etcd", *(rack.name for rack in lab.topology.racks), *(router.name for router in lab.topology.routers)}
    if args.node in others:
        command, env = lab.space.command(args.node, args.argv), environment()
    else:
        node = lab[args.node]
        command, env = node.command(*args.argv, container=args.container), node.environment()
    sys.stdout.flush()
    os.execvpe(command[0], command, env)  # noqa: S606 (a list, and no shell is wanted)


def _logs(args: argparse.Namespace) -> int:
    from netagent.lab import labs, report

    lab = labs.find(args.name)
    if args.node == "etcd":
        paths = {"etcd": lab.etcd.log}
    else:
        paths = {name: lab[name].log for name in ([args.node] if args.node else lab.nodes)}
    report.logs(paths, follow=args.follow)
    return 0


def _list(args: argparse.Namespace) -> int:
    from netagent.lab import labs

    entries = list(labs.every())
    if args.json:
        output.json(entries)
    elif entries:
        output.table(
            ["lab", "state", "nodes", "topology", "backend", "directory"],
            [[e.name, e.state, str(e.nodes), e.kind, e.backend, e.directory] for e in entries],
        )
    else:
        print("there is no lab; `netagent lab up` makes one")
    return 0


def _down(args: argparse.Namespace) -> int:
    from netagent.lab import labs

    names = [entry.name for entry in labs.every()] if args.all else [args.name]
    for name in names:
        print(f"lab {name!r} is gone" if asyncio.run(labs.end(name)) else f"there is no lab {name!r}")
    return 0
