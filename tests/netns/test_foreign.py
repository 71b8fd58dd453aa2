"""Other tools' firewalls: the walk against what the kernel does with real packets, and the tools by name.

No Docker, ufw or firewalld runs here: their chains are set up by hand as the named stand-ins.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from netagent.errors import KernelError
from netagent.kernel import foreign, legacy, nft
from netagent.kernel.base import Change, Op
from netagent.kernel.firewall import Firewall
from netagent.kernel.journal import Journal
from netagent.kernel.places import Places
from netagent.kernel.ruleset import Packet, Rules
from netagent.model import Finding, ForeignAccept, Inbound
from tests.netns.test_firewall import changes
from tests.support.netns import Namespace, Namespaces, need_tool, unable

pytestmark = pytest.mark.netns

PREFIX = "10.5.0.0/16"
OWN = ("inet", "netagent")


@pytest.fixture
def host(namespaces: Namespaces) -> Iterator[Namespace]:
    need_tool("nft")
    space = namespaces.make("host")
    with space.entered():
        yield space


# --------------------------------------------------------------------------- the walk against the kernel


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


UDP, TCP = Inbound(17, 8472), Inbound(6, 179)
IPIP, SIT = Inbound(4), Inbound(41)
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


# --------------------------------------------------------------------------------------- tools by name


def look(inbound: tuple[Inbound, ...] = (UDP,), peers: tuple[str, ...] = ("192.168.50.12",)) -> list[Finding]:
    old = legacy.read()
    assert old.unread == []
    return foreign.findings(
        [*nft.runner().ruleset(), *old.ruleset], OWN, [PREFIX], inbound, devices=("na-vx1",), peers=peers
    )


DOCKER = """
{t} -N DOCKER-USER
{t} -A DOCKER-USER -j RETURN
{t} -N DOCKER
{t} -N DOCKER-ISOLATION-STAGE-1
{t} -N DOCKER-ISOLATION-STAGE-2
{t} -A FORWARD -j DOCKER-USER
{t} -A FORWARD -j DOCKER-ISOLATION-STAGE-1
{t} -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
{t} -A FORWARD -o docker0 -j DOCKER
{t} -A FORWARD -i docker0 ! -o docker0 -j ACCEPT
{t} -A FORWARD -i docker0 -o docker0 -j ACCEPT
{t} -A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
{t} -A DOCKER-ISOLATION-STAGE-1 -j RETURN
{t} -A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
{t} -A DOCKER-ISOLATION-STAGE-2 -j RETURN
{t} -P FORWARD DROP
"""
REJECT = """
{t} -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
{t} -A FORWARD -p tcp -m tcp --dport 22 -j ACCEPT
{t} -A FORWARD -j LOG --log-prefix "seen: -j ACCEPT"
{t} -A FORWARD -m comment --comment "all the rest" -j REJECT --reject-with icmp-host-prohibited
"""
UFW = """
{t} -N ufw-before-forward
{t} -N ufw-reject-forward
{t} -A FORWARD -j ufw-before-forward
{t} -A FORWARD -j ufw-reject-forward
{t} -A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
{t} -A ufw-before-forward -p icmp -m icmp --icmp-type 8 -j ACCEPT
{t} -A ufw-reject-forward -j REJECT
"""
INPUT = """
{t} -A INPUT -i lo -j ACCEPT
{t} -A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT
{t} -A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
{t} -P INPUT DROP
"""
VARIANTS = ["iptables-nft", "iptables-legacy"]


def need_variant(host: Namespace, tool: str) -> None:
    need_tool(tool)
    if tool == "iptables-legacy" and host.run(tool, "-S", check=False).returncode:
        unable("this kernel has no legacy iptables")


def script(host: Namespace, text: str, tool: str = "") -> None:
    host.run("sh", "-ec", text.replace("{t}", tool))


@pytest.mark.parametrize("tool", VARIANTS)
@pytest.mark.parametrize(
    ("setup", "code", "remedy"),
    [
        (DOCKER, "firewall-drops-forward", "-I DOCKER-USER -s 10.5.0.0/16 -j ACCEPT"),
        (REJECT, "firewall-drops-forward", "-I FORWARD -s 10.5.0.0/16 -j ACCEPT"),
        (UFW, "firewall-drops-forward", "ufw route allow from 10.5.0.0/16"),
        (INPUT, "firewall-drops-port", "-I INPUT -p udp --dport 8472 -j ACCEPT"),
    ],
    ids=["docker 20.10", "reject", "ufw", "input"],
)
def test_iptables(host: Namespace, tool: str, setup: str, code: str, remedy: str) -> None:
    need_variant(host, tool)
    script(host, setup, tool)
    (finding,) = look()
    assert (finding.code, finding.severity) == (code, "error")
    assert remedy in finding.remedy
    command = finding.remedy.partition(" (")[0]
    if not command.startswith("ufw"):
        script(host, command.replace("iptables ", f"{tool} "))
        assert look() == []


@pytest.mark.parametrize("tool", VARIANTS)
@pytest.mark.parametrize("setup", [INPUT, "{t} -A INPUT -p {p} -j DROP\n"], ids=["policy", "rule"])
@pytest.mark.parametrize(
    ("what", "code", "remedy"),
    [
        (TCP, "firewall-drops-port", "-I INPUT -p tcp --dport 179 -j ACCEPT"),
        (IPIP, "firewall-drops-protocol", "-I INPUT -p 4 -j ACCEPT"),
        (SIT, "firewall-drops-protocol", "-I INPUT -p 41 -j ACCEPT"),
    ],
    ids=["tcp", "ipip", "sit"],
)
def test_iptables_and_what_is_not_udp(
    host: Namespace, tool: str, setup: str, what: Inbound, code: str, remedy: str
) -> None:
    """Each is dropped where it is named and nowhere else; the command that is told lets it in."""
    need_variant(host, tool)
    script(host, setup.replace("{p}", str(what.protocol)), tool)
    (finding,) = look((what,))
    assert (finding.code, finding.severity) == (code, "error")
    assert remedy in finding.remedy
    others = {UDP, TCP, IPIP, SIT} - {what}
    assert len(look(tuple(others))) == (3 if setup is INPUT else 0)
    script(host, finding.remedy.partition(" (")[0].replace("iptables ", f"{tool} "))
    assert look((what,)) == []


def test_dockers_raw_rules(host: Namespace) -> None:
    """Docker 28 drops what is sent to a container from elsewhere than its bridge and the trusted interfaces."""
    tool = need_tool("iptables-nft")
    for address in ("10.5.59.2", "10.5.59.3", "172.17.0.2"):
        script(host, f"{tool} -t raw -A PREROUTING -d {address}/32 ! -i docker0 -j DROP")
    (finding,) = look()
    assert finding.code == "firewall-drops-direct"
    assert finding.severity == "error"
    assert "10.5.59.2" in finding.evidence
    for address in ("10.5.59.2", "10.5.59.3"):
        script(host, f"{tool} -t raw -I PREROUTING -d {address}/32 -i na-vx1 -j ACCEPT")
    assert look() == []


def test_firewalld(host: Namespace) -> None:
    """firewalld's own table: zones are jumped to by interface, the last rule rejects what no zone took."""
    script(
        host,
        """nft -f - <<EOF
        table inet firewalld {
          chain filter_FORWARD {
            type filter hook forward priority 10; policy accept;
            ct state { established, related } accept
            ct status dnat accept
            iifname "lo" accept
            jump filter_FORWARD_POLICIES
            ct state { invalid } drop
            reject with icmpx admin-prohibited
          }
          chain filter_FORWARD_POLICIES {
            ip saddr 10.6.0.0/16 jump zone_trusted
            iifname "eth0" jump zone_public
            jump zone_public
          }
          chain zone_public { jump zone_public_allow; }
          chain zone_public_allow { counter; }
          chain zone_trusted { accept; }
        }
EOF""",
    )
    (finding,) = look()
    assert finding.code == "firewall-drops-forward"
    assert "--zone=trusted --add-source=10.5.0.0/16" in finding.remedy
    for way in ("saddr", "daddr"):
        rule = f"insert rule inet firewalld filter_FORWARD_POLICIES ip {way} {PREFIX} jump zone_trusted"
        host.run("nft", rule)
    assert look() == []


@pytest.mark.parametrize(
    ("rules", "severity"),
    [
        ("", "error"),
        ('iifname "na-vx1" accept; oifname "na-vx1" accept;', ""),
        ('iifname "na-vx1" accept;', "error"),
        ('iifname "cni0" accept; oifname "cni0" accept;', "warning"),
        ("meta mark 1 accept;", "warning"),
        ("ip saddr 10.5.0.0/16 accept;", ""),
        ("ip saddr 10.5.0.0/17 accept;", "error"),
        ("ip saddr 10.0.0.0/8 ip daddr 10.0.0.0/8 accept;", ""),
        ("ip6 saddr fc00::/7 accept;", "error"),
    ],
)
def test_hand_written_nft(host: Namespace, rules: str, severity: str) -> None:
    host.run(
        "nft", f"table inet site {{ chain pass {{ type filter hook forward priority 0; policy drop; {rules} }}; }}"
    )
    assert [f.severity for f in look()] == [severity] * bool(severity)


@pytest.mark.parametrize(
    ("rules", "severity"),
    [
        ("udp dport { 8000-9000 } drop;", "error"),
        ("udp dport 8472 ip saddr 192.168.50.0/24 accept; udp dport 8472 drop;", ""),
        ("ip saddr 10.0.0.0/8 accept; meta l4proto udp reject;", "error"),
        ('iifname "eth0" accept; drop;', "warning"),
        ("tcp dport 8472 drop;", ""),
        ("ip6 nexthdr udp drop;", ""),
        ("udp dport != 22 drop;", "error"),
    ],
)
def test_input_of_the_backends_port(host: Namespace, rules: str, severity: str) -> None:
    host.run("nft", f"table inet site {{ chain in {{ type filter hook input priority 0; {rules} }}; }}")
    assert [f.severity for f in look()] == [severity] * bool(severity)


@pytest.mark.parametrize(
    ("what", "rules", "severity"),
    [
        (IPIP, "ip protocol 4 drop;", "error"),
        (IPIP, "meta l4proto { 4, 41 } counter drop;", "error"),
        (IPIP, "meta l4proto 4-5 drop;", "error"),
        (IPIP, "meta l4proto != { tcp, udp, icmp } drop;", "error"),
        (IPIP, "ip protocol 41 drop; meta l4proto { tcp, udp } drop; tcp dport 4 drop; ip6 nexthdr 4 drop;", ""),
        (IPIP, "ip protocol != 4 drop;", ""),
        (IPIP, "ip protocol 4 ip saddr 192.168.50.0/24 accept; ip protocol 4 drop;", ""),
        (IPIP, "ip protocol 4 ip saddr 192.168.51.0/24 accept; ip protocol 4 drop;", "error"),
        (IPIP, "ip protocol @few accept; drop;", "warning"),
        (IPIP, "ip protocol 4 meta mark 7 accept; drop;", "warning"),
        (IPIP, "th dport 22 accept; drop;", "warning"),
        (SIT, "ip protocol 41 drop;", "error"),
        (SIT, "ip protocol 4 drop; meta nfproto ipv6 drop;", ""),
        (SIT, "ct state new drop;", "error"),
        (TCP, "tcp dport { 1-1023 } drop;", "error"),
        (TCP, "tcp dport 22 accept; meta l4proto tcp reject with tcp reset;", "error"),
        (TCP, "udp dport 179 drop; tcp dport != 179 drop; ip protocol udp drop;", ""),
        (TCP, "tcp sport 179 accept; drop;", "warning"),
    ],
)
def test_input_of_what_is_not_udp(host: Namespace, what: Inbound, rules: str, severity: str) -> None:
    few = "set few { type inet_proto; elements = { 4 }; }"
    host.run("nft", f"table inet site {{ {few}; chain in {{ type filter hook input priority 0; {rules} }}; }}")
    assert [f.severity for f in look((what,))] == [severity] * bool(severity)


def test_bgp_over_ipv6_and_packets_in_packets_from_peers_with_ipv6(host: Namespace) -> None:
    """Connections come over both families; what is in IPv4 comes from no IPv6 address."""
    both = ("192.168.50.12", "fd00:50::12")
    host.run("nft", "table inet site { chain in { type filter hook input priority 0; meta nfproto ipv6 drop; }; }")
    assert [f.subject for f in look((TCP, IPIP, SIT), peers=both)] == ["inet site in tcp 179"]


@pytest.mark.parametrize(("what", "rule"), [(IPIP, "ip protocol 4"), (SIT, "ip protocol 41"), (TCP, "tcp dport 179")])
def test_the_command_for_a_chain_of_nft(host: Namespace, what: Inbound, rule: str) -> None:
    host.run("nft", "table inet site { chain in { type filter hook input priority 0; policy drop; }; }")
    (finding,) = look((what,))
    command = finding.remedy.partition(" (")[0]
    assert command == f"nft insert rule inet site in {rule} accept"
    script(host, command)
    assert look((what,)) == []


def test_commands_for_protocols_of_ufw_and_firewalld(host: Namespace) -> None:
    chains = "chain ufw-before-input { }; chain INPUT { type filter hook input priority 0; policy drop; };"
    host.run("nft", f"table ip filter {{ {chains} }}")
    told = {finding.subject: finding.remedy for finding in look((TCP, IPIP))}
    assert told["ip filter INPUT tcp 179"].startswith("ufw allow 179/tcp")
    assert "-A ufw-before-input -p 4 -j ACCEPT' /etc/ufw/before.rules" in told["ip filter INPUT protocol 4"]
    host.run("nft", "flush ruleset")
    host.run("nft", "table inet firewalld { chain filter_INPUT { type filter hook input priority 10; drop; }; }")
    told = {finding.subject: finding.remedy for finding in look((TCP, SIT))}
    assert "--add-port=179/tcp " in told["inet firewalld filter_INPUT tcp 179"]
    assert "--add-protocol=41 " in told["inet firewalld filter_INPUT protocol 41"]


def test_our_own_table_and_an_empty_host(host: Namespace) -> None:
    assert look() == []
    host.run("nft", "table inet netagent { chain in { type filter hook input priority 0; policy drop; }; }")
    assert look() == []
    assert look(inbound=()) == []


# ------------------------------------------------------------------------------------------ places


@pytest.fixture
def wall(host: Namespace) -> Iterator[Firewall]:
    wall = Firewall()
    yield wall
    wall.close()


def chain(host: Namespace) -> list[str]:
    return host.run("iptables-nft", "-S", "DOCKER-USER").stdout.splitlines()


def test_an_accept_in_dockers_chain(host: Namespace, wall: Firewall) -> None:
    need_tool("iptables-nft")
    places = Places(wall, Journal(None))
    assert places.found() == []
    script(host, DOCKER, "iptables-nft")
    assert places.found() == [("docker-user", 4)]
    changes(wall, Change("accept"))
    wall.read()
    accept = ForeignAccept("docker-user", 4, PREFIX)
    assert len(look()) == 1
    for _ in range(2):  # the second changes nothing
        assert places.apply([Op("put", accept)]) == []
        assert chain(host)[1:] == [
            f"-A DOCKER-USER -d {PREFIX} -m comment --comment netagent -j ACCEPT",
            f"-A DOCKER-USER -s {PREFIX} -m comment --comment netagent -j ACCEPT",
            "-A DOCKER-USER -j RETURN",
        ]
    assert look() == []
    assert places.dump(("accept",)) == [accept]
    assert wall.read() == []

    # dockerd makes its chain anew
    script(host, "iptables-nft -F DOCKER-USER; iptables-nft -A DOCKER-USER -j RETURN")
    changes(wall, Change("accept"))
    assert places.dump(("accept",)) == []
    assert places.apply([Op("put", accept)]) == []

    # one of the two is not enough, and what is somebody else's stays
    script(host, f"iptables-nft -D DOCKER-USER -s {PREFIX} -m comment --comment netagent -j ACCEPT")
    assert places.dump(("accept",), [accept]) == []  # it is put again
    assert places.dump(("accept",)) == [accept]  # and does not stay behind if nobody wants it
    assert places.apply([Op("put", accept)]) == []
    script(host, "iptables-nft -I DOCKER-USER -s 10.5.0.0/16 -j ACCEPT")
    for _ in range(2):
        assert places.apply([Op("delete", accept)]) == []
        assert chain(host)[1:] == [f"-A DOCKER-USER -s {PREFIX} -j ACCEPT", "-A DOCKER-USER -j RETURN"]
    assert places.dump(("accept",)) == []


def test_an_accept_where_the_chain_is_gone(host: Namespace, wall: Firewall) -> None:
    places = Places(wall, Journal(None))
    accept = ForeignAccept("docker-user", 4, PREFIX)
    (failure,) = places.apply([Op("put", accept)])
    assert failure.op.object == accept
    assert failure.errno > 0
    assert places.apply([Op("delete", accept)]) == []


@pytest.fixture
def zone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The sources of firewalld's zone trusted; the stand-in for its command keeps them in a file."""
    sources, command = tmp_path / "sources", tmp_path / "firewall-cmd"
    sources.write_text("")
    command.write_text(
        f"""#!/bin/sh
for word; do case $word in
  --add-source=*) echo "${{word#*=}}" >> {sources};;
  --remove-source=*) grep -vxF "${{word#*=}}" {sources} > {sources}.new; mv {sources}.new {sources};;
  --query-source=*) grep -qxF "${{word#*=}}" {sources};;
esac; done
"""
    )
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return sources


def test_a_source_of_firewalld(host: Namespace, wall: Firewall, zone: Path) -> None:
    places = Places(wall, Journal(None))
    assert places.found() == []  # the command alone is no firewalld
    host.run("nft", "table inet firewalld { chain filter_FORWARD { }; }")
    assert places.found() == [("firewalld", 4), ("firewalld", 6)]
    accept = ForeignAccept("firewalld", 4, PREFIX)
    assert places.dump(("accept",), [accept]) == []
    assert places.apply([Op("put", accept)]) == []
    assert zone.read_text() == f"{PREFIX}\n"
    assert places.dump(("accept",)) == [accept]
    assert places.apply([Op("delete", accept)]) == []
    assert zone.read_text() == ""
    assert places.dump(("accept",)) == []


def test_a_source_that_was_there_before_us_stays(host: Namespace, wall: Firewall, zone: Path) -> None:
    zone.write_text(f"{PREFIX}\n")
    places, accept = Places(wall, Journal(None)), ForeignAccept("firewalld", 4, PREFIX)
    assert places.dump(("accept",), [accept]) == [accept]
    assert places.apply([Op("put", accept)]) == []
    assert places.dump(("accept",)) == []
    places.apply([Op("delete", accept)])
    assert zone.read_text() == f"{PREFIX}\n"
