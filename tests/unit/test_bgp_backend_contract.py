"""What the contract gained for services that learn routes: TCP ports in the guard, ranks that give way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from netagent import contract
from netagent.contract import RANK_PEER, RANK_RETIRING, RANK_SERVICE, Context, Ip, Tcp
from netagent.kernel.fake import FakeHost
from netagent.model import Facts, Hop, Inbound, Key, Network, Node, Object, Route
from netagent.plan import hostplan
from netagent.plan.compose import Composer, Standing
from netagent.reconcile import Reconciler
from netagent.services import Port
from tests.support.probe_backend import Probe

NODE = Node(name="h1", id="0" * 32, uplink="eth0", mtu=1500, v4="10.5.59.0/24")
NETWORK = Network(v4="10.5.0.0/16")


def test_a_tcp_port_is_guarded_as_a_udp_port_is() -> None:
    body = hostplan.table_body(NETWORK, NODE, ip_masq=False, ports=(8472,), tcp_ports=(179,))
    rules = [line.strip() for line in body.splitlines() if "dport" in line]
    assert rules == [
        "udp dport 8472 ip saddr @peers4 accept",
        "udp dport 8472 ip6 saddr @peers6 accept",
        "udp dport 8472 counter drop",
        "tcp dport 179 ip saddr @peers4 accept",
        "tcp dport 179 ip6 saddr @peers6 accept",
        "tcp dport 179 counter drop",
    ]


def test_ports_are_told_apart() -> None:
    class Both(Probe):
        def ports(self, options: Any) -> tuple[contract.Port, ...]:  # type: ignore[override]
            return (Tcp(179), 8472, Ip(4, 4), Ip(41, 6))

    context = Context(network=NETWORK, options=None, node=NODE, facts=Facts())
    composer = Composer(Standing(Both(), context))
    assert (composer.ports, composer.tcp_ports, composer.guarded) == ((8472,), (179,), True)
    outer = (Inbound(4), Inbound(6, 179), Inbound(17, 8472))
    assert composer.inbound == outer
    dual = msgspec.structs.replace(context, network=Network(v4="10.5.0.0/16", v6="fc00:5::/48"))
    assert Composer(Standing(Both(), dual)).inbound == (*outer, Inbound(41))


def test_a_retiring_service_gives_way_to_the_peers_own_plans(tmp_path: Path) -> None:
    reconciler = Reconciler(FakeHost())
    port = Port("probe", reconciler, tmp_path, tmp_path, lambda attributes: None)  # type: ignore[arg-type, return-value]
    learnt, planned = (
        Route("10.5.72.0/24", (Hop("eth0", "192.0.2.9"),)),
        Route("10.5.72.0/24", (Hop("eth0", "192.0.2.1"),)),
    )

    def effective(key: Key) -> Object:
        return reconciler.claims(key)[0].object

    port.publish({"best/10.5.72.0/24": [learnt]})
    reconciler.put("peer/10.5.72.0-24", [planned], RANK_PEER)
    assert effective(learnt.key) == learnt
    port.set_rank(RANK_RETIRING)
    assert effective(learnt.key) == planned
    port.publish({"best/10.5.72.0/24": [learnt]})
    assert effective(learnt.key) == planned, "what is published later ranks no higher"
    reconciler.drop("peer/10.5.72.0-24")
    assert effective(learnt.key) == learnt, "and still stands where nobody plans anything"
    port.set_rank(RANK_SERVICE)
    port.close()
    assert reconciler.claims(learnt.key) == []
    port.publish({"best/10.5.72.0/24": [learnt]})
    assert reconciler.claims(learnt.key) == [], "what comes late is no successor's"
