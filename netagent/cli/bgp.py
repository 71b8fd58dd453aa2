"""`netagent bgp`: what the speaker of the bgp backend knows and does.

Rule: nothing is known of BGP here. The agent is asked, and what it answers, for people or as JSON, is printed.
"""

from __future__ import annotations

import argparse

from netagent.cli import agent, output

DESCRIPTION = (
    "Shows what the BGP speaker of this node's agent knows and does: its sessions, the routes that it has, which is "
    "best and why, what a peer has sent and what it was told, and a peer's last messages."
)

# name, help, whether a peer must be named, may be, or has no place
VIEWS: tuple[tuple[str, str, str], ...] = (
    ("peers", "all sessions: state, since when, why down, next try, counts; or everything about one", "may"),
    ("routes", "every prefix with its routes, which is best and why, and who is told", ""),
    ("received", "what a peer has sent, and why it is not used where it is not", "must"),
    ("advertised", "what a peer has been told", "must"),
    ("log", "a peer's last messages, decoded, and what became of its session", "must"),
)


def configure(parser: argparse.ArgumentParser) -> None:
    views = parser.add_subparsers(dest="view", metavar="VIEW")
    for name, text, peer in VIEWS:
        view = views.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        agent.add_arguments(view)
        if peer == "must":
            view.add_argument("peer", help="name of a node or router, or its address")
        elif peer == "may":
            view.add_argument("peer", nargs="?", default="", help="name of a node or router, or its address")
        else:
            view.add_argument("prefix", nargs="?", type=_prefix, help="a prefix, or an address that is looked up")
            view.add_argument("--more-specific", action="store_true", help="all prefixes inside the one given")


def _prefix(text: str) -> str:
    import ipaddress

    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a prefix nor an address: write it like 10.5.0.0/16 or 10.5.72.9"
        ) from None
    return text


def run(args: argparse.Namespace) -> int:
    answer = agent.client(args).backend(
        "bgp",
        args.view,
        peer=getattr(args, "peer", ""),
        prefix=getattr(args, "prefix", None) or "",
        more_specific="1" if getattr(args, "more_specific", False) else "",
        text="" if args.json else "1",
    )
    if args.json:
        output.json(answer)
    else:
        for line in answer:
            print(output.clean(str(line)))
    return 0
