"""`netagent status`: a verdict in the first line, then what it rests on.

Rule: exit code 0 healthy, 1 degraded, 2 down. An agent that does not answer is down, and then the command says what
is still to be seen without it: what the last run knew, and the routes that still stand in the kernel.
"""

from __future__ import annotations

import argparse
import sys
import time

import msgspec

from netagent.cli import agent, output
from netagent.errors import AgentUnavailable
from netagent.status import Status, Verdict

DESCRIPTION = (
    "Says in its first line whether this node works, and below what that rests on: etcd, the subnet lease, the "
    "interface, the backend, the kernel, the peers, and findings with the next step for each. "
    "Exit code: 0 healthy, 1 degraded, 2 down."
)

EXIT = {"healthy": 0, "degraded": 1, "down": 2}
POLL_SECONDS = 1.0  # --watch
WAIT_POLL_SECONDS = 0.1  # --wait


def configure(parser: argparse.ArgumentParser) -> None:
    agent.add_arguments(parser)
    parser.add_argument("--all", action="store_true", help="show every peer, however many there are")
    parser.add_argument("--watch", action="store_true", help="stay, and show it again whenever it changes")
    parser.add_argument(
        "--wait", metavar="SECONDS", type=_seconds, help="wait until containers can be started, at most so long"
    )
    parser.add_argument(
        "--state-dir",
        metavar="DIR",
        help="state directory to look into when the agent does not answer ($NETAGENT_STATE_DIR, the settings file, "
        "/var/lib/netagent)",
    )


def run(args: argparse.Namespace) -> int:
    if args.wait is not None:
        _wait(args, time.monotonic() + args.wait)
    if args.watch:
        return _watch(args)
    try:
        status = agent.client(args).status(all_peers=args.all)
    except AgentUnavailable as error:
        return _unavailable(args, error)
    _show(args, status)
    return EXIT.get(status.verdict.state, 2)


def _show(args: argparse.Namespace, status: Status) -> None:
    if args.json:
        output.json(status)
        return
    from netagent.cli import report

    report.show(status)


def _wait(args: argparse.Namespace, end: float) -> None:
    """Return when the agent says that it is ready, or when the time is up."""
    while True:
        try:
            if agent.client(args).status().verdict.ready:
                return
        except AgentUnavailable:
            pass  # not started yet
        if time.monotonic() >= end:
            return
        time.sleep(WAIT_POLL_SECONDS)


def _watch(args: argparse.Namespace) -> int:
    """Until Ctrl-C. A terminal is redrawn; a pipe gets the whole again (with --json a line each) on each change."""
    last: object = None
    while True:
        try:
            status = agent.client(args).status(all_peers=args.all)
            seen: object = _steady(status)
        except AgentUnavailable as error:
            status, seen = None, str(error)
        # Ages tick on a terminal; elsewhere only a change is news.
        if seen != last or (output.on_terminal() and not args.json):
            if output.on_terminal() and not args.json:
                print("\x1b[H\x1b[2J", end="")
            if args.json:
                output.json(status if status is not None else {"verdict": _down(str(seen))}, indent=-1)
            elif status is None:
                print(f"{output.state('down')}: {seen}")
            else:
                _show(args, status)
            sys.stdout.flush()
        last = seen
        time.sleep(POLL_SECONDS)


def _steady(status: Status) -> Status:
    """The status without what moves though nothing changes."""
    replace = msgspec.structs.replace
    return replace(
        status,
        at=0.0,
        verdict=replace(status.verdict, reason="", reasons=()),
        etcd=replace(status.etcd, last_proof=0.0, as_of=0.0, revision=0, last_event=0.0),
        lease=replace(status.lease, expires=0.0, renewed=0.0),
        reconciler=replace(
            status.reconciler, passes=0, last_pass=0.0, last_pass_seconds=0.0, operations=0, failures=()
        ),
        backend=replace(status.backend, service={}),
    )


def _unavailable(args: argparse.Namespace, error: AgentUnavailable) -> int:
    from netagent.cli import aftermath

    left = aftermath.look(args.state_dir)
    if args.json:
        output.json({"verdict": _down(str(error)), "left": left})
    else:
        print(f"{output.state('down')}: {error}")
        aftermath.show(left)
    return EXIT["down"]


def _down(reason: str) -> Verdict:
    """The verdict on a node whose agent does not answer."""
    return Verdict(state="down", reason=reason, reasons=(reason,))


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return value
