"""The `netagent` command: finds the module of the command, runs it, turns errors into one line and an exit code.

Exit codes: 0 done; 1 failed (`status`: degraded); 2 wrong usage or configuration, or the agent is down; 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Collection, Sequence

from netagent import __version__
from netagent.cli import COMMANDS
from netagent.errors import NetagentError

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


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    debug = os.environ.get("NETAGENT_DEBUG", "") not in ("", "0")
    try:
        # The first word that is no option names the command: the top level has no option with a value.
        named = next((word for word in words if not word.startswith("-")), "")
        args = build_parser({named}).parse_args(words)
        code = int(args.run(args))
        sys.stdout.flush()
    except NetagentError as error:
        if debug:
            raise
        print(f"netagent: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        if debug:
            raise
        return 130
    except BrokenPipeError:
        # The reader (head, less) went away. Point stdout elsewhere, or the interpreter complains when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


if __name__ == "__main__":
    sys.exit(main())
