"""Other tools' firewalls by name: what is found, and the command that mends it.

No Docker, ufw or firewalld runs here: their chains are set up by hand as the named stand-ins.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from netagent.model import Inbound
from tests.support.firewalls import DOCKER, IPIP, PREFIX, SIT, TCP, UDP, look, script
from tests.support.netns import Namespace, Namespaces, need_tool, unable

pytestmark = pytest.mark.netns


@pytest.fixture
def host(namespaces: Namespaces) -> Iterator[Namespace]:
    need_tool("nft")
    space = namespaces.make("host")
    with space.entered():
        yield space


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
