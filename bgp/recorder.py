"""The flight recorder: a peer's last messages and changes of state, kept over a flap, and counters by kind.

Rule: recording costs next to nothing and is bounded; messages are decoded when somebody looks. What opens and ends
sessions has a place of its own, so that a flood of UPDATEs does not push it out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bgp.message import (
    AttributeDecoder,
    Family,
    MessageType,
    RefreshKind,
    RemoteError,
    Update,
    UpdateDecoder,
    decode_notification,
    decode_open,
    decode_route_refresh,
    nlri,
)
from bgp.message.attributes import describe
from bgp.message.framing import cut

_UPDATE, _KEEPALIVE = MessageType.UPDATE, MessageType.KEEPALIVE
KEPT = 64
"""UPDATEs kept of a peer, and as many of everything else."""
_LONG = 4096
_MOST_OCTETS = KEPT * _LONG
"""Of longer messages (RFC 8654) so few are kept that the rest stays below this."""
_OF_ONE_SEND = 8
_SHOWN = 20
"""Prefixes, and faults, of one UPDATE."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a session has agreed on that its messages are read with."""

    families: tuple[Family, ...] = tuple(Family)
    as4: bool = True
    internal: bool = True
    several_in: frozenset[Family] = frozenset()
    several_out: frozenset[Family] = frozenset()
    extended_next_hop: bool = False


_Entry = tuple[int, float, bool, int, bytes, Context]
"""Number, time, whether we sent it, type (0: a note), body, how to read it."""


class Recorder:
    """Of one peer."""

    def __init__(self) -> None:
        self.received = [0] * (max(MessageType) + 1)
        """Messages, counted by type."""
        self.sent = [0] * (max(MessageType) + 1)
        self.last_received: float | None = None
        self.context = Context()
        self._number = 0
        self._updates: deque[_Entry] = deque(maxlen=KEPT)
        self._others: deque[_Entry] = deque(maxlen=KEPT)

    def hear(self, kind: int, body: bytes, now: float) -> None:
        """A message has come."""
        self.received[kind] += 1
        self.last_received = now
        if kind == _UPDATE:
            if len(body) > _LONG:
                self._make_room(len(body))
            self._number += 1
            self._updates.append((self._number, now, False, kind, body, self.context))
        elif kind != _KEEPALIVE:
            self._add(False, kind, body, now)

    def say(self, data: bytes, count: int, now: float) -> None:
        """Messages of one kind go out, joined."""
        kind = data[18]
        self.sent[kind] += count
        if kind == _UPDATE:
            for _, body in cut(data, _OF_ONE_SEND):
                if len(body) > _LONG:
                    self._make_room(len(body))
                self._number += 1
                self._updates.append((self._number, now, True, kind, body, self.context))
        elif kind != _KEEPALIVE:
            self._add(True, kind, data[19:], now)

    def _make_room(self, size: int) -> None:
        while self._updates and size + sum(len(entry[4]) for entry in self._updates) > _MOST_OCTETS:
            self._updates.popleft()

    def note(self, text: str, now: float) -> None:
        """Something happened to the session."""
        self._add(False, 0, text.encode(errors="replace"), now)

    def _add(self, sent: bool, kind: int, body: bytes, now: float) -> None:
        self._number += 1
        self._others.append((self._number, now, sent, kind, body[:_LONG], self.context))

    def entries(self, now: float) -> list[dict[str, Any]]:
        """What is kept, the oldest first, decoded; `ago` in seconds."""
        return [
            {"ago": round(now - at, 3), **_shown(sent, kind, body, context)}
            for _, at, sent, kind, body, context in sorted(
                (*self._updates, *self._others), key=lambda entry: entry[0]
            )
        ]


def _shown(sent: bool, kind: int, body: bytes, context: Context) -> dict[str, Any]:
    if not kind:
        return {"event": body.decode(errors="replace")}
    shown: dict[str, Any] = {"sent" if sent else "received": MessageType(kind).name}
    try:
        shown |= _READERS[kind](body, context, sent)
    except RemoteError as error:
        shown |= {"malformed": str(error), "octets": body.hex()}
    return shown


def _open(body: bytes, context: Context, sent: bool) -> dict[str, Any]:
    message = decode_open(body)
    return {
        "asn": message.asn,
        "router_id": nlri.address_text(message.identifier),
        "hold_time": message.hold_time,
        "capabilities": message.capabilities.describe(),
    }


def _update(body: bytes, context: Context, sent: bool) -> dict[str, Any]:
    attributes = AttributeDecoder(as4=context.as4, internal=context.internal)
    identified = context.several_out if sent else context.several_in
    decoder = UpdateDecoder(context.families, attributes, identified=identified, extended=context.extended_next_hop)
    return describe_update(decoder.decode(body))


def describe_update(update: Update) -> dict[str, Any]:
    """An UPDATE in text and numbers; of very many prefixes or faults only the first and how many."""
    shown: dict[str, Any] = {}
    withdrawn = [(family, prefix) for family, prefixes in update.withdrawn for prefix in prefixes]
    if withdrawn:
        shown["withdrawn"] = _prefixes(withdrawn)
    for family, prefixes, attributes in update.announced:
        announced = {"prefixes": _prefixes([(family, prefix) for prefix in prefixes]), **describe(attributes)}
        shown.setdefault("announced", []).append(announced)
    if update.end_of_rib is not None:
        shown["end_of_rib"] = update.end_of_rib.name
    if update.faults:
        shown["faults"] = _some([str(fault) for fault in update.faults[:_SHOWN]], len(update.faults))
    return shown


def _prefixes(paths: list[tuple[Family, bytes]]) -> list[str]:
    return _some([_path(family, path) for family, path in paths[:_SHOWN]], len(paths))


def _some(shown: list[str], of: int) -> list[str]:
    return [*shown, f"and {of - len(shown)} more"] if of > len(shown) else shown


def _path(family: Family, path: bytes) -> str:
    number = nlri.identifier_number(nlri.cut(family, path)[1])
    return nlri.text(family, path) if number is None else f"{nlri.text(family, path)} id {number}"


def _notification(body: bytes, context: Context, sent: bool) -> dict[str, Any]:
    message = decode_notification(body)
    return {"reason": str(message), "data": message.data.hex()}


def _refresh(body: bytes, context: Context, sent: bool) -> dict[str, Any]:
    refresh = decode_route_refresh(body)
    if refresh is None:
        return {"family": "unknown", "octets": body.hex()}
    if refresh.kind is RefreshKind.REQUEST:
        return {"family": refresh.family.name}
    return {"family": refresh.family.name, "refresh": refresh.kind.name.lower()}


_READERS: dict[int, Callable[[bytes, Context, bool], dict[str, Any]]] = {
    MessageType.OPEN: _open,
    MessageType.UPDATE: _update,
    MessageType.NOTIFICATION: _notification,
    MessageType.ROUTE_REFRESH: _refresh,
}
