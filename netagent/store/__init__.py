"""The cluster store: a protocol, etcd behind it, and an in-memory twin."""
