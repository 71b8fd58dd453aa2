"""The command line as a value: commands, options and their help, read from the argparse parsers.

Completion scripts, the man page and docs/reference/cli.md are all made from it, so none of them can name an option
that does not exist or leave one out.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterator
from typing import NamedTuple

from netagent.cli import COMMANDS, examples
from netagent.cli.parser import build_parser


class Option(NamedTuple):
    """`names` as typed ("--json"); `value` is what to call its argument, "" for a flag."""

    names: tuple[str, ...]
    value: str
    help: str
    choices: tuple[str, ...]
    repeatable: bool


class Argument(NamedTuple):
    """A positional argument. `usage` is how it stands in a usage line: "NODE", "[MATCH]", "CMD ..."."""

    usage: str
    help: str
    choices: tuple[str, ...]


class Node(NamedTuple):
    """A command. `path` is ("lab", "up"), () for netagent itself; `help` a line, `description` a paragraph or "".

    `examples` are whole commands, each with what it does or "".
    """

    path: tuple[str, ...]
    help: str
    description: str
    options: tuple[Option, ...]
    arguments: tuple[Argument, ...]
    commands: tuple[Node, ...]
    examples: tuple[tuple[str, str], ...] = ()

    def walk(self) -> Iterator[Node]:
        """This command and all below it, each before its own."""
        yield self
        for command in self.commands:
            yield from command.walk()

    @property
    def usage(self) -> str:
        """One line: the words of the command, its options in short, and its arguments."""
        words = ["netagent", *self.path]
        words += ["[OPTION ...]"] if any(option.names != ("-h", "--help") for option in self.options) else []
        words += [argument.usage for argument in self.arguments]
        words += ["COMMAND ..."] if self.commands else []
        return " ".join(words)


def read(names: Collection[str] = COMMANDS) -> Node:
    """The tree, with what stands below the commands of these names. Imports their modules."""
    return _node(build_parser(names), (), "")


# argparse has no public way to look at what a parser holds; these attributes have been the same since 2.7.
def _node(parser: argparse.ArgumentParser, path: tuple[str, ...], text: str) -> Node:
    options: list[Option] = []
    arguments: list[Argument] = []
    commands: list[Node] = []
    for action in parser._actions:
        if action.help == argparse.SUPPRESS:
            continue
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            commands = [_node(sub, (*path, name), helps.get(name, "")) for name, sub in action.choices.items()]
        elif action.option_strings:
            options.append(_option(action, parser))
        else:
            arguments.append(_argument(action, parser))
    shown = tuple(examples.lines(" ".join(path)))
    return Node(path, text, parser.description or "", tuple(options), tuple(arguments), tuple(commands), shown)


def _option(action: argparse.Action, parser: argparse.ArgumentParser) -> Option:
    value = "" if action.nargs == 0 else _value_name(action)
    repeatable = isinstance(action, argparse._AppendAction)
    return Option(tuple(action.option_strings), value, _help(action, parser), _choices(action), repeatable)


def _argument(action: argparse.Action, parser: argparse.ArgumentParser) -> Argument:
    name = "|".join(_choices(action)) or _value_name(action)
    usage = {"?": f"[{name}]", "*": f"[{name} ...]", "+": f"{name} ...", argparse.REMAINDER: f"{name} ..."}
    return Argument(usage.get(str(action.nargs), name), _help(action, parser), _choices(action))


def _value_name(action: argparse.Action) -> str:
    if isinstance(action.metavar, tuple):
        return " ".join(action.metavar)
    return (action.metavar or action.dest).upper()


def _choices(action: argparse.Action) -> tuple[str, ...]:
    return tuple(str(choice) for choice in action.choices or ())


def _help(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    """The help with %(default)s and its like filled in, as `--help` prints it."""
    values = {**vars(action), "prog": parser.prog}
    return (action.help or "") % values if action.help else ""
