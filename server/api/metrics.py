"""Prometheus metrics, read from the coordinator at the moment they are asked for; no global registry."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from server.coordinator import Coordinator
from server.coordinator.events import SubmitStatus


class CoordinatorCollector(Collector):
    """Turns a coordinator's counters into metric families."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    def collect(self) -> Iterator[Metric]:
        """Read the counters now."""
        coordinator = self._coordinator
        traffic = coordinator.traffic
        runner = coordinator.running_job
        active = None if runner is None else runner.active
        yield GaugeMetricFamily("bitfleet_devices_connected", "Devices with a live stream", len(coordinator.fleet))
        yield GaugeMetricFamily("bitfleet_job_running", "1 while a job runs", int(runner is not None))
        number = 0 if active is None else active.round_number
        yield GaugeMetricFamily("bitfleet_round_number", "Number of the open round, 0 between rounds", number)
        sent = CounterMetricFamily(
            "bitfleet_message_bytes", "Serialised bytes of task, model and update messages", labels=["direction"]
        )
        sent.add_metric(["down"], traffic.down_bytes)
        sent.add_metric(["up"], traffic.up_bytes)
        yield sent
        updates = CounterMetricFamily("bitfleet_updates", "Updates by answer", labels=["status"])
        for status in SubmitStatus:
            updates.add_metric([status.lower()], traffic.updates[status])
        yield updates


def create_registry(coordinator: Coordinator) -> CollectorRegistry:
    """Build a registry of its own for a coordinator."""
    registry = CollectorRegistry()
    registry.register(CoordinatorCollector(coordinator))
    return registry
