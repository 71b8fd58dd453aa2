"""Sysctls and offloads in a namespace: written where they differ, journalled before, put back if still ours."""

from __future__ import annotations

import errno
import select
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from netagent.errors import KernelError
from netagent.kernel import ethtool
from netagent.kernel.base import Change, Op
from netagent.kernel.journal import Entry, Journal
from netagent.kernel.settings import Settings
from netagent.model import Offload, Sysctl
from tests.support.netns import Namespace, Namespaces, need_tool

pytestmark = pytest.mark.netns

FORWARD = Sysctl("net/ipv4/ip_forward", "1")
LOOSE = Sysctl("net/ipv4/conf/eth0/rp_filter", "2")
TX_OFF = Offload("eth0", "tx-checksum-ip-generic", False)


@pytest.fixture
def other(namespaces: Namespaces) -> Namespace:
    """The other end of the host's cable."""
    return namespaces.make("other")


@pytest.fixture
def host(namespaces: Namespaces, other: Namespace) -> Iterator[Namespace]:
    space = namespaces.make("host")
    namespaces.veth(space, "eth0", other, "eth0")
    with space.entered():
        space.sysctl(FORWARD.name, "0")
        space.sysctl(LOOSE.name, "1")
        yield space


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.json")


@pytest.fixture
def settings(host: Namespace, journal: Journal) -> Iterator[Settings]:
    settings = Settings(journal)
    yield settings
    settings.close()


def puts(*objects: Sysctl | Offload) -> list[Op]:
    return [Op("put", obj) for obj in objects]


def told(settings: Settings) -> list[Change]:
    ready, _, _ = select.select([settings.fileno()], [], [], 1.0)
    assert ready, "no notification within a second"
    return settings.read()


def test_put_and_put_back(settings: Settings, host: Namespace, journal: Journal) -> None:
    wanted = [FORWARD, LOOSE, TX_OFF]
    assert settings.apply(puts(*wanted)) == []
    assert host.sysctl(FORWARD.name) == "1"
    assert host.sysctl(LOOSE.name) == "2"
    assert not ethtool.features("eth0")[TX_OFF.feature].on
    assert set(settings.dump(("sysctl", "offload"))) == set(wanted)
    assert settings.dump(("sysctl",)) == [FORWARD, LOOSE]
    assert settings.restore() == []
    assert host.sysctl(FORWARD.name) == "0"
    assert host.sysctl(LOOSE.name) == "1"
    assert ethtool.features("eth0")[TX_OFF.feature].on
    assert journal.entries() == {}


def test_the_next_run_puts_back(settings: Settings, host: Namespace, tmp_path: Path) -> None:
    settings.apply(puts(FORWARD, TX_OFF))
    later = Settings(Journal(tmp_path / "journal.json"))
    assert set(later.dump(("sysctl", "offload"))) == {FORWARD, TX_OFF}
    assert later.restore() == []
    later.close()
    assert host.sysctl(FORWARD.name) == "0"
    assert ethtool.features("eth0")[TX_OFF.feature].on


def test_what_is_right_already_is_not_ours(settings: Settings, host: Namespace, journal: Journal) -> None:
    host.sysctl(FORWARD.name, "1")
    assert settings.apply(puts(FORWARD)) == []
    assert journal.entries() == {}
    assert settings.apply([Op("delete", FORWARD)]) == []
    assert host.sysctl(FORWARD.name) == "1"


def test_what_somebody_changed_since_is_theirs(settings: Settings, host: Namespace, journal: Journal) -> None:
    settings.apply(puts(LOOSE, TX_OFF))
    host.sysctl(LOOSE.name, "0")
    ethtool.set_feature("eth0", TX_OFF.feature, True)
    assert settings.restore() == []
    assert host.sysctl(LOOSE.name) == "0"
    assert journal.entries() == {}


def test_the_first_old_value_outlives_drift(settings: Settings, host: Namespace, journal: Journal) -> None:
    settings.apply(puts(LOOSE))
    host.sysctl(LOOSE.name, "0")
    settings.apply(puts(LOOSE))
    assert journal.get("sysctl:" + LOOSE.name) == Entry("1", "2")
    settings.restore()
    assert host.sysctl(LOOSE.name) == "1"


def test_nothing_is_written_that_cannot_be_journalled(
    settings: Settings, host: Namespace, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise KernelError("No space left on device", errno=errno.ENOSPC)

    monkeypatch.setattr(journal, "record", full)
    failures = settings.apply(puts(FORWARD, LOOSE))
    assert [(f.op.object, f.errno) for f in failures] == [(FORWARD, errno.ENOSPC), (LOOSE, errno.ENOSPC)]
    assert host.sysctl(FORWARD.name) == "0"


def test_one_that_fails_holds_up_no_other(settings: Settings, host: Namespace, journal: Journal) -> None:
    bad = [
        Sysctl("net/ipv4/conf/nowhere/rp_filter", "2"),
        Sysctl("net/ipv4/conf/eth0/rp_filter", "many"),
        Sysctl("../../etc/hostname", "x"),
        Offload("nowhere", TX_OFF.feature, False),
        Offload("eth0", "no-such-feature", False),
        Offload("a-name-longer-than-any", TX_OFF.feature, False),
        Offload("lo", "tx-checksum-sctp", False),
        Offload("lo", "loopback", False),  # fixed
    ]
    failures = settings.apply(puts(bad[0], FORWARD, *bad[1:]))
    failed = {f.op.object for f in failures}
    assert set(bad[:6]) <= failed
    assert bad[7] in failed
    assert FORWARD not in failed
    assert all(f.errno > 0 and f.message for f in failures)
    assert host.sysctl(FORWARD.name) == "1"
    kept = set(journal.entries())
    assert "sysctl:net/ipv4/conf/eth0/rp_filter" not in kept
    assert "offload:lo:loopback" not in kept


def test_a_device_that_is_gone_is_no_failure(settings: Settings, host: Namespace, journal: Journal) -> None:
    settings.apply(puts(LOOSE, TX_OFF))
    host.ip("link delete eth0")
    assert settings.dump(("sysctl", "offload"), [LOOSE, TX_OFF]) == []
    assert settings.restore() == []
    assert journal.entries() == {}


def test_forwarding_and_rp_filter_tell(settings: Settings, host: Namespace) -> None:
    settings.apply(puts(FORWARD, LOOSE))
    assert told(settings) == []  # our own changes
    host.sysctl(LOOSE.name, "1")
    assert told(settings) == [Change("sysctl", LOOSE.key)]
    host.sysctl(FORWARD.name, "0")
    assert Change("sysctl", FORWARD.key) in told(settings)
    settings.apply(puts(FORWARD, LOOSE))
    told(settings)
    host.sysctl("net/ipv4/conf/all/rp_filter", "1")  # not one of ours
    assert told(settings) == []
    assert settings.apply([Op("delete", FORWARD), Op("delete", LOOSE)]) == []
    told(settings)
    host.sysctl(FORWARD.name, "1")
    assert told(settings) == []


def test_what_does_not_tell_is_found_by_looking(settings: Settings, host: Namespace) -> None:
    settings.apply(puts(FORWARD, TX_OFF))
    assert settings.recheck() == []
    ethtool.set_feature("eth0", TX_OFF.feature, True)
    assert settings.recheck() == [Change("offload", TX_OFF.key)]
    assert settings.recheck(("sysctl",)) == []
    host.ip("link delete eth0")
    assert settings.recheck() == [Change("offload", TX_OFF.key)]


def test_default_routes_from_advertisements_outlive_ipv6_forwarding(
    settings: Settings, host: Namespace, other: Namespace
) -> None:
    """Forwarding drops them where accept_ra is not 2 by then, so it is written last, in whatever order it comes."""
    accept, forward = Sysctl("net/ipv6/conf/eth0/accept_ra", "2"), Sysctl("net/ipv6/conf/all/forwarding", "1")
    host.sysctl(forward.name, "0")
    host.sysctl(accept.name, "1")
    advertise(host, other)
    assert settings.apply(puts(forward)) == []
    assert "proto ra" not in host.ip("-6 route show default")  # the trap
    assert settings.restore() == []
    advertise(host, other)
    assert settings.apply(puts(forward, accept)) == []
    assert "proto ra" in host.ip("-6 route show default")
    assert (host.sysctl(accept.name), host.sysctl(forward.name)) == ("2", "1")
    assert settings.restore() == []
    assert (host.sysctl(accept.name), host.sysctl(forward.name)) == ("1", "0")


def advertise(host: Namespace, other: Namespace) -> None:
    """Send a router advertisement from the other end of the cable, until the host has its route."""
    script = """
import socket, struct, time
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); s.bind(("eth0", 0))
def csum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16: total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff
src = socket.inet_pton(socket.AF_INET6, "fe80::1"); dst = socket.inet_pton(socket.AF_INET6, "ff02::1")
ra = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)
ra = ra[:2] + struct.pack("!H", csum(src + dst + struct.pack("!II", len(ra), 58) + ra)) + ra[4:]
ip = struct.pack("!IHBB", 6 << 28, len(ra), 58, 255) + src + dst
for _ in range(3): s.send(bytes.fromhex("333300000001" "020000000001" "86dd") + ip + ra); time.sleep(0.01)
"""
    deadline = time.monotonic() + 5
    while "proto ra" not in host.ip("-6 route show default"):
        assert time.monotonic() < deadline, "the advertisement is not taken"
        other.run("python3", "-c", script)


def test_ethtool_agrees_with_the_command(host: Namespace) -> None:
    tool = need_tool("ethtool")
    listing = host.run(tool, "-k", "eth0").stdout
    # Lines behind a tab are the kernel's own names; others sum up several.
    named = dict(line.split(": ", 1) for line in listing.splitlines()[1:])
    found = ethtool.features("eth0")
    common = {name.strip(): value for name, value in named.items() if name.strip() in found}
    assert len(common) > 20
    for name, value in common.items():
        assert found[name].on == value.startswith("on"), name
        assert found[name].changeable == ("[fixed]" not in value), name
