"""Other tools' firewalls without the tools: Docker's chains set up by hand, a firewall-cmd that keeps a file."""

from __future__ import annotations

from pathlib import Path

from netagent.kernel import foreign, legacy, nft
from netagent.model import Finding, Inbound
from tests.support.netns import Namespace

PREFIX = "10.5.0.0/16"
OWN = ("inet", "netagent")
UDP, TCP = Inbound(17, 8472), Inbound(6, 179)
IPIP, SIT = Inbound(4), Inbound(41)
DOCKER = """
{t} -N DOCKER-USER
{t} -A DOCKER-USER -j RETURN
{t} -N DOCKER
{t} -N DOCKER-ISOLATION-STAGE-1
{t} -N DOCKER-ISOLATION-STAGE-2
{t} -A FORWARD -j DOCKER-USER
{t} -A FORWARD -j DOCKER-ISOLATION-STAGE-1
{t} -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
{t} -A FORWARD -o docker0 -j DOCKER
{t} -A FORWARD -i docker0 ! -o docker0 -j ACCEPT
{t} -A FORWARD -i docker0 -o docker0 -j ACCEPT
{t} -A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
{t} -A DOCKER-ISOLATION-STAGE-1 -j RETURN
{t} -A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
{t} -A DOCKER-ISOLATION-STAGE-2 -j RETURN
{t} -P FORWARD DROP
"""


def script(host: Namespace, text: str, tool: str = "") -> None:
    """Run the lines of a text there, `{t}` being the variant of iptables."""
    host.run("sh", "-ec", text.replace("{t}", tool))


def look(inbound: tuple[Inbound, ...] = (UDP,), peers: tuple[str, ...] = ("192.168.50.12",)) -> list[Finding]:
    """What is found in this thread's namespace, of these ports and protocols."""
    old = legacy.read()
    assert old.unread == []
    return foreign.findings(
        [*nft.runner().ruleset(), *old.ruleset], OWN, [PREFIX], inbound, devices=("na-vx1",), peers=peers
    )


def firewall_cmd(directory: Path) -> Path:
    """Put a command of that name there; the file that holds the sources of its one zone, a line each."""
    sources, command = directory / "sources", directory / "firewall-cmd"
    sources.write_text("")
    command.write_text(
        f"""#!/bin/sh
for word; do case $word in
  --add-source=*) echo "${{word#*=}}" >> {sources};;
  --remove-source=*) grep -vxF "${{word#*=}}" {sources} > {sources}.new; mv {sources}.new {sources};;
  --query-source=*) grep -qxF "${{word#*=}}" {sources};;
esac; done
"""
    )
    command.chmod(0o755)
    return sources
