"""BGP's messages between octets and values (RFC 4271 section 4 and its extensions). One file a subject.

Rule: nothing here knows of sessions, clocks or tables. Decoders take whatever a peer may send: they return a value
or raise RemoteError, and no other exception.
"""

from bgp.message.aspath import AsPath
from bgp.message.attribute_decoding import AttributeDecoder, Fault
from bgp.message.attributes import Attributes
from bgp.message.capabilities import AddPath, Capabilities, GracefulRestart, LongLived
from bgp.message.codes import Cease, ErrorCode, Family, MessageType, Origin
from bgp.message.errors import BgpError, LocalError, RemoteError
from bgp.message.framing import Framer
from bgp.message.notification import Notification, decode_notification
from bgp.message.open import Open, decode_open
from bgp.message.refresh import KEEPALIVE, Refresh, RefreshKind, decode_route_refresh, encode_route_refresh
from bgp.message.update import Update, UpdateDecoder, encode_announcement, encode_end_of_rib, encode_withdrawal

__all__ = [
    "KEEPALIVE",
    "AddPath",
    "AsPath",
    "AttributeDecoder",
    "Attributes",
    "BgpError",
    "Capabilities",
    "Cease",
    "ErrorCode",
    "Family",
    "Fault",
    "Framer",
    "GracefulRestart",
    "LocalError",
    "LongLived",
    "MessageType",
    "Notification",
    "Open",
    "Origin",
    "Refresh",
    "RefreshKind",
    "RemoteError",
    "Update",
    "UpdateDecoder",
    "decode_notification",
    "decode_open",
    "decode_route_refresh",
    "encode_announcement",
    "encode_end_of_rib",
    "encode_route_refresh",
    "encode_withdrawal",
]
