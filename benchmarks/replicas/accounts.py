"""The account of a run: what devices were told, the database, the models and an undisturbed run, against each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.faults.fleet import Losses
from benchmarks.replicas.site import Site
from benchmarks.replicas.updates import mean_weights, number_of
from bnncore.codec import get_state_codec
from bnncore.spec import ModelSpec
from server.coordinator.versions import FULL_CODEC

_ONE_ULP = 2.0**-23


@dataclass
class Run:
    """What came of a run.

    Attributes:
      digests: of the rounds' weights, in order.
      acknowledged: updates that devices were told are counted.
      sent_again: of them, those that a device was told of more than once.
      errors: calls that ended with a status, by that.
      done: what was killed or stopped, and how often.
      leads: replicas that led, one after the other.
      seconds: from the first stream to the last commit.
      losses: what must be empty.
      problems: what devices met that none should meet.
    """

    digests: list[str] = field(default_factory=list)
    acknowledged: int = 0
    sent_again: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    leads: int = 0
    seconds: float = 0.0
    losses: Losses = field(default_factory=Losses)
    problems: list[str] = field(default_factory=list)

    def count(
        self,
        site: Site,
        job_id: str,
        ledger: Iterable[Mapping[str, Any]],
        *,
        rounds: int,
        devices: int,
        seed: int | None,
    ) -> None:
        """Hold what devices were told of a job against the database, and its models against sums of our own.

        Args:
          site: whose replicas played it.
          job_id: the job.
          ledger: what devices were told, of this job and of others.
          rounds: that the job has.
          devices: that each of them needs.
          seed: of the updates; None where not all of them follow from one.
        """
        digests = {
            number: digest or "" for number, (state, digest) in site.rounds(job_id).items() if state == "COMMITTED"
        }
        self.digests += digests.values()
        if len(digests) != rounds:
            self.losses.rounds.append(f"{len(digests)} of {rounds} rounds of {job_id} are committed")
        rows = site.postgres.query(
            "SELECT round_number, device_id, update_digest FROM updates WHERE job_id = %s AND status = 'ACCEPTED'",
            job_id,
        )
        counted = {(number, device): digest for number, device, digest in rows}
        self._count_told(counted, [entry for entry in ledger if entry["job"] == job_id])
        for number in digests:
            numbers = sorted(number_of(device) for of_round, device in counted if of_round == number)
            if len(numbers) != devices:
                self.losses.updates.append(f"round {number} of {job_id} is made of {len(numbers)} devices")
            if seed is not None:
                self._check_model(site, job_id, number, numbers, seed)

    def compare(self, calm: Run) -> None:
        """Note rounds whose weights are not those of a calm run."""
        for number, (expected, got) in enumerate(zip(calm.digests, self.digests, strict=False), start=1):
            if expected != got:
                self.losses.digests.append(f"round {number}: {got[:12]}, in the calm run {expected[:12]}")

    def _count_told(self, counted: Mapping[tuple[int, str], str], ledger: Iterable[Mapping[str, Any]]) -> None:
        told: dict[tuple[int, str], list[Mapping[str, Any]]] = {}
        for entry in ledger:
            if entry["status"] in ("ACCEPTED", "DUPLICATE"):
                told.setdefault((entry["round"], entry["device"]), []).append(entry)
            else:
                self.problems.append(f"{entry['device']}, round {entry['round']}: {entry['status']} {entry['reason']}")
        self.acknowledged += len(told)
        self.sent_again += sum(len(entries) > 1 for entries in told.values())
        for (number, device), entries in sorted(told.items()):
            if counted.get((number, device)) != entries[0]["digest"]:
                self.losses.updates.append(f"{device}, round {number}: told it is counted, the database says otherwise")
            if sum(entry["status"] == "ACCEPTED" for entry in entries) > 1:
                self.losses.doubled.append(f"{device}, round {number}: told twice that it is newly counted")

    def _check_model(self, site: Site, job_id: str, number: int, devices: list[int], seed: int) -> None:
        """See that a round's model is the mean of the updates that are counted."""
        ((spec_json,),) = site.postgres.query("SELECT spec_json FROM jobs WHERE job_id = %s", job_id)
        ((state_digest,),) = site.postgres.query(
            "SELECT state_digest FROM model_versions WHERE job_id = %s AND version = %s", job_id, number
        )
        spec = ModelSpec.from_json(spec_json)
        state = get_state_codec(FULL_CODEC).decode(spec, site.payload(state_digest), kind="update")
        for name, expected in mean_weights(spec, "int8", seed, number, devices).items():
            if np.max(np.abs(state[name] - expected)) > _ONE_ULP:
                self.losses.digests.append(f"round {number}: {name} is not the mean of the updates that are counted")
