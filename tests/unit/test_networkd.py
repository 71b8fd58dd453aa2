"""What systemd-networkd would take away, told from its files."""

from __future__ import annotations

from pathlib import Path

import pytest

from netagent.kernel.networkd import inspect

LINKS = {1: "lo", 2: "eth0", 3: "na-vx1", 4: "docker0"}


def networkd(root: Path, **states: str) -> None:
    """Its state: what it says of each link, by name."""
    folder = root / "run/systemd/netif/links"
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in LINKS.items():
        state = states.get(name.replace("-", "_"), "unmanaged")
        text = f"# This is private data. Do not parse.\nADMIN_STATE={state}\nOPER_STATE=routable\n"
        if state != "unmanaged":
            text += f"NETWORK_FILE=/etc/systemd/network/{name}.network\n"
        (folder / str(index)).write_text(text)


def setting(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def found(root: Path, carriers: tuple[str, ...] = ("eth0",)) -> list[tuple[str, str]]:
    return [(f.code, f.subject) for f in inspect(LINKS, ["na-vx1"], carriers, root=root)]


def test_routes_on_an_uplink_that_networkd_configures(tmp_path: Path) -> None:
    networkd(tmp_path, eth0="configured")
    (finding,) = inspect(LINKS, ["na-vx1"], ["eth0"], root=tmp_path)
    assert (finding.code, finding.subject, finding.severity) == ("networkd-routes", "eth0", "warning")
    assert "/etc/systemd/network/eth0.network" in finding.evidence
    assert "ManageForeignRoutes=no" in finding.remedy


@pytest.mark.parametrize("state", ["", "unmanaged", "linger"])
def test_a_link_that_it_leaves_alone(tmp_path: Path, state: str) -> None:
    networkd(tmp_path, eth0=state)
    assert found(tmp_path) == []


def test_no_route_of_ours_goes_by_it(tmp_path: Path) -> None:
    networkd(tmp_path, eth0="configured")
    assert found(tmp_path, carriers=("na-vx1",)) == []


def test_no_networkd_here(tmp_path: Path) -> None:
    assert found(tmp_path) == []


def test_the_state_of_another_network_namespace_says_nothing(tmp_path: Path) -> None:
    networkd(tmp_path, eth0="configured")
    assert inspect({1: "lo", 2: "eth0"}, [], ["eth0"], root=tmp_path) == []


def test_a_device_of_ours_that_it_configures(tmp_path: Path) -> None:
    networkd(tmp_path, na_vx1="configured")
    (finding,) = inspect(LINKS, ["na-vx1"], ["na-vx1"], root=tmp_path)
    assert (finding.code, finding.subject) == ("networkd-device", "na-vx1")
    assert "Name=na-vx1" in finding.remedy
    assert "Unmanaged=yes" in finding.remedy


NO = "[Network]\nManageForeignRoutes=no\n"
YES = "[Network]\nManageForeignRoutes = yes\n"


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"etc/systemd/networkd.conf": NO}, False),
        ({"etc/systemd/networkd.conf": "[Network]\n#ManageForeignRoutes=no\n"}, True),
        ({"etc/systemd/networkd.conf": "[DHCPv4]\nManageForeignRoutes=no\n"}, True),
        ({"etc/systemd/networkd.conf": YES, "usr/lib/systemd/networkd.conf": NO}, True),
        ({"etc/systemd/networkd.conf": YES, "usr/lib/systemd/networkd.conf.d/a.conf": NO}, False),
        ({"etc/systemd/networkd.conf.d/a.conf": YES, "usr/lib/systemd/networkd.conf.d/a.conf": NO}, True),
        ({"etc/systemd/networkd.conf.d/a.conf": YES, "usr/lib/systemd/networkd.conf.d/b.conf": NO}, False),
        ({"etc/systemd/networkd.conf.d/b.conf": YES, "run/systemd/networkd.conf.d/a.conf": NO}, True),
    ],
)
def test_its_settings_are_read_as_it_reads_them(tmp_path: Path, files: dict[str, str], told: bool) -> None:
    networkd(tmp_path, eth0="configured")
    for path, text in files.items():
        setting(tmp_path, path, text)
    assert found(tmp_path) == ([("networkd-routes", "eth0")] if told else [])


def test_files_that_cannot_be_read_are_no_fault(tmp_path: Path) -> None:
    networkd(tmp_path, eth0="configured")
    (tmp_path / "etc/systemd/networkd.conf.d/x.conf").mkdir(parents=True)
    (tmp_path / "run/systemd/netif/links/2").write_bytes(b"\xff\xfeADMIN_STATE\n[=\n")
    assert found(tmp_path) == []
