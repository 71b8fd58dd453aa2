"""The parser of the whole command line, with the arguments of only those commands that are asked for.

Rule: who mistypes is told what he may have meant, by the parser of the command that he typed; who leaves the command
out is shown those there are. Exit code 2 for both.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from netagent import __version__
from netagent.cli import COMMANDS, examples

DESCRIPTION = "Leases a subnet for this host in etcd and connects containers across hosts."
EPILOG = """\
Start here:
  netagent lab up                      a whole cluster on this machine, no root needed
  netagent init --network 10.5.0.0/16  once for a cluster: its network, into etcd
  netagent run                         the agent, on each host (the package's unit does it)
  netagent status                      does this node work, and if not, why
  netagent routes 10.5.72.9            which way to a container, and who wants it so

Exit codes: 0 done, 1 failed (status: degraded), 2 wrong usage or configuration, or the agent does not answer,
130 Ctrl-C. NETAGENT_DEBUG=1 shows tracebacks."""


class HelpFormatter(argparse.HelpFormatter):
    """Wraps a paragraph; a text that has lines of its own keeps them."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" in text:
            return "".join(indent + line for line in text.splitlines(keepends=True))
        return super()._fill_text(text, width, indent)


class Parser(argparse.ArgumentParser):
    def __init__(self, **given: Any) -> None:
        super().__init__(formatter_class=HelpFormatter, allow_abbrev=False, **given)

    def format_help(self) -> str:
        self.epilog = self.epilog or examples.epilog(self.prog.partition(" ")[2])
        return super().format_help()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Nothing may be left over: a subparser would leave it to the top level, which knows none of its options."""
        found, left = super().parse_known_args(args, namespace)
        if left:
            self.error(_too_much(left, self._option_string_actions, self._hint()))
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction) and getattr(found, action.dest) is None:
                self.print_help(sys.stderr)
                self.exit(2)
        return found, left

    def _hint(self) -> str:
        """What to do about an option that is near to none of ours."""
        if " " not in self.prog:
            return "options stand after the command"
        if any(action.metavar == "CMD" for action in self._actions):
            return "where it is CMD's, write -- before CMD"
        return "--help lists those there are"

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        known = [str(choice) for choice in action.choices]
        near = _near(str(value), known)
        if isinstance(action, argparse._SubParsersAction):
            raise argparse.ArgumentError(
                None, f"there is no command {value!r}; " + (near or f"there are {', '.join(known)}")
            )
        raise argparse.ArgumentError(
            action, f"{value!r} is none of {', '.join(known)}" + (f"; {near}" if near else "")
        )


def _too_much(left: Sequence[str], known: Iterable[str], hint: str) -> str:
    option = next((word.partition("=")[0] for word in left if word.startswith("-")), "")
    if not option:
        return f"one word too many: {left[0]}"
    return f"there is no option {option} here; {_near(option, known) or hint}"


def _near(word: str, known: Iterable[str]) -> str:
    import difflib

    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.7)
    return f"did you mean {close[0]}?" if close else ""


def build_parser(configured: Collection[str]) -> argparse.ArgumentParser:
    """The parser with all commands named, and the arguments of those in `configured`."""
    parser = Parser(prog="netagent", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"netagent {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.help)
        if name in configured:
            module = importlib.import_module(command.module)
            sub.description = getattr(module, "DESCRIPTION", command.help[0].upper() + command.help[1:] + ".")
            module.configure(sub)
            sub.set_defaults(run=module.run)
    return parser
