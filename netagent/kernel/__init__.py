"""The kernel edge: netlink, links, firewall, host settings, and the facade that the reconciler writes to."""
