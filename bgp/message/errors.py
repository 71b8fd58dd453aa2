"""What goes wrong in messages, told apart by who is at fault.

Rule: an error of the peer carries the NOTIFICATION that answers it; an error of the caller carries none.
"""

from __future__ import annotations


class BgpError(Exception):
    """Base of this library's errors."""


class LocalError(BgpError):
    """The caller asked for what cannot be encoded or does not fit the session's state. Nothing was sent."""


class RemoteError(BgpError):
    """The peer broke the protocol: the session ends with NOTIFICATION `code`, `subcode`, `data`."""

    def __init__(self, code: int, subcode: int, data: bytes = b"", reason: str = "") -> None:
        super().__init__(reason or f"error {code}/{subcode}")
        self.code = int(code)
        self.subcode = int(subcode)
        self.data = data
        self.reason = reason
