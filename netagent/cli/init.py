"""`netagent init`: writes the network's configuration, once, and never over another one unasked."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from netagent.cli import output, store
from netagent.errors import NetagentError, UsageError

if TYPE_CHECKING:
    from netagent.config import Settings
    from netagent.model import Finding, Network
    from netagent.store.base import KeyValue, Store

DESCRIPTION = (
    "Writes the network's configuration to etcd, for all hosts. Agents that run apply it at once. A configuration "
    "that is there already is only replaced with --force; what would change is shown."
)
NETWORK = "10.5.0.0/16"
BACKEND = "vxlan"  # where none is named

# flag, key of the configuration, whether it is a number, help
KEYS: tuple[tuple[str, str, bool, str], ...] = (
    ("--network", "Network", False, f"IPv4 range that hosts get their subnets from, such as {NETWORK}"),
    ("--network-v6", "IPv6Network", False, "IPv6 range that hosts get their subnets from, such as fd00:5::/48"),
    ("--subnet-len", "SubnetLen", True, "length of a host's subnet (24, or the network's + 2 if that is longer)"),
    ("--subnet-min", "SubnetMin", False, "first subnet to hand out (the network's second)"),
    ("--subnet-max", "SubnetMax", False, "last subnet to hand out (the network's last)"),
    ("--subnet-len-v6", "IPv6SubnetLen", True, "length of a host's IPv6 subnet (64)"),
    ("--subnet-min-v6", "IPv6SubnetMin", False, "first IPv6 subnet to hand out (the network's second)"),
    ("--subnet-max-v6", "IPv6SubnetMax", False, "last IPv6 subnet to hand out (the network's last)"),
)


def configure(parser: argparse.ArgumentParser) -> None:
    for flag, key, number, text in KEYS:
        metavar = "N" if number else "ADDRESS" if "min" in flag or "max" in flag else "PREFIX"
        parser.add_argument(flag, dest=key, metavar=metavar, type=int if number else str, help=text)
    parser.add_argument(
        "--backend",
        metavar="TYPE",
        help=f"host-gw, vxlan, udp, ipip or bgp ({BACKEND}; to replace a configuration that has another, name it)",
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="option of the backend, such as VNI=7 or DirectRouting=true; lists and objects as JSON; may be repeated",
    )
    parser.add_argument(
        "--file", metavar="FILE", help="take all of it from a JSON file instead, or from standard input (-)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would be written, and write nothing")
    parser.add_argument("--force", action="store_true", help="replace the configuration that is there")
    store.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    network, findings = _wanted(args)
    for finding in findings:
        output.warn(finding)
    if args.dry_run:
        from netagent import network_config

        print(network_config.write(network).decode())
        return 0
    named = args.backend is not None or args.file is not None
    return store.ask(args, lambda opened, settings: _write(opened, settings, network, force=args.force, named=named))


def _wanted(args: argparse.Namespace) -> tuple[Network, tuple[Finding, ...]]:
    """The configuration that the flags ask for, checked as an agent would check it."""
    import json

    from netagent import network_config
    from netagent.cli.config import backend_findings, read

    if args.file is not None:
        given = next((flag for flag, key, _, _ in KEYS if getattr(args, key) is not None), "")
        if given := given or ("--backend" if args.backend else "--option" if args.option else ""):
            raise UsageError(f"--file has all of it, and {given} is given too", remedy="Give one of them")
        raw, where = read(args.file)
        parsed = network_config.parse(raw, where)
        return parsed.network, (*parsed.findings, *backend_findings(parsed.network, where))
    document: dict[str, Any] = {key: value for _, key, _, _ in KEYS if (value := getattr(args, key)) is not None}
    if "Network" not in document and "IPv6Network" not in document:
        raise UsageError(
            "no network given",
            where="netagent init",
            remedy=f"Choose a range of your own: --network {NETWORK}, or give --file FILE",
        )
    document["EnableIPv4"] = "Network" in document
    document["EnableIPv6"] = "IPv6Network" in document
    document["Backend"] = {"Type": args.backend or BACKEND, **dict(_option(text) for text in args.option)}
    parsed = network_config.parse(json.dumps(document), "netagent init")
    return parsed.network, (*parsed.findings, *backend_findings(parsed.network, "netagent init"))


def _option(text: str) -> tuple[str, Any]:
    """KEY=VALUE; a value that is JSON (a number, true, false) is that, any other is text."""
    import json

    key, separator, value = text.partition("=")
    if not key or not separator:
        raise UsageError("an option is KEY=VALUE", where=f"--option {text}", remedy="Write it like VNI=7")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


async def _write(opened: Store, settings: Settings, network: Network, *, force: bool, named: bool) -> int:
    """Write it if there is none, or with `force`; `named` is whether a backend was asked for."""
    from netagent import network_config
    from netagent.store.base import Compare, Put
    from netagent.store.schema import Keys

    keys = Keys(settings.etcd_prefix)
    present = await opened.get(keys.config)
    if present is not None:
        lines = difference(present, network)
        if not lines:
            print(f"{keys.config} already holds this configuration")
            return 0
        if not force:
            raise NetagentError(
                f"there is a configuration already, which differs ({'; '.join(map(output.clean, lines))})",
                where=keys.config,
                remedy="Nothing was written; to replace it, and change the running network, add --force",
            )
        other = _backend(present)
        if not named and other not in ("", network.backend.type):
            raise UsageError(
                f"the network's backend is {other}, and none was named",
                where=keys.config,
                remedy=f"Nothing was written; add --backend {other} with its options to keep it, or --backend TYPE",
            )
        print("\n".join(output.clean(line) for line in lines))
    revision = present.mod_revision if present is not None else 0
    value = network_config.write(network)
    result = await opened.txn((Compare(keys.config, "mod", "=", revision),), (Put(keys.config, value),))
    if not result.succeeded:
        raise NetagentError(
            "somebody else wrote it at the same moment", where=keys.config, remedy="Look at it and try again"
        )
    print(f"wrote {keys.config}: {value.decode()}")
    await _warn_of_leases(opened, settings)
    return 0


def _backend(present: KeyValue) -> str:
    """The backend of the document that is there; "" if it is not valid."""
    from netagent import network_config
    from netagent.errors import ConfigError

    try:
        return network_config.parse(present.value, present.key).network.backend.type
    except ConfigError:
        return ""


def difference(present: KeyValue, network: Network) -> list[str]:
    """Lines "key: old -> new" for what differs from the document that is there; none: the same is in force."""
    import json

    from netagent import network_config
    from netagent.errors import ConfigError

    try:
        old = network_config.parse(present.value, present.key).network
    except ConfigError:
        text = present.value.decode(errors="replace")
        return [f"what is there is not valid: {text}"]
    before, after = network_config.effective(old), network_config.effective(network)
    return [
        f"{key}: {json.dumps(before.get(key))} -> {json.dumps(after.get(key))}"
        for key in dict.fromkeys((*before, *after))
        if before.get(key) != after.get(key)
    ]


async def _warn_of_leases(opened: Store, settings: Settings) -> None:
    """Say which leases the new network does not hold."""
    cluster = await store.view(opened, settings.etcd_prefix)
    for key in sorted(cluster.outside):
        lease = cluster.leases[key]
        print(f"warning: {output.clean(lease.label)} keeps {key}, which this network does not hold", file=sys.stderr)
