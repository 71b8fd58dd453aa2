"""What every command that asks the running agent shares: which agent, and its arguments."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from netagent.api import SOCKET_NAME

if TYPE_CHECKING:
    from netagent.api.client import Client

RUN_DIR = Path("/run/netagent")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which agent to ask, and --json."""
    parser.add_argument(
        "--run-dir",
        metavar="DIR",
        type=Path,
        help="run directory of the agent to ask ($NETAGENT_RUN_DIR; /run/netagent)",
    )
    parser.add_argument(
        "--socket", metavar="PATH", type=Path, help="socket of the agent to ask (RUN_DIR/netagent.sock)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def socket_path(args: argparse.Namespace) -> Path:
    if args.socket is not None:
        return Path(args.socket)
    return Path(args.run_dir or os.environ.get("NETAGENT_RUN_DIR") or RUN_DIR) / SOCKET_NAME


def client(args: argparse.Namespace) -> Client:
    from netagent.api.client import Client

    return Client(socket_path(args))
