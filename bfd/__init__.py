"""Bidirectional Forwarding Detection (RFC 5880, 5881, 5883): whether a neighbour can be reached, within milliseconds.

Standard library only, knowing nothing of BGP or netagent. From the ground up:

- `bfd.packet`: control packets, octets to values and back.
- `bfd.session`: one session as a state machine that takes `now`: states, negotiated timers, polls, detection.
- `bfd.sessions`: many of them: whose packet it is, whose turn it is. No socket, no clock.
- `bfd.sockets`, `bfd.engine`: the process that owns sockets and timers, apart from whoever wants to know.
- `bfd.client`: that process as asyncio sees it, started, kept alive and stopped.
"""
