"""What every command that asks the running agent shares: which agent, and its arguments.

Rule: a command asks the agent that this host's settings describe, unless told otherwise. Here the settings file is
only looked at, for a directory: whether it is right is the agent's business, and a broken one must not keep
`netagent status` from saying what is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from netagent.api import SOCKET_NAME

if TYPE_CHECKING:
    from netagent.api.client import Client

SETTINGS = Path("/etc/netagent/netagent.toml")
RUN_DIR = Path("/run/netagent")
STATE_DIR = Path("/var/lib/netagent")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which agent to ask, and --json."""
    parser.add_argument(
        "--run-dir",
        metavar="DIR",
        type=Path,
        help="run directory of the agent to ask ($NETAGENT_RUN_DIR, the settings file, /run/netagent)",
    )
    parser.add_argument(
        "--socket", metavar="PATH", type=Path, help="socket of the agent to ask (RUN_DIR/netagent.sock)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def socket_path(args: argparse.Namespace) -> Path:
    if args.socket is not None:
        return Path(args.socket)
    return Path(args.run_dir or setting("run_dir") or RUN_DIR) / SOCKET_NAME


def setting(name: str) -> str:
    """A setting from the environment or the settings file, "" where neither has it."""
    if value := os.environ.get(f"NETAGENT_{name.upper()}"):
        return value
    import tomllib

    try:
        document = tomllib.loads(Path(os.environ.get("NETAGENT_CONFIG") or SETTINGS).read_text())
    except (OSError, ValueError, RecursionError):
        return ""
    return str(document.get(name, ""))


def matches(wanted: str, *texts: str) -> bool:
    """Whether `wanted` stands in one of the texts, or is an address inside a prefix that one of them names."""
    if any(wanted in text for text in texts):
        return True
    import ipaddress

    try:
        address = ipaddress.ip_address(wanted)
    except ValueError:
        return False
    for word in " ".join(texts).split():
        with contextlib.suppress(ValueError):
            if "/" in word and address in ipaddress.ip_network(word):
                return True
    return False


def runs(state_dir: Path) -> bool:
    """Whether an agent holds the lock of that state directory."""
    import fcntl

    try:
        fd = os.open(state_dir / "lock", os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def client(args: argparse.Namespace) -> Client:
    from netagent.api.client import Client

    return Client(socket_path(args))
