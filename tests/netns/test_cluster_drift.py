"""What somebody else deletes or changes is back within a second by notification; what is not ours is left alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest

from netagent.lab.lab import Lab
from netagent.lab.node import Node

pytestmark = [pytest.mark.netns, pytest.mark.etcd]


async def ours(node: Node) -> dict[str, object]:
    """All that netagent holds in this host's kernel, as the tools show it."""
    state: dict[str, object] = {}
    for name, words in {
        "routes": "-j route show proto 110",
        "routes6": "-j -6 route show proto 110",
        "nexthops": "-j nexthop show",
        "neighbours": "-j neigh show nud permanent",
        "addresses": "-j -d addr show dev na-vx1",
    }.items():
        found = json.loads(await node.ip(words) or "[]")
        for entry in found:
            entry.pop("ifindex", None)
            entry.pop("id", None)
            entry.pop("nhid", None)
        state[name] = sorted(found, key=json.dumps)
    state["fdb"] = sorted((await node.exec("bridge", "fdb", "show", "dev", "na-vx1")).out.splitlines())
    state["nft"] = (await node.exec("nft", "-s", "list", "table", "inet", "netagent")).out
    state["forward"] = (await node.exec("cat", "/proc/sys/net/ipv4/ip_forward")).out
    return state


async def healed(lab: Lab, node: Node, want: dict[str, object]) -> None:
    async def look() -> str:
        try:
            now = await ours(node)
        except Exception as error:
            return str(error).splitlines()[0]
        return ", ".join(key for key in want if now.get(key) != want[key])

    # The bar is a second; the deadline is for a busy machine, and no polling of the agent's is that quick.
    await lab.until(look, "all is as it was", 5)


async def first(node: Node, words: str, field: str) -> str:
    found = json.loads(await node.ip(words))
    return str(next(entry[field] for entry in found if entry.get(field)))


async def delete_route(node: Node) -> None:
    await node.ip(f"route del {await first(node, '-j route show proto 110 dev na-vx1', 'dst')} proto 110")


async def change_route(node: Node) -> None:
    dst = await first(node, "-j route show proto 110 dev na-vx1", "dst")
    await node.ip(f"route replace {dst} dev lo proto 110")


async def delete_nexthop(node: Node) -> None:
    await node.ip(f"nexthop del id {await first(node, '-j nexthop show', 'id')}")


async def delete_neighbour(node: Node) -> None:
    await node.ip(f"neigh del {await first(node, '-j neigh show nud permanent dev na-vx1', 'dst')} dev na-vx1")


async def change_neighbour(node: Node) -> None:
    dst = await first(node, "-j neigh show nud permanent dev na-vx1", "dst")
    await node.ip(f"neigh replace {dst} lladdr 02:00:00:00:00:99 dev na-vx1 nud permanent")


async def delete_fdb(node: Node) -> None:
    entry = (await node.exec("bridge", "fdb", "show", "dev", "na-vx1")).out.split()
    await node.exec("bridge", "fdb", "del", entry[0], "dev", "na-vx1", "dst", entry[entry.index("dst") + 1])


async def change_fdb(node: Node) -> None:
    entry = (await node.exec("bridge", "fdb", "show", "dev", "na-vx1")).out.split()
    await node.exec(
        "bridge", "fdb", "replace", entry[0], "dev", "na-vx1", "dst", "192.168.50.250", "self", "permanent"
    )


async def delete_address(node: Node) -> None:
    await node.ip("address flush dev na-vx1")


async def delete_device(node: Node) -> None:
    await node.ip("link delete na-vx1")


async def device_down(node: Node) -> None:
    await node.ip("link set na-vx1 down")


async def change_mac(node: Node) -> None:
    await node.ip("link set na-vx1 address 02:00:00:00:00:77")


async def change_mtu(node: Node) -> None:
    await node.ip("link set na-vx1 mtu 1300")


async def delete_table(node: Node) -> None:
    await node.exec("nft", "delete", "table", "inet", "netagent")


async def flush_ruleset(node: Node) -> None:
    await node.exec("nft", "flush", "ruleset")


async def add_rule(node: Node) -> None:
    await node.exec("nft", "insert rule inet netagent forward drop")


async def delete_element(node: Node) -> None:
    await node.exec("nft", "delete element inet netagent peers4 { 192.168.50.12 }")


async def flush_routes(node: Node) -> None:
    for route in json.loads(await node.ip("-j route show proto 110 dev na-vx1")):
        await node.ip(f"route del {route['dst']}")


async def forwarding_off(node: Node) -> None:
    await node.exec("sh", "-c", "echo 0 > /proc/sys/net/ipv4/ip_forward")


MEDDLERS: tuple[Callable[[Node], Awaitable[None]], ...] = (
    delete_route,
    change_route,
    flush_routes,
    delete_nexthop,
    delete_neighbour,
    change_neighbour,
    delete_fdb,
    change_fdb,
    delete_address,
    delete_device,
    device_down,
    change_mac,
    change_mtu,
    delete_table,
    flush_ruleset,
    add_rule,
    delete_element,
    forwarding_off,
)


async def test_every_kind_of_drift_is_repaired() -> None:
    async with Lab(nodes=3, backend="vxlan", ipv6=True) as lab:
        await lab.ready()
        node = lab["h1"]
        want = await ours(node)
        for meddle in MEDDLERS:
            drifts = (await node.status()).reconciler.drifts
            await meddle(node)
            try:
                await healed(lab, node, want)
            except Exception as error:
                pytest.fail(f"{meddle.__name__}: {error}")
            assert (await node.status()).reconciler.drifts > drifts, meddle.__name__
            assert (await lab.ping(hosts=True)).ok, meddle.__name__
        assert (await node.status()).reconciler.last_drift_what


@pytest.mark.parametrize("backend", ["host-gw", "vxlan", "udp"])
async def test_repair_of_one_peer_loses_no_packet_of_another(backend: str) -> None:
    async with Lab(nodes=3, backend=backend) as lab:
        await lab.ready()
        routes = json.loads(await lab["h1"].ip("-j route show proto 110"))
        theirs = lab["h3"].subnet_env()["FLANNEL_SUBNET"].replace(".1/24", ".0/24")
        assert theirs in [route["dst"] for route in routes]
        async with lab.flow(("h1", "h2"), ("h2", "h1")) as flow:
            for _ in range(5):
                await lab["h1"].ip(f"route del {theirs}")
                await route_is(lab, lab["h1"], theirs)
        assert flow.lost == 0, flow


async def route_is(lab: Lab, node: Node, dst: str) -> None:
    async def look() -> str:
        return "" if dst in await node.ip("route show proto 110") else f"{node.name} has no route to {dst}"

    await lab.until(look, "the route is back", 5)


async def test_a_foreign_route_in_the_way_stays_and_is_told() -> None:
    async with Lab(nodes=2, backend="vxlan", config={"SubnetMin": "10.5.100.0"}) as lab:  # no agent leases 10.5.77.0
        await lab.ready()
        new = await lab.add_node(agent=False)
        await lab["h1"].ip("route add 10.5.77.0/24 via 192.168.50.1")
        value = {"PublicIP": new.host.v4.partition("/")[0], "PublicIPv6": None, "BackendType": "vxlan"}
        value["BackendData"] = {"VNI": 1, "VtepMAC": "02:00:00:00:00:42"}  # type: ignore[assignment]
        await lab.etcd.ctl("put", f"{lab.etcd.prefix}/subnets/10.5.77.0-24", json.dumps(value))

        async def told() -> str:
            found = [f.code for f in (await lab["h1"].status()).findings]
            return "" if "foreign-in-the-way" in found else f"findings: {found}"

        await lab.until(told, "the foreign route is told", 10)
        assert "via 192.168.50.1" in await lab["h1"].ip("route show 10.5.77.0/24")
        assert (await lab.ping(only=["h1", "h2"])).ok
        await lab["h1"].ip("route del 10.5.77.0/24")
        await route_is(lab, lab["h1"], "10.5.77.0/24")


async def test_a_foreign_route_that_wins_over_ours_is_told() -> None:
    """Routes learnt by BGP have a metric, and one added by hand has none: both stand."""
    async with Lab(nodes=2, backend="bgp") as lab:
        await lab.ready()
        there = lab["h2"].subnet_env()["FLANNEL_SUBNET"].replace(".1/24", ".0/24")
        await lab["h1"].ip(f"route add {there} via 192.168.50.12 proto static")
        await lab["h1"].restart_agent()  # it looks around once a minute, and when it starts
        await lab.ready(attach=False)

        async def told() -> str:
            found = {f.code: f.evidence for f in (await lab["h1"].status()).findings}
            return "" if f"{there} via 192.168.50.12" in found.get("foreign-route-wins", "") else f"findings: {found}"

        await lab.until(told, "the foreign route is told", 20)
        assert (await lab.ping()).ok


async def test_routes_of_others_with_our_number_are_left_alone() -> None:
    """Only mark and device together make a route ours."""
    async with Lab(nodes=2, backend="vxlan") as lab:
        node = lab["h1"]
        await lab.ready()
        await node.ip("link add other0 type bridge")
        await node.ip("link set other0 up")
        await node.ip("route add 172.20.0.0/16 dev other0 proto static")
        await node.ip("nexthop add id 7 dev other0")
        await node.restart_agent()
        await lab.ready(attach=False)
        await delete_route(node)
        await asyncio.sleep(0.5)
        assert "172.20.0.0/16" in await node.ip("route show")
        assert "id 7 " in await node.ip("nexthop show")


async def snapshot_of_host(node: Node) -> dict[str, str]:
    """Everything on the host that netagent could have touched."""
    state = {
        words: await node.ip(words)
        for words in (
            "-j -d link show",
            "-j addr show",
            "-j route show table all",
            "-j -6 route show table all",
            "-j nexthop show",
            "-j rule show",
            "-j neigh show nud permanent",
        )
    }
    for name in ("-j -d link show", "-j addr show"):
        links = json.loads(state[name])
        for link in links:
            for volatile in ("stats64", "linkinfo", "preferred_life_time", "valid_life_time", "flags", "operstate"):
                link.pop(volatile, None)
        state[name] = json.dumps(links)
    state["fdb"] = (await node.exec("bridge", "fdb", "show")).out
    state["nft"] = (await node.exec("nft", "list", "ruleset")).out
    state["sysctl"] = (
        await node.exec(
            "sh",
            "-c",
            "cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding "
            "/proc/sys/net/ipv4/conf/*/rp_filter /proc/sys/net/ipv6/conf/*/accept_ra",
        )
    ).out
    return state


@pytest.mark.parametrize("backend", ["host-gw", "vxlan", "udp"])
async def test_cleanup_leaves_the_host_as_it_was(backend: str) -> None:
    async with Lab(nodes=2, backend=backend, ipv6=True) as lab:
        await lab.ready(attach=False)
        node = await lab.add_node(agent=False)
        before = await snapshot_of_host(node)
        await node.start_agent()
        await lab.ready(attach=False)
        assert await snapshot_of_host(node) != before
        result = await node.exec("netagent", "cleanup", "--yes", check=False)
        assert result.code == 2, "not while the agent runs"
        await node.stop_agent()
        await node.exec("netagent", "cleanup", "--yes")
        assert await snapshot_of_host(node) == before
        assert not list(node.run_dir.iterdir())
        await node.exec("netagent", "cleanup", "--yes")
