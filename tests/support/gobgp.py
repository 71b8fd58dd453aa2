"""GoBGP in a network namespace, spoken to by its own command over a unix socket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tests.support.routers import Network, PeerView, Router, RouteView, Table, output_of

_STATES = ("unknown", "idle", "connect", "active", "opensent", "openconfirm", "established")
_ORIGIN, _PATH, _NEXT_HOP, _MED, _LOCAL_PREF = 1, 2, 3, 4, 5
_COMMUNITIES, _ORIGINATOR, _CLUSTERS, _MP_REACH, _LARGE = 8, 9, 10, 14, 32


class GoBgp(Router):
    kind = "gobgp"
    programs = ("gobgpd", "gobgp")

    async def launch(self, *, recovering: bool) -> None:
        (self.directory / "gobgpd.toml").write_text("\n".join(self._configuration()) + "\n")
        (self.directory / "ctl").unlink(missing_ok=True)
        flags = ["-r"] if recovering else []
        flags += ["-l", "info" if self.site.options.get("quiet") else "debug"]
        await self.spawn(
            *("gobgpd", "-f", str(self.directory / "gobgpd.toml"), "--pprof-disable", *flags),
            *("--api-hosts", f"unix://{self.directory}/ctl"),
        )
        self._told = False

    async def answers(self) -> bool:
        try:
            await self.command("global")
        except AssertionError:
            return False
        if not self._told:
            self._told = True
            for network in self.site.networks:
                await self._add(network)
            # only now: End-of-RIB goes out as soon as a session stands, and routes come by command
            for peering in self.site.peerings:
                await self.command("neighbor", peering.address, "enable")
        return True

    async def command(self, *words: str) -> str:
        return await output_of("gobgp", "--target", f"unix://{self.directory}/ctl", *words)

    # ------------------------------------------------------------------------------------------ views

    async def peer(self, address: str) -> PeerView:
        found = json.loads(await self.command("neighbor", address, "-j"))
        state = found.get("state", {})
        name = _STATES[int(state.get("session_state", 0))]
        # why a session ended, it says only in its log
        return PeerView(name == "established", name, self._last_words(address))

    def _last_words(self, address: str) -> str:
        words = ""
        for line in (self.directory / "output").read_text(errors="replace").splitlines():
            if f'"{address}"' not in line:
                continue
            entry = json.loads(line)
            if entry.get("msg") in ("Peer Down", "received notification", "sent notification"):
                words = json.dumps(entry)
        return words

    async def routes(self, family: str = "ipv4") -> Table:
        text = await self.command("global", "rib", "-a", family, "-j")
        return {
            prefix: [_route(path) for path in sorted(paths, key=lambda path: not path.get("best"))]
            for prefix, paths in json.loads(text or "{}").items()
        }

    # ----------------------------------------------------------------------------------------- operating

    async def announce(self, network: Network) -> None:
        self.site.networks += (network,)
        await self._add(network)

    async def _add(self, network: Network) -> None:
        over_ipv6 = network.family == "ipv6" or any(peering.extended for peering in self.site.peerings)
        words = [network.prefix, "nexthop", self.site.address6 if over_ipv6 else self.site.address]
        words += ["origin", "igp"]
        if network.communities:
            words += ["community", ",".join(network.communities)]
        if network.large_communities:
            words += ["large-community", ",".join(network.large_communities)]
        if network.med is not None:
            words += ["med", str(network.med)]
        await self.command("global", "rib", "add", *words, "-a", network.family)

    async def withdraw(self, prefix: str) -> None:
        network = next(network for network in self.site.networks if network.prefix == prefix)
        self.site.networks = tuple(other for other in self.site.networks if other is not network)
        await self.command("global", "rib", "del", prefix, "-a", network.family)

    async def ask_again(self, address: str) -> None:
        await self.command("neighbor", address, "softresetin")

    async def shut(self, address: str, text: str) -> None:
        await self.command("neighbor", address, "shutdown", "--reason", text)
        await self.command("neighbor", address, "disable")  # which keeps it down, but says nothing

    # -------------------------------------------------------------------------------------- configuration

    def _configuration(self) -> Iterator[str]:
        site = self.site
        yield f'[global.config]\nas = {site.asn}\nrouter-id = "{site.identifier}"'
        for peering in site.peerings:
            local = site.address6 if ":" in peering.address else site.address
            yield f'[[neighbors]]\n[neighbors.config]\nneighbor-address = "{peering.address}"'
            yield f"peer-as = {peering.asn}\nadmin-down = true"
            if peering.local_asn:
                yield f"local-as = {peering.local_asn}"
            if peering.password:
                yield f'auth-password = "{peering.password}"'
            yield f"[neighbors.timers.config]\nhold-time = {peering.hold_time}"
            yield f"keepalive-interval = {max(1, peering.hold_time // 3)}"
            yield "connect-retry = 5\nidle-hold-time-after-reset = 1"
            yield f'[neighbors.transport.config]\nlocal-address = "{local}"'
            yield f"passive-mode = {str(peering.passive).lower()}"
            if peering.ttl_security:
                yield "[neighbors.ttl-security.config]\nenabled = true\nttl-min = 255"
            if peering.multihop:
                yield f"[neighbors.ebgp-multihop.config]\nenabled = true\nmultihop-ttl = {peering.multihop}"
            if peering.client:
                yield "[neighbors.route-reflector.config]\nroute-reflector-client = true"
                yield f'route-reflector-cluster-id = "{site.cluster_id or site.identifier}"'
            if peering.restart_time:
                yield "[neighbors.graceful-restart.config]\nenabled = true"
                yield f"restart-time = {peering.restart_time}\ndeferral-time = 5"
                yield f"long-lived-enabled = {str(bool(peering.long_lived)).lower()}"
            for family in peering.families:
                yield f'[[neighbors.afi-safis]]\n[neighbors.afi-safis.config]\nafi-safi-name = "{family}-unicast"'
                if peering.most_prefixes:
                    yield f"[neighbors.afi-safis.prefix-limit.config]\nmax-prefixes = {peering.most_prefixes}"
                if peering.several:
                    yield "[neighbors.afi-safis.add-paths.config]\nreceive = true\nsend-max = 16"
                if peering.restart_time:
                    yield "[neighbors.afi-safis.mp-graceful-restart.config]\nenabled = true"
                if peering.long_lived:
                    yield "[neighbors.afi-safis.long-lived-graceful-restart.config]\nenabled = true"
                    yield f"restart-time = {peering.long_lived}"


def _route(path: dict[str, Any]) -> RouteView:
    attributes = {attribute["type"]: attribute for attribute in path["attrs"]}

    def value(kind: int, name: str = "value") -> Any:
        return attributes.get(kind, {}).get(name)

    segments = value(_PATH, "as_paths") or []
    large = value(_LARGE) or []
    return RouteView(
        str(value(_NEXT_HOP, "nexthop") or value(_MP_REACH, "nexthop") or ""),
        tuple(asn for segment in segments for asn in segment["asns"] or ()),
        value(_LOCAL_PREF),
        value(_MED, "metric"),
        tuple(f"{number >> 16}:{number & 0xFFFF}" for number in value(_COMMUNITIES, "communities") or ()),
        tuple(":".join(str(entry[key]) for key in ("ASN", "LocalData1", "LocalData2")) for entry in large),
        str(value(_ORIGINATOR) or ""),
        tuple(str(entry) for entry in value(_CLUSTERS) or ()),
        bool(path.get("stale")),
    )
