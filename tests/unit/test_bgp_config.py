"""The daemon's configuration: every key, and for what is wrong the file, the key, the value and the remedy."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bgp.daemon.config import Config, parse
from bgp.daemon.errors import ConfigError
from bgp.daemon.policies import community, large_community
from bgp.export import Several
from bgp.message import Family, nlri
from bgp.message.codes import WellKnownCommunity
from bgp.policy import PrefixRange

SPEAKER = """
[speaker]
asn = 65001
router-id = "192.0.2.1"
"""
EVERY_KEY = """
[speaker]
asn = 4200000001
router-id = "192.0.2.1"
families = ["ipv4"]
addresses = ["192.0.2.1", "2001:db8::1"]
listen = ["192.0.2.1", "::1"]
port = 1179
cluster-id = "9.9.9.9"
paths = 4
restart-time = 30
stale-time = 90
control = "/tmp/x.sock"
state = "/tmp/x.json"

[[announce]]
prefix = "10.1.2.0/24"
next-hop = "192.0.2.9"
med = 7
local-pref = 200
communities = ["65001:7", "no-export"]
large-communities = ["4200000001:1:2"]
guard = true

[[announce]]
prefixes = ["10.9.0.0/16", "10.8.0.0/16"]

[[peers]]
name = "tor"
address = "192.0.2.254"
asn = 65000
client = false
passive = true
hold-time = 9
connect-retry = 5
local-asn = 64999
next-hop-self = true
import = "from-tor"
export = "to-tor"
allow-own-as = 2
enforce-first-as = false
accept-default = true
max-prefixes = 1000
warn-at = 50
shutdown = "soon"
port = 1790
local-address = "192.0.2.1"
password = "secret"
ttl-security = 1
add-path-receive = true
add-path-send = 3
extended-next-hop = true

[[peers]]
address = "2001:db8::9"
multihop = 5
password-file = "password"
add-path-send = "all"

[[ranges]]
name = "clients"
prefix = "192.0.2.0/24"
limit = 500
asn = 4200000001
client = true
add-path-send = "next-hops"

[policies.from-tor]
default = "accept"
[[policies.from-tor.rules]]
action = "reject"
prefixes = ["10.0.0.0/8{25,32}", "192.168.0.0/16+"]
communities = ["65000:666"]
large-communities = ["1:2:3"]
through = [64512]
neighbour = 65000
originator = [64513, 64514]
longest-path = 10
own = false
[[policies.from-tor.rules]]
action = "accept"
[policies.from-tor.rules.set]
local-pref = 200
med = 1
next-hop = "192.0.2.7"
prepend = [65001, 65001]
clear-communities = true
remove-communities = ["65000:1"]
add-communities = ["blackhole"]
add-large-communities = ["1:1:1"]

[policies.to-tor]
"""


def secret(name: str) -> str:
    assert name == "password"
    return "from a file\n"


def read(text: str, previous: Config | None = None) -> Config:
    return parse(text, "speaker.toml", secret, previous)


def test_every_key() -> None:
    config = read(EVERY_KEY)
    assert config.speaker.asn == 4200000001
    assert config.speaker.families == (Family.IPV4,)
    assert config.speaker.addresses[0] == (Family.IPV4, bytes((192, 0, 2, 1)))
    assert (config.speaker.paths, config.speaker.restart_time, config.speaker.stale_time) == (4, 30, 90)
    assert config.listen == ((bytes((192, 0, 2, 1)), 1179), (bytes(15) + b"\1", 1179))
    assert (config.control, config.state) == ("/tmp/x.sock", "/tmp/x.json")
    first, second, third = config.announcements
    assert (first.guard, first.attributes.med, first.attributes.local_pref) == (True, 7, 200)
    assert first.attributes.communities == (65001 << 16 | 7, WellKnownCommunity.NO_EXPORT)
    assert [nlri.text(each.family, each.prefix) for each in (second, third)] == ["10.9.0.0/16", "10.8.0.0/16"]
    tor, other = config.peers
    assert (tor.name, tor.asn, tor.local_asn, tor.hold_time, tor.most_prefixes) == ("tor", 65000, 64999, 9, 1000)
    assert (tor.warn_at, tor.shutdown, tor.passive, tor.next_hop_self) == (0.5, "soon", True, True)
    assert (tor.transport.port, tor.transport.password, tor.transport.security_hops) == (1790, b"secret", 1)
    assert (tor.accept_default, tor.enforce_first_as, tor.allowed_own_as) == (True, False, 2)
    assert (other.name, other.asn, other.transport.multihop) == ("2001:db8::9", None, 5)
    assert other.transport.password == b"from a file"
    assert (tor.several_in, tor.several_out, tor.extended_next_hop) == (True, Several(3), True)
    assert (other.several_in, other.several_out, other.extended_next_hop) == (False, Several(), False)
    (clients,) = config.ranges
    assert clients.template.several_out == Several(by_next_hop=True)
    assert (clients.name, clients.limit, clients.template.client) == ("clients", 500, True)
    assert tor.import_policy is config.policies["from-tor"]
    reject, accept = config.policies["from-tor"].rules
    assert reject.match.prefixes == (PrefixRange.parse("10.0.0.0/8{25,32}"), PrefixRange.parse("192.168.0.0/16+"))
    assert reject.match.neighbour == {65000}
    assert reject.match.own is False
    assert accept.change.prepend == (65001, 65001)
    assert accept.change.add_communities == (WellKnownCommunity.BLACKHOLE,)
    assert not config.policies["to-tor"].accept


def test_what_is_left_out() -> None:
    config = read(SPEAKER)
    assert config.speaker.families == tuple(Family)
    assert config.listen == ((bytes(4), 179), (bytes(16), 179))
    assert config.peers == config.ranges == config.announcements == ()


def test_a_policy_that_reads_as_before_is_the_same_object() -> None:
    before = read(EVERY_KEY)
    after = read(EVERY_KEY.replace('add-large-communities = ["1:1:1"]', ""), before)
    assert after.policies["to-tor"] is before.policies["to-tor"]
    assert after.policies["from-tor"] is not before.policies["from-tor"]
    assert after.peers[1] == before.peers[1]
    assert after.peers[0] != before.peers[0]
    assert after.peers[0].same_session(before.peers[0])
    assert read(EVERY_KEY, before).peers == before.peers


def test_what_an_open_says_begins_a_session_anew() -> None:
    """But which of several routes a peer is told, it does not say."""
    before = read(EVERY_KEY)
    for old, new, stands in (
        ("add-path-send = 3", 'add-path-send = "all"', True),
        ("add-path-send = 3", "", False),
        ("add-path-receive = true", "", False),
        ("extended-next-hop = true", "", False),
    ):
        peer = read(EVERY_KEY.replace(old, new), before).peers[0]
        assert peer != before.peers[0]
        assert peer.same_session(before.peers[0]) is stands


PEER = SPEAKER + '[[peers]]\naddress = "192.0.2.2"\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[speaker", "speaker.toml: this is no TOML"),
        (
            SPEAKER + "[[peers]]\naddress = '192.0.2.2'\ntcp-ao = 'secret'",
            "tcp-ao: TCP-AO .RFC 5925. is not there: it needs a kernel with .*; use password or password-file ",
        ),
        (
            SPEAKER + "[[peers]]\naddress = '192.0.2.2'\nsend-hold-time = 90",
            r"send-hold-time = 90: must be 0 \(for ever\) or more than the hold time, 90",
        ),
        ("x = " + "9" * 5000, "speaker.toml: this is no TOML"),
        ("x = " + "[" * 5000, "speaker.toml: this is no TOML"),
        ("", "speaker.toml: speaker.router-id: is missing; add it|speaker.toml: speaker.asn: is missing; add it"),
        (SPEAKER + "as = 1", r"speaker.toml: speaker.as: there is no such key; did you mean asn\?"),
        (SPEAKER + "bird = 1", "speaker.toml: speaker.bird: there is no such key; known here: addresses, asn"),
        (SPEAKER.replace("asn", "asnn"), r"speaker.asnn: there is no such key; did you mean asn\?"),
        (SPEAKER.replace("router-id", "router_id"), r"speaker.router_id: .*; did you mean router-id\?"),
        (SPEAKER.replace("[speaker]", "[speeker]"), r"toml: speeker: .*; did you mean speaker\?"),
        (SPEAKER + "[[peers]]\nadress = '192.0.2.2'", r"peers\[1\].adress: .*; did you mean address\?"),
        (SPEAKER + "[[peers]]\nlocal-address = '192.0.2.2'", r"peers\[1\].address: is missing"),
        (SPEAKER + "[[ranges]]\nprefixes = '192.0.2.0/24'", r"ranges\[1\].prefixes: .*; did you mean prefix\?"),
        (SPEAKER + "[[announce]]\nprefixs = ['192.0.2.0/24']", r"announce\[1\].prefixs: .*; did you mean prefix"),
        (SPEAKER + "[[policies.p.rules]]\nacton = 'accept'", r"policies.p.rules\[1\].acton: .* mean action\?"),
        (SPEAKER + "[[policies.p.rules]]\naction = 'accept'\nst = {}", r"policies.p.rules\[1\].st: .* mean set\?"),
        (SPEAKER + "[policies.p]\ndefalt = 'accept'", r"policies.p.defalt: .* mean default\?"),
        (PEER + "asnn = 1", r"peers\[1\].asnn: there is no such key; did you mean asn\?"),
        (PEER + "bfd = {min-xt = 100}", r"peers\[1\].bfd.min-xt: .* mean min-"),
        (PEER + 'adress = "192.0.2.3"', r"peers\[1\].adress: .* mean address\?"),
        (SPEAKER + 'listen = ["foo:bar"]', r"speaker.listen = 'foo:bar': is no address"),
        (PEER + 'local-address = "foo:bar"', r"peers\[1\].local-address = 'foo:bar': is no address"),
        (SPEAKER + '[[peers]]\naddress = "192.0.2.1:179"', r"peers\[1\].address = '192.0.2.1:179': is no address"),
        (SPEAKER + '[[peers]]\naddress = "fe80::2"', r"address = 'fe80::2': .*; use a global one, or passive = true"),
        (SPEAKER + 'listen = ["fe80::1"]', "speaker.listen = 'fe80::1': a link-local address needs its interface"),
        (PEER + 'local-address = "fe80::1"', r"peers\[1\].local-address = 'fe80::1': a link-local address needs"),
        (SPEAKER.replace("65001", "0"), "speaker.asn = 0: must lie between 1 and 4294967295"),
        (SPEAKER.replace("65001", '"x"'), "speaker.asn = 'x': must be a whole number"),
        (SPEAKER.replace("65001", "true"), "speaker.asn = True: must be a whole number"),
        (SPEAKER.replace("192.0.2.1", "0.0.0.0"), "speaker.router-id = '0.0.0.0': must be four numbers"),
        (SPEAKER.replace("192.0.2.1", "router"), "speaker.router-id = 'router': must be four numbers"),
        (SPEAKER + 'families = ["ipx"]', "speaker.families = 'ipx': must be ipv4 or ipv6"),
        (SPEAKER + "families = []", r"speaker.families = \[\]: name at least one"),
        (SPEAKER + "listen = 7", "speaker.listen = 7: must be a list of strings"),
        (SPEAKER + "[peers]", "peers = {}: must be a list"),
        (SPEAKER + "[[peer]]", "peer: .*did you mean peers"),
        (SPEAKER + "peers = [1]", r"speaker.peers"),
        (SPEAKER + "[[peers]]", r"peers\[1\].address: is missing"),
        (PEER + 'asn = "65001"', r"peers\[1\].asn = '65001': must be a whole number"),
        (PEER + "hold-time = 2", r"peers\[1\].hold-time = 2: must be 0 .* or at least 3"),
        (PEER + "hold-time = 70000", r"peers\[1\].hold-time = 70000: must lie between"),
        (PEER + "add-path-send = 0", r"add-path-send = 0: must be a whole number from 1 to 255, or \"all\" or"),
        (PEER + 'add-path-send = "best"', "add-path-send = 'best': must be a whole number"),
        (PEER + "add-path-send = true", "add-path-send = True: must be a whole number"),
        (PEER + "add-path-receive = 1", "add-path-receive = 1: must be true or false"),
        (PEER + 'import = "x"', r"peers\[1\].import = 'x': there is no such policy; write \[policies.x\]"),
        (PEER + 'password = "a"\npassword-file = "b"', "give a password or a file, not both"),
        (PEER + 'password-file = "nowhere"', r"password-file = 'nowhere': cannot be read: No such file"),
        (PEER + 'password-file = "empty"', r"password-file = 'empty': is empty"),
        (PEER + f'password = "{"x" * 81}"', r"peers\[1\]: the password has 81 octets; TCP MD5 takes 80"),
        (PEER + "ttl-security = 1\nmultihop = 3", r"peers\[1\]: TTL security has its own number"),
        (
            PEER + '[[peers]]\naddress = "192.0.2.2"\nname = "x"',
            r"peers\[2\].address = '192.0.2.2': stands there twice",
        ),
        (PEER + '[[peers]]\naddress = "192.0.2.3"\nname = "192.0.2.2"', r"peers\[2\].name .* twice"),
        (SPEAKER + '[[ranges]]\nprefix = "192.0.2.0"', r"ranges\[1\].prefix = '192.0.2.0': the length must"),
        (SPEAKER + '[[ranges]]\nprefix = "192.0.2.0/24"\npassive = true', "there is no such key"),
        (
            SPEAKER + '[[announce]]\nprefix = "10.0.0.0/33"',
            r"announce\[1\].prefix = '10.0.0.0/33': .*between 0 and 32",
        ),
        (SPEAKER + '[[announce]]\nprefix = "10.0.0.0/8"\ncommunities = ["x"]', "must be like 65000:120, or one of"),
        (SPEAKER + '[policies.p]\ndefault = "maybe"', "policies.p.default = 'maybe': must be one of: accept, reject"),
        (SPEAKER + '[[policies.p.rules]]\naction = "accept"\nset = {mad = 1}', "did you mean med"),
        (SPEAKER + '[[policies.p.rules]]\naction = "accept"\nthrough = [0]', "whole numbers from 1"),
        (SPEAKER + '[[policies.p.rules]]\naction = "accept"\nprefixes = "10.0.0.0/8{9}"', "write lengths like"),
    ],
)
def test_what_is_wrong_is_said_with_file_key_value_and_remedy(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ConfigError) as raised:
        parse(text, "speaker.toml", lambda name: (tmp_path / name).read_text())
    message = str(raised.value)
    assert re.search(words, message), message
    assert message.startswith("speaker.toml: ")
    assert "\n" not in message


def test_a_link_local_peer_may_connect() -> None:
    (peer,) = read(SPEAKER + '[[peers]]\naddress = "fe80::2"\npassive = true').peers
    assert nlri.address_text(peer.address) == "fe80::2"


def test_communities_are_read_as_they_are_shown() -> None:
    assert community("65535:65535") == 0xFFFFFFFF
    assert large_community("1:2:4294967295") == (1, 2, 4294967295)
    for text in ("65536:1", "1", "1:2:3", "-1:2", "²:1"):
        with pytest.raises(ValueError, match="must be like"):
            community(text)
    for text in ("1:2", "1:2:4294967296", "a:b:c"):
        with pytest.raises(ValueError, match="three numbers"):
            large_community(text)
