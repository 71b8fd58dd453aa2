"""A small BGP speaker as a library: sans-IO, standard library only, knowing nothing of netagent.

`bgp.message` is the wire: octets to values and back (RFC 4271, 4760, 6793, 7606). Nothing here opens a socket or
reads a clock. Sessions, tables and an asyncio driver are not there yet.
"""
