"""What every backend must find out about its host and a peer before it plans a path, and how it says so."""

from __future__ import annotations

from collections.abc import Callable

from netagent.contract import Context, Plan
from netagent.model import Facts, Family, Finding, Lease, Node, Object

# Appends the objects that lead to a peer's subnet of one family, or says why there are none.
Path = Callable[[Context, Lease, Family, list[Object]], Finding | None]

# Backends that reach across routers, the fastest first, with the ability of the kernel that each needs.
_OVERLAYS = (("vxlan", "vxlan"), ("ipip", "ipip"), ("udp", "tun"))


def other_backend(ours: str, lease: Lease) -> Finding:
    """The peer runs another backend: no path (flannel ignores such leases silently)."""
    return Finding(
        code="peer-other-backend",
        subject=lease.key,
        message=f"{lease.label} uses the {lease.backend or 'udp'} backend, this node {ours}: no path to it",
        evidence=f"BackendType of {lease.key}: {lease.backend or 'absent, which means udp'}",
        remedy="if it does not follow the network's configuration by itself, restart the agent on that node",
    )


def lacking(ours: str, kind: str, facts: Facts, module: str = "") -> Finding:
    """This kernel makes no device of the kind that the backend stands on. Says which backend serves instead."""
    module = module or kind
    others = [name for name, ability in _OVERLAYS if name != ours and ability in facts.abilities]
    instead = f'use "{others[0]}", the next best backend' if others else 'use "host-gw"'
    return Finding(
        code="kernel-lacks-device",
        subject=kind,
        severity="error",
        message=f"this kernel has no {kind} devices, which the {ours} backend stands on: no path by it",
        evidence=f"making one was refused; `modprobe {module}` tells why",
        remedy=f"install the kernel's module {module} (it is then used by itself); or {instead}, "
        "for all nodes in the network's configuration; host-gw needs nothing where all share one L2 segment",
    )


def translated(context: Context, where: str, remedy: str) -> tuple[Finding, ...]:
    """Findings where the public address is not the uplink's own, for who needs it as next hop."""
    node = context.node
    return tuple(
        Finding(
            code="public-address-not-ours",
            subject=node.name,
            severity="error",
            message=f"{where} the public address must be the uplink's own: peers use it as next hop",
            evidence=f"public {node.endpoint(family)}, on {node.uplink}: {node.local(family)}",
            remedy=f"drop --public-ip, or {remedy}",
        )
        for family in context.network.families
        if node.endpoint(family) != node.local(family)
    )


def endpoint_problem(node: Node, lease: Lease, family: Family) -> Finding | None:
    """Why no packet can be sent to the peer's host in that family, or None."""
    endpoint = lease.endpoint(family)
    field, flag = ("PublicIP", "--public-ip") if family == 4 else ("PublicIPv6", "--public-ipv6")
    if endpoint is None:
        return Finding(
            code="peer-no-address",
            subject=lease.key,
            message=f"no path to {lease.subnet(family)}: {lease.label} announces no {field}",
            evidence=f"{field} of {lease.key} is absent",
            remedy=f"give that node an IPv{family} address, or set {flag} for its agent",
        )
    if endpoint == node.endpoint(family):
        return same_address(node, lease, endpoint)
    return None


def same_address(node: Node, lease: Lease, address: str) -> Finding:
    """The peer announces our own address: what we would send to it would come back."""
    return Finding(
        code="peer-same-address",
        subject=lease.key,
        severity="error",
        message=f"{lease.label} announces this node's own address {address}: no path to it",
        evidence=f"{lease.key} has {address}, which {node.name} announces too",
        remedy="on one of the two choose the right interface (--iface-can-reach) or set --public-ip",
    )


def paths(context: Context, lease: Lease, path: Path) -> Plan:
    """The paths to a peer in every family of the network in which it has a subnet; one that fails stops no other."""
    objects: list[Object] = []
    findings: list[Finding] = []
    for family in context.network.families:
        if lease.subnet(family) is not None:
            problem = path(context, lease, family, objects)
            if problem is not None:
                findings.append(problem)
    return Plan(tuple(objects), tuple(findings))
