"""Codec of the rtnetlink messages that netagent needs: links, addresses, routes, nexthops, neighbours. Pure.

Rules: only struct and socket.inet_pton/inet_ntop; no socket is opened and no clock read. One module a subject, each
with its encoders (values in, one whole message out; the sequence number is the socket's to fill in) and its decoder.
A decoder takes (buffer, start, end) of one message's payload, skips attributes that it does not know, and gives
None for a message that is cut short or makes no sense: it never raises. Headers are in host byte order, addresses
and UDP ports in network order. Sources: linux/netlink.h, rtnetlink.h, if_link.h, if_addr.h, neighbour.h, nexthop.h.
"""
