"""Metrics: what they say is what the status says, in a format that Prometheus reads, and documented."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from netagent.api.metrics import Exposition, families
from netagent.model import Finding
from netagent.status import Status
from tests.support.views import HEALTHY, NOW, View, altered

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "reference" / "metrics.md"


def scrape(status: Status) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    body, content_type = Exposition(View(status)).render("")
    assert content_type.startswith("text/plain; version=")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def value(samples: dict[tuple[str, frozenset[tuple[str, str]]], float], metric: str, /, **labels: str) -> float:
    return samples[metric, frozenset(labels.items())]


def test_a_healthy_node() -> None:
    samples = scrape(HEALTHY)
    assert value(samples, "netagent_ready") == 1
    assert value(samples, "netagent_state", state="healthy") == 1
    assert value(samples, "netagent_state", state="down") == 0
    assert value(samples, "netagent_etcd_connected") == 1
    assert value(samples, "netagent_etcd_revision") == 42
    assert value(samples, "netagent_etcd_last_proof_timestamp_seconds") == NOW - 4
    assert value(samples, "netagent_lease_state", state="held") == 1
    assert value(samples, "netagent_peers", state="up") == 2
    assert value(samples, "netagent_peers", state="down") == 0
    assert value(samples, "netagent_objects_desired", kind="route") == 3
    assert value(samples, "netagent_mtu_bytes") == 1450
    assert value(samples, "netagent_interface_up", interface="eth0") == 1
    assert value(samples, "netagent_reconcile_passes_total") == 2
    assert any(name == "process_resident_memory_bytes" for name, _ in samples)


def test_trouble_shows() -> None:
    status = altered(
        etcd={"connected": False, "watch_failures": 3},
        lease={"state": "lost"},
        interface={"carrier": False},
        reconciler={"failing": {"route": 2}, "drifts": 7},
        peers={"states": {"asleep": 2}},
        backend={
            "type": "udp",
            "service": {
                "state": "failed",
                "counters": {"rx_packets": 5, "odd": "text"},
                "drops": {"ttl": 2},
            },
        },
    )
    samples = scrape(status)
    assert value(samples, "netagent_state", state="down") == 1
    assert value(samples, "netagent_ready") == 1
    assert value(samples, "netagent_etcd_connected") == 0
    assert value(samples, "netagent_etcd_watch_failures_total") == 3
    assert value(samples, "netagent_interface_up", interface="eth0") == 0
    assert value(samples, "netagent_objects_failing", kind="route") == 2
    assert value(samples, "netagent_drifts_total") == 7
    assert value(samples, "netagent_peers", state="asleep") == 2  # a word that this version does not know
    assert value(samples, "netagent_service_up", backend="udp") == 0
    assert value(samples, "netagent_service_traffic_total", backend="udp", name="rx_packets") == 5
    assert value(samples, "netagent_service_drops_total", backend="udp", reason="ttl") == 2
    assert not any(("name", "odd") in labels for _, labels in samples)


def test_findings_are_counted_by_code() -> None:
    found = tuple(Finding(code="peer-not-on-link", subject=f"h{n}", message="") for n in range(3))
    samples = scrape(msgspec.structs.replace(HEALTHY, findings=found))
    assert value(samples, "netagent_findings", code="peer-not-on-link", severity="warning") == 3


def test_nothing_known_yet_can_be_scraped() -> None:
    samples = scrape(Status())
    assert value(samples, "netagent_ready") == 0
    assert value(samples, "netagent_lease_state", state="none") == 1
    assert not any(name == "netagent_service_up" for name, _ in samples)


def test_making_an_exposition_asks_the_agent_nothing() -> None:
    view = View()
    view.fault = RuntimeError("not ready to be asked")
    Exposition(view)


def test_openmetrics_on_request() -> None:
    body, content_type = Exposition(View()).render("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


def test_names_follow_the_conventions() -> None:
    for family in families(HEALTHY):
        name = family.name + ("_total" if family.type == "counter" else "")
        assert re.fullmatch(r"netagent_[a-z0-9_]+", name)
        assert family.documentation.endswith(".")
        if "seconds" in name:
            assert name.endswith(("_seconds", "_seconds_total"))


def test_every_metric_is_documented_and_no_other() -> None:
    code = {family.name + ("_total" if family.type == "counter" else "") for family in families(HEALTHY)}
    documented = re.findall(r"^\| `(netagent_[a-z0-9_]+)", DOCUMENT.read_text(), re.MULTILINE)
    assert sorted(code) == sorted(documented)


@pytest.mark.parametrize("family", list(families(HEALTHY)), ids=lambda family: family.name)
def test_labels_are_documented(family: object) -> None:
    labels = {label for sample in family.samples for label in sample.labels}  # type: ignore[attr-defined]
    line = next(line for line in DOCUMENT.read_text().splitlines() if line.startswith(f"| `{family.name}"))  # type: ignore[attr-defined]
    for label in labels:
        assert f"`{label}`" in line
