"""A running cluster whose BGP settings change, or whose hosts do: packets flow on, and what is wrong is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from netagent.lab.lab import Lab
from tests.netns.test_cluster_bgp import all_play
from tests.netns.test_cluster_etcd import until_status

pytestmark = [pytest.mark.netns, pytest.mark.etcd]


async def renewed(lab: Lab, flaps: int, **settings: Any) -> None:
    """Until every session has been begun anew so often, and has what was agreed on."""

    async def look() -> str:
        for node in lab.nodes.values():
            for view in json.loads((await node.exec("netagent", "bgp", "peers", "--json")).out):
                found = {name: view.get(name) for name in settings}
                if view["state"] != "established" or view["flaps"] < flaps or found != settings:
                    return f"{node.name}: {view}"
        return ""

    await lab.until(look, "every session stands anew", 40)


@pytest.mark.parametrize("ways", ["mesh", pytest.param("reflectors", marks=pytest.mark.slow)])
async def test_hold_time_port_and_password_change_without_a_lost_packet(tmp_path: Path, ways: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hush\n")
    base: dict[str, Any] = {"Type": "bgp", "PasswordFile": str(secret)}
    if ways == "reflectors":
        base |= {"Mesh": False, "Reflectors": ["h1", "h2"]}
    async with Lab(nodes=4, backend=base) as lab:
        await lab.ready(backend="bgp")
        await renewed(lab, 0, hold_time=90)
        async with lab.flow() as flow:
            await lab.set_backend({**base, "HoldTime": 30})
            await renewed(lab, 1, hold_time=30)
            await lab.set_backend({**base, "HoldTime": 30, "Port": 1179})
            await renewed(lab, 2)
            secret.write_text("tell\n")
            await renewed(lab, 3)
            await lab.set_backend({key: value for key, value in base.items() if key != "PasswordFile"})
            await renewed(lab, 4, hold_time=90)
        assert flow.sent > 500
        assert flow.lost == 0, flow
        assert (await lab["h1"].status()).verdict.state == "healthy"


async def test_the_as_number_of_all_and_of_one_changes_without_a_lost_packet() -> None:
    async with Lab(nodes=3, backend="bgp") as lab:
        await lab.ready(backend="bgp")

        async def speaks(numbers: dict[str, int]) -> None:
            async def look() -> str:
                for node in lab.nodes.values():
                    views = json.loads((await node.exec("netagent", "bgp", "peers", "--json")).out)
                    found = {view["name"]: view["asn"] for view in views if view["state"] == "established"}
                    if found != {name: number for name, number in numbers.items() if name != node.name}:
                        return f"{node.name}: {found}"
                return ""

            await lab.until(look, "everybody has the number", 40)

        async with lab.flow() as flow:
            await lab.set_backend({"Type": "bgp", "AS": 65001})
            await speaks({"h1": 65001, "h2": 65001, "h3": 65001})
            await lab.set_backend({"Type": "bgp", "AS": 65001, "Nodes": [{"Match": "h2", "AS": 65002}]})
            await speaks({"h1": 65001, "h2": 65002, "h3": 65001})
        assert flow.sent > 500
        assert flow.lost == 0, flow


@pytest.mark.slow
async def test_all_reflectors_go_and_return() -> None:
    backend = {"Type": "bgp", "Mesh": False, "Reflectors": ["h1", "h2"]}
    async with Lab(nodes=4, backend=backend) as lab:
        await lab.ready(backend="bgp")
        await all_play(lab, {"h3": ("client", 2), "h4": ("client", 2)})
        async with lab.flow() as flow:
            await lab["h1"].kill_agent()
            await lab["h2"].kill_agent()
            status = await until_status(
                lab, "h3", "it is told", lambda s: "bgp-reflectors-down" in {f.code for f in s.findings}
            )
            (finding,) = [f for f in status.findings if f.code == "bgp-reflectors-down"]
            assert "(h1, h2)" in finding.message
            assert "its routes are kept for" in finding.message
            assert status.verdict.state == "degraded"
            await lab["h1"].start_agent()
            await lab["h2"].start_agent()
            await until_status(lab, "h3", "all is well", lambda s: not s.findings)
            await all_play(lab, {"h3": ("client", 2), "h4": ("client", 2)})
        assert flow.lost == 0, flow
