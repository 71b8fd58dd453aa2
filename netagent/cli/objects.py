"""`netagent objects`: every kernel object that the agent holds."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from netagent.cli import agent, output
from netagent.model import KINDS
from netagent.status import OBJECT_STATES, ObjectView

DESCRIPTION = "Lists every kernel object that the agent wants, with its owner, why it is there, and its state."


def configure(parser: argparse.ArgumentParser) -> None:
    agent.add_arguments(parser)
    parser.add_argument("--kind", action="append", choices=KINDS, help="only objects of this kind (repeatable)")
    parser.add_argument(
        "--state", action="append", choices=OBJECT_STATES, help="only objects in this state (repeatable)"
    )
    parser.add_argument("match", nargs="?", default="", help="only objects whose text or owner contains this")


def run(args: argparse.Namespace) -> int:
    objects = [
        view
        for view in agent.client(args).objects(tuple(args.kind or ()))
        if (not args.state or view.state in args.state) and agent.matches(args.match, view.text, view.owner)
    ]
    if args.json:
        output.json(objects)
    else:
        show(objects, kinds=True, narrowed=bool(args.kind or args.state or args.match))
    return 0


def show(objects: Sequence[ObjectView], *, kinds: bool, narrowed: bool) -> None:
    """A table of objects, with a column for the kind where they differ in it; `narrowed`: not all were asked for."""
    if not objects:
        print("none that match" if narrowed else "none")
        return
    rows = [
        (
            *((view.kind,) if kinds else ()),
            view.text,
            view.owner,
            view.state,
            "; ".join(filter(None, (view.why, view.error))),
        )
        for view in objects
    ]
    titles = (*(("KIND",) if kinds else ()), "OBJECT" if kinds else "ROUTE", "OWNER", "STATE", "WHY")
    output.table(titles, rows, states=len(titles) - 2)
