"""A small BGP speaker as a library: sans-IO, standard library only, knowing nothing of netagent.

Octets and times go in, octets, events and chosen routes come out; the core opens no socket and reads no clock.
From the ground up, each part usable without those above it:

- `bgp.message`: the wire. OPEN to ROUTE-REFRESH as values, malformed UPDATEs treated as RFC 7606 says.
- `bgp.fsm`, `bgp.connection`, `bgp.session`: RFC 4271 section 8 as a table, its timers, collisions and retries.
- `bgp.decision`, `bgp.rib`, `bgp.policy`, `bgp.export`, `bgp.adj_rib_out`, `bgp.advertising`: tables, the choice of
  routes, reflection, update groups.
- `bgp.peer`, `bgp.peers`, `bgp.ranges`: what is configured, one by one and as a list, and peers by prefix.
- `bgp.speaker`: all of it joined, with graceful restart (`bgp.stale`, `bgp.deferral`) and `bgp.limits`. Begin there.
- `bgp.views`, `bgp.metrics`, `bgp.recorder`: what an operator wants to see of it.
- `bgp.aio`: the driver, on asyncio and Linux sockets, with TCP MD5 and GTSM.
- `bgp.daemon`: `python -m bgp run`, its configuration, control socket and commands.
"""
