"""bgp: no overlay unless asked for; routes learnt by BGP (the library `bgp`) from nodes, reflectors and routers.

`planner` is what the agent plans with, `service` embeds the speaker, and between them is what a reader starts with:
`options` (the configuration), `members` (the nodes that speak BGP), `roles` and `part` (mesh, clients, reflectors,
and how that changes), `sessions` (the speaker's peers and policies), `ways` and `publishing` (from next hops to
kernel objects).
"""

from backends.bgp.planner import Bgp

__all__ = ["Bgp"]
