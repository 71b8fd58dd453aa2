"""Our own daemon (`python -m bgp run`) in a network namespace, spoken to over its control socket."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from bfd.client import end_at
from tests.support.routers import COMMAND_TIMEOUT, FAMILIES, Bfd, BfdView, Network, PeerView, Router, RouteView, Table

ROOT = Path(__file__).resolve().parents[2]


class Ours(Router):
    kind = "ours"
    programs = ()

    async def launch(self, *, recovering: bool) -> None:
        self._write()
        # a socket that a killed daemon left behind is its own affair: a new one must take its place
        await self.spawn(
            *(sys.executable, "-m", "bgp", "run", "--config", str(self.directory / "speaker.toml")),
            PYTHONPATH=str(ROOT),
        )

    async def answers(self) -> bool:
        try:
            await self.command("summary")
        except OSError:
            return False
        return True

    async def command(self, command: str, **words: object) -> list[Any]:
        """The items that the daemon answers with. AssertionError where it refuses."""
        reader, writer = await asyncio.open_unix_connection(self.directory / "ctl", limit=1 << 24)
        try:
            writer.write(json.dumps({"command": command, **words}).encode() + b"\n")
            items = []
            while True:
                line = await asyncio.wait_for(reader.readline(), COMMAND_TIMEOUT)
                if not line:
                    raise ConnectionResetError("the daemon closed its control socket")
                reply = json.loads(line)
                assert "error" not in reply, reply["error"]
                if "end" in reply:
                    return items
                items.append(reply["item"])
        finally:
            writer.close()

    # ------------------------------------------------------------------------------------------ views

    async def view(self, address: str) -> dict[str, Any]:
        """All that is said of a peer."""
        return dict((await self.command("peers", peer=address))[0])

    async def peer(self, address: str) -> PeerView:
        found = await self.view(address)
        why = found.get("why_down") or found.get("last_down") or ""
        return PeerView(found["state"] == "established", str(found["state"]), str(why))

    async def bfd(self, address: str) -> BfdView:
        found = (await self.view(address)).get("bfd")
        if found is None:
            return BfdView("none")
        return BfdView(found["state"], found["interval"], found["detection"])

    async def retime(self, bfd: Bfd | None) -> None:
        await self.change_peerings(bfd=bfd)

    async def change_peerings(self, **options: Any) -> None:
        """Other settings for every neighbour, by a reload."""
        self.site.peerings = tuple(replace(peering, **options) for peering in self.site.peerings)
        self._write()
        await self.command("reload")

    async def bfd_admin(self, up: bool) -> None:
        """Have BFD taken out of the configuration, or put back."""
        await self.retime(Bfd() if up else None)

    async def engine(self) -> int:
        """The process that keeps BFD's time."""
        return int((await self.command("summary"))[0]["bfd"]["pid"])

    async def routes(self, family: str = "ipv4") -> Table:
        """What is used or could be: a route that was refused is left out, as others show it."""
        table: Table = {}
        for entry in await self.command("routes"):
            if entry["family"] == family:
                routes = [_route(route) for route in entry["routes"] if _usable(route, entry)]
                if routes:
                    table[entry["prefix"]] = routes
        return table

    # ----------------------------------------------------------------------------------------- operating

    async def announce(self, network: Network) -> None:
        self.site.networks = (*(old for old in self.site.networks if old.prefix != network.prefix), network)
        self._write()
        await self.command("reload")

    async def withdraw(self, prefix: str) -> None:
        self.site.networks = tuple(network for network in self.site.networks if network.prefix != prefix)
        self._write()
        await self.command("reload")

    async def ask_again(self, address: str) -> None:
        await self.command("refresh-peer", peer=address)

    async def shut(self, address: str, text: str) -> None:
        await self.command("shutdown-peer", peer=address, text=text)

    async def clean(self) -> None:
        await end_at(f"{self.directory}/ctl.bfd")

    def hang_up(self) -> None:
        """SIGHUP: read the configuration anew."""
        self.processes[0].send_signal(signal.SIGHUP)

    # -------------------------------------------------------------------------------------- configuration

    def _write(self) -> None:
        (self.directory / "speaker.toml").write_text("\n".join(self._configuration()) + "\n")

    def _configuration(self) -> Iterator[str]:
        site = self.site
        yield "[speaker]"
        yield f"asn = {site.asn}"
        yield f'router-id = "{site.identifier}"'
        yield f'addresses = ["{site.address}", "{site.address6}"]'
        used = {family for peering in site.peerings for family in peering.families} or set(FAMILIES)
        yield f"families = {json.dumps(sorted(used))}"
        yield f'control = "{self.directory}/ctl"'
        if site.cluster_id:
            yield f'cluster-id = "{site.cluster_id}"'
        restart = max((peering.restart_time for peering in site.peerings), default=0)
        yield f"restart-time = {restart}"
        if any(peering.several for peering in site.peerings):
            yield "paths = 8"
        yield f"long-lived-time = {max((peering.long_lived for peering in site.peerings), default=0)}"
        if restart:
            yield f'state = "{self.directory}/state"'
        if site.options.get("transit"):
            yield '[policies.everything]\ndefault = "accept"'
        for network in site.networks:
            yield "[[announce]]"
            yield f'prefix = "{network.prefix}"'
            if network.communities:
                yield f"communities = {json.dumps(network.communities)}"
            if network.large_communities:
                yield f"large-communities = {json.dumps(network.large_communities)}"
            if network.med is not None:
                yield f"med = {network.med}"
        for peering in site.peerings:
            yield "[[peers]]"
            yield f'address = "{peering.address}"'
            yield f"asn = {peering.asn}"
            yield f"hold-time = {peering.hold_time}"
            yield "connect-retry = 1"
            yield f'local-address = "{site.address6 if ":" in peering.address else site.address}"'
            if site.options.get("transit"):  # between two others, which it does not do unless it is told
                yield 'export = "everything"'
            if peering.client:
                yield "client = true"
            if peering.passive:
                yield "passive = true"
            if peering.password:
                yield f'password = "{peering.password}"'
            if peering.ttl_security:
                yield "ttl-security = 1"
            if peering.multihop:
                yield f"multihop = {peering.multihop}"
            if peering.most_prefixes:
                yield f"max-prefixes = {peering.most_prefixes}"
            if bfd := peering.bfd:
                timers = f"min-tx = {bfd.min_tx}, min-rx = {bfd.min_rx}, multiplier = {bfd.multiplier}"
                yield f"bfd = {{ {timers}, multihop = {str(bool(peering.multihop)).lower()} }}"
            if peering.several:
                yield 'add-path-receive = true\nadd-path-send = "all"'
            if site.options.get("short"):
                yield "extended-messages = false"
            if peering.extended:
                yield "extended-next-hop = true"
            if peering.local_asn:
                yield f"local-asn = {peering.local_asn}"


def _usable(route: dict[str, Any], entry: dict[str, Any]) -> bool:
    return bool(route["used"]) or str(route["why"]).startswith("the best has")


def _route(route: dict[str, Any]) -> RouteView:
    return RouteView(
        str(route.get("next_hop") or ""),
        tuple(int(asn) for asn in str(route.get("as_path", "")).split()),
        route.get("local_pref"),
        route.get("med"),
        tuple(route.get("communities", ())),
        tuple(route.get("large_communities", ())),
        str(route.get("originator_id", "")),
        tuple(route.get("cluster_list", ())),
        route["stale"],
    )
