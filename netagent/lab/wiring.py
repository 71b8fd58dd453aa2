"""From a topology to the commands that build it: pure, text in `ip -batch` form.

Rule: a `Step` is one namespace ("" is the lab's own) and what to do in it; steps are carried out in order, and
each stops at its first failure. Every rack is a namespace with a bridge br0, whose ports are named after what is
plugged in; a host has eth0; its containers' namespace is "<host>-c" and hangs on the host's bridge lab0.
"""

from __future__ import annotations

import ipaddress
import shlex
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from netagent.lab.topology import Host, Router, Topology

BRIDGE = "lab0"  # what a container runtime would have made (docker0)


class Step(NamedTuple):
    netns: str
    ip: tuple[str, ...] = ()  # lines for `ip -batch`
    sysctls: tuple[tuple[str, str], ...] = ()  # written first, where they exist


def script(steps: Iterable[Step]) -> str:
    """The steps as one shell script. Its standard error names what failed."""
    lines = ["set -eu"]
    for step in steps:
        enter = f"ip netns exec {shlex.quote(step.netns)} " if step.netns else ""
        if step.sysctls:
            writes = "; ".join(
                f"test ! -e {path} || echo {value} >{path}"
                for path, value in ((f"/proc/sys/{name}", value) for name, value in step.sysctls)
            )
            lines.append(f"{enter}sh -ec {shlex.quote(writes)}")
        if step.ip:
            where = f"-n {shlex.quote(step.netns)} " if step.netns else ""
            lines += [f"ip {where}-batch - <<'END'", *step.ip, "END"]
    return "\n".join(lines) + "\n"


def container(host: str) -> str:
    """Name of the namespace that holds the host's container."""
    return f"{host}-c"


def topology(lab: Topology) -> list[Step]:
    """Everything but the containers, which need a subnet first."""
    steps = [_spaces(rack.name for rack in lab.racks)]
    for rack in lab.racks:
        bridge = f"link add br0 mtu {rack.mtu} type bridge mcast_snooping 0"
        steps.append(Step(rack.name, (bridge, "link set br0 up")))
    for router in lab.routers:
        steps += _router(lab, router)
    for machine in (lab.etcd, *lab.hosts):
        steps += host(lab, machine)
    return steps


def host(lab: Topology, machine: Host) -> list[Step]:
    """A host plugged into its rack, with its (yet unplugged) container's namespace."""
    names = [machine.name] if machine == lab.etcd else [machine.name, container(machine.name)]
    return [
        _spaces(names),
        *(_prepare(name) for name in names),
        *_plug(lab, machine.name, "eth0", machine.rack),
        Step(machine.name, tuple(uplink(lab, machine))),
    ]


def uplink(lab: Topology, machine: Host) -> list[str]:
    """Addresses and default routes of a host's eth0."""
    rack = lab.rack(machine.rack)
    gateways = [address.partition("/")[0] for address in rack.address(lab.routers[0].number)]
    return [
        f"address add {machine.v4} dev eth0",
        f"address add {machine.v6} dev eth0 nodad",
        *(f"route replace default via {gateway} dev eth0" for gateway in gateways),
    ]


def unplug(machine: Host) -> list[Step]:
    """Removes a host and its container. Their processes must have ended."""
    return [
        Step(machine.rack, (f"link delete {machine.name}",)),
        Step("", (f"netns delete {machine.name}", f"netns delete {container(machine.name)}")),
    ]


def attach(machine: str, env: Mapping[str, str], *, again: bool) -> list[Step]:
    """A container on the host's bridge as a container runtime would do it from subnet.env. `again`: it is there,
    follow a new MTU or subnet."""
    mtu = env["FLANNEL_MTU"]
    inside = container(machine)
    port = "lab-c"
    steps = []
    if not again:
        steps.append(
            Step(
                machine,
                (
                    f"link add {BRIDGE} type bridge mcast_snooping 0",
                    f"link add {port} type veth peer name eth0 netns {inside}",
                    f"link set {port} master {BRIDGE}",
                ),
            )
        )
    outside = [f"link set {port} mtu {mtu} up", f"link set {BRIDGE} mtu {mtu} up"]
    within = [f"link set eth0 mtu {mtu} up"]
    for gateway, own in addresses(env):
        nodad = " nodad" if ":" in gateway else ""
        outside.append(f"address replace {gateway} dev {BRIDGE}{nodad}")
        within.append(f"address replace {own} dev eth0{nodad}")
        within.append(f"route replace default via {gateway.partition('/')[0]} dev eth0")
    return [*steps, Step(machine, tuple(outside)), Step(inside, tuple(within))]


def addresses(env: Mapping[str, str]) -> list[tuple[str, str]]:
    """For each family in subnet.env: (the bridge's address, the container's), with prefix lengths."""
    found = []
    for name in ("FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"):
        if gateway := env.get(name):
            own = ipaddress.ip_interface(gateway)
            found.append((gateway, f"{own.ip + 1}/{own.network.prefixlen}"))
    return found


def _router(lab: Topology, router: Router) -> list[Step]:
    steps = [_spaces([router.name]), _prepare(router.name, forwards=True)]
    for rack in lab.racks:
        v4, v6 = rack.address(router.number)
        steps += _plug(lab, router.name, rack.name, rack.name)
        steps.append(
            Step(router.name, (f"address add {v4} dev {rack.name}", f"address add {v6} dev {rack.name} nodad"))
        )
    return steps


def _spaces(names: Iterable[str]) -> Step:
    return Step("", tuple(f"netns add {name}" for name in names))


def _prepare(name: str, *, forwards: bool = False) -> Step:
    """A namespace as a fresh machine has it, but for duplicate address detection: its seconds of waiting."""
    settings = [("net/ipv6/conf/all/accept_dad", "0"), ("net/ipv6/conf/default/accept_dad", "0")]
    if forwards:
        settings += [("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")]
    return Step(name, ("link set lo up",), tuple(settings))


def _plug(lab: Topology, name: str, dev: str, rack: str) -> list[Step]:
    """A cable from `dev` of namespace `name` to the rack's bridge."""
    mtu = lab.rack(rack).mtu
    return [
        Step("", (f"link add {dev} netns {name} mtu {mtu} type veth peer name {name} netns {rack} mtu {mtu}",)),
        Step(rack, (f"link set {name} master br0 up",)),
        Step(name, (f"link set {dev} up",)),
    ]
