"""`netagent cleanup`: remove from this host all that netagent put there, and nothing else."""

from __future__ import annotations

import argparse
import sys
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING

from netagent import config
from netagent.cli import agent, output
from netagent.errors import NetagentError, UsageError

if TYPE_CHECKING:
    from netagent.config import Settings
    from netagent.kernel.journal import Journal
    from netagent.model import Object

DESCRIPTION = (
    "Removes devices, addresses, routes, nexthops, neighbours, forwarding entries and the nft table of netagent, "
    "ends what outlives the agent, and puts changed settings of the host back to their old values. The agent must be "
    "stopped first. The node's id and subnet stay in the state directory, so that it gets the same subnet again; "
    "--purge removes them too. The lease in etcd stays until it ends: `netagent lease release --node NAME` frees it."
)


def configure(parser: argparse.ArgumentParser) -> None:
    config.add_arguments(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="show what would be done, also while the agent runs, and do nothing"
    )
    parser.add_argument("--purge", action="store_true", help="remove the state directory's content too")
    parser.add_argument("--yes", action="store_true", help="do not ask (needed where there is no terminal)")


def run(args: argparse.Namespace) -> int:
    import asyncio

    settings = config.load(args)
    if args.dry_run:
        return _foretell(settings, purge=args.purge)
    if not (args.yes or sys.stdin.isatty()):
        raise UsageError("this ends the network of every container here", remedy="Give --yes if that is meant")
    from netagent import app

    with app.alone(settings.state_dir):  # before the question: an agent that runs is no matter of yes or no
        if not args.yes:
            _ask(settings.node_name)
        return asyncio.run(_clean(settings, purge=args.purge))


def _ask(node: str) -> None:
    try:
        answer = input(f"Containers on {node} lose their network. Remove everything of netagent's? [y/N] ")
    except EOFError:
        print(file=sys.stderr)
        answer = ""
    if answer.lower() != "y":
        raise NetagentError("nothing was removed")


async def _clean(settings: Settings, *, purge: bool) -> int:
    """Everything of ours, under the lock of the state directory; exit code 1 if something stayed."""
    from netagent.kernel.host import open_host
    from netagent.model import KINDS
    from netagent.reconcile import Reconciler
    from netagent.registry import Registry
    from netagent.status import describe

    host = open_host(settings)
    try:
        for backend in Registry().values():
            await backend.dismantle(settings.run_dir)
        there = host.dump(KINDS)
        failures = await Reconciler(host).withdraw_all()
    finally:
        host.close()
    for failure in failures:
        print(f"cannot remove {describe(failure.op.object)}: {failure.message}", file=sys.stderr)
    print(f"removed {len(there) - len(failures)} kernel objects")
    for path in _files(settings, purge=purge):
        path.unlink(missing_ok=True)
        print(f"removed {path}")
    return 1 if failures else 0


def _foretell(settings: Settings, *, purge: bool) -> int:
    """What `_clean` would do, a line each. Changes nothing, and does not mind an agent that runs."""
    from netagent import unix
    from netagent.api import SOCKET_NAME
    from netagent.kernel.host import open_host
    from netagent.kernel.journal import Journal
    from netagent.model import KINDS

    host = open_host(settings)
    try:
        lines = list(filter(None, map(_line, host.dump(KINDS), repeat(Journal(settings.state_dir / "journal.json")))))
    finally:
        host.close()
    files = _files(settings, purge=purge)
    lines += [
        f"would end the process that answers at {path}"
        for path in files
        if path.name != SOCKET_NAME and unix.answers(path)
    ]
    lines += [f"would remove {path}" for path in files]
    print("\n".join(map(output.clean, lines)) or "nothing of netagent's is here")
    if agent.runs(settings.state_dir):
        print("an agent runs here: stop it before cleanup (`systemctl stop netagent`)", file=sys.stderr)
    return 0


def _line(obj: Object, journal: Journal) -> str:
    """What becomes of one of our objects; "" where it stays, since somebody else has changed it meanwhile."""
    from netagent.kernel.settings import journal_key
    from netagent.model import Offload, Sysctl
    from netagent.status import describe

    if not isinstance(obj, Sysctl | Offload):
        return f"would remove {obj.KIND} {describe(obj)}"
    entry = journal.get(journal_key(obj))
    if entry is None or entry.new != (obj.value if isinstance(obj, Sysctl) else obj.on):
        return ""
    return f"would put back {obj.KIND} {describe(obj)}, which was {_word(entry.old)}"


def _word(value: str | bool | None) -> str:
    return value if isinstance(value, str) else "on" if value else "off"


def _files(settings: Settings, *, purge: bool) -> list[Path]:
    """Files of ours that exist: those of the run directory, and with `purge` those of the state directory."""
    from netagent.api import SOCKET_NAME

    run = [settings.subnet_file, settings.run_dir / SOCKET_NAME, *settings.run_dir.glob("*.sock")]
    state = [path for path in settings.state_dir.glob("*") if path.name != "lock"] if purge else []
    return sorted({path for path in (*run, *state) if path.exists()})
