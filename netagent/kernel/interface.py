"""Which interface and addresses carry the traffic to the peers, why, and what else there was. Pure.

Rules: what the operator names is taken or refused, never replaced by something else; without a name it is the
interface of the default route. Addresses of our own devices, link-local ones and those inside the container network
are never chosen, and a lasting address comes before one that may go (deprecated, temporary, a /32 that looks
like a virtual address). All that was passed over is listed with the reason.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator

import msgspec

from netagent.config import Settings
from netagent.errors import ConfigError
from netagent.model import AddressFact, Facts, Family, LinkFact, Network, RouteFact, family_of

Reach = Callable[[str], RouteFact | None]

# Bridges and the like that container and VM software makes for its own guests.
_GUESTS = re.compile(
    r"(docker|br-[0-9a-f]{12}$|virbr|cni|podman|lxcbr|lxdbr|incusbr|veth|vnet|flannel|cali|tunl|kube-|nodelocaldns)"
)
_OWN_PREFIX = "na-"
_DEFAULT = {4: "0.0.0.0/0", 6: "::/0"}
_FLAG = {4: "--public-ip", 6: "--public-ipv6"}

# VirtualBox's NAT, and so Vagrant's first interface: the same address on every machine, reachable from none.
_VIRTUALBOX_NAT = "10.0.2.15"

_LISTED = 12  # of what was passed over


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """`local_*` are addresses of the interface to bind to, `public_*` those that peers send to. `mtu` in bytes.

    `why` and `others` are words for an operator ("it holds the default route", "eth0 10.0.2.15: ...").
    """

    interface: str
    mtu: int
    local_ip: str | None = None
    local_ip6: str | None = None
    public_ip: str | None = None
    public_ip6: str | None = None
    why: str = ""
    others: tuple[str, ...] = ()

    def local(self, family: Family) -> str | None:
        return self.local_ip if family == 4 else self.local_ip6


class _Candidate(msgspec.Struct, frozen=True):
    """An interface that one of the rules points at. `address`: the one that it points at, where it does."""

    dev: str
    why: str
    address: str | None = None
    gateway: str | None = None


def choose(facts: Facts, settings: Settings, network: Network, reach: Reach) -> Choice:
    """The interface by the first rule that gives one with a usable address in every family of the network.

    In this order: `iface`, each in turn; `iface_regex`; `iface_can_reach`; the interface that has `public_ip`; the
    default route; the only interface with an address. ConfigError says what was tried and what there is.
    """
    tried: list[str] = []
    for candidate in _candidates(facts, settings, network, reach, tried):
        addresses = {family: _address(facts, settings, network, candidate, family) for family in network.families}
        missing = [family for family, address in addresses.items() if address is None]
        if missing:
            words = " and ".join(f"IPv{family}" for family in missing)
            tried.append(f"{candidate.dev} ({candidate.why}) has no usable {words} address")
            continue
        return _choice(facts, settings, network, candidate, addresses)
    there = _listing(facts, network, None, {})
    if not tried:
        tried.append(f"no default route, and {'no single' if there else 'no'} interface with an address")
    raise ConfigError(
        "; ".join(tried),
        where="interface",
        remedy=f"Name one with --iface. There is: {', '.join(there)}" if there else "Give an interface an address",
    )


# --------------------------------------------------------------------------------------------- the rules, in order


def _candidates(
    facts: Facts, settings: Settings, network: Network, reach: Reach, tried: list[str]
) -> Iterator[_Candidate]:
    for name in settings.iface:
        found = _named(facts, name)
        if isinstance(found, str):
            tried.append(found)
        else:
            yield found
    for pattern in settings.iface_regex:
        matches = list(_matching(facts, pattern))
        yield from matches
        if not matches:
            tried.append(f"no interface or address matches --iface-regex {pattern}")
    if settings.iface_can_reach:
        route = reach(settings.iface_can_reach)
        link = None if route is None else facts.links.get(route.dev)
        if route is None or link is None:
            tried.append(f"there is no route to {settings.iface_can_reach} (--iface-can-reach)")
        elif (refusal := _unfit(link)) is not None:
            tried.append(f"{settings.iface_can_reach} (--iface-can-reach) is reached by {refusal}")
        else:
            why = f"{settings.iface_can_reach} is reached by it (--iface-can-reach)"
            yield _Candidate(route.dev, why, route.src, route.gateway)
    if settings.iface or settings.iface_regex or settings.iface_can_reach:
        return
    for public in (settings.public_ip, settings.public_ipv6):
        for fact in facts.addresses:
            if fact.ip == public and _unfit(facts.links[fact.dev]) is None:
                yield _Candidate(fact.dev, f"it has the address {public} of {_FLAG[family_of(fact.ip)]}", fact.ip)
    yield from _default_routes(facts, network)
    holders = {
        fact.dev
        for fact in facts.addresses
        if fact.dev in facts.links and _passed_over(facts.links[fact.dev], fact, network) is None
    }
    if len(holders) == 1:
        yield _Candidate(holders.pop(), "it is the only interface with an address")


def _named(facts: Facts, name: str) -> _Candidate | str:
    """The interface with this name or address, or why there is none."""
    link = facts.links.get(name)
    if link is not None:
        return _unfit(link) or _Candidate(name, f"--iface names it ({name})")
    wanted = _canonical(name)
    for fact in facts.addresses:
        if fact.ip == wanted and fact.dev in facts.links:
            return _unfit(facts.links[fact.dev]) or _Candidate(
                fact.dev, f"--iface names its address {wanted}", wanted
            )
    return f"there is no interface {name}" if wanted is None else f"no interface has the address {wanted}"


def _canonical(name: str) -> str | None:
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return None


def _matching(facts: Facts, pattern: str) -> Iterator[_Candidate]:
    """Interfaces by name, then by address; those of containers and VMs only where nothing else matches."""
    compiled = re.compile(pattern)
    for guests in (False, True):
        for name, link in facts.links.items():
            if _unfit(link) is not None or bool(_GUESTS.match(name)) is not guests:
                continue
            if compiled.search(name):
                yield _Candidate(name, f"its name matches --iface-regex {pattern}")
                continue
            for fact in facts.addresses:
                if fact.dev == name and compiled.search(fact.ip):
                    yield _Candidate(name, f"its address {fact.ip} matches --iface-regex {pattern}", fact.ip)


def _default_routes(facts: Facts, network: Network) -> Iterator[_Candidate]:
    for family in network.families:
        routes = [route for route in facts.routes if route.dst == _DEFAULT[family]]
        for route in sorted(routes, key=lambda route: route.metric):
            link = facts.links.get(route.dev)
            if link is not None and _unfit(link) is None:
                yield _Candidate(route.dev, "it holds the default route", route.src, route.gateway)


# ------------------------------------------------------------------------------------------------- the addresses


def _address(
    facts: Facts, settings: Settings, network: Network, candidate: _Candidate, family: Family
) -> AddressFact | None:
    """The best address of the interface in that family."""
    public = settings.public_ip if family == 4 else settings.public_ipv6
    usable = [
        fact
        for fact in facts.addresses
        if fact.dev == candidate.dev and family_of(fact.ip) == family and _unusable(fact, network) is None
    ]

    def order(fact: AddressFact) -> tuple[bool, ...]:
        return (
            fact.ip != candidate.address or fact.deprecated or fact.temporary,
            fact.ip != public,
            fact.tentative,
            fact.deprecated,
            fact.temporary,
            _looks_virtual(fact),
            not (candidate.gateway and _holds(fact, candidate.gateway)),
        )

    if candidate.address is not None and candidate.why.startswith("--iface"):
        named = [fact for fact in usable if fact.ip == candidate.address]
        if named:
            return named[0]
    return min(usable, key=order, default=None)


def _unfit(link: LinkFact) -> str | None:
    """Why an interface can carry no traffic to peers, None if it can."""
    if link.loopback:
        return f"{link.name}, which is the loopback"
    if link.own or link.name.startswith(_OWN_PREFIX):
        return f"{link.name}, which is netagent's own"
    return None


def _unusable(fact: AddressFact, network: Network) -> str | None:
    """Why peers cannot send to an address, None if they can."""
    if fact.scope != "global" or fact.ip.startswith(("169.254.", "fe80:", "127.")):
        return "not of global scope"
    prefix = network.v4 if family_of(fact.ip) == 4 else network.v6
    if prefix is not None and ipaddress.ip_address(fact.ip) in ipaddress.ip_network(prefix):
        return f"inside the container network {prefix}"
    return None


def _looks_virtual(fact: AddressFact) -> bool:
    return fact.length == (32 if family_of(fact.ip) == 4 else 128)


def _holds(fact: AddressFact, ip: str) -> bool:
    return ipaddress.ip_address(ip) in ipaddress.ip_network(f"{fact.ip}/{fact.length}", strict=False)


def _passed_over(link: LinkFact, fact: AddressFact, network: Network) -> str | None:
    """Why an address is not taken unless it is named, None if nothing speaks against it."""
    unfit = _unfit(link)
    if unfit is not None:
        return unfit.partition(", which is ")[2]
    if _GUESTS.match(link.name):
        return "for containers or virtual machines"
    if family_of(fact.ip) not in network.families:
        return f"the network has no IPv{family_of(fact.ip)}"
    return _unusable(fact, network)


# ---------------------------------------------------------------------------------------------------- the words


def _choice(
    facts: Facts,
    settings: Settings,
    network: Network,
    candidate: _Candidate,
    addresses: dict[Family, AddressFact | None],
) -> Choice:
    local = {family: fact.ip for family, fact in addresses.items() if fact is not None}
    why = candidate.why
    if _VIRTUALBOX_NAT in local.values() and not settings.public_ip:
        why += f"; but {_VIRTUALBOX_NAT} is what VirtualBox and Vagrant give every machine: peers cannot reach it"
    return Choice(
        interface=candidate.dev,
        mtu=facts.links[candidate.dev].mtu,
        local_ip=local.get(4),
        local_ip6=local.get(6),
        public_ip=(settings.public_ip or local.get(4)) if 4 in local else None,
        public_ip6=(settings.public_ipv6 or local.get(6)) if 6 in local else None,
        why=why,
        others=tuple(_listing(facts, network, candidate, local)),
    )


def _listing(facts: Facts, network: Network, chosen: _Candidate | None, local: dict[Family, str]) -> list[str]:
    """Every other address of global scope, with the reason why it was not taken."""
    defaults = {route.dev for route in facts.routes if route.dst in _DEFAULT.values()}
    lines = []
    for fact in facts.addresses:
        link = facts.links.get(fact.dev)
        if link is None or link.loopback or fact.scope != "global" or fact.ip in local.values():
            continue
        reason = _passed_over(link, fact, network)
        if reason is None and chosen is not None:
            if fact.dev == chosen.dev:
                reason = _second(fact)
            elif fact.dev in defaults:
                reason = "holds the default route" if "default" not in chosen.why else "a worse default route"
            else:
                reason = "not on the default route" if "default" in chosen.why else ""
        lines.append(f"{fact.dev} {fact.ip}: {reason}" if reason else f"{fact.dev} {fact.ip}")
    if len(lines) > _LISTED:
        lines[_LISTED:] = [f"and {len(lines) - _LISTED} more"]
    return lines


def _second(fact: AddressFact) -> str:
    """Why another address of the same interface was better."""
    if fact.deprecated:
        return "deprecated"
    if fact.temporary:
        return "temporary" if family_of(fact.ip) == 6 else "secondary"
    if fact.tentative:
        return "tentative"
    return "looks like a virtual address" if _looks_virtual(fact) else "another address of it comes first"
