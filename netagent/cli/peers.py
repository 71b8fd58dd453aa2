"""`netagent peers`: every other node, and the path to it."""

from __future__ import annotations

import argparse
import time

from netagent.cli import agent, output
from netagent.status import PEER_STATES

DESCRIPTION = "Lists every other node with its subnet, its endpoint, the path that packets to it take, and its state."


def configure(parser: argparse.ArgumentParser) -> None:
    agent.add_arguments(parser)
    parser.add_argument("--state", action="append", choices=PEER_STATES, help="only peers in this state (repeatable)")
    parser.add_argument(
        "match",
        nargs="?",
        default="",
        help="only peers whose node, subnet or endpoint contains this; an address: whose subnet has it",
    )


def run(args: argparse.Namespace) -> int:
    peers = [
        peer
        for peer in agent.client(args).peers()
        if (not args.state or peer.state in args.state)
        and agent.matches(args.match, peer.node, peer.v4, peer.v6, peer.endpoint)
    ]
    if args.json:
        output.json(peers)
    elif peers:
        from netagent.cli import report

        report.table(peers, time.time(), indent=0)
    else:
        print("no peers" + (" that match" if args.match or args.state else " yet"))
    return 0
