"""The network's configuration, flannel's JSON under `<prefix>/config`: read, checked, written, compared.

Rules: read as flannel reads it (keys in any case, a missing Backend means udp, the same defaults and the same
refusals), so that both agree on what one document means; written strictly, with flannel's own field names. What
flannel would ignore is a finding; what it would refuse, or what can be read in two ways, is a ConfigError that
names the key, its value and what to write instead. Nothing here does I/O.
"""

from __future__ import annotations

import difflib
import ipaddress
import itertools
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, NoReturn

import msgspec

from netagent.errors import ConfigError
from netagent.model import Backend, Finding, Network, family_of

DEFAULT_BACKEND = "udp"
KEYS = (
    "Network",
    "SubnetLen",
    "SubnetMin",
    "SubnetMax",
    "EnableIPv4",
    "EnableIPv6",
    "IPv6Network",
    "IPv6SubnetLen",
    "IPv6SubnetMin",
    "IPv6SubnetMax",
    "Backend",
)
# Keys of some flannel that mean nothing to us, and why.
FOREIGN_KEYS = {
    "EnableNFTables": "netagent always uses nftables",
    "Networks": "flannel v0.20's list of several networks is not supported, only Network is",
    "IPv6Networks": "flannel v0.20's list of several networks is not supported, only IPv6Network is",
}
_SIZE_LIMIT = 1 << 20
_DEEPEST = 32  # objects and lists in one another


class Parsed(NamedTuple):
    network: Network
    findings: tuple[Finding, ...] = ()


class Compatibility(NamedTuple):
    """What a new configuration means for a node that holds a subnet.

    `holds`: Network still contains the subnet, so the node can follow the change. `allocatable`: the subnet is one
    that would be handed out today as well (length and range). `backend_changed`: type or options. `changed` names
    the JSON keys that differ. `findings` say in an operator's words what does not fit.
    """

    holds: bool
    allocatable: bool
    backend_changed: bool
    changed: tuple[str, ...]
    findings: tuple[Finding, ...] = ()


# ------------------------------------------------------------------------------------------------ reading


def parse(raw: bytes | str, where: str = "config") -> Parsed:
    """The configuration with defaults filled in, and findings. `where` names its source in messages.

    ConfigError where flannel would refuse it as well, and on keys given twice.
    """
    fields = _fields(_document(raw, where), where, "")
    findings = [_unknown(name, where) for name in fields.unknown]
    reader = _Reader(fields.known, where, findings)

    enable4 = reader.boolean("EnableIPv4", True)
    enable6 = reader.boolean("EnableIPv6", False)
    if not enable4 and not enable6:
        reader.fail("EnableIPv4", "no address family is enabled", 'set "EnableIPv4" or "EnableIPv6" to true')
    v4 = _family(reader, _V4) if enable4 else _Family()
    v6 = _family(reader, _V6) if enable6 else _Family()
    for spec, enabled in ((_V4, enable4), (_V6, enable6)):
        if not enabled and fields.known.get(spec.network):
            findings.append(
                Finding(
                    code="config-family-disabled",
                    subject=where,
                    message=f"{spec.network} is given but {spec.enable} is not true, so it is ignored",
                    evidence=f"{spec.network}={_show(fields.known[spec.network])}",
                    remedy=f'set "{spec.enable}": true to use it, or remove {spec.network}',
                )
            )
    network = Network(
        v4=v4.network,
        subnet_len=v4.length,
        subnet_min=v4.first,
        subnet_max=v4.last,
        v6=v6.network,
        subnet_len6=v6.length,
        subnet_min6=v6.first,
        subnet_max6=v6.last,
        backend=_backend(fields.known, where),
    )
    return Parsed(network, tuple(findings))


class _Fields(NamedTuple):
    """Values under their canonical names, nulls left out as Go leaves them out; names that are not known."""

    known: dict[str, Any]
    unknown: tuple[str, ...]


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as its pairs, so that a key given twice can still be seen."""


def _document(raw: bytes | str, where: str) -> _Pairs:
    def constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is not JSON")

    if len(raw) > _SIZE_LIMIT:
        raise ConfigError(f"the document has {len(raw)} bytes, more than {_SIZE_LIMIT}", where=where)
    remedy = 'write a JSON object such as {"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}'
    try:
        document = json.loads(raw, object_pairs_hook=_Pairs, parse_constant=constant)
        _check_values(document, _DEEPEST)
    except RecursionError:
        raise ConfigError("the JSON is nested too deeply", where=where, remedy=remedy) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"not UTF-8 text: {error.reason}", where=where, remedy=remedy) from None
    except ValueError as error:
        raise ConfigError(f"not valid JSON: {error}", where=where, remedy=remedy) from None
    if not isinstance(document, _Pairs):
        raise ConfigError(f"expected a JSON object, found {_kind(document)}", where=where, remedy=remedy)
    return document


def _check_values(value: Any, levels: int) -> None:
    """ValueError for what Python reads and cannot write again: half a surrogate pair, a number without bound.

    RecursionError for a value of more levels than `levels`.
    """
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{value!r} has half of a surrogate pair") from None
    elif isinstance(value, float) and math.isinf(value):
        raise ValueError("a number is too large")
    elif isinstance(value, list):
        if not levels:
            raise RecursionError
        for inner in itertools.chain.from_iterable(value) if isinstance(value, _Pairs) else value:
            _check_values(inner, levels - 1)


def _fields(pairs: _Pairs, where: str, path: str) -> _Fields:
    """Sort pairs into known and unknown, matching names in any case."""
    names = {key.lower(): key for key in KEYS}
    known: dict[str, Any] = {}
    seen: dict[str, str] = {}
    unknown: list[str] = []
    for name, value in pairs:
        folded = name.lower()
        if folded in seen:
            _twice(seen[folded], name, where, path)
        seen[folded] = name
        if folded not in names:
            unknown.append(name)
        elif value is not None or folded == "backend":
            known[names[folded]] = value
    return _Fields(known, tuple(unknown))


def _twice(first: str, second: str, where: str, path: str) -> NoReturn:
    named = f"{path}{first}" if first == second else f"{path}{first} and {path}{second}"
    raise ConfigError(
        f"{named}: the key is given twice (its case does not matter)", where=where, remedy="keep one of them"
    )


def _unknown(name: str, where: str) -> Finding:
    for foreign, reason in FOREIGN_KEYS.items():
        if foreign.lower() == name.lower():
            return Finding(
                code="config-foreign-key",
                subject=f"{where} {name}",
                message=f"{name} has no effect here: {reason}",
                severity="info",
            )
    near = nearest(name, KEYS)
    return Finding(
        code="config-unknown-key",
        subject=f"{where} {name}",
        message=f"unknown key {name} is ignored",
        remedy=f"did you mean {near}?" if near else f"known keys are {', '.join(KEYS)}",
    )


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that `name` was probably meant to be, "" if none is near."""
    folded = {key.lower(): key for key in known}
    close = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.7)
    return folded[close[0]] if close else ""


class _Reader:
    """Typed access to the known fields. Each failure names key, value and remedy."""

    def __init__(self, values: Mapping[str, Any], where: str, findings: list[Finding]) -> None:
        self.values = values
        self.where = where
        self.findings = findings

    def fail(self, key: str, problem: str, remedy: str) -> NoReturn:
        value = f"={_show(self.values[key])}" if key in self.values else ""
        raise ConfigError(f"{key}{value}: {problem}", where=self.where, remedy=remedy)

    def boolean(self, key: str, default: bool) -> bool:
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            self.fail(key, f"expected true or false, found {_kind(value)}", f'write "{key}": true, without quotes')
        return value

    def number(self, key: str) -> int:
        """0 where it is absent, as in Go."""
        value = self.values.get(key, 0)
        if not isinstance(value, int) or isinstance(value, bool):
            self.fail(key, f"expected a whole number, found {_kind(value)}", f'write "{key}": 24, without quotes')
        return value

    def text(self, key: str, example: str) -> str:
        value = self.values.get(key, "")
        if not isinstance(value, str):
            self.fail(key, f"expected text, found {_kind(value)}", f'write "{key}": "{example}"')
        return value


class _Spec(NamedTuple):
    """One address family of the configuration: its key names and its limits."""

    enable: str
    network: str
    length: str
    first: str
    last: str
    bits: int
    longest: int  # SubnetLen at most
    default: int  # SubnetLen where the network is wide enough
    example: str
    example_address: str


_V4 = _Spec("EnableIPv4", "Network", "SubnetLen", "SubnetMin", "SubnetMax", 32, 30, 24, "10.5.0.0/16", "10.5.1.0")
_V6 = _Spec(
    "EnableIPv6",
    "IPv6Network",
    "IPv6SubnetLen",
    "IPv6SubnetMin",
    "IPv6SubnetMax",
    128,
    126,
    64,
    "fd00:5::/48",
    "fd00:5:0:1::",
)


class _Family(NamedTuple):
    network: str | None = None
    length: int | None = None
    first: str | None = None
    last: str | None = None


def _family(reader: _Reader, spec: _Spec) -> _Family:
    base, prefix = _prefix(reader, spec)
    length = _length(reader, spec, prefix)
    size = 1 << (spec.bits - length)
    top = base + (1 << (spec.bits - prefix))
    # The first subnet is left out on purpose: its network address is the network's own.
    first = _bound(reader, spec, spec.first, base, top, size, base + size)
    last = _bound(reader, spec, spec.last, base, top, size, top - size)
    if first > last:
        reader.fail(spec.first, f"lies above {spec.last}", f"swap {spec.first} and {spec.last}")
    return _Family(f"{_address(base, spec)}/{prefix}", length, _address(first, spec), _address(last, spec))


def _prefix(reader: _Reader, spec: _Spec) -> tuple[int, int]:
    """(network address, prefix length)."""
    text = reader.text(spec.network, spec.example)
    remedy = f'write "{spec.network}": "{spec.example}", with the range that your containers shall use'
    if not text:
        reader.fail(spec.network, f"is required when {spec.enable} is true", remedy)
    try:
        if "/" not in text or not text.rpartition("/")[2].isdecimal():
            raise ValueError
        net = ipaddress.ip_network(text, strict=False)
    except ValueError:
        reader.fail(spec.network, "not an address and prefix length", remedy)
    if net.max_prefixlen != spec.bits:
        reader.fail(spec.network, f"not an IPv{4 if spec.bits == 32 else 6} prefix", remedy)
    if isinstance(net, ipaddress.IPv6Network) and net.network_address.ipv4_mapped is not None:
        reader.fail(spec.network, "an IPv4-mapped prefix cannot be used for IPv6", remedy)
    if ipaddress.ip_interface(text).ip != net.network_address:
        reader.findings.append(
            Finding(
                code="config-host-bits",
                subject=f"{reader.where} {spec.network}",
                message=f"{spec.network} has bits set beyond its prefix length; it is read as {net}",
                evidence=f"{spec.network}={_show(text)}",
                remedy=f'write "{spec.network}": "{net}"',
            )
        )
    return int(net.network_address), net.prefixlen


def _length(reader: _Reader, spec: _Spec, prefix: int) -> int:
    length = reader.number(spec.length)
    smallest = spec.longest - 2
    if length < 0:
        reader.fail(spec.length, "must not be negative", f"write a length from {prefix + 2} to {spec.longest}")
    if length == 0:
        if prefix > smallest:
            reader.fail(
                spec.network,
                f"is too small: it must be /{smallest} or wider",
                f"take a range of /{smallest} or wider",
            )
        return spec.default if prefix <= spec.default - 2 else prefix + 2
    if length > spec.longest:
        reader.fail(
            spec.length, f"must be at most {spec.longest}", f"write a length from {prefix + 2} to {spec.longest}"
        )
    if length < prefix + 2:
        reader.fail(
            spec.length,
            f"{spec.network} (/{prefix}) must hold at least four subnets",
            f"write {prefix + 2} or more, or widen {spec.network}",
        )
    return length


def _bound(reader: _Reader, spec: _Spec, key: str, base: int, top: int, size: int, default: int) -> int:
    """SubnetMin or SubnetMax: `base` up to but not including `top` is the network, `size` a subnet's."""
    text = reader.text(key, spec.example_address)
    if not text:
        return default
    try:
        address = ipaddress.ip_address(text)
        if address.max_prefixlen != spec.bits:
            raise ValueError
    except ValueError:
        reader.fail(
            key,
            f"not an IPv{4 if spec.bits == 32 else 6} address",
            f'write the network address of a subnet, such as "{_address(default, spec)}"',
        )
    value = int(address)
    if value == 0:  # Go's zero value: as good as absent
        return default
    low, high = _address(base, spec), _address(top - size, spec)
    if not base <= value < top:
        reader.fail(key, f"is not in {spec.network}", f"write a subnet between {low} and {high}")
    if value % size:
        below = _address(value - value % size, spec)
        reader.fail(key, f"is not on a {spec.length} boundary", f'write "{below}" or the next subnet after it')
    return value


def _backend(known: Mapping[str, Any], where: str) -> Backend:
    if "Backend" not in known:
        return Backend(DEFAULT_BACKEND)
    value = known["Backend"]
    remedy = 'write "Backend": {"Type": "vxlan"}'
    if not isinstance(value, _Pairs):
        raise ConfigError(
            f"Backend={_show(value)}: expected an object, found {_kind(value)}", where=where, remedy=remedy
        )
    kind: Any = None
    options: dict[str, Any] = {}
    seen: dict[str, str] = {}
    for name, option in value:
        folded = name.lower()
        if folded in seen:
            _twice(seen[folded], name, where, "Backend.")
        seen[folded] = name
        if folded == "type":
            kind = option
        elif option is not None:
            options[name] = _plain(option, where, f"Backend.{name}")
    if kind is None or kind == "":
        raise ConfigError("Backend has no Type", where=where, remedy=remedy)
    if not isinstance(kind, str):
        raise ConfigError(
            f"Backend.Type={_show(kind)}: expected text, found {_kind(kind)}", where=where, remedy=remedy
        )
    return Backend(kind.lower(), options)


def _plain(value: Any, where: str, path: str) -> Any:
    """Pairs to dictionaries, all the way down."""
    if isinstance(value, _Pairs):
        out: dict[str, Any] = {}
        seen: dict[str, str] = {}
        for name, inner in value:
            if (folded := name.lower()) in seen:
                _twice(seen[folded], name, where, f"{path}.")
            seen[folded] = name
            out[name] = _plain(inner, where, f"{path}.{name}")
        return out
    if isinstance(value, list):
        return [_plain(inner, where, f"{path}[{place}]") for place, inner in enumerate(value)]
    return value


def _kind(value: Any) -> str:
    if isinstance(value, _Pairs):
        return "an object"
    names = {str: "text", bool: "true or false", int: "a number", float: "a number with a fraction", list: "a list"}
    return names.get(type(value), "null" if value is None else type(value).__name__)


def _show(value: Any) -> str:
    if isinstance(value, _Pairs):
        value = dict(value)
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def _address(value: int, spec: _Spec) -> str:
    return str(ipaddress.IPv4Address(value) if spec.bits == 32 else ipaddress.IPv6Address(value))


# ------------------------------------------------------------------------------------------------ writing


def write(network: Network) -> bytes:
    """The document that `parse` reads as `network`, with flannel's field names; what is a default is left out."""
    out: dict[str, Any] = {}
    if network.v4 is None:
        out["EnableIPv4"] = False
    else:
        out["Network"] = network.v4
        out |= _chosen(
            _V4, network.v4, _Family(network.v4, network.subnet_len, network.subnet_min, network.subnet_max)
        )
    if network.v6 is not None:
        out["EnableIPv6"] = True
        out["IPv6Network"] = network.v6
        out |= _chosen(
            _V6, network.v6, _Family(network.v6, network.subnet_len6, network.subnet_min6, network.subnet_max6)
        )
    out["Backend"] = {"Type": network.backend.type, **network.backend.options}
    return msgspec.json.encode(out)


def _chosen(spec: _Spec, prefix: str, family: _Family) -> dict[str, Any]:
    """What differs from the defaults for this network."""
    length = _family(_Reader({spec.network: prefix}, "", []), spec).length
    out: dict[str, Any] = {}
    values: dict[str, Any] = {spec.network: prefix}
    if family.length is not None and family.length != length:
        out[spec.length] = values[spec.length] = family.length
    default = _family(_Reader(values, "", []), spec)
    if family.first is not None and family.first != default.first:
        out[spec.first] = family.first
    if family.last is not None and family.last != default.last:
        out[spec.last] = family.last
    return out


def effective(network: Network) -> dict[str, Any]:
    """All values in force under flannel's names, defaults included (for `netagent config check`)."""
    out: dict[str, Any] = {"EnableIPv4": network.v4 is not None, "EnableIPv6": network.v6 is not None}
    if network.v4 is not None:
        out |= {
            "Network": network.v4,
            "SubnetLen": network.subnet_len,
            "SubnetMin": network.subnet_min,
            "SubnetMax": network.subnet_max,
        }
    if network.v6 is not None:
        out |= {
            "IPv6Network": network.v6,
            "IPv6SubnetLen": network.subnet_len6,
            "IPv6SubnetMin": network.subnet_min6,
            "IPv6SubnetMax": network.subnet_max6,
        }
    out["Backend"] = {"Type": network.backend.type, **network.backend.options}
    return out


# ---------------------------------------------------------------------------------------------- comparing


def compatible(
    old: Network | None, new: Network, v4: str | None, v6: str | None, *, node: str = "NAME"
) -> Compatibility:
    """What `new` means for the node of that name that holds the subnets `v4` and `v6` (None: not in that family)."""
    findings: list[Finding] = []
    holds = allocatable = True
    for subnet in (v4, v6):
        if subnet is None:
            continue
        spec, family = _of(new, subnet)
        if family.network is None or not contains(family.network, subnet):
            holds = allocatable = False
            findings.append(
                Finding(
                    code="network-excludes-subnet",
                    subject=subnet,
                    severity="error",
                    message=f"{spec.network} {family.network or '(family disabled)'} no longer holds this node's "
                    f"subnet {subnet}; nothing was changed",
                    remedy="put the old range back, or stop the containers on this host, stop netagent, run "
                    f"`netagent lease release --node {node}` and start netagent for a new subnet",
                )
            )
        elif not fits(new, subnet):
            allocatable = False
            findings.append(
                Finding(
                    code="network-range-excludes-subnet",
                    subject=subnet,
                    message=f"the node keeps its subnet {subnet}, though it would not be handed out today",
                    evidence=f"{spec.length}={family.length} {spec.first}={family.first} {spec.last}={family.last}",
                    remedy="nothing needs to be done; a flanneld on this host would take another subnet",
                )
            )
    before = effective(old) if old is not None else {}
    after = effective(new)
    changed = tuple(key for key in ("EnableIPv4", "EnableIPv6", *KEYS) if before.get(key) != after.get(key))
    unique = tuple(dict.fromkeys(changed))
    return Compatibility(holds, allocatable, old is None or old.backend != new.backend, unique, tuple(findings))


def fits(network: Network, subnet: str) -> bool:
    """Whether `subnet` is one that this network hands out: its length, between SubnetMin and SubnetMax."""
    _, family = _of(network, subnet)
    if family.network is None or family.first is None or family.last is None:
        return False
    net = ipaddress.ip_network(subnet)
    first, last = ipaddress.ip_address(family.first), ipaddress.ip_address(family.last)
    return net.prefixlen == family.length and int(first) <= int(net.network_address) <= int(last)


def contains(network: str, subnet: str) -> bool:
    """Whether prefix `network` holds prefix `subnet` whole."""
    outer, inner = ipaddress.ip_network(network), ipaddress.ip_network(subnet)
    if outer.version != inner.version or outer.prefixlen > inner.prefixlen:
        return False
    return int(inner.network_address) >> (outer.max_prefixlen - outer.prefixlen) == int(outer.network_address) >> (
        outer.max_prefixlen - outer.prefixlen
    )


def _of(network: Network, subnet: str) -> tuple[_Spec, _Family]:
    if family_of(subnet) == 4:
        return _V4, _Family(network.v4, network.subnet_len, network.subnet_min, network.subnet_max)
    return _V6, _Family(network.v6, network.subnet_len6, network.subnet_min6, network.subnet_max6)
