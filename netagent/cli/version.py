"""`netagent version`: what a bug report needs."""

from __future__ import annotations

import argparse
import platform
from importlib import metadata

from netagent import __version__

LIBRARIES = ("grpcio", "protobuf", "msgspec", "aiohttp", "prometheus-client")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    versions = {
        "netagent": __version__,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        **{name: _installed(name) for name in LIBRARIES},
    }
    if args.json:
        import json

        print(json.dumps(versions, indent=2))
    else:
        for name, version in versions.items():
            print(f"{name:18} {version}")
    return 0


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
