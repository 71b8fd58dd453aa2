"""BIRD 2 in a network namespace, spoken to over its control socket (BIRD's doc/reply_codes)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from dataclasses import replace

from tests.support.routers import COMMAND_TIMEOUT, Bfd, BfdView, Network, PeerView, Router, RouteView, Table

_REPLY = re.compile(r"(?:(\d{4})([- ])| |\+)(.*)")


class Bird(Router):
    kind = "bird"
    programs = ("bird",)

    async def launch(self, *, recovering: bool) -> None:
        self._write()
        socket, pid = self.directory / "ctl", self.directory / "pid"
        socket.unlink(missing_ok=True)
        flags = ["-R"] if recovering else []
        await self.spawn(
            "bird", "-f", "-c", str(self.directory / "bird.conf"), "-s", str(socket), "-P", str(pid), *flags
        )

    async def answers(self) -> bool:
        try:
            await self.command("show status")
        except OSError:
            return False
        return True

    async def command(self, command: str) -> str:
        """What birdc would print. Raises AssertionError when BIRD refuses it."""
        reader, writer = await asyncio.open_unix_connection(self.directory / "ctl", limit=1 << 24)
        try:
            await self._reply(reader)
            writer.write(f"{command}\n".encode())
            code, lines = await self._reply(reader)
        finally:
            writer.close()
        if code >= 8000:
            raise AssertionError(f"birdc {command}: {lines}")
        return "\n".join(lines)

    @staticmethod
    async def _reply(reader: asyncio.StreamReader) -> tuple[int, list[str]]:
        lines = []
        while True:
            line = (await asyncio.wait_for(reader.readline(), COMMAND_TIMEOUT)).decode()
            if not line:
                raise ConnectionResetError("BIRD closed its control socket")
            found = _REPLY.match(line.rstrip("\n"))
            assert found, line
            lines.append(found[3])
            if found[1] and found[2] == " ":
                return int(found[1]), lines

    # ------------------------------------------------------------------------------------------ views

    async def peer(self, address: str) -> PeerView:
        text = await self.command(f"show protocols all {_name(address)}")
        state = re.search(r"BGP state:\s+(\S+)", text)
        error = re.search(r"Last error:\s+(.+)", text)
        name = state[1] if state else "down"
        return PeerView(name == "Established", name, error[1].strip() if error else "")

    async def bfd(self, address: str) -> BfdView:
        for line in (await self.command("show bfd sessions")).splitlines():
            fields = line.split()
            if fields and fields[0] == address:  # address, interface, state, since, interval, timeout
                return BfdView(fields[2].lower(), 1000 * float(fields[-2]), 1000 * float(fields[-1]))
        return BfdView("none")

    async def retime(self, bfd: Bfd) -> None:
        self.site.peerings = tuple(replace(peering, bfd=bfd) for peering in self.site.peerings)
        self._write()
        await self.command("configure")

    async def routes(self, family: str = "ipv4") -> Table:
        table: Table = {}
        restarting = await self._restarting()
        prefix, fields = "", {}
        lines = (await self.command(f"show route all table master{family[-1]}")).splitlines()
        for line in [*lines, "end end [end]"]:
            if (start := re.match(r"(\S*)\s+\S+.*?\[(\w+)", line)) and not line.startswith("\t"):
                if fields:
                    table.setdefault(prefix, []).append(_route(fields, stale=fields["from"] in restarting))
                prefix, fields = start[1] or prefix, {}
                if not start[2].startswith("direct"):  # the network that the routers stand on
                    fields = {"from": start[2]}
            elif fields and (pair := re.match(r"\s+([\w.]+): (.*)", line)):
                fields[pair[1]] = pair[2]
            elif fields and (via := re.match(r"\s+via (\S+)", line)):
                fields.setdefault("via", via[1])
        return table

    async def _restarting(self) -> set[str]:
        """The neighbours whose routes are stale: BIRD marks no route."""
        found, name = set(), ""
        for line in (await self.command("show protocols all")).splitlines():
            if line[:1].strip():
                name = line.split()[0]
            elif "graceful restart active" in line:
                found.add(name)
        return found

    # ----------------------------------------------------------------------------------------- operating

    async def announce(self, network: Network) -> None:
        self.site.networks += (network,)
        self._write()
        await self.command("configure")

    async def withdraw(self, prefix: str) -> None:
        self.site.networks = tuple(network for network in self.site.networks if network.prefix != prefix)
        self._write()
        await self.command("configure")

    async def ask_again(self, address: str) -> None:
        await self.command(f"reload in {_name(address)}")

    async def shut(self, address: str, text: str) -> None:
        await self.command(f'disable {_name(address)} "{text}"')

    # -------------------------------------------------------------------------------------- configuration

    def _write(self) -> None:
        (self.directory / "bird.conf").write_text("\n".join(self._configuration()))

    def _configuration(self) -> Iterator[str]:
        site = self.site
        yield f'log "{self.directory}/bird.log" all;'
        if not site.options.get("quiet"):
            yield "debug protocols { states, events };"
        yield f"router id {site.identifier};"
        yield "graceful restart wait 20;"
        yield "protocol device { scan time 10; }"
        yield "protocol direct { ipv4; ipv6; }"
        if site.options.get("fib"):
            yield "protocol kernel { ipv4 { export where source = RTS_BGP; }; }"
        for family in ("ipv4", "ipv6"):
            yield f"protocol static s{family[-1]} {{ {family};"
            for network in site.networks:
                if network.family == family:
                    yield f"  route {network.prefix} unreachable {{ {_attributes(network)} }};"
            yield "}"
        if any(peering.bfd for peering in site.peerings):
            yield "protocol bfd bfd1 { }"
        for peering in site.peerings:
            yield f"protocol bgp {_name(peering.address)} {{"
            local = site.address6 if ":" in peering.address else site.address
            yield f"  local {local} as {peering.local_asn or site.asn}; neighbor {peering.address} as {peering.asn};"
            yield f"  hold time {peering.hold_time}; connect retry time 1; connect delay time 1;"
            yield "  error wait time 1, 2; error forget time 1;"
            yield f"  multihop {peering.multihop};" if peering.multihop else "  direct;"
            if bfd := peering.bfd:
                graceful = "graceful " if bfd.graceful else ""
                yield f"  bfd {graceful}{{ min tx interval {bfd.min_tx} ms; min rx interval {bfd.min_rx} ms;"
                yield f"    multiplier {bfd.multiplier}; }};"
            if peering.client:
                yield "  rr client;" + (f" rr cluster id {site.cluster_id};" if site.cluster_id else "")
            if peering.passive:
                yield "  passive;"
            if peering.password:
                yield f'  password "{peering.password}";'
            if peering.ttl_security:
                yield "  ttl security on;"
            if peering.restart_time:
                yield f"  graceful restart on; graceful restart time {peering.restart_time};"
            else:
                yield "  graceful restart off;"
            if peering.long_lived:
                yield f"  long lived graceful restart on; long lived stale time {peering.long_lived};"
            if peering.extended_messages:
                yield "  enable extended messages on;"
            for family in peering.families:
                own = site.address6 if family == "ipv6" or peering.extended else site.address
                more = " add paths on;" if peering.several else ""
                more += " extended next hop on;" if peering.extended and family == "ipv4" else ""
                limit = f" import limit {peering.most_prefixes} action disable;" if peering.most_prefixes else ""
                yield f"  {family} {{ import all; export where source ~ [ RTS_STATIC, RTS_BGP ];"
                yield f"    next hop address {own};{limit}{more} }};"
            yield "}\n"


def _name(address: str) -> str:
    """A protocol's name for a neighbour's address."""
    return "p_" + re.sub(r"[^0-9a-f]", "_", address)


def _attributes(network: Network) -> str:
    parts = [f"bgp_community.add(({c.replace(':', ',')}));" for c in network.communities]
    parts += [f"bgp_large_community.add(({c.replace(':', ',')}));" for c in network.large_communities]
    if network.med is not None:
        parts.append(f"bgp_med = {network.med};")
    return " ".join(parts)


def _route(fields: dict[str, str], *, stale: bool) -> RouteView:
    def number(name: str) -> int | None:
        return int(fields[name]) if name in fields else None

    def pairs(name: str) -> tuple[str, ...]:
        found = re.findall(r"\(([^)]*)\)", fields.get(name, ""))
        return tuple(re.sub(r",\s*", ":", pair) for pair in found)

    return RouteView(
        fields.get("BGP.next_hop", fields.get("via", "")).split(" ")[0],
        tuple(int(asn) for asn in fields.get("BGP.as_path", "").split()),
        number("BGP.local_pref"),
        number("BGP.med"),
        pairs("BGP.community"),
        pairs("BGP.large_community"),
        fields.get("BGP.originator_id", ""),
        tuple(fields.get("BGP.cluster_list", "").split()),
        stale,
    )
