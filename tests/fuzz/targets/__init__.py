"""All targets. Importing this package fills TARGETS."""

from tests.fuzz.target import TARGETS
from tests.fuzz.targets import bfd, bgp_daemon, bgp_messages, bgp_sessions, host, kernel, records, udp

__all__ = ["TARGETS", "bfd", "bgp_daemon", "bgp_messages", "bgp_sessions", "host", "kernel", "records", "udp"]
