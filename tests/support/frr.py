"""FRR (zebra, bgpd, on request bfdd) in a network namespace, spoken to over the daemons' vty sockets.

Rule: it runs from an unpacked package with nothing of it on the machine. Each daemon has a mount namespace of its
own in which /etc/group knows the group that zebra insists on, and /var/tmp, where crash logs go, is its directory.
With the option "alone" bgpd stands without zebra: it takes every next hop for reachable, and installs nothing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

from tests.support.routers import COMMAND_TIMEOUT, Bfd, BfdView, Network, PeerView, Router, RouteView, Table

_FAMILY = {"ipv4": "ipv4 unicast", "ipv6": "ipv6 unicast"}


class Frr(Router):
    kind = "frr"
    programs = ("zebra", "bgpd")

    async def launch(self, *, recovering: bool) -> None:
        (self.directory / "group").write_text("root:x:0:\nfrrvty:x:0:\n")
        (self.directory / "zebra.conf").write_text("hostname zebra\n")
        self._held_back = recovering
        (self.directory / "bgpd.conf").write_text("\n".join(self._configuration()) + "\n")
        (self.directory / "bfdd.conf").write_text("\n".join(self._bfd_configuration()) + "\n")
        watched = any(peering.bfd for peering in self.site.peerings)
        alone = bool(self.site.options.get("alone"))
        daemons = ["bgpd"] if alone else ["zebra", *(["bfdd"] if watched else []), "bgpd"]
        for daemon in daemons:
            (self.directory / f"{daemon}.vty").unlink(missing_ok=True)
        (self.directory / "zserv.api").unlink(missing_ok=True)
        for daemon in daemons:
            flags = ["--skip_runas"] if daemon == "bgpd" else ["--user", "root", "--group", "root"]
            if daemon == "bfdd":
                flags += ["--bfdctl", str(self.directory / "bfdd.sock")]
            await self.spawn(
                *(daemon, *flags, "-P", "0", "--vty_socket", str(self.directory)),
                *(["--no_zebra"] if alone else ["-z", str(self.directory / "zserv.api")]),
                *("-i", str(self.directory / f"{daemon}.pid")),
                *("-f", str(self.directory / f"{daemon}.conf"), "--log", f"file:{self.directory}/{daemon}.log"),
                *(("-K", "30") if daemon == "zebra" and recovering else ()),
                mounts=((self.directory / "group", "/etc/group"), (self.directory, "/var/tmp")),
            )
            if daemon == "zebra":
                await self.until("zebra's socket", self._zebra_stands)

    async def _zebra_stands(self) -> bool:
        return (self.directory / "zserv.api").exists()

    async def answers(self) -> bool:
        try:
            await self.command("show bgp summary json")
        except OSError:
            return False
        log = (self.directory / "bgpd.log").read_text()
        assert "on config line" not in log, f"{self} does not take its configuration:\n{log}"
        if self._held_back:
            # only when its own networks are in the table: End-of-RIB goes out as soon as a session stands
            known = {**await self.routes("ipv4"), **await self.routes("ipv6")}
            if not all(network.prefix in known for network in self.site.networks):
                return False
            for peering in self.site.peerings:
                await self.configure(f"no neighbor {peering.address} shutdown")
            self._held_back = False
        return True

    async def command(self, *commands: str, daemon: str = "bgpd") -> str:
        """What vtysh would print for these commands, one after the other; enabled. AssertionError if one fails."""
        reader, writer = await asyncio.open_unix_connection(self.directory / f"{daemon}.vty", limit=1 << 26)
        try:
            text = ""
            for command in ("enable", *commands):
                writer.write(command.encode() + b"\0")
                # a reply ends with three NULs and a status
                reply = await asyncio.wait_for(reader.readuntil(b"\0\0\0"), COMMAND_TIMEOUT)
                status = (await asyncio.wait_for(reader.readexactly(1), COMMAND_TIMEOUT))[0]
                text = reply[:-3].decode()
                assert status in (0, 1), f"{self}: {command}: {text or status}"  # 1: a warning, as "no such route"
            return text
        finally:
            writer.close()

    async def json(self, command: str) -> dict[str, Any]:
        return dict(json.loads(await self.command(f"{command} json")))

    async def configure(self, *commands: str) -> None:
        """Within `router bgp`."""
        await self.command("configure terminal", f"router bgp {self.site.asn}", *commands)

    # ------------------------------------------------------------------------------------------ views

    async def peer(self, address: str) -> PeerView:
        found = (await self.json(f"show bgp neighbors {address}")).get(address, {})
        state = str(found.get("bgpState", "none"))
        words = ("lastResetDueTo", "lastNotificationReason", "lastErrorCodeSubcode", "lastShutdownDescription")
        why = "; ".join(str(found[word]) for word in words if word in found)
        return PeerView(state == "Established", state, why)

    async def bfd(self, address: str) -> BfdView:
        for found in json.loads(await self.command("show bfd peers json", daemon="bfdd")):
            if found["peer"] == address:
                detection = found.get("remote-detect-multiplier", 0) * max(
                    found.get("receive-interval", 0), found.get("remote-transmit-interval", 0)
                )
                interval = max(found.get("transmit-interval", 0), found.get("remote-receive-interval", 0))
                return BfdView(
                    "admin_down" if found["status"] == "shutdown" else found["status"], interval, detection
                )
        return BfdView("none")

    async def retime(self, bfd: Bfd) -> None:
        timers = (
            f"detect-multiplier {bfd.multiplier}",
            f"transmit-interval {bfd.min_tx}",
            f"receive-interval {bfd.min_rx}",
        )
        for number, peering in enumerate(self.site.peerings):
            if peering.bfd:
                await self.command("configure terminal", "bfd", f"profile p{number}", *timers, daemon="bfdd")

    async def bfd_admin(self, up: bool) -> None:
        word = "no shutdown" if up else "shutdown"
        for number, peering in enumerate(self.site.peerings):
            if peering.bfd:
                await self.command("configure terminal", "bfd", f"profile p{number}", word, daemon="bfdd")

    async def routes(self, family: str = "ipv4") -> Table:
        found = json.loads(await self.command(f"show bgp {_FAMILY[family]} json detail") or "{}")
        return {
            prefix: [_route(path) for path in sorted(paths, key=lambda path: "bestpath" not in path)]
            for prefix, (_, *paths) in found.get("routes", {}).items()
        }

    # ----------------------------------------------------------------------------------------- operating

    async def announce(self, network: Network) -> None:
        self.site.networks += (network,)
        await self.command("configure terminal", *_route_map(network))
        await self.configure(f"address-family {_FAMILY[network.family]}", f"network {network.prefix} {_by(network)}")

    async def withdraw(self, prefix: str) -> None:
        network = next(network for network in self.site.networks if network.prefix == prefix)
        self.site.networks = tuple(other for other in self.site.networks if other is not network)
        await self.configure(f"address-family {_FAMILY[network.family]}", f"no network {prefix} {_by(network)}")

    async def ask_again(self, address: str) -> None:
        await self.command(f"clear bgp {address} soft in")

    async def shut(self, address: str, text: str) -> None:
        await self.configure(f"neighbor {address} shutdown message {text}")

    # -------------------------------------------------------------------------------------- configuration

    def _bfd_configuration(self) -> Iterator[str]:
        yield "hostname bfdd"
        yield "bfd"
        for number, peering in enumerate(self.site.peerings):
            if bfd := peering.bfd:
                yield f" profile p{number}"
                yield f"  detect-multiplier {bfd.multiplier}"
                yield f"  transmit-interval {bfd.min_tx}"
                yield f"  receive-interval {bfd.min_rx}"
                yield " exit"
        yield "exit"

    def _configuration(self) -> Iterator[str]:
        site = self.site
        yield "frr defaults traditional"
        yield f"hostname {site.space.label}"
        for network in site.networks:
            if lines := _route_map(network):
                yield from (*lines, "exit")
        yield f"router bgp {site.asn}"
        yield f" bgp router-id {site.identifier}"
        yield " no bgp default ipv4-unicast"
        yield " no bgp ebgp-requires-policy"
        yield " no bgp network import-check"
        yield " coalesce-time 0"
        if site.cluster_id:
            yield f" bgp cluster-id {site.cluster_id}"
        restart = max((peering.restart_time for peering in site.peerings), default=0)
        if restart:
            yield " bgp graceful-restart"
            yield f" bgp graceful-restart restart-time {restart}"
            yield " bgp graceful-restart preserve-fw-state"
        long_lived = max((peering.long_lived for peering in site.peerings), default=0)
        if long_lived:
            yield f" bgp long-lived-graceful-restart stale-time {long_lived}"
        for peering in site.peerings:
            neighbour = f" neighbor {peering.address}"
            yield f"{neighbour} remote-as {peering.asn}"
            yield f"{neighbour} timers {max(1, peering.hold_time // 3)} {peering.hold_time}"
            yield f"{neighbour} timers connect 1"
            if self._held_back:
                yield f"{neighbour} shutdown"
            yield f"{neighbour} advertisement-interval 0"
            if peering.bfd:
                yield f"{neighbour} bfd"
                yield f"{neighbour} bfd profile p{site.peerings.index(peering)}"
                if site.options.get("check-control-plane-failure"):
                    yield f"{neighbour} bfd check-control-plane-failure"
            if peering.local_asn:
                yield f"{neighbour} local-as {peering.local_asn}"
            if peering.extended:
                yield f"{neighbour} capability extended-nexthop"
            if peering.passive:
                yield f"{neighbour} passive"
            if peering.password:
                yield f"{neighbour} password {peering.password}"
            if peering.ttl_security:
                yield f"{neighbour} ttl-security hops 1"
            if peering.multihop:
                yield f"{neighbour} update-source {site.address6 if ':' in peering.address else site.address}"
                if peering.asn != (peering.local_asn or site.asn):
                    yield f"{neighbour} ebgp-multihop {peering.multihop}"
        for family, words in _FAMILY.items():
            yield f" address-family {words}"
            for network in site.networks:
                if network.family == family:
                    yield f"  network {network.prefix} {_by(network)}"
            for peering in site.peerings:
                if family not in peering.families:
                    continue
                neighbour = f"  neighbor {peering.address}"
                yield f"{neighbour} activate"
                yield f"{neighbour} soft-reconfiguration inbound" if site.options.get("soft") else "  !"
                if peering.client:
                    yield f"{neighbour} route-reflector-client"
                if peering.several:
                    yield f"{neighbour} addpath-tx-all-paths"
                if peering.most_prefixes:
                    yield f"{neighbour} maximum-prefix {peering.most_prefixes}"
            yield " exit-address-family"


def _by(network: Network) -> str:
    return f"route-map {_map_name(network)}" if _attributes(network) else ""


def _map_name(network: Network) -> str:
    return "m" + network.prefix.translate(str.maketrans(":./", "___"))


def _attributes(network: Network) -> list[str]:
    lines = []
    if network.communities:
        lines.append(f"set community {' '.join(network.communities)}")
    if network.large_communities:
        lines.append(f"set large-community {' '.join(network.large_communities)}")
    if network.med is not None:
        lines.append(f"set metric {network.med}")
    return lines


def _route_map(network: Network) -> list[str]:
    lines = _attributes(network)
    return [f"route-map {_map_name(network)} permit 10", *lines] if lines else []


def _route(path: dict[str, Any]) -> RouteView:
    hops = path.get("nexthops", [{}])
    hop = next((hop for hop in hops if hop.get("scope") != "link-local"), hops[0])
    return RouteView(
        str(hop.get("ip", "")),
        tuple(int(asn) for asn in str(path.get("aspath", {}).get("string", "")).split() if asn.isdecimal()),
        path.get("locPrf", path.get("localpref")),
        path.get("metric", path.get("med")),
        tuple(str(path.get("community", {}).get("string", "")).split()),
        tuple(str(path.get("largeCommunity", {}).get("string", "")).split()),
        str(path.get("originatorId", "")),
        tuple(str(entry) for entry in path.get("clusterList", {}).get("list", [])),
        bool(path.get("stale")),
    )
