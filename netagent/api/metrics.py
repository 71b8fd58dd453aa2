"""The agent's metrics, made from its status at the moment of a scrape.

Rule: nothing is counted here. What the metrics say is what `netagent status` says, because both are one value.
Names follow the Prometheus conventions (base units, `_total` for counters); docs/reference/metrics.md explains
each, and a test holds the two together.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from netagent import __version__
from netagent.status import AgentView, Status

STATES = ("healthy", "degraded", "down")
LEASE_STATES = ("none", "claiming", "held", "restored", "lost", "conflict")
PEER_STATES = ("up", "pending", "unknown", "down", "unreachable", "ignored")


class Exposition:
    """Renders the metrics of one agent, and of its process, from a registry of their own."""

    def __init__(self, view: AgentView) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Agent(view))
        ProcessCollector(registry=self._registry)

    def render(self, accept: str) -> tuple[bytes, str]:
        """The body and its content type, in the format that the scraper's Accept header asks for."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


class _Agent(Collector):
    def __init__(self, view: AgentView) -> None:
        self._view = view

    def describe(self) -> Iterator[Metric]:
        """Nothing: asking for names at registration would ask the agent for a status that it may not have yet."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        return families(self._view.status())


def families(status: Status) -> Iterator[Metric]:
    """All metric families of a status, those without a sample too, so that names do not come and go."""
    yield from _node(status)
    yield from _cluster(status)
    yield from _kernel(status)
    yield from _service(status)


def _node(status: Status) -> Iterator[Metric]:
    yield _labelled(
        "netagent_build_info",
        "Version of the agent; the value is always 1.",
        {"version": __version__, "python": platform.python_version(), "backend": status.backend.type},
    )
    yield _one_of("netagent_state", "The verdict of `netagent status`.", STATES, status.verdict.state)
    yield _gauge("netagent_ready", "1 when /readyz says ready.", status.verdict.ready)
    findings: dict[tuple[str, str], int] = {}
    for finding in status.findings:
        place = (finding.code, str(finding.severity))
        findings[place] = findings.get(place, 0) + 1
    family = GaugeMetricFamily(
        "netagent_findings", "Findings that stand, by code and severity.", labels=["code", "severity"]
    )
    for place, count in sorted(findings.items()):
        family.add_metric(place, count)
    yield family


def _cluster(status: Status) -> Iterator[Metric]:
    etcd, lease = status.etcd, status.lease
    yield _gauge("netagent_etcd_connected", "1 while etcd answers.", etcd.connected)
    yield _gauge("netagent_etcd_revision", "Revision of etcd that is in force here.", etcd.revision)
    yield _gauge(
        "netagent_etcd_last_event_timestamp_seconds", "When a record last changed (0: never seen).", etcd.last_event
    )
    yield _gauge(
        "netagent_etcd_last_proof_timestamp_seconds",
        "When the watch was last proved alive (0: never).",
        etcd.last_proof,
    )
    yield _counter("netagent_etcd_resyncs", "Times that all records were listed again.", etcd.resyncs)
    yield _counter("netagent_etcd_watch_failures", "Times that the watch broke.", etcd.watch_failures)
    yield _gauge(
        "netagent_records_as_of_timestamp_seconds",
        "When the records in force here are known to have been current.",
        etcd.as_of,
    )
    yield _gauge("netagent_config_valid", "1 when the newest network configuration is valid.", status.network.valid)
    yield _one_of("netagent_lease_state", "State of this node's subnet lease.", LEASE_STATES, lease.state)
    yield _gauge(
        "netagent_lease_expires_timestamp_seconds", "When the lease ends (0: a reservation, or none).", lease.expires
    )
    yield _gauge("netagent_lease_ttl_seconds", "TTL of the lease (0: a reservation, or none).", lease.ttl)
    yield _by("netagent_peers", "Peers by state.", "state", {**dict.fromkeys(PEER_STATES, 0), **status.peers.states})


def _kernel(status: Status) -> Iterator[Metric]:
    reconciler, interface = status.reconciler, status.interface
    up = interface.up and interface.carrier
    yield _labelled(
        "netagent_interface_up",
        "1 when the interface to the peers is up and has carrier.",
        {"interface": interface.name},
        up,
    )
    yield _gauge("netagent_mtu_bytes", "MTU of containers' interfaces.", status.backend.mtu)
    yield _by("netagent_objects_desired", "Kernel objects wanted, by kind.", "kind", reconciler.desired)
    yield _by("netagent_objects_installed", "Kernel objects in place, by kind.", "kind", reconciler.installed)
    yield _by(
        "netagent_objects_failing", "Kernel objects that the kernel refused, by kind.", "kind", reconciler.failing
    )
    yield _counter("netagent_reconcile_passes", "Whole passes made (dump, diff, repair).", reconciler.passes)
    yield _gauge(
        "netagent_reconcile_last_pass_timestamp_seconds", "When the last whole pass ended.", reconciler.last_pass
    )
    yield _gauge(
        "netagent_reconcile_last_pass_seconds", "How long the last whole pass took.", reconciler.last_pass_seconds
    )
    yield _counter("netagent_reconcile_operations", "Operations sent to the kernel.", reconciler.operations)
    yield _counter("netagent_drifts", "Changes by somebody else that were repaired.", reconciler.drifts)
    yield _gauge(
        "netagent_last_drift_timestamp_seconds", "When that last happened (0: never).", reconciler.last_drift
    )


def _service(status: Status) -> Iterator[Metric]:
    """The backend's running part: whether it runs, its counters summed over all peers, and its drops by reason."""
    kind, service = status.backend.type, status.backend.service
    yield _labelled(
        "netagent_service_up",
        "1 when the backend's running part (the udp engine, the BGP speaker) runs; no sample where there is none.",
        {"backend": kind},
        service.get("state") == "running" if service else None,
    )
    yield _counted(
        "netagent_service_traffic",
        "Packets and bytes of the backend's running part.",
        kind,
        "name",
        service,
        "counters",
    )
    yield _counted(
        "netagent_service_drops", "Packets dropped by the backend's running part.", kind, "reason", service, "drops"
    )
    family = GaugeMetricFamily(
        "netagent_service_size",
        "What the backend's running part has at present: sessions, routes.",
        labels=["backend", "name"],
    )
    for name, value in sorted(service.get("gauges", {}).items()):
        family.add_metric([kind, name], value)
    yield family


def _counted(name: str, text: str, backend: str, label: str, service: Mapping[str, Any], field: str) -> Metric:
    family = CounterMetricFamily(name, text, labels=["backend", label])
    values = service.get(field)
    for key, value in sorted(values.items()) if isinstance(values, Mapping) else ():
        if isinstance(value, int | float):
            family.add_metric([backend, str(key)], value)
    return family


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=float(value))


def _counter(name: str, text: str, value: float) -> Metric:
    """`name` without `_total`, which the exposition adds."""
    return CounterMetricFamily(name, text, value=float(value))


def _labelled(name: str, text: str, labels: Mapping[str, str], value: float | None = 1) -> Metric:
    family = GaugeMetricFamily(name, text, labels=list(labels))
    if value is not None:
        family.add_metric(list(labels.values()), float(value))
    return family


def _by(name: str, text: str, label: str, values: Mapping[str, Any]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _one_of(name: str, text: str, words: tuple[str, ...], present: str) -> Metric:
    return _by(name, text, "state", {word: float(word == present) for word in words})
