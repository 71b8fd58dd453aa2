"""NOTIFICATION (RFC 4271 section 4.5): why a session ends, with words (RFC 9003), and whether for good (RFC 8538).

Rule: a NOTIFICATION is never answered and never judged: whatever is in it, the session is over.
"""

from __future__ import annotations

from dataclasses import dataclass

from bgp.message.codes import (
    HEADER_SIZE,
    MAX_MESSAGE_SIZE,
    Cease,
    ErrorCode,
    Family,
    FsmError,
    HeaderError,
    MessageType,
    OpenError,
    RefreshError,
    UpdateError,
)
from bgp.message.errors import RemoteError
from bgp.message.framing import frame

_SUBCODES: dict[int, type[HeaderError | OpenError | UpdateError | FsmError | Cease | RefreshError]] = {
    ErrorCode.MESSAGE_HEADER: HeaderError,
    ErrorCode.OPEN_MESSAGE: OpenError,
    ErrorCode.UPDATE_MESSAGE: UpdateError,
    ErrorCode.FINITE_STATE_MACHINE: FsmError,
    ErrorCode.CEASE: Cease,
    ErrorCode.ROUTE_REFRESH_MESSAGE: RefreshError,
}
_LONGEST_TEXT = 255


@dataclass(frozen=True, slots=True)
class Notification:
    code: int
    subcode: int = 0
    data: bytes = b""

    @classmethod
    def answering(cls, error: RemoteError) -> Notification:
        return cls(error.code, error.subcode, error.data)

    @classmethod
    def shutdown(cls, text: str = "", *, reset: bool = False) -> Notification:
        """Administrative shutdown, or reset, with words for the other operator: 255 octets of UTF-8 at most.

        What is no text (of a command line that was no UTF-8) is replaced.
        """
        data = text.encode(errors="replace")[:_LONGEST_TEXT].decode(errors="ignore").encode()
        subcode = Cease.ADMINISTRATIVE_RESET if reset else Cease.ADMINISTRATIVE_SHUTDOWN
        return cls(ErrorCode.CEASE, subcode, bytes((len(data),)) + data if data else b"")

    @classmethod
    def too_many_prefixes(cls, family: Family, limit: int) -> Notification:
        """RFC 4486 section 4: the family and the limit."""
        return cls(ErrorCode.CEASE, Cease.MAXIMUM_PREFIXES, family.wire + limit.to_bytes(4, "big"))

    def hard(self) -> Notification:
        """The same as a Hard Reset: graceful restart does not hold for this end (RFC 8538 section 3)."""
        return Notification(ErrorCode.CEASE, Cease.HARD_RESET, bytes((self.code, self.subcode)) + self.data)

    @property
    def is_hard(self) -> bool:
        return (self.code, self.subcode) == (ErrorCode.CEASE, Cease.HARD_RESET)

    @property
    def inside(self) -> Notification | None:
        """Why there is a Hard Reset, where it says so; a Hard Reset inside one has nothing more inside."""
        if not self.is_hard or len(self.data) < 2:
            return None
        return Notification(self.data[0], self.data[1], self.data[2:])

    @property
    def text(self) -> str:
        """The operator's words; empty where there are none. Control characters and bad UTF-8 are replaced."""
        if (inside := self.inside) and not inside.is_hard:
            return inside.text
        if self.code != ErrorCode.CEASE or self.subcode not in (
            Cease.ADMINISTRATIVE_SHUTDOWN,
            Cease.ADMINISTRATIVE_RESET,
        ):
            return ""
        if not self.data or self.data[0] > len(self.data) - 1:
            return ""
        words = self.data[1 : 1 + self.data[0]].decode(errors="replace")
        return "".join(letter if letter.isprintable() else "\ufffd" for letter in words)

    def encode(self) -> bytes:
        data = self.data[: MAX_MESSAGE_SIZE - HEADER_SIZE - 2]
        return frame(MessageType.NOTIFICATION, bytes((self.code, self.subcode)) + data)

    def __str__(self) -> str:
        try:
            name = ErrorCode(self.code).name
            if self.subcode and self.code in _SUBCODES:
                name += f"/{_SUBCODES[self.code](self.subcode).name}"
            name = name.lower().replace("_", " ")
        except ValueError:
            name = "unknown"
        if (inside := self.inside) and not inside.is_hard:
            return f"{name} ({self.code}/{self.subcode}): {inside}"
        words = f": {self.text}" if self.text else ""
        return f"{name} ({self.code}/{self.subcode}){words}"


def decode_notification(body: bytes) -> Notification:
    return Notification(body[0], body[1], body[2:])
