"""The nodes that speak BGP in this network, from what etcd holds of them: node records and leases. Pure.

Rule: a node is a member as long as its record or its lease says that it speaks BGP; one of the two is enough, so a
lease that ended because its node cannot reach etcd takes no session away. Who is alive plays no part here. A record
with the id of another member, or with ours, is left from before that node had another name, and is none. What a node
says of itself in its record: its AS, and the role that it plays now, which while the topology changes is not yet the
one that the options ask for (see roles.py).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from backends.bgp.options import BgpOptions
from bgp.message.nlri import is_host, parse_address
from netagent.model import Family, Finding, Lease, NodeRecord

BACKEND = "bgp"
AS_ATTRIBUTE = "bgp.as"
ROLE_ATTRIBUTE = "bgp.role"
VIA_ATTRIBUTE = "bgp.via"


class BgpData(msgspec.Struct, frozen=True, gc=False):
    """BackendData of a bgp lease, as far as it is read."""

    asn: int = msgspec.field(name="AS", default=0)


_decode = msgspec.json.Decoder(BgpData).decode


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A node that speaks BGP. `role` is what it says that it plays now, "" where it has not said.

    `via`: the reflectors that, as it says, have told it everything.
    """

    name: str
    id: str
    asn: int
    role: str = ""
    via: tuple[str, ...] = ()
    v4: str | None = None
    v6: str | None = None
    labels: tuple[str, ...] = ()
    subnets: tuple[str, ...] = ()
    lease: str = ""

    def address(self, family: Family) -> str | None:
        return self.v4 if family == 4 else self.v6


def shared(asn: int, role: str, via: Iterable[str] = ()) -> dict[str, str]:
    """What this node writes into its record; `role` "": it speaks BGP no longer."""
    return {AS_ATTRIBUTE: str(asn) if role else "", ROLE_ATTRIBUTE: role, VIA_ATTRIBUTE: ",".join(via)}


def role_in(record: NodeRecord | None) -> str:
    return record.attributes.get(ROLE_ATTRIBUTE, "") if record is not None else ""


def via_in(record: NodeRecord | None) -> tuple[str, ...]:
    text = record.attributes.get(VIA_ATTRIBUTE, "") if record is not None else ""
    return tuple(name for name in text.split(",") if name)


def members(
    options: BgpOptions, own: str, records: Mapping[str, NodeRecord], leases: Iterable[Lease]
) -> dict[str, Member]:
    """Every member but ourselves, by name. A lease without owner record counts under its address."""
    found: dict[str, Member] = {}
    for lease in leases:
        record = records.get(lease.node)
        name = lease.node or lease.public_ip or lease.public_ip6 or ""
        said = _asn_in(record)
        if name == own or not name or not (said or lease.backend == BACKEND):
            continue
        labels = record.labels if record is not None else ()
        found[name] = Member(
            name=name,
            id=lease.node_id or (record.id if record is not None else ""),
            asn=said or _asn_of(lease) or options.asn_of(name, labels),
            role=role_in(record),
            via=via_in(record),
            v4=lease.public_ip,
            v6=lease.public_ip6,
            labels=labels,
            subnets=tuple(subnet for subnet in (lease.v4, lease.v6) if subnet is not None),
            lease=lease.key,
        )
    ids = {member.id for member in found.values()} | {record.id for name, record in records.items() if name == own}
    for name, record in records.items():
        asn = _asn_in(record)
        if name == own or name in found or not asn or (record.id and record.id in ids):
            continue
        addresses = [address for address in record.addresses if _is_host(address)]
        found[name] = Member(
            name=name,
            id=record.id,
            asn=asn,
            role=role_in(record),
            via=via_in(record),
            v4=next((a for a in addresses if ":" not in a), None),
            v6=next((a for a in addresses if ":" in a), None),
            labels=record.labels,
        )
    return found


def doubts(own: str, records: Mapping[str, NodeRecord]) -> Iterator[Finding]:
    """What other nodes' records say that cannot be, and is passed over."""
    for name, record in records.items():
        if name == own or AS_ATTRIBUTE not in record.attributes:
            continue
        said = record.attributes[AS_ATTRIBUTE]
        if said and not _asn_in(record):
            yield _doubt(name, AS_ATTRIBUTE, said, "no AS number")
        for address in record.addresses:
            if said and not _is_host(address):
                yield _doubt(name, "addresses", address, "no address of a host")


def _doubt(name: str, key: str, value: str, problem: str) -> Finding:
    return Finding(
        code="bgp-node-record",
        subject=name,
        message=f"{key} in the record of node {name} is {value[:80]!r}, {problem}: it is passed over",
        remedy=f"restart the agent of {name}, which writes its record anew, or delete the record if the node is gone",
    )


@functools.lru_cache(maxsize=16384)
def _is_host(address: str) -> bool:
    try:
        return is_host(parse_address(address))
    except ValueError:
        return False


def _asn_in(record: NodeRecord | None) -> int:
    """The AS number that the record names, 0 if none that could be one."""
    text = record.attributes.get(AS_ATTRIBUTE, "") if record is not None else ""
    return _checked(int(text)) if text.isascii() and text.isdigit() and len(text) <= 10 else 0


def _asn_of(lease: Lease) -> int:
    for data in (lease.data, lease.data6):
        if data:
            try:
                return _checked(_decode(data).asn)
            except msgspec.MsgspecError:
                continue
    return 0


def _checked(number: int) -> int:
    return number if 0 < number <= 0xFFFFFFFF else 0
