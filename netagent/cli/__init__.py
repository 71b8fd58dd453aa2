"""The command line: one module per command, imported only when that command is typed.

Convention for a command module `netagent/cli/<name>.py`:

    def configure(parser: argparse.ArgumentParser) -> None     adds its arguments, imports nothing heavy
    def run(args: argparse.Namespace) -> int                   does it; the exit code

A module may also have `DESCRIPTION`, the paragraph under `netagent <name> --help` and in the man page; how it is
typed, and exit codes of its own, are in examples.py. `run` raises NetagentError for what an operator can put right
(printed without a traceback, exit code from the error) and prints with `print`. Imports of grpc, aiohttp, rich or
asyncio belong into `run`, not at the top of the module:
`netagent --help` and completion must stay as fast as argparse is.
"""

from __future__ import annotations

from typing import NamedTuple


class Command(NamedTuple):
    module: str
    help: str


COMMANDS: dict[str, Command] = {
    "run": Command("netagent.cli.run", "run the agent on this host"),
    "init": Command("netagent.cli.init", "write the network's configuration to etcd"),
    "config": Command("netagent.cli.config", "check or show the network's configuration"),
    "lease": Command("netagent.cli.lease", "list, reserve and release subnets"),
    "status": Command("netagent.cli.status", "say whether this node works, and if not, why"),
    "peers": Command("netagent.cli.peers", "list the other nodes and the path to each"),
    "routes": Command("netagent.cli.routes", "list our routes, with who wants each and why"),
    "objects": Command("netagent.cli.objects", "list every kernel object that the agent holds"),
    "plan": Command("netagent.cli.plan", "show what the agent would change now"),
    "cleanup": Command("netagent.cli.cleanup", "remove from this host all that is netagent's"),
    "bgp": Command("netagent.cli.bgp", "show sessions and routes of the bgp backend"),
    "lab": Command("netagent.cli.lab", "run a whole cluster in network namespaces"),
    "completion": Command("netagent.cli.completion", "print a completion script for a shell"),
    "version": Command("netagent.cli.version", "print versions of netagent, Python, kernel and libraries"),
}
