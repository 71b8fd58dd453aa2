"""`netagent config`: checks a network configuration before it is written, or shows the one in etcd."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from netagent.cli import output, store
from netagent.errors import ConfigError

if TYPE_CHECKING:
    from netagent.config import Settings
    from netagent.model import Finding, Network
    from netagent.store.base import Store

DESCRIPTION = (
    "Reads a network configuration as every agent would and prints the values in force, defaults included. Exit code "
    "0 if it is good, though perhaps with warnings, 2 if agents would refuse it."
)


def configure(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="config_command", metavar="COMMAND")

    def add(name: str, text: str, do: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.add_argument("--json", action="store_true", help="print JSON")
        sub.set_defaults(do=do)
        return sub

    check = add("check", "check a configuration in a file, without etcd", _check)
    check.add_argument("file", metavar="FILE", help="JSON file, or - for standard input")
    store.add_arguments(add("show", "show the configuration that is in etcd", _show))


def run(args: argparse.Namespace) -> int:
    return int(args.do(args))


def _check(args: argparse.Namespace) -> int:
    return _report(*read(args.file), args.json)


def read(file: str) -> tuple[bytes, str]:
    """A configuration as it stands in a file, or "-" for standard input; and what to call where it is from."""
    where = "standard input" if file == "-" else file
    try:
        return sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes(), where
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", where=where, remedy="Name a readable file") from None


def _show(args: argparse.Namespace) -> int:
    async def read(opened: Store, settings: Settings) -> tuple[str, bytes | None]:
        from netagent.store.schema import Keys

        key = Keys(settings.etcd_prefix).config
        found = await opened.get(key)
        return key, found.value if found is not None else None

    key, raw = store.ask(args, read)
    if raw is None:
        raise ConfigError("there is no configuration", where=key, remedy="Write one with `netagent init`")
    return _report(raw, key, args.json)


def _report(raw: bytes, where: str, as_json: bool) -> int:
    """Print what is in force and what is odd about it. ConfigError (exit code 2) if it is not valid."""
    import json

    from netagent import network_config

    parsed = network_config.parse(raw, where)
    findings = (*parsed.findings, *backend_findings(parsed.network, where))
    values = network_config.effective(parsed.network)
    if as_json:
        output.json({"config": values, "findings": findings})
        return 0
    width = max(map(len, values))
    for key, value in values.items():
        print(f"{key:{width}}  {output.clean(json.dumps(value))}")
    for finding in findings:
        remedy = f"; {finding.remedy}" if finding.remedy else ""
        print(f"{output.state(finding.severity)}: {output.clean(finding.message + remedy)}")
    return 0


def backend_findings(network: Network, where: str) -> tuple[Finding, ...]:
    """What the backend says of its options. ConfigError, which names `where` they stand, if there is no such backend
    or it refuses a value."""
    from netagent.registry import Registry

    try:
        return Registry()[network.backend.type].options(network.backend.options).findings
    except ConfigError as error:
        error.where = f"{where}: {error.where}" if error.where else where
        raise
