"""What every backend must find out about a peer before it plans a path to it, and how it says so."""

from __future__ import annotations

from netagent.model import Family, Finding, Lease, Node


def other_backend(ours: str, lease: Lease) -> Finding:
    """The peer runs another backend: no path (flannel ignores such leases silently)."""
    return Finding(
        code="peer-other-backend",
        subject=lease.key,
        message=f"{lease.label} uses the {lease.backend or 'udp'} backend, this node {ours}: no path to it",
        evidence=f"BackendType of {lease.key}: {lease.backend or 'absent, which means udp'}",
        remedy="if it does not follow the network's configuration by itself, restart the agent on that node",
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
