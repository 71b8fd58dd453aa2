"""netagent: one agent per Linux host that leases a subnet in etcd and connects containers across hosts."""

__version__ = "0.1.0"
