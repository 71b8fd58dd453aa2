"""Why a session does not come up, as far as it can be known.

Rule: only what was seen is said. A segment whose TCP MD5 signature is wrong is dropped by the kernel without a word
to either process, so of passwords there is nothing but the counters of the host that drops: what, but not whose.
"""

from __future__ import annotations

from bgp.peer import Peer
from bgp.transport import Dropped


def why_down(peer: Peer, dropped: Dropped | None = None) -> str:
    """One phrase for a session that does not stand; `dropped` by this host since it last stood or was begun."""
    session = peer.session
    if not session.started:
        words = peer.config.shutdown
        return f"shut down here: {words}" if words else "shut down here"
    if session.unanswered:
        times = "an attempt" if session.unanswered == 1 else f"{session.unanswered} attempts"
        said = f"no answer to {times} to connect"
    elif session.last_failure is not None:
        said = session.last_failure.reason
    else:
        said = "waits for the peer to connect" if session.settings.passive else "connects"
    doubt = password_doubt(peer, dropped or Dropped())
    return f"{said}; {doubt}" if doubt else said


def password_doubt(peer: Peer, dropped: Dropped) -> str:
    """What the counters or the silence say of the password; empty when they say nothing."""
    if not peer.config.transport.password:
        return _counted(dropped.unwanted, "signed", "a peer has a password, and none is set here")
    if dropped.wrong:
        return _counted(dropped.wrong, "wrongly signed", "the passwords differ")
    if dropped.missing:
        return _counted(dropped.missing, "unsigned", "a peer has no password, or does not listen")
    return "it may have another password, or none: that is dropped in silence" if peer.session.unanswered else ""


def _counted(count: int, kind: str, meaning: str) -> str:
    return f"this host has dropped {count} {kind} segment{'s' * (count != 1)}: {meaning}" if count else ""
