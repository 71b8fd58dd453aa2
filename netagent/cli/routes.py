"""`netagent routes`: our routes, with who wants each and why."""

from __future__ import annotations

import argparse

from netagent.cli import agent, output
from netagent.cli.objects import show

DESCRIPTION = (
    "Lists the routes that the agent holds, each with its owner (the host itself, a peer's lease, a service) and why "
    "it is there. Answered from the agent's memory: it works while etcd is away."
)


def configure(parser: argparse.ArgumentParser) -> None:
    agent.add_arguments(parser)
    parser.add_argument(
        "match",
        nargs="?",
        default="",
        help="only routes whose text or owner contains this; an address: those that hold it",
    )


def run(args: argparse.Namespace) -> int:
    routes = [route for route in agent.client(args).routes() if agent.matches(args.match, route.text, route.owner)]
    if args.json:
        output.json(routes)
    else:
        show(routes, kinds=False, narrowed=bool(args.match))
    return 0
