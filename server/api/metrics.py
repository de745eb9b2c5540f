"""Prometheus metrics, read from the coordinator at the moment they are asked for; no global registry."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from server.coordinator import Coordinator
from server.coordinator.events import ExchangeStep, SubmitStatus
from server.storage.pages import JobSums

if TYPE_CHECKING:
    from server.replicas.replica import Replica


@dataclass(frozen=True)
class Observed:
    """What is read for a scrape before the counters are: all that blocks."""

    jobs: dict[str, int]
    """By state."""
    devices_known: int
    sums: dict[str, JobSums]
    """Of the running jobs."""
    epsilons: dict[str, float]
    """Spent, by running job that has a budget."""


async def observe(coordinator: Coordinator) -> Observed:
    """Read what metrics need of the database."""
    disk, pages = coordinator.disk, coordinator.disk.storage.pages
    running = dict(coordinator.jobs.running)
    sums = await disk.run(pages.job_sums, list(running))
    epsilons = {}
    for job_id, runner in running.items():
        if runner.config.privacy is not None:  # the first time its library is loaded, which takes a second
            epsilons[job_id] = await asyncio.to_thread(runner.config.privacy.spent, runner.rounds_committed)
    return Observed(await disk.run(pages.count_jobs), await disk.run(pages.count_devices), sums, epsilons)


class CoordinatorCollector(Collector):
    """Turns a coordinator's counters into metric families."""

    def __init__(self, coordinator: Coordinator, observed: Observed, replica: Replica | None) -> None:
        self._coordinator = coordinator
        self._replica = replica
        self._observed = observed

    def collect(self) -> Iterator[Metric]:
        """Read the counters now."""
        yield from self._fleet()
        yield from self._learning()
        yield from self._rounds()
        yield from self._traffic()
        yield from self._disk()
        yield from self._replicas()

    def _fleet(self) -> Iterator[Metric]:
        coordinator, observed = self._coordinator, self._observed
        yield GaugeMetricFamily("bitfleet_devices_connected", "Devices with a live stream", len(coordinator.fleet))
        states = Counter(session.heartbeat.state for session in coordinator.fleet)
        states["OFFLINE"] = max(0, observed.devices_known - len(coordinator.fleet))
        devices = GaugeMetricFamily("bitfleet_devices", "Devices that ever connected, by state", labels=["state"])
        for state, count in sorted(states.items()):
            devices.add_metric([state.lower()], count)
        yield devices
        jobs = GaugeMetricFamily("bitfleet_jobs", "Jobs by state", labels=["state"])
        for state, count in sorted(observed.jobs.items()):
            jobs.add_metric([state.lower()], count)
        yield jobs
        yield GaugeMetricFamily("bitfleet_jobs_running", "Jobs that run", len(coordinator.jobs.running))

    def _learning(self) -> Iterator[Metric]:
        """Tell how running jobs learn; a job's last values are those that were read last while it ran."""
        running, observed = self._coordinator.jobs.running, self._observed
        total = _of_jobs("bitfleet_job_rounds", "Rounds that a job is to have")
        done = _of_jobs("bitfleet_job_rounds_committed", "Rounds that it has")
        accuracy = _of_jobs("bitfleet_job_accuracy_ratio", "Of the newest version evaluated on the held-out set")
        loss = _of_jobs("bitfleet_job_loss", "Of the same, in nats")
        local = _of_jobs("bitfleet_job_local_accuracy_ratio", "Of the newest version that devices have judged")
        epsilon = _of_jobs("bitfleet_job_epsilon", "What its models may have told of a device so far")
        budget = _of_jobs("bitfleet_job_epsilon_budget", "What they may")
        for job_id, runner in running.items():
            total.add_metric([job_id], runner.config.rounds)
            done.add_metric([job_id], min(runner.rounds_committed, runner.config.rounds))
            sums = observed.sums.get(job_id, JobSums())
            if sums.accuracy is not None:
                accuracy.add_metric([job_id], sums.accuracy / 100)
                loss.add_metric([job_id], sums.loss or 0.0)
            if sums.local_accuracy is not None:
                local.add_metric([job_id], sums.local_accuracy / 100)
            if runner.config.privacy is not None and job_id in observed.epsilons:
                epsilon.add_metric([job_id], observed.epsilons[job_id])
                budget.add_metric([job_id], runner.config.privacy.epsilon)
        yield from (total, done, accuracy, loss, local, epsilon, budget)

    def _rounds(self) -> Iterator[Metric]:
        coordinator = self._coordinator
        jobs = coordinator.jobs.running
        rounds = GaugeMetricFamily("bitfleet_round_number", "A job's open round, 0 between rounds", labels=["job"])
        for job_id, runner in jobs.items():
            rounds.add_metric([job_id], 0 if runner.active is None else runner.active.round_number)
        yield rounds
        overhead = SummaryMetricFamily(
            "bitfleet_round_overhead_seconds",
            "A round's time beside its slowest device's training, of rounds committed since the job was taken up",
            labels=["job"],
        )
        for job_id, runner in jobs.items():
            overhead.add_metric([job_id], len(runner.overheads_s), sum(runner.overheads_s))
        yield overhead
        members = _of_jobs("bitfleet_round_members", "Devices of a job's open round")
        accepted = _of_jobs("bitfleet_round_accepted", "Of them, those whose update was accepted")
        waiting = _of_jobs("bitfleet_exchange_waiting", "Members whose step of secure aggregation is waited for")
        for job_id, runner in jobs.items():
            active = runner.active
            members.add_metric([job_id], 0 if active is None else len(active.round.cohort))
            accepted.add_metric([job_id], 0 if active is None else len(active.round.accepted))
            exchange = None if active is None else active.exchange
            waiting.add_metric([job_id], 0 if exchange is None else len(exchange.waiting))
        yield from (members, accepted, waiting)

    def _traffic(self) -> Iterator[Metric]:
        traffic = self._coordinator.traffic
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
        steps = CounterMetricFamily(
            "bitfleet_exchange_messages", "Steps of secure aggregation by answer", labels=["step", "status"]
        )
        for step in ExchangeStep:
            for status in SubmitStatus:
                steps.add_metric([step.lower(), status.lower()], traffic.steps[step, status])
        yield steps
        joules = CounterMetricFamily(
            "bitfleet_training_joules", "Energy of trainings whose update was accepted, by source", labels=["source"]
        )
        for source, total in sorted(traffic.joules.items()):
            joules.add_metric([source], total)
        yield joules

    def _disk(self) -> Iterator[Metric]:
        space = self._coordinator.space
        yield GaugeMetricFamily("bitfleet_disk_used_bytes", "Bytes of payloads", space.used_bytes)
        yield GaugeMetricFamily("bitfleet_disk_held_bytes", "Bytes promised to what is being written", space.held_bytes)
        yield GaugeMetricFamily("bitfleet_disk_quota_bytes", "Most bytes of payloads, 0 = no limit", space.quota_bytes)
        if (free := space.free_bytes()) is not None:
            yield GaugeMetricFamily("bitfleet_disk_free_bytes", "Bytes free on their file system", free)
        yield CounterMetricFamily("bitfleet_disk_refusals", "How often there was no room", space.refusals)

    def _replicas(self) -> Iterator[Metric]:
        """Tell what this coordinator is among others; what jobs do is told by the one that works on them."""
        if self._replica is None:
            return
        name, members = self._replica.id, self._replica.members
        yield GaugeMetricFamily(
            "bitfleet_replicas", "Coordinators over the database that are there", len(members.alive)
        )
        leads = GaugeMetricFamily("bitfleet_replica_leads", "Whether this one works on the jobs", labels=["replica"])
        leads.add_metric([name], int(members.is_lead))
        streams = GaugeMetricFamily("bitfleet_replica_streams", "Devices' streams open here", labels=["replica"])
        streams.add_metric([name], members.alive[name].num_streams)
        bus = self._replica.bus
        sent = CounterMetricFamily("bitfleet_replica_messages", "Messages to other coordinators", labels=["replica"])
        sent.add_metric([name], bus.num_sent)
        dropped = CounterMetricFamily(
            "bitfleet_replica_messages_dropped", "Those that the database did not take", labels=["replica"]
        )
        dropped.add_metric([name], bus.num_dropped)
        yield from (leads, streams, sent, dropped)


def create_registry(coordinator: Coordinator, observed: Observed, replica: Replica | None = None) -> CollectorRegistry:
    """Build a registry of its own for one scrape."""
    registry = CollectorRegistry()
    registry.register(CoordinatorCollector(coordinator, observed, replica))
    return registry


def _of_jobs(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=["job"])
