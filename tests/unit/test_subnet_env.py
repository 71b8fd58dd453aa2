"""subnet.env and the node's id: flannel's format, atomic, and what is made of damaged files."""

from __future__ import annotations

from pathlib import Path

import pytest

from netagent import subnet_env
from netagent.errors import ConfigError
from netagent.identity import ID, load_identity
from netagent.model import Network

NETWORK = Network(v4="10.5.0.0/16", v6="fc00::/48")


def test_flannels_format() -> None:
    text = subnet_env.render(NETWORK, "10.5.59.0/24", "fc00:0:0:1::/64", 1450, True)
    assert text == (
        "FLANNEL_NETWORK=10.5.0.0/16\n"
        "FLANNEL_SUBNET=10.5.59.1/24\n"
        "FLANNEL_IPV6_NETWORK=fc00::/48\n"
        "FLANNEL_IPV6_SUBNET=fc00:0:0:1::1/64\n"
        "FLANNEL_MTU=1450\n"
        "FLANNEL_IPMASQ=true\n"
    )
    assert subnet_env.render(NETWORK, "10.5.59.0/24", None, 1500, False) == (
        "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.59.1/24\nFLANNEL_MTU=1500\nFLANNEL_IPMASQ=false\n"
    )


def test_write_replaces_only_what_differs_and_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "run" / "subnet.env"
    text = subnet_env.render(NETWORK, "10.5.59.0/24", "fc00:0:0:1::/64", 1450, True)
    assert subnet_env.write(path, text)
    inode = path.stat().st_ino
    assert path.stat().st_mode & 0o777 == 0o644
    assert not subnet_env.write(path, text)
    assert path.stat().st_ino == inode
    assert subnet_env.read(path) == ("10.5.59.0/24", "fc00:0:0:1::/64", 1450)
    assert subnet_env.write(path, text.replace("1450", "1400"))
    assert path.stat().st_ino != inode
    assert [entry.name for entry in path.parent.iterdir()] == ["subnet.env"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"FLANNEL_SUBNET\nFLANNEL_MTU=\n",
        b"FLANNEL_SUBNET=fc00::1/64\nFLANNEL_IPV6_SUBNET=10.5.59.1/24\nFLANNEL_MTU=lots\n",
        b"FLANNEL_SUBNET=10.5.59.1\nFLANNEL_MTU=99999999\n",
        b"FLANNEL_SUBNET=0.0.0.0/0\n",
        b"FLANNEL_SUBNET=nonsense/24\n",
    ],
)
def test_damaged_files_say_nothing(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "subnet.env"
    path.write_bytes(data)
    assert subnet_env.read(path) == (None, None, 0)
    assert subnet_env.read(tmp_path / "absent") == (None, None, 0)


def test_quotes_are_allowed(tmp_path: Path) -> None:
    path = tmp_path / "subnet.env"
    path.write_text("FLANNEL_SUBNET=\"10.5.59.1/24\"\nFLANNEL_MTU='1450'\n")
    assert subnet_env.read(path) == ("10.5.59.0/24", None, 1450)


def test_the_id_is_made_once_and_kept(tmp_path: Path) -> None:
    state = tmp_path / "lib"
    first = load_identity(state, "h1")
    assert ID.match(first.id)
    assert (state / "id").stat().st_mode & 0o777 == 0o600
    assert load_identity(state, "renamed") == type(first)("renamed", first.id)
    assert [entry.name for entry in state.iterdir()] == ["id"]
    assert load_identity(tmp_path / "other", "h1").id != first.id


def test_a_damaged_id_is_an_error_and_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "id").write_bytes(b"\xffgarbage")
    with pytest.raises(ConfigError, match="does not hold a node's id") as caught:
        load_identity(tmp_path, "h1")
    assert "backup" in caught.value.remedy
    assert (tmp_path / "id").read_bytes() == b"\xffgarbage"


def test_a_state_directory_that_is_none_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--state-dir"):
        load_identity(tmp_path / "file", "h1")
