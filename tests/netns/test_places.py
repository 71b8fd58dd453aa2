"""Accepts of ours in the places that Docker and firewalld offer.

Neither runs here: Docker's chains are set up by hand, and a command by the name of firewalld's keeps sources.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from netagent.kernel.base import Change, Op
from netagent.kernel.firewall import Firewall
from netagent.kernel.journal import Journal
from netagent.kernel.places import Places
from netagent.model import ForeignAccept
from tests.netns.test_firewall import changes
from tests.support.firewalls import DOCKER, PREFIX, firewall_cmd, look, script
from tests.support.netns import Namespace, Namespaces, need_tool

pytestmark = pytest.mark.netns


@pytest.fixture
def host(namespaces: Namespaces) -> Iterator[Namespace]:
    need_tool("nft")
    space = namespaces.make("host")
    with space.entered():
        yield space


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
    """The sources of firewalld's zone trusted."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return firewall_cmd(tmp_path)


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
