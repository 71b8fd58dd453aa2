"""The cluster's records in etcd: key names, JSON to values and back. flannel's schema exactly, and ours beside it.

    <prefix>/config                        the network's configuration (network_config.py)
    <prefix>/subnets/10.5.59.0-24          a subnet lease; dual stack "10.5.59.0-24&fc00:0:0:1::-64",
                                           IPv6 only "0.0.0.0-0&fc00:0:0:1::-64"
    <prefix>/netagent/owners/<subnet key>  who holds it; written in one transaction with it, on the same etcd lease
    <prefix>/netagent/nodes/<name>         a node as it describes itself
    <prefix>/netagent/alive/<name>         nothing but who is alive, on a short etcd lease

Rules: values are written byte for byte as Go's encoder writes flannel's LeaseAttrs, and fields that we do not know
survive a rewrite; nothing but a well-formed subnet key is ever written under `<prefix>/subnets` (any other empties
flannel's routing tables). Reading never raises: a malformed record is a Finding. Reading a lease is on the path of
each of 5,000 peers: one regular expression, inet_pton and one typed decoder, no ipaddress objects.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec

from netagent.model import Finding, Lease, NodeRecord, family_of
from netagent.store.base import KeyValue

Kind: TypeAlias = Literal["config", "subnet", "owner", "node", "alive", "foreign", "other"]

_from_bytes = int.from_bytes


class Keys:
    """Key names under one prefix, which is cleaned as flannel cleans it: no slash at its end, none doubled."""

    def __init__(self, prefix: str) -> None:
        self.prefix = re.sub(r"/+", "/", prefix).rstrip("/")
        self.root = f"{self.prefix}/"  # what is listed and watched
        self.config = f"{self.prefix}/config"
        self.subnets = f"{self.prefix}/subnets"  # flannel lists and watches this, without a slash
        self._subnet = f"{self.subnets}/"
        self._own = f"{self.prefix}/netagent/"
        self._owner = f"{self._own}owners/"
        self._node = f"{self._own}nodes/"
        self._alive = f"{self._own}alive/"

    def subnet(self, name: str) -> str:
        return self._subnet + name

    def owner(self, name: str) -> str:
        return self._owner + name

    def node(self, name: str) -> str:
        return self._node + name

    def alive(self, name: str) -> str:
        return self._alive + name

    def classify(self, key: str) -> tuple[Kind, str]:
        """(kind, the last part of the name). "foreign": flannel would take it for a lease, and it is none."""
        if key.startswith(self.subnets):
            return ("subnet", key[len(self._subnet) :]) if key.startswith(self._subnet) else ("foreign", key)
        if key.startswith(self._own):
            if key.startswith(self._owner):
                return "owner", key[len(self._owner) :]
            if key.startswith(self._alive):
                return "alive", key[len(self._alive) :]
            if key.startswith(self._node):
                return "node", key[len(self._node) :]
            return "other", key
        return ("config" if key == self.config else "other"), key


# ------------------------------------------------------------------------------------------ addresses as numbers


def span(subnet: str) -> tuple[int, int]:
    """(first, last) address of a prefix in text, as numbers. ValueError or OSError when it is none."""
    text, _, length = subnet.partition("/")
    if ":" in text:
        first, bits = _from_bytes(inet_pton(AF_INET6, text), "big"), 128
    else:
        first, bits = _from_bytes(inet_pton(AF_INET, text), "big"), 32
    return first, first | ((1 << (bits - int(length))) - 1)


def address4(value: int) -> str:
    return inet_ntop(AF_INET, value.to_bytes(4, "big"))


def address6(value: int) -> str:
    """Text as Go's net.IP.String() gives it, which differs from the C library's below ::/96."""
    text = inet_ntop(AF_INET6, value.to_bytes(16, "big"))
    if "." not in text:
        return text
    if value >> 32 == 0xFFFF:  # IPv4-mapped: Go prints the bare IPv4 address; no key can hold it
        return text
    high, low = value >> 16 & 0xFFFF, value & 0xFFFF
    return f"::{high:x}:{low:x}"


# -------------------------------------------------------------------------------------------------- subnet keys

_SUBNET_KEY = re.compile(
    r"((?:[0-9]{1,3}\.){3}[0-9]{1,3})-([0-9]{1,2})(?:&([0-9a-f:]{2,39})-([0-9]{1,3}))?\Z",
)
_MASK4 = tuple((1 << (32 - n)) - 1 for n in range(33))
_MASK6 = tuple((1 << (128 - n)) - 1 for n in range(129))


class SubnetKey(NamedTuple):
    v4: str | None
    v6: str | None


def subnet_key(v4: str | None, v6: str | None) -> str:
    """The name of the lease key for these subnets, as flannel's MakeSubnetKey makes it."""
    first = v4.replace("/", "-") if v4 else "0.0.0.0-0"
    if v6 is None:
        if v4 is None:
            raise ValueError("a subnet key needs a subnet")
        return first
    return f"{first}&{v6.replace('/', '-')}"


def parse_subnet_key(name: str) -> SubnetKey | str:
    """The subnets of a lease key, or what is wrong with it in an operator's words."""
    match = _SUBNET_KEY.match(name)
    if match is None:
        return "it is not of the form <IPv4>-<length> or <IPv4>-<length>&<IPv6>-<length>"
    text4, length4, text6, length6 = match.groups()
    bits4 = int(length4)
    try:
        if bits4 > 32:
            return f"IPv4 prefix length {length4} is more than 32"
        if _from_bytes(inet_pton(AF_INET, text4), "big") & _MASK4[bits4]:
            return f"{text4} has bits set beyond the length of {length4}"
    except OSError:
        return f"{text4} is not an IPv4 address"
    v6 = None
    if text6 is not None:
        bits6 = int(length6)
        if bits6 > 128 or bits6 == 0:
            return f"IPv6 prefix length {length6} is not from 1 to 128"
        try:
            packed = inet_pton(AF_INET6, text6)
        except OSError:
            return f"{text6} is not an IPv6 address"
        value = _from_bytes(packed, "big")
        if value & _MASK6[bits6]:
            return f"{text6} has bits set beyond the length of {length6}"
        v6 = f"{address6(value)}/{bits6}"
    if bits4 == 0:
        if v6 is None:
            return "it claims all of IPv4"
        return SubnetKey(None, v6)
    return SubnetKey(f"{text4}/{bits4}", v6)


# ------------------------------------------------------------------------------------------------- lease values

_NO_DATA = msgspec.Raw()


class _LeaseValue(msgspec.Struct, gc=False):
    """flannel's LeaseAttrs, in its order of fields."""

    PublicIP: str
    PublicIPv6: str | None = None
    BackendType: str = ""
    BackendData: msgspec.Raw = _NO_DATA
    BackendV6Data: msgspec.Raw = _NO_DATA


_FIELDS = ("PublicIP", "PublicIPv6", "BackendType", "BackendData", "BackendV6Data")
_FOLDED = {name.lower(): name for name in _FIELDS}

# Go's encoder escapes these, for HTML and JavaScript. In JSON they occur only within strings.
_GO_ESCAPES = (
    (b"&", b"\\u0026"),
    (b"<", b"\\u003c"),
    (b">", b"\\u003e"),
    ("\u2028".encode(), b"\\u2028"),
    ("\u2029".encode(), b"\\u2029"),
)

_decode_lease = msgspec.json.Decoder(_LeaseValue).decode
_decode_raw = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


def parse_lease(name: str, kv: KeyValue, node: str = "", node_id: str = "") -> Lease | Finding:
    """The lease under `<prefix>/subnets/<name>`, with the owner given; or a finding that says why there is none."""
    _, value, create, mod, _, lease_id = kv
    subnets = parse_subnet_key(name)
    if isinstance(subnets, str):
        return _malformed_key(kv.key, subnets)
    try:
        try:
            fields = _decode_lease(value)
        except msgspec.ValidationError:
            fields = _decode_lease(_canonical(value))
        ip, ip6, backend = fields.PublicIP, fields.PublicIPv6, fields.BackendType
        inet_pton(AF_INET, ip)
        if ip6 is not None:
            ip6 = inet_ntop(AF_INET6, inet_pton(AF_INET6, ip6)) if ip6 not in ("", "::") else None
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError, RecursionError) as error:
        return _malformed_value(kv, f"it is not a lease: {error}")
    except OSError:
        return _malformed_value(kv, f"PublicIP {fields.PublicIP!r} or PublicIPv6 {fields.PublicIPv6!r} is no address")
    v4, v6 = subnets
    return Lease(
        key=name,
        v4=v4,
        v6=v6,
        public_ip=ip if ip != "0.0.0.0" else None,  # noqa: S104, what flannel writes for "none"
        public_ip6=ip6,
        backend=backend,
        data=bytes(fields.BackendData),
        data6=bytes(fields.BackendV6Data),
        node=node,
        node_id=node_id,
        lease_id=lease_id,
        create_revision=create,
        mod_revision=mod,
        raw=value,
    )


def _canonical(value: bytes) -> bytes:
    """The value with field names in flannel's case: Go matches them in any case. A missing PublicIP is 0.0.0.0."""
    out: dict[str, msgspec.Raw] = {"PublicIP": msgspec.Raw(b'"0.0.0.0"')}
    for name, raw in _decode_raw(value).items():
        known = _FOLDED.get(name.lower())
        if known is not None and (bytes(raw) != b"null" or known == "PublicIPv6"):
            out[known] = raw
    return _encode(out)


def _malformed_key(key: str, reason: str) -> Finding:
    return Finding(
        code="lease-malformed-key",
        subject=key,
        severity="error",
        message=f"{key} is no subnet key: {reason}; skipped here, but it empties flanneld's routing tables",
        remedy=f"etcdctl del '{key}'",
    )


def _malformed_value(kv: KeyValue, reason: str) -> Finding:
    return Finding(
        code="lease-malformed-value",
        subject=kv.key,
        message=f"the lease {kv.key} cannot be read and is skipped: {reason}",
        evidence=repr(kv.value[:120]),
        remedy=f"restart the agent that holds it, or delete it: etcdctl del '{kv.key}'",
    )


def foreign_key(key: str) -> Finding:
    """A key that flannel's watch on `<prefix>/subnets` sees and that is no lease of ours to read."""
    return _malformed_key(key, "it does not lie under <prefix>/subnets/")


def lease_value(
    public_ip: str | None,
    public_ip6: str | None,
    backend: str = "",
    data: Mapping[str, Any] | None = None,
    data6: Mapping[str, Any] | None = None,
    *,
    previous: bytes = b"",
) -> bytes:
    """The value of a lease key, byte for byte as flannel writes it: an IPv6-only node has PublicIP "0.0.0.0".

    Fields of `previous` (the value that is replaced) which flannel does not know are kept, after the known ones.
    """
    fields: dict[str, Any] = {"PublicIP": public_ip or "0.0.0.0", "PublicIPv6": public_ip6}  # noqa: S104
    if backend:
        fields["BackendType"] = backend
    if data is not None:
        fields["BackendData"] = data
    if data6 is not None:
        fields["BackendV6Data"] = data6
    if previous:
        fields |= unknown_fields(previous)
    out = _encode(fields)
    for char, escape in _GO_ESCAPES:
        out = out.replace(char, escape)
    return out


def unknown_fields(value: bytes) -> dict[str, msgspec.Raw]:
    """Fields of a lease value that flannel's schema does not have; none of a value that cannot be read."""
    try:
        return {name: raw for name, raw in _decode_raw(value).items() if name.lower() not in _FOLDED}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}


# ------------------------------------------------------------------------------------------------- our own records


class Owner(msgspec.Struct, frozen=True, gc=False):
    """Who holds a subnet. It counts only if the subnet key was written by the same transaction and on the same etcd
    lease: else somebody has rewritten that since.

    `id` is "" in a reservation by name, until the node claims it.
    """

    node: str
    id: str = ""


_decode_owner = msgspec.json.Decoder(Owner).decode
_decode_node = msgspec.json.Decoder(NodeRecord).decode


def owner_value(owner: Owner) -> bytes:
    return _encode(owner)


def parse_owner(kv: KeyValue) -> Owner | Finding:
    try:
        return _decode_owner(kv.value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return _unreadable(kv, "owner-malformed", "owner record", str(error))


def node_value(record: NodeRecord) -> bytes:
    return _encode(record)


def parse_node(name: str, kv: KeyValue) -> NodeRecord | Finding:
    try:
        record = _decode_node(kv.value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return _unreadable(kv, "node-malformed", "node record", str(error))
    return record if record.name == name else msgspec.structs.replace(record, name=name)


def parse_alive(kv: KeyValue) -> Owner | Finding:
    """The liveness key holds the node's name and id, so that two nodes of one name can be told apart."""
    try:
        return _decode_owner(kv.value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return _unreadable(kv, "alive-malformed", "liveness key", str(error))


def _unreadable(kv: KeyValue, code: str, what: str, reason: str) -> Finding:
    return Finding(
        code=code,
        subject=kv.key,
        message=f"the {what} {kv.key} cannot be read and is skipped: {reason}",
        evidence=repr(kv.value[:120]),
        remedy=f"restart the agent that writes it, or delete it: etcdctl del '{kv.key}'",
    )


def joined_lease(name: str, kv: KeyValue, owner: KeyValue | None) -> Lease | Finding:
    """The lease with its owner, who counts only if both were written in one transaction."""
    if owner is not None and (owner.mod_revision, owner.lease) == (kv.mod_revision, kv.lease):
        parsed = parse_owner(owner)
        if isinstance(parsed, Owner):
            return parse_lease(name, kv, parsed.node, parsed.id)
    return parse_lease(name, kv)


def canonical_subnet(text: str) -> str | None:
    """A prefix in canonical text ("10.5.59.0/24"), or None when it is none or has host bits set."""
    key = text.replace("/", "-", 1)
    parsed = parse_subnet_key(key if family_of(text) == 4 else f"0.0.0.0-0&{key.lower()}")
    if isinstance(parsed, str):
        return None
    return parsed.v4 or parsed.v6
