"""`netagent lease`: lists subnet leases, reserves subnets, and frees those of nodes that are gone.

Rule: each change is one transaction on the records as they were shown; a node that is alive is not robbed.
"""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from netagent.cli import agent, output, store
from netagent.errors import NetagentError, UsageError

if TYPE_CHECKING:
    from netagent.config import Settings
    from netagent.model import Lease
    from netagent.plan.cluster import Cluster
    from netagent.store.base import Store
    from netagent.store.schema import Owner

DESCRIPTION = (
    "Each host leases a subnet for as long as its agent runs and a day longer. A reservation is a lease that never "
    "ends: it waits for its node."
)


def configure(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="lease_command", metavar="COMMAND")

    def add(
        name: str, text: str, do: Callable[[Store, Settings, argparse.Namespace], Awaitable[int]]
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(do=do)
        return sub

    listing = add("list", "list all leases and reservations", _list)
    listing.add_argument("--ttl", action="store_true", help="ask etcd how long each lease still has")
    reserve = add("reserve", "reserve a subnet for a node, or make a node's lease permanent", _reserve)
    reserve.add_argument("subnet", metavar="SUBNET", help="10.5.9.0/24; with IPv6: 10.5.9.0/24,fd00:5:0:9::/64")
    reserve.add_argument("--node", metavar="NAME", help="node that gets it")
    reserve.add_argument(
        "--public-ip", dest="host", metavar="ADDRESS", help="address of the host that gets it (flannel's way)"
    )
    release = add("release", "free a lease or reservation", _release)
    release.add_argument("subnet", metavar="SUBNET", nargs="?", help="the subnet to free")
    release.add_argument("--node", metavar="NAME", help="free all that this node has, and forget the node")
    release.add_argument("--force", action="store_true", help="even if the node is alive")
    for sub in (listing, reserve, release):
        sub.add_argument("--json", action="store_true", help="print JSON")
        store.add_arguments(sub)
    release.add_argument(
        "--state-dir",
        dest="state_dir",
        metavar="DIR",
        help="state directory of this host's agent (/var/lib/netagent)",
    )
    release.add_argument("--node-name", dest="node_name", metavar="NAME", help="name of this host (the hostname)")


def run(args: argparse.Namespace) -> int:
    return int(store.ask(args, lambda opened, settings: args.do(opened, settings, args)))


# -------------------------------------------------------------------------------------------------------- list


async def _list(opened: Store, settings: Settings, args: argparse.Namespace) -> int:
    cluster = await store.view(opened, settings.etcd_prefix)
    leases = sorted(cluster.leases.values(), key=_order)
    ttls = await _ttls(opened, leases) if args.ttl else {}
    if args.json:
        output.json([_as_json(lease, cluster, ttls) for lease in leases])
        return 0
    titles = ["SUBNET", "NODE", "ADDRESS", "BACKEND", "KIND", "NODE IS"]
    rows = [
        [
            _subnets(lease),
            lease.node or "-",
            " ".join(a for a in (lease.public_ip, lease.public_ip6) if a) or "-",
            # A lease without a type is one of udp, unless it is a reservation that waits for its host.
            lease.backend or ("udp" if lease.node_id or lease.lease_id else "-"),
            _kind(lease, ttls),
            _alive(lease, cluster),
        ]
        for lease in leases
    ]
    output.table(titles, rows, states=5)
    for finding in cluster.findings():
        remedy = f"; {finding.remedy}" if finding.remedy else ""
        print(f"{output.state(finding.severity)}: {output.clean(finding.message + remedy)}")
    return 0


def _order(lease: Lease) -> tuple[int, int]:
    from netagent.store.schema import span

    return (4, span(lease.v4)[0]) if lease.v4 else (6, span(lease.v6)[0] if lease.v6 else 0)


def _subnets(lease: Lease) -> str:
    return " ".join(subnet for subnet in (lease.v4, lease.v6) if subnet)


def _kind(lease: Lease, ttls: dict[int, int]) -> str:
    if not lease.lease_id:
        return "reservation"
    ttl = ttls.get(lease.lease_id)
    return "lease" if ttl is None else f"lease, {ttl} s left"


def _alive(lease: Lease, cluster: Cluster) -> str:
    """Only nodes with an owner record have a sign of life."""
    if not lease.node_id:
        return "unknown"
    living = cluster.alive.get(lease.node)
    return "up" if living is not None and living.id == lease.node_id else "down"


def _as_json(lease: Lease, cluster: Cluster, ttls: dict[int, int]) -> dict[str, object]:
    return {
        "key": lease.key,
        "v4": lease.v4,
        "v6": lease.v6,
        "node": lease.node,
        "node_id": lease.node_id,
        "public_ip": lease.public_ip,
        "public_ip6": lease.public_ip6,
        "backend": lease.backend,
        "reservation": not lease.lease_id,
        "ttl": ttls.get(lease.lease_id),
        "node_state": _alive(lease, cluster),
        "mod_revision": lease.mod_revision,
    }


async def _ttls(opened: Store, leases: Iterable[Lease]) -> dict[int, int]:
    """Seconds left of each etcd lease, by its id."""
    import asyncio

    from netagent.errors import LeaseNotFound

    limit = asyncio.Semaphore(32)
    found: dict[int, int] = {}

    async def one(number: int) -> None:
        async with limit:
            try:
                found[number] = await opened.time_to_live(number)
            except LeaseNotFound:
                found[number] = 0

    await asyncio.gather(*(one(number) for number in {lease.lease_id for lease in leases} - {0}))
    return found


# ----------------------------------------------------------------------------------------------------- reserve


async def _reserve(opened: Store, settings: Settings, args: argparse.Namespace) -> int:
    from netagent.store import schema
    from netagent.store.base import Compare, Put

    cluster = await store.view(opened, settings.etcd_prefix)
    v4, v6 = _subnets_of(args.subnet)
    key = schema.subnet_key(v4, v6)
    held = cluster.leases.get(key)
    if held is not None:
        value, owner = _keep(held, args)
    else:
        _check_free(cluster, key, v4, v6)
        value, owner = _new(cluster, args)
    subnet, record = cluster.keys.subnet(key), cluster.keys.owner(key)
    guard = Compare(subnet, "mod", "=", held.mod_revision if held is not None else 0)
    writes = [Put(subnet, value)]
    if owner is not None:
        writes.append(Put(record, schema.owner_value(owner)))
    result = await opened.txn((guard,), writes)
    if not result.succeeded:
        raise NetagentError("it was written at the same moment", where=key, remedy="Look at the list and try again")
    who = owner.node if owner is not None else args.host or (held.label if held is not None else "")
    if args.json:
        output.json({"key": key, "for": who})
    else:
        print(f"{args.subnet} is reserved for {output.clean(who)}")
    return 0


def _subnets_of(text: str) -> tuple[str | None, str | None]:
    """SUBNET, or two of them with a comma (or flannel's &) between."""
    from netagent.store.schema import canonical_subnet

    found: dict[bool, str] = {}
    for part in text.replace("&", ",").split(","):
        subnet = canonical_subnet(part.strip())
        if subnet is None or (":" in subnet) in found:
            raise UsageError(
                f"{part.strip()!r} is not the network address and length of one subnet",
                where=text,
                remedy="Write it like 10.5.9.0/24, or 10.5.9.0/24,fd00:5:0:9::/64",
            )
        found[":" in subnet] = subnet
    return found.get(False), found.get(True)


def _keep(held: Lease, args: argparse.Namespace) -> tuple[bytes, Owner | None]:
    """A lease that is there becomes permanent, for whoever has it."""
    from netagent.store import schema

    other = (args.node and args.node != held.node) or (
        args.host and args.host not in (held.public_ip, held.public_ip6)
    )
    if other:
        raise NetagentError(
            f"{held.label} holds it",
            where=held.key,
            remedy="Choose another subnet, or free it with `netagent lease release`",
        )
    return held.raw, schema.Owner(held.node, held.node_id) if held.node else None


def _check_free(cluster: Cluster, key: str, v4: str | None, v6: str | None) -> None:
    """NetagentError if the network has no such subnet to give, or another lease overlaps it."""
    from netagent import network_config
    from netagent.plan.allocate import overlaps

    for subnet in (v4, v6):
        if subnet is None:
            continue
        if cluster.network is not None and not network_config.fits(cluster.network, subnet):
            raise NetagentError(
                "it is not one of the subnets that the network hands out (length, SubnetMin, SubnetMax)",
                where=subnet,
                remedy="See them with `netagent config show`",
            )
        other = overlaps(subnet, cluster.leases.values())
        if other is not None:
            raise NetagentError(
                f"it overlaps {other.key} of {other.label}", where=key, remedy="Choose another subnet"
            )


def _new(cluster: Cluster, args: argparse.Namespace) -> tuple[bytes, Owner | None]:
    """Value and owner of a reservation for a node by name, or for a host by address."""
    from netagent import setting_values
    from netagent.store import schema

    if not args.node and not args.host:
        raise UsageError(
            "for whom?", where="netagent lease reserve", remedy="Give --node NAME or --public-ip ADDRESS"
        )
    if args.node and not setting_values.NODE_NAME.match(args.node):
        raise UsageError("no node can have that name", where=f"--node {args.node}", remedy="Correct it")
    known = cluster.nodes.get(args.node) if args.node else None
    addresses = (args.host,) if args.host else known.addresses if known is not None else ()
    v4 = next((a for a in addresses if _is_address(a, 4)), None)
    v6 = next((a for a in addresses if _is_address(a, 6)), None)
    if args.host and v4 is None and v6 is None:
        raise UsageError("not an address", where=f"--public-ip {args.host}", remedy="Correct it")
    return schema.lease_value(v4, v6), schema.Owner(args.node) if args.node else None


def _is_address(text: str, version: int) -> bool:
    import ipaddress

    try:
        return ipaddress.ip_address(text).version == version
    except ValueError:
        return False


# ----------------------------------------------------------------------------------------------------- release


async def _release(opened: Store, settings: Settings, args: argparse.Namespace) -> int:
    if bool(args.subnet) == bool(args.node):
        raise UsageError(
            "one of SUBNET and --node is needed", where="netagent lease release", remedy="See `netagent lease list`"
        )
    cluster = await store.view(opened, settings.etcd_prefix)
    here = args.node == settings.node_name
    state = Path(settings.state_dir) / "lease.json"
    if here and agent.runs(settings.state_dir):
        raise NetagentError(
            "this host's agent runs, and would claim its subnet again",
            where=args.node,
            remedy="Stop its containers, then the agent (systemctl stop netagent), and try again",
        )
    forgetting = here and state.exists()
    leases = _to_release(cluster, args, known=forgetting)
    for lease in leases:
        if not args.force and not here and _alive(lease, cluster) == "up":
            raise NetagentError(
                f"node {lease.node} is alive and uses {lease.key}; it would claim it again",
                where=lease.key,
                remedy="Stop its agent first (it counts as alive for some seconds more), or add --force",
            )
    freed = [lease.key for lease in leases if await _delete(opened, cluster, lease)]
    if args.node and args.node in cluster.nodes:
        await opened.delete(cluster.keys.node(args.node))
    if forgetting:
        state.unlink()
    if args.json:
        output.json({"released": freed, "state_removed": str(state) if forgetting else None})
        return 0
    for key in freed:
        print(f"{key} is free")
    if forgetting:
        print(f"{state} is removed: the agent takes a new subnet when it starts")
    return 0


def _to_release(cluster: Cluster, args: argparse.Namespace, *, known: bool) -> list[Lease]:
    """The leases meant. NetagentError if there are none, unless the node is `known` otherwise."""
    if args.node:
        found = [lease for lease in cluster.leases.values() if args.node == lease.label]
        if not found and not known and args.node not in cluster.nodes:
            raise NetagentError("no such node", where=args.node, remedy="See `netagent lease list`")
        return found
    wanted = set(_subnets_of(args.subnet)) - {None}
    found = [lease for lease in cluster.leases.values() if wanted <= {lease.v4, lease.v6}]
    if not found:
        raise NetagentError("nobody has it", where=args.subnet, remedy="See `netagent lease list`")
    return found


async def _delete(opened: Store, cluster: Cluster, lease: Lease) -> bool:
    from netagent.store.base import Compare, Delete

    subnet, owner = cluster.keys.subnet(lease.key), cluster.keys.owner(lease.key)
    result = await opened.txn((Compare(subnet, "mod", "=", lease.mod_revision),), (Delete(subnet), Delete(owner)))
    if not result.succeeded:
        raise NetagentError("it changed at the same moment", where=lease.key, remedy="Look at the list and try again")
    return True
