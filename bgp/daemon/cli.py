"""`python -m bgp`: the command line.

Rule: what goes wrong is one line on stderr. Exit code 0: done; 1: it could not be done; 2: the command or the
configuration is wrong; 130: ended by Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable
from typing import Any

from bgp.daemon import show
from bgp.daemon.client import ask
from bgp.daemon.errors import CommandError, ConfigError, RequestError

_DEFAULT_CONFIG = "/etc/bgp/speaker.toml"
_DEFAULT_CONTROL = "/run/bgp.sock"


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser("python -m bgp", description="A small BGP speaker. Docs: docs/bgp/README.md")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (("run", "run the daemon"), ("check", "check a configuration and change nothing")):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--config", default=_DEFAULT_CONFIG, metavar="FILE", help="default: %(default)s")
        if name == "run":
            command.add_argument("--debug", action="store_true", help="log each attempt to connect too")
    asking = argparse.ArgumentParser(add_help=False)
    asking.add_argument(
        "--control",
        default=os.environ.get("BGP_CONTROL", _DEFAULT_CONTROL),
        metavar="PATH",
        help="the daemon's control socket (also $BGP_CONTROL; default: %(default)s)",
    )
    asking.add_argument("--json", action="store_true", help="one JSON object a line")
    for name, text in _ASKING.items():
        command = commands.add_parser(name, help=text, description=text, parents=[asking])
        if name == "routes":
            command.add_argument("prefix", nargs="?", default="", help="a prefix, or an address to be looked up")
            command.add_argument("--more-specific", action="store_true", help="all inside the prefix")
        elif name == "peers":
            command.add_argument("peer", nargs="?", default="", help="a name or address, for all about it")
        elif name not in ("summary", "metrics", "reload"):
            command.add_argument("peer", help="a peer's name or address")
        if name in ("shutdown-peer", "reset-peer"):
            command.add_argument("--text", default="", help="words for the other operator (RFC 9003)")
    return top


_ASKING = {
    "summary": "the speaker in a few lines",
    "peers": "all peers and their sessions, or all about one",
    "routes": "every prefix, its routes, which is best and why, and who is told",
    "received": "what a peer has sent, and why it is not used where it is not",
    "advertised": "what a peer has been told",
    "log": "a peer's last messages, decoded, and what became of its session",
    "metrics": "the numbers, as Prometheus reads them",
    "shutdown-peer": "end a session and keep it down",
    "start-peer": "keep a session again that was shut down or had given too many prefixes",
    "reset-peer": "end a session and begin it anew",
    "refresh-peer": "have a peer send all its routes again (RFC 2918)",
    "reload": "read the configuration anew, as SIGHUP does, and say what is wrong with it",
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; its exit code."""
    options = parser().parse_args(argv)
    try:
        if options.command in ("run", "check"):
            from bgp.daemon.run import load, log_to_stderr, run  # who only asks need not wait for all of it

        if options.command == "run":
            log_to_stderr(debug=options.debug)
            run(options.config)
        elif options.command == "check":
            config = load(options.config)
            print(
                f"{options.config} is right: AS {config.speaker.asn}, {len(config.peers)} peers, "
                f"{len(config.ranges)} ranges, {len(config.announcements)} announcements"
            )
        else:
            _ask(options)
    except (ConfigError, RequestError) as error:
        print(error, file=sys.stderr)
        return 2
    except CommandError as error:
        print(error, file=sys.stderr)
        return 1
    except BrokenPipeError:
        sys.stderr.close()  # whoever read has enough: `| head`
    except KeyboardInterrupt:
        return 130  # 128 and SIGINT, as shells say it
    return 0


def _ask(options: argparse.Namespace) -> None:
    request = {
        name: value
        for name in ("command", "peer", "prefix", "more_specific", "text")
        if (value := getattr(options, name, None))
    }
    items: Iterable[Any] = ask(options.control, request)
    if options.command == "metrics":
        sys.stdout.write("".join(items))
    elif options.json:
        for item in items:
            print(json.dumps(item))
    else:
        for line in show.lines(options.command, bool(getattr(options, "peer", "")), items):
            print(line)
    sys.stdout.flush()
