"""The verdict as a table: what makes a node healthy, degraded or down, and what keeps it from being ready."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from netagent.health import duration, judged, verdict
from netagent.model import Finding
from netagent.status import Status
from tests.support.views import HEALTHY, NOW, altered

GONE: dict[str, Any] = {"connected": False, "since": NOW - 180, "error": "connection refused"}
NO_NETWORK: dict[str, Any] = {"v4": "", "valid": False}
NO_INTERFACE = Finding(
    code="no-interface", subject="h1", message="interface: there is no interface eth7", severity="error"
)


def finding(severity: str) -> Status:
    found = Finding(code="c", subject="s", message="the firewall drops it", severity=severity)  # type: ignore[arg-type]
    return msgspec.structs.replace(HEALTHY, findings=(found,))


CASES = [
    # name, status, state, ready, words of the reason
    ("all well", HEALTHY, "healthy", True, ("10.5.59.0/24 over vxlan", "2 peers", "2 up")),
    ("nothing known yet", Status(), "down", False, ("etcd has not answered yet", "no snapshot")),
    (
        "etcd never answered",
        altered(Status(), etcd={"error": "connection refused"}),
        "down",
        False,
        ("etcd has not answered yet (connection refused)",),
    ),
    (
        "no configuration",
        altered(network=NO_NETWORK, lease={"state": "none"}),
        "down",
        False,
        ("/coreos.com/network/config", "netagent init"),
    ),
    (
        "the first configuration is invalid",
        altered(network={**NO_NETWORK, "error": "SubnetLen 8 is shorter than Network"}),
        "down",
        False,
        ("invalid", "SubnetLen 8"),
    ),
    (
        "no subnet left",
        altered(lease={"state": "claiming", "problem": "no subnet is free"}),
        "down",
        False,
        ("no subnet yet (no subnet is free)",),
    ),
    (
        "no interface",
        msgspec.structs.replace(altered(lease={"state": "none"}), findings=(NO_INTERFACE,)),
        "down",
        False,
        ("no subnet yet (interface: there is no interface eth7)",),
    ),
    ("base objects missing", altered(reconciler={"base": False}), "down", False, ("base objects",)),
    ("first pass not done", altered(reconciler={"passed": False}), "down", False, ("first pass",)),
    (
        "etcd went away",
        altered(etcd=GONE),
        "degraded",
        True,
        ("etcd unreachable for 3 m (connection refused)", "from what was known of 2026-09-21 14:13:16 UTC"),
    ),
    (
        "booted with etcd away",
        altered(etcd={**GONE, "source": "snapshot", "as_of": NOW - 86400}, lease={"state": "restored"}),
        "degraded",
        True,
        ("forwarding from the snapshot of 2026-09-20 14:13:20 UTC",),
    ),
    ("lease lost", altered(lease={"state": "lost"}), "degraded", True, ("the lease of 10.5.59.0/24 is lost",)),
    (
        "two owners",
        altered(lease={"state": "conflict", "problem": "h9 holds 10.5.59.0/24, too"}),
        "degraded",
        True,
        ("h9 holds 10.5.59.0/24, too",),
    ),
    (
        "a bad new configuration",
        altered(network={"valid": False, "error": "no such backend"}),
        "degraded",
        True,
        ("not in force (no such backend)",),
    ),
    (
        "a failing object",
        altered(reconciler={"failing": {"route": 1}}),
        "degraded",
        True,
        ("1 kernel object cannot be installed",),
    ),
    ("an error finding", finding("error"), "degraded", True, ("the firewall drops it",)),
    ("a warning", finding("warning"), "healthy", True, ("1 warning",)),
    ("an information", finding("info"), "healthy", True, ("2 up)",)),
    (
        "a peer's host died",
        altered(peers={"states": {"up": 1, "down": 1}}),
        "healthy",
        True,
        ("2 peers (1 up, 1 down)",),
    ),
    (
        "a living peer is out of reach",
        altered(peers={"states": {"up": 1, "unreachable": 1}}),
        "degraded",
        True,
        ("1 of 2 peers cannot be reached from here",),
    ),
    ("alone in the network", altered(peers={"states": {}, "total": 0}), "healthy", True, ("0 peers",)),
    ("no carrier", altered(interface={"carrier": False}), "down", True, ("eth0 has no carrier",)),
    ("interface down", altered(interface={"up": False}), "down", True, ("eth0 is down",)),
    (
        "the engine failed",
        altered(backend={"type": "udp", "service": {"state": "failed", "error": "no /dev/net/tun"}}),
        "down",
        True,
        ("the udp service failed (no /dev/net/tun)",),
    ),
]


@pytest.mark.parametrize(
    ("status", "state", "ready", "words"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_verdict(status: Status, state: str, ready: bool, words: tuple[str, ...]) -> None:
    found = verdict(status)
    assert (found.state, found.ready) == (state, ready), found
    for word in words:
        assert word in found.reason
    assert bool(found.blockers) is not ready
    assert bool(found.reasons) is (state != "healthy")


def test_several_reasons_are_summed_up_and_kept() -> None:
    found = verdict(altered(etcd=GONE, lease={"state": "lost"}, reconciler={"failing": {"route": 2}}))
    assert found.state == "degraded"
    assert found.reason.endswith("(and 2 more)")
    assert len(found.reasons) == 3


def test_nothing_is_said_twice() -> None:
    found = Finding(code="config-invalid", subject="config", message="no such backend", severity="error")
    status = altered(network={"valid": False, "error": "no such backend"})
    reasons = verdict(msgspec.structs.replace(status, findings=(found,))).reasons
    assert reasons == ("the new network configuration is invalid and not in force (no such backend)",)


def test_what_is_fatal_comes_first() -> None:
    found = verdict(altered(etcd=GONE, interface={"carrier": False}))
    assert found.reasons[0] == "interface eth0 has no carrier"


def test_judged_fills_in_the_verdict_and_nothing_else() -> None:
    done = judged(HEALTHY)
    assert done.verdict == verdict(HEALTHY)
    assert msgspec.structs.replace(done, verdict=HEALTHY.verdict) == HEALTHY


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0 s"),
        (119.9, "119 s"),
        (120, "2 m"),
        (7199, "119 m"),
        (7200, "2 h"),
        (7500, "2 h 5 m"),
        (2 * 86400 - 1, "47 h 59 m"),
        (30 * 86400, "30 d"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
