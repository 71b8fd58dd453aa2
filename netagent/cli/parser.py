"""The parser of the whole command line, with the arguments of only those commands that are asked for."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Collection

from netagent import __version__
from netagent.cli import COMMANDS

DESCRIPTION = "Leases a subnet for this host in etcd and connects containers across hosts."
EPILOG = """\
Start here:  netagent lab up       a whole cluster on this machine, no root needed
             netagent status       does this node work, and if not, why
Set NETAGENT_DEBUG=1 to see tracebacks."""


def build_parser(configured: Collection[str]) -> argparse.ArgumentParser:
    """The parser with all commands named, and the arguments of those in `configured`."""
    parser = argparse.ArgumentParser(
        prog="netagent",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"netagent {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.help, allow_abbrev=False)
        if name in configured:
            module = importlib.import_module(command.module)
            sub.description = getattr(module, "DESCRIPTION", command.help[0].upper() + command.help[1:] + ".")
            module.configure(sub)
            sub.set_defaults(run=module.run)
    return parser
