"""A kernel without the backend's device: the agent says so, names the next best backend, and follows to it."""

from __future__ import annotations

import pytest

from netagent.errors import AgentUnavailable
from netagent.lab.lab import Lab
from tests.support.netns import lacks_device

pytestmark = [pytest.mark.netns, pytest.mark.etcd]


async def test_ipip_where_the_kernel_has_none() -> None:
    if not lacks_device("ipip"):
        pytest.skip("this kernel makes ipip devices: the VMs' tests block the module")
    async with Lab(nodes=2, backend="ipip") as lab:

        async def told() -> str:
            try:
                findings = [f for node in lab.nodes.values() for f in (await node.status()).findings]
            except AgentUnavailable:
                return "an agent does not answer yet"
            found = [f for f in findings if f.code == "kernel-lacks-device"]
            return "" if len(found) == 2 else f"{[f.code for f in findings]}"

        await lab.until(told, "both agents say what their kernel lacks", 20)
        status = await lab["h1"].status()
        (finding,) = [f for f in status.findings if f.code == "kernel-lacks-device"]
        assert finding.subject == "ipip"
        assert 'use "vxlan", the next best backend' in finding.remedy
        assert not status.verdict.ready
        assert [f for f in status.findings if f.code == "object-refused" and not f.subject.startswith("link")] == []
        assert all(code is None for code in [await node.agent_code() for node in lab.nodes.values()])

        await lab.set_backend("vxlan")
        await lab.ready(backend="vxlan")
        assert (await lab.ping()).ok

        async def gone() -> str:
            findings = [f.code for node in lab.nodes.values() for f in (await node.status()).findings]
            return "still told" if "kernel-lacks-device" in findings else ""

        await lab.until(gone, "nothing is lacking any more", 20)
