"""Other tools' firewalls: the walk against what the kernel does with real packets."""

from __future__ import annotations

import contextlib
import itertools
import socket
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from netagent.errors import KernelError
from netagent.kernel import nft
from netagent.kernel.ruleset import Packet, Rules
from netagent.model import Inbound
from tests.support.firewalls import IPIP, PREFIX, SIT, TCP, UDP
from tests.support.netns import Namespaces, need_tool, unable

pytestmark = pytest.mark.netns


class Router:
    """Two hosts, and between them the one whose rules are walked: 10.5.1.2 on left, 10.5.2.2 on right."""

    def __init__(self, namespaces: Namespaces) -> None:
        left, self.space, right = (namespaces.make(name) for name in ("left", "router", "right"))
        namespaces.veth(left, "eth0", self.space, "left")
        namespaces.veth(right, "eth0", self.space, "right")
        for host, dev, net in ((left, "left", "10.5.1"), (right, "right", "10.5.2")):
            host.ip(f"address add {net}.2/24 dev eth0")
            host.ip(f"route add default via {net}.1")
            self.space.ip(f"address add {net}.1/24 dev {dev}")
        self.space.sysctl("net/ipv4/ip_forward", "1")
        self.ports = itertools.cycle(range(20000, 60000))
        self.left = left
        self.nft = self.space.call(nft.runner)

    def load(self, text: str, what: str = "udp dport 9999", last: str = "postrouting") -> None:
        # The counters stand before and behind everything that is tried.
        probe = "table inet probe { counter came {}\n counter passed {}\n"
        for name, hook, priority in (("came", "prerouting", -500), ("passed", last, 500)):
            hooked = f"type filter hook {hook} priority {priority};"
            probe += f"chain {name} {{ {hooked} {what} counter name {name}; }}\n"
        self.space.call(self.nft.run, f"flush ruleset\n{probe}}}\n{text}")

    def counted(self) -> tuple[int, int]:
        found = self.space.call(self.nft._run, "list counters", 1 << 4)  # type: ignore[attr-defined]
        values = {e["counter"]["name"]: e["counter"]["packets"] for e in nft._listing(found) if "counter" in e}
        return values["came"], values["passed"]

    def passes(self) -> bool:
        """Whether a datagram of a new connection gets through the router."""
        return self._passes(Inbound(17, 9999), "10.5.2.2")

    def takes(self, what: Inbound) -> bool:
        """Whether the router itself gets a packet of that kind, the first of a connection."""
        return self._passes(what, "10.5.1.1")

    def _passes(self, what: Inbound, target: str) -> bool:
        came, passed = self.counted()
        kind = {6: socket.SOCK_STREAM, 17: socket.SOCK_DGRAM}.get(what.protocol, socket.SOCK_RAW)
        sender = self.left.call(socket.socket, socket.AF_INET, kind, 0 if what.port else what.protocol)
        with sender:
            sender.setblocking(False)
            sender.bind(("10.5.1.2", next(self.ports) if what.port else 0))
            with contextlib.suppress(BlockingIOError):
                sender.connect((target, what.port))
            if what.protocol != 6:
                sender.send(bytes(40))
            self._arrived(came)
        # What the kernel does with it, it does in one go; a look more allows for a busy machine.
        return any(self.counted()[1] > passed for _ in range(3))

    def _arrived(self, came: int) -> None:
        deadline = time.monotonic() + 5
        while self.counted()[0] == came:
            assert time.monotonic() < deadline, "the packet does not come to the router"


MATCHES = st.sampled_from(
    [
        "",
        "ip saddr 10.5.0.0/16",
        "ip daddr 10.0.0.0/8",
        "ip saddr 10.5.7.0/24",  # a part of the network, not the packet's
        "ip daddr 192.168.0.0/16",
        "ip saddr != 10.5.0.0/16",
        "ip daddr != 172.16.0.0/12",
        "ip saddr { 10.5.0.0/16, 192.168.0.0/16 }",
        "ip daddr != { 172.16.0.0/12, 192.168.1.1 }",
        "ip6 saddr fc00::/7",
        'iifname "left"',
        'iifname != "left"',
        'iifname "le*"',
        'iifname { "left", "eth7" }',
        'oifname "right"',
        'oifname != "right"',
        'iifname "lo"',
        'oifname "lo"',
        "ct state established,related",
        "ct state new",
        "ct state { new, invalid }",
        "ct state != new",
        "ct state invalid",
        "meta l4proto tcp",
        "meta l4proto { tcp, udp }",
        "meta nfproto ipv4",
        "meta nfproto ipv6",
        "tcp dport 22",
        "udp dport 53",
        "icmp type echo-request",
        "meta mark 7",
        "meta mark != 7",
        "fib daddr type local",
        "fib daddr type != local",
        "limit rate over 1/day burst 1 packets",
        "counter",
        'log prefix "x"',
    ]
)
VERDICTS = st.sampled_from(["accept", "drop", "reject", "return", "jump one", "jump two", "goto two", ""])
MAPS = st.sampled_from(
    [
        "ct state vmap { established : accept, related : accept, invalid : drop }",
        "ct state vmap { new : drop, established : accept }",
        'iifname vmap { "left" : jump one, "lo" : accept }',
        "ip saddr vmap { 10.5.0.0/16 : goto one, 10.6.0.0/16 : drop }",
        "meta mark vmap { 7 : drop, 0 : accept }",
    ]
)
RULES = st.one_of(
    st.builds(lambda a, b, verdict: f"{a} {b} {verdict}", MATCHES, MATCHES, VERDICTS).filter(str.strip),
    MAPS,
)
CHAINS = st.lists(RULES, max_size=4)


def text(family: str, policy: str, base: list[str], one: list[str], two: list[str], hook: str = "forward") -> str:
    # No loops: `one` may go on to `two`, `two` to nothing.
    one = [rule.replace("jump one", "jump two").replace("goto one", "goto two") for rule in one]
    two = [rule for rule in two if "jump" not in rule and "goto" not in rule]
    head = f"type filter hook {hook} priority 0; policy {policy};"
    chains = (("two", two), ("one", one), ("base", [head, *base]))
    return (
        f"table {family} tried {{\n"
        + "\n".join(f"chain {n} {{\n" + "\n".join(r) + "\n}" for n, r in chains)
        + "\n}\n"
    )


@pytest.fixture(scope="module")
def router() -> Iterator[Router]:
    need_tool("nft")
    if nft.load_library() is None:
        unable("libnftables is not here")
    with Namespaces() as namespaces:
        yield Router(namespaces)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(["inet", "ip"]), st.sampled_from(["accept", "drop"]), CHAINS, CHAINS, CHAINS, st.booleans())
@example("inet", "drop", ["meta mark 7 accept"], [], [], True)
@example("inet", "drop", ["goto one", "accept"], ["return"], [], True)
def test_what_the_walk_says_is_what_the_kernel_does(
    router: Router, family: str, policy: str, base: list[str], one: list[str], two: list[str], known: bool
) -> None:
    """A certain drop is dropped; where nothing is said, the packet passes unless a rule depends on the unknown."""
    ruleset = text(family, policy, base, one, two)
    try:
        router.load(ruleset)
    except KernelError as error:
        # Two matches that nft will not combine, or one that is of no use in this family.
        assume(not any(words in str(error) for words in ("conflicting", "only useful")))
        raise
    rules = Rules(router.space.call(router.nft.ruleset), {("inet", "probe")})
    packet = Packet(
        "forward", 4, PREFIX, PREFIX, iifs=("left",) if known else None, oifs=("right",) if known else None
    )
    drops = list(rules.drops(packet))
    passes = router.passes()
    if any(not drop.doubt for drop in drops):
        assert not passes, (ruleset, drops)
    if not passes:
        undecided = ("mark", "limit", "{ tcp, udp }", *(() if known else ("ifname",)))
        assert drops or any(word in ruleset for word in undecided), ruleset


WHAT = {UDP: "udp dport 8472", TCP: "tcp dport 179", IPIP: "ip protocol 4", SIT: "ip protocol 41"}
PROTOCOLS = st.sampled_from(
    [
        *("", "ip protocol 4", "ip protocol 41", "meta l4proto { 4, 41 }", "meta l4proto 4-6", "meta l4proto != 4"),
        *("ip protocol != { 6, 17 }", "meta l4proto tcp", "ip protocol udp", "ip6 nexthdr 4", "meta nfproto ipv4"),
        *("tcp dport 179", "tcp dport != 179", "tcp dport 1-1023", "udp dport 8472", "udp dport { 53, 8472 }"),
        *("th dport 179", "tcp sport 179", "icmp type echo-request", "ip saddr 10.5.1.0/24"),
        *("ip saddr 10.5.7.0/24", "ip daddr 10.5.1.1", "ct state new", "ct state established", "meta mark 7"),
        *('iifname "left"', 'iifname "lo"'),
    ]
)
GUARD = st.builds(lambda a, b, verdict: f"{a} {b} {verdict}", PROTOCOLS, PROTOCOLS, VERDICTS).filter(str.strip)
GUARDS = st.lists(GUARD, max_size=4)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(list(WHAT)), st.sampled_from(["inet", "ip"]), st.sampled_from(["accept", "drop"]), GUARDS, GUARDS
)
@example(IPIP, "ip", "drop", ["meta l4proto { 4, 41 }  accept"], [])
@example(SIT, "inet", "accept", ["ip protocol 41  jump one"], ["ct state new  drop"])
@example(TCP, "inet", "accept", ["tcp dport 1-1023  reject"], [])
def test_what_the_walk_says_of_what_peers_send_is_what_the_kernel_does(
    router: Router, what: Inbound, family: str, policy: str, base: list[str], one: list[str]
) -> None:
    ruleset = text(family, policy, base, one, [], "input")
    try:
        router.load(ruleset, WHAT[what], "input")
    except KernelError as error:
        assume(not any(words in str(error) for words in ("conflicting", "only useful")))
        raise
    rules = Rules(router.space.call(router.nft.ruleset), {("inet", "probe")})
    packet = Packet("input", 4, "10.5.1.2", None, protocol=what.protocol, port=what.port, iifs=("left",))
    drops = list(rules.drops(packet))
    taken = router.takes(what)
    if any(not drop.doubt for drop in drops):
        assert not taken, (what, ruleset, drops)
    if not taken:
        undecided = ("mark", "daddr", "sport", "th dport")
        assert drops or any(word in ruleset for word in undecided), (what, ruleset)
