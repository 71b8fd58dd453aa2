"""The stand-in for flanneld by itself: its flags, keys, records and frames, held against scapy and observed bytes."""

from __future__ import annotations

import subprocess
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP, UDP

from tests.support.flannel import flags, leases, peers, udp

PROGRAM = Path(leases.__file__).parent.parent / "flanneld.py"

# Inner packet of flannel's udp backend as captured on the wire; it left the TUN with a TTL of 63.
WIRE = bytes.fromhex(
    "45000034e9f540003e01b8c50a053e020a0548020800e72052720001a3b1046b000000007db8020000000000a5a5a5a5a5a5a5a5"
)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["-nope"], 2, "flag provided but not defined: -nope\nUsage of flannel:"),
        (["-version", "-nope"], 2, "flag provided but not defined: -nope"),
        (["--etcd-prefix"], 2, "flag needs an argument: -etcd-prefix"),
        (["-ip-masq=perhaps"], 2, 'invalid boolean value "perhaps" for -ip-masq: parse error'),
        (["-iptables-resync", "soon"], 2, 'invalid value "soon" for -iptables-resync: parse error'),
        (["---version"], 2, "bad flag syntax: ---version"),
        (["-kube-subnet-mgr"], 1, "this stand-in for flanneld does not carry out -kube-subnet-mgr"),
        (["-help"], 0, "Usage of flannel:"),
    ],
)
def test_flags_that_end_it(words: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        flags.parse(words, {})
    assert end.value.code == code
    assert capsys.readouterr().err.startswith(says)


def test_flags_of_every_form() -> None:
    words = ["-iface=eth0", "--iface", "eth1", "-ip-masq", "-iptables-forward-rules=F", "-v=4", "word", "-nope"]
    environ = {"FLANNELD_ETCD_PREFIX": "/net", "FLANNELD_IP_MASQ": "false", "FLANNELD": "/opt/flanneld"}
    values = flags.parse(words, environ)
    assert values["iface"] == ["eth0", "eth1"]
    assert values["ip-masq"] is True  # given: the environment has no say
    assert values["iptables-forward-rules"] is False
    assert values["etcd-prefix"] == "/net"
    assert values["subnet-file"] == "/run/flannel/subnet.env"


def test_it_runs_as_a_program() -> None:
    done = subprocess.run([PROGRAM, "-nope"], capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stderr.splitlines()[0]) == (2, "flag provided but not defined: -nope")


def test_a_packet_ages_by_one() -> None:
    header = IP(src="10.5.62.2", dst="10.5.72.2", ttl=63, id=0xE9F5, flags="DF", proto="icmp", len=52)
    packet = bytearray(bytes(header) + WIRE[20:])
    assert udp.aged(packet)
    assert packet == WIRE
    packet[8] = 1
    assert not udp.aged(packet)


def test_the_checksum_follows_the_ttl() -> None:
    for number in range(0, 0x10000, 251):
        packet = bytearray(bytes(IP(src="10.5.1.2", dst="10.5.2.2", id=number, ttl=64) / UDP()))
        assert udp.aged(packet)
        assert packet == bytes(IP(src="10.5.1.2", dst="10.5.2.2", id=number, ttl=63) / UDP())


def test_the_answer_to_a_packet_without_route() -> None:
    packet = bytes(IP(src="10.5.1.2", dst="10.5.9.9", options=b"\x94\x04\0\0") / UDP(sport=7, dport=9) / b"hello")
    answer = IP(udp.net_unreachable(packet, IPv4Address("10.5.1.0")))
    assert (answer.src, answer.dst, answer.ttl, answer[ICMP].type, answer[ICMP].code) == (
        "10.5.1.0",
        "10.5.1.2",
        8,
        3,
        0,
    )
    sums = answer.chksum, answer[ICMP].chksum
    del answer.chksum, answer[ICMP].chksum
    again = IP(bytes(answer))
    assert (again.chksum, again[ICMP].chksum) == sums
    assert bytes(answer[ICMP])[8:] == packet[:32]
    assert not udp.net_unreachable(bytes(IP() / ICMP()), IPv4Address("10.5.1.0"))
    assert not udp.net_unreachable(bytes(IP(frag=3) / UDP() / bytes(8)), IPv4Address("10.5.1.0"))


@pytest.mark.parametrize(
    ("key", "subnet"),
    [
        ("/net/subnets/10.5.59.0-24", "10.5.59.0/24"),
        ("/net/subnetsx10.5.59.0-24", "10.5.59.0/24"),
        ("/net/subnets/10.5.59.0-24&fc00:0:0:1::-64", "10.5.59.0/24"),
        ("/net/subnets/0.0.0.0-0&fc00:0:0:1::-64", "0.0.0.0/0"),
        ("/net/subnets/fc00:0:0:1::-64", None),
        ("/net/subnets/garbage", None),
        ("/net/subnets/10.5.59.0-24/owner", None),
    ],
)
def test_keys(key: str, subnet: str | None) -> None:
    assert leases.key_subnet(key) == (IPv4Network(subnet) if subnet else None)


def test_the_networks_configuration() -> None:
    config = leases.read_config('{"network": "10.5.0.0/16", "BACKEND": {"type": "vxlan", "vni": 7}}')
    assert (config.length, str(config.first), str(config.last)) == (24, "10.5.1.0", "10.5.255.0")
    assert (config.backend, config.options["vni"]) == ("vxlan", 7)
    assert leases.read_config('{"Network": "10.5.0.0/24"}').length == 26
    assert leases.read_config('{"Network": "10.5.0.0/24"}').backend == "udp"
    for wrong in ('"Network": "10.5.0.0/29"', '"Network": "10.5.0.0/16", "SubnetMin": "10.5.1.1"'):
        with pytest.raises(ValueError, match=r"too small|boundary"):
            leases.read_config(f"{{{wrong}}}")


class Told(list[tuple[str, str]]):
    """A backend that notes what it is told."""

    def mine(self, found: list[leases.Lease]) -> list[leases.Lease]:
        return list(found)

    def add(self, found: list[leases.Lease]) -> None:
        self.extend(("add", str(lease.subnet)) for lease in found)

    def remove(self, found: list[leases.Lease]) -> None:
        self.extend(("remove", str(lease.subnet)) for lease in found)


def lease(number: int, address: str = "192.168.50.12") -> leases.Lease:
    return leases.Lease(IPv4Network(f"10.5.{number}.0/24"), {"PublicIP": address})


def test_what_follows_from_events() -> None:
    told = Told()
    daemon = peers.Daemon(told, lease(1))  # type: ignore[arg-type]
    daemon.take([peers.Snapshot([lease(1), lease(2)])])
    daemon.take([lease(3), lease(1), peers.Gone(lease(2).subnet), lease(4)])
    assert told == [("add", "10.5.2.0/24"), ("add", "10.5.3.0/24"), ("remove", "10.5.2.0/24"), ("add", "10.5.4.0/24")]
    told.clear()
    daemon.take(
        [peers.Snapshot([lease(1), lease(3, "192.168.50.99"), lease(5)])]
    )  # what is said of 3 is not compared
    assert told == [("remove", "10.5.4.0/24"), ("add", "10.5.5.0/24")]
    with pytest.raises(SystemExit):
        daemon.take([peers.Gone(lease(1).subnet)])


def test_a_key_that_cannot_be_parsed_removes_all() -> None:
    """As in flannel since 0.21.3: that is why netagent keeps its own keys elsewhere."""
    told = Told()
    daemon = peers.Daemon(told, lease(1))  # type: ignore[arg-type]
    daemon.take([peers.Snapshot([lease(1), lease(2)])])
    told.clear()
    kv = {"key": "L25ldC9zdWJuZXRzL2dhcmJhZ2U=", "value": "eA==", "mod_revision": "9"}
    daemon.take(list(peers.events({"events": [{"kv": kv}]})))
    assert told == [("remove", "10.5.2.0/24"), ("remove", "10.5.1.0/24")]
