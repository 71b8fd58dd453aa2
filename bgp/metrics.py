"""A speaker's numbers as Prometheus reads them (text format 0.0.4).

Rule: names and meanings are kept; what is counted once is counted for ever.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bgp import views
from bgp.fsm import State
from bgp.speaker import Speaker

_Samples = Iterable[tuple[dict[str, str], float]]


def text(speaker: Speaker, now: float) -> str:
    """The whole page."""
    peers = list(views.peers(speaker, now))
    watched = [peer for peer in peers if "bfd" in peer]
    families = {views.family_name(family): rib for family, rib in speaker.ribs.items()}
    states = {state.name.lower(): state.value for state in State}
    parts = [
        _metric("bgp_peer_up", "gauge", "Whether the session stands.", _each(peers, _up)),
        _metric(
            "bgp_peer_state",
            "gauge",
            "State of RFC 4271: 1 idle, 2 connect, 3 active, 4 opensent, 5 openconfirm, 6 established.",
            _each(peers, lambda peer: states[peer["state"]]),
        ),
        _metric(
            "bgp_peer_state_seconds",
            "gauge",
            "How long the session has stood, or has not.",
            _each(peers, lambda peer: peer["since"]),
        ),
        _metric(
            "bgp_peer_flaps_total", "counter", "Sessions that have ended.", _each(peers, lambda peer: peer["flaps"])
        ),
        _metric(
            "bgp_peer_messages_total",
            "counter",
            "Messages by direction and type.",
            (
                ({"peer": peer["name"], "direction": way, "type": kind}, count)
                for peer in peers
                for way, counts in peer["messages"].items()
                for kind, count in counts.items()
            ),
        ),
        _metric(
            "bgp_peer_prefixes",
            "gauge",
            "Prefixes by family, or paths where it has ADD-PATH: received, accepted, best, stale, long-lived stale, "
            "advertised.",
            (
                ({"peer": peer["name"], "family": family, "kind": kind}, count)
                for peer in peers
                for family, counts in peer["prefixes"].items()
                for kind, count in counts.items()
            ),
        ),
        _metric(
            "bgp_peer_malformed_updates_total",
            "counter",
            "UPDATEs with errors that did not end the session (RFC 7606).",
            _each(peers, lambda peer: peer["malformed"]),
        ),
        _metric(
            "bgp_peer_bfd_up",
            "gauge",
            "Whether BFD reaches the peer.",
            (({"peer": peer["name"]}, float(peer["bfd"]["state"] == "up")) for peer in watched),
        ),
        _metric(
            "bgp_peer_bfd_failures_total",
            "counter",
            "How often BFD found the peer silent, or was told so by it.",
            (({"peer": peer["name"]}, peer["bfd"]["failures"]) for peer in watched),
        ),
        _metric(
            "bgp_peer_bfd_packets_total",
            "counter",
            "BFD packets by direction.",
            (
                ({"peer": peer["name"], "direction": way}, count)
                for peer in watched
                for way, count in peer["bfd"]["packets"].items()
            ),
        ),
        _metric(
            "bgp_routes",
            "gauge",
            "Prefixes with a chosen route.",
            (({"family": name}, len(rib.chosen)) for name, rib in families.items()),
        ),
        _metric(
            "bgp_update_groups",
            "gauge",
            "Groups of peers that are told the same.",
            [({}, len(speaker.advertising.groups))],
        ),
    ]
    return "".join(parts)


def _up(peer: dict[str, Any]) -> float:
    return float(peer["state"] == "established")


def _each(peers: list[dict[str, Any]], value: Any) -> _Samples:
    return (({"peer": peer["name"]}, value(peer)) for peer in peers)


def _metric(name: str, kind: str, help_text: str, samples: _Samples) -> str:
    lines = [f"# HELP {name} {help_text}", f"# TYPE {name} {kind}"]
    for labels, value in samples:
        inside = ",".join(f'{key}="{_escaped(label)}"' for key, label in labels.items())
        lines.append(f"{name}{{{inside}}} {value}" if inside else f"{name} {value}")
    return "\n".join(lines) + "\n"


def _escaped(label: str) -> str:
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
