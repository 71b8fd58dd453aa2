"""A small BGP speaker as a library: sans-IO, standard library only, knowing nothing of netagent.

Octets and times go in, octets, events and chosen routes come out; nothing here opens a socket or reads a clock.
From the ground up, each part usable without those above it:

- `bgp.message`: the wire. OPEN to ROUTE-REFRESH as values, malformed UPDATEs treated as RFC 7606 says.
- `bgp.fsm`, `bgp.connection`, `bgp.session`: RFC 4271 section 8 as a table, its timers, collisions and retries.
- `bgp.decision`, `bgp.rib`, `bgp.policy`, `bgp.export`, `bgp.adj_rib_out`: tables, the choice of routes, reflection,
  update groups.
- `bgp.speaker`: all of it joined, with graceful restart. Begin reading there.

Not there yet: the asyncio driver, the daemon (`python -m bgp`) with its configuration and control socket, and what
belongs to them (TCP MD5, GTSM, peers by prefix, metrics).
"""
