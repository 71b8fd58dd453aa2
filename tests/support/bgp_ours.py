"""Our own daemon (`python -m bgp run`) in a network namespace, spoken to over its control socket."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.support.routers import Network, PeerView, Router, Table

ROOT = Path(__file__).resolve().parents[2]


class Ours(Router):
    kind = "ours"
    programs = ()

    async def launch(self, *, recovering: bool) -> None:
        self._write()
        (self.directory / "ctl").unlink(missing_ok=True)
        await self.spawn(
            *(sys.executable, "-m", "bgp", "run", "--config", str(self.directory / "speaker.toml")),
            PYTHONPATH=str(ROOT),
        )

    async def answers(self) -> bool:
        return (self.directory / "ctl").exists()

    async def peer(self, address: str) -> PeerView:
        raise NotImplementedError

    async def routes(self, family: str = "ipv4") -> Table:
        raise NotImplementedError

    async def announce(self, network: Network) -> None:
        raise NotImplementedError

    async def withdraw(self, prefix: str) -> None:
        raise NotImplementedError

    async def ask_again(self, address: str) -> None:
        raise NotImplementedError

    async def shut(self, address: str, text: str) -> None:
        raise NotImplementedError

    def _write(self) -> None:
        (self.directory / "speaker.toml").write_text("\n".join(self._configuration()) + "\n")

    def _configuration(self) -> Iterator[str]:
        site = self.site
        yield "[speaker]"
        yield f"asn = {site.asn}"
        yield f'router-id = "{site.identifier}"'
        yield f'addresses = ["{site.address}", "{site.address6}"]'
        yield f'control = "{self.directory}/ctl"'
        if site.cluster_id:
            yield f'cluster-id = "{site.cluster_id}"'
        restart = max((peering.restart_time for peering in site.peerings), default=0)
        yield f"restart-time = {restart}"
        if restart:
            yield f'state = "{self.directory}/state"'
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
            if peering.local_asn:
                yield f"local-asn = {peering.local_asn}"
