"""``SIGKILL`` at every named step, and at random times, of a fleet that goes on working."""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.faults.fleet import DEVICES, Fleet, Losses, NotRecoveredError, wait_for
from benchmarks.faults.steps import COORDINATOR, DEVICE, FIRST_START, LAST_COMMIT, RECOVERY
from benchmarks.faults.trap import Step

ROUNDS = 60
JOBS: dict[str, dict[str, Any]] = {
    "onebit": {"recipe": "onebit", "statistics_batches": 5},
    "fedyogi": {"strategy": "fedyogi"},
    "fedavg": {},
}
"""What jobs that are disturbed differ in. What devices of ``onebit`` send depends on all that they sent before; what
the coordinator of ``fedyogi`` makes of it depends on all that it made before."""

KILLED = ("onebit", "fedyogi")
"""Jobs whose processes are killed."""

AROUND = "fedavg"
"""The job around which other things fail: a round of it that is played again ends in the same bits."""

_ROUND_S = 1.5
"""Random times lie within so many seconds."""


def job_of(kind: str, rounds: int | None = None) -> dict[str, Any]:
    """Make a job that all devices must take part in, so that its digests follow from the data alone."""
    return {
        "name": kind,
        "model": {"zoo": "mlp", "params": {"widths": [64, 64]}},
        "classes": [str(digit) for digit in range(10)],
        "input_shape": [8, 8],
        "rounds": rounds or ROUNDS,
        "min_devices": len(DEVICES),
        "quorum": len(DEVICES),
        "deadline_s": 60.0,
        "local_steps": 20,
        "batch_size": 50,
        "evaluation": {"dataset": "digits"},
        **JOBS[kind],
    }


@dataclass(frozen=True)
class Order:
    """One fault."""

    row: str
    """In the table."""
    steps: tuple[Step | None, ...]
    """Where processes are killed, None: at a random time. For ``coordinator`` one after the other, the second time as
    it starts; for ``devices`` one each, at the same time."""
    who: str = "coordinator"
    """``coordinator``, ``devices``, ``trainer`` or ``all``."""


@dataclass
class Account:
    """What was done in a run, and what came of it."""

    times: dict[str, int] = field(default_factory=dict)
    """Kills by row."""
    recoveries_s: dict[str, list[float]] = field(default_factory=dict)
    """Seconds from a row's faults to the next committed round."""
    steps: set[str] = field(default_factory=set)
    """That were reached."""
    losses: Losses = field(default_factory=Losses)
    rounds: int = 0
    """Committed in all."""
    updates: int = 0
    """Acknowledged in all."""

    def note(self, row: str, kills: int, recovery_s: float) -> None:
        self.times[row] = self.times.get(row, 0) + kills
        self.recoveries_s.setdefault(row, []).append(recovery_s)

    def add_fleet(self, fleet: Fleet, undisturbed: list[str]) -> Losses:
        """Add what a fleet whose job is over has done, and has lost; gives the latter."""
        found = fleet.losses(undisturbed)
        state, reason = fleet.job_state()
        if state != "COMPLETED" or len(fleet.digests()) != len(undisturbed):
            found.rounds.append(f"{fleet.root.name}: the job is {state} after {len(fleet.digests())} rounds, {reason}")
        self.losses += found
        self.rounds += len(fleet.digests())
        self.updates += int(fleet.query("SELECT COUNT(*) FROM updates WHERE status = 'ACCEPTED'")[0][0])
        return found


AT_STEP, AT_RANDOM = "coordinator killed at a named step", "coordinator killed at a random time"
RECOVERING = "coordinator killed at a named step, and again while it takes up what was left"
FIRST, LAST = "coordinator killed while it begins its first job", "coordinator killed at the end of a job"
DEVICE_AT_STEP, DEVICE_AT_RANDOM = "device killed at a named step", "device killed at a random time"
TRAINER, ALL = "trainer killed at a random time", "coordinator and all devices killed at once"


def make_orders(kills: int, seed: int) -> list[Order]:
    """Plan at least so many kills: every named step once, then random times."""
    rng = random.Random(seed)
    orders = [Order(AT_STEP, (step,)) for step in COORDINATOR]
    killed = Step.parse("after server.coordinator.collection:Collection.accept 2")  # with updates of an open round
    orders += [Order(RECOVERING, (killed, step)) for step in RECOVERY]
    steps = rng.sample(DEVICE, len(DEVICE))
    orders += [
        Order(DEVICE_AT_STEP, tuple(steps[first : first + len(DEVICES)]), "devices")
        for first in range(0, len(steps), len(DEVICES))
    ]
    rng.shuffle(orders)
    at_random = itertools.cycle(
        [
            Order(AT_RANDOM, (None,)),
            Order(DEVICE_AT_RANDOM, (None,) * len(DEVICES), "devices"),
            Order(TRAINER, (None,), "trainer"),
            Order(ALL, (None,) * (1 + len(DEVICES)), "all"),
        ]
    )
    while sum(len(order.steps) for order in orders) < kills:
        orders.append(next(at_random))
    return orders


class Campaign:
    """Works off orders, one fleet after another, until none are left.

    Args:
      root: the fleets' folders go here.
      shards: the devices' data.
      undisturbed: digests by kind of job.
      seed: of the random times.
      say: told how far it is.
    """

    def __init__(
        self,
        root: Path,
        shards: dict[str, Path],
        undisturbed: dict[str, list[str]],
        seed: int,
        say: Callable[[str], None],
    ) -> None:
        self.account = Account()
        self._root = root
        self._shards = shards
        self._undisturbed = undisturbed
        self._random = random.Random(seed)
        self._say = say

    def run(self, orders: Iterable[Order]) -> None:
        """Carry the orders out."""
        left = deque(orders)
        first, last = itertools.cycle(FIRST_START), itertools.cycle(LAST_COMMIT)
        for number, kind in enumerate(itertools.cycle(KILLED)):
            if not left:
                return
            fleet = Fleet(self._root / f"{kind}-{number}", job_of(kind), self._shards)
            try:
                self._begin(fleet, next(first))
                while left and fleet.progress() < ROUNDS - 3:
                    self._carry_out(fleet, left.popleft())
                self._finish(fleet, next(last))
                self._check(fleet, kind)
            finally:
                fleet.stop()

    def _begin(self, fleet: Fleet, step: Step) -> None:
        died = fleet.start(step)
        self._reached(step)
        self.account.note(FIRST, 1, fleet.await_progress(0) - died)

    def _carry_out(self, fleet: Fleet, order: Order) -> None:
        """Kill as ordered, start again who was killed, and wait until a round is committed."""
        match order.who:
            case "coordinator":
                self._kill_coordinator(fleet, order.steps)
            case "devices":
                self._kill_devices(fleet, order.steps)
            case "trainer":
                self._kill_trainer(fleet, self._random.choice(DEVICES))
            case "all":
                self._kill_all(fleet)
        self.account.note(order.row, len(order.steps), fleet.await_progress(self._done) - self._died)

    def _kill_coordinator(self, fleet: Fleet, steps: Sequence[Step | None]) -> None:
        for number, step in enumerate(steps):
            if step is None:
                self._wait_a_while()
                fleet.coordinator.kill()
            else:
                fleet.coordinator.arm(step)
                if number > 0:
                    fleet.start_coordinator(is_awaited=False)
                fleet.await_death(fleet.coordinator)
                self._reached(step)
        self._note_death(fleet)
        fleet.start_coordinator()

    def _kill_devices(self, fleet: Fleet, steps: Sequence[Step | None]) -> None:
        """Kill devices, each at its own step, and start each again at once."""
        doomed = dict(zip(DEVICES, steps, strict=False))
        for name, step in doomed.items():
            if step is None:
                self._wait_a_while()
                fleet.devices[name].kill()
            else:
                fleet.devices[name].arm(step)

        def all_died() -> bool:
            for name, step in list(doomed.items()):
                if fleet.devices[name].exit_code is not None:
                    fleet.await_death(fleet.devices[name])
                    del doomed[name]
                    self._reached(step)
                    self._note_death(fleet)
                    fleet.start_device(name)
            return not doomed

        try:
            wait_for("devices to reach their steps", all_died)
        except NotRecoveredError as error:
            raise NotRecoveredError(f"{error}: {[f'{name}: {step}' for name, step in doomed.items()]}") from error

    def _kill_trainer(self, fleet: Fleet, name: str) -> None:
        self._wait_a_while()
        pid = wait_for("a trainer", lambda: fleet.trainer(name))
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        self._note_death(fleet)

    def _kill_all(self, fleet: Fleet) -> None:
        self._wait_a_while()
        for actor in [fleet.coordinator, *fleet.devices.values()]:
            actor.kill()
        self._note_death(fleet)
        fleet.start_coordinator()
        for name in DEVICES:
            fleet.start_device(name)

    def _note_death(self, fleet: Fleet) -> None:
        self._died, self._done = time.monotonic(), fleet.progress()

    def _reached(self, step: Step | None) -> None:
        if step is not None:
            self.account.steps.add(str(step))

    def _wait_a_while(self) -> None:
        time.sleep(self._random.uniform(0, _ROUND_S))

    def _finish(self, fleet: Fleet, step: Step) -> None:
        """Let the job end, with a kill around the word that it did."""
        fleet.coordinator.arm(step)
        fleet.await_death(fleet.coordinator)
        died = time.monotonic()
        self._reached(step)
        fleet.start_coordinator()
        wait_for("the job to end", lambda: fleet.job_state()[0] not in ("PENDING", "RUNNING"))
        self.account.note(LAST, 1, time.monotonic() - died)

    def _check(self, fleet: Fleet, kind: str) -> None:
        found = self.account.add_fleet(fleet, self._undisturbed[kind])
        self._say(f"{fleet.root.name}: {sum(self.account.times.values())} kills so far, {found.count} losses here")


def run_undisturbed(root: Path, kind: str, shards: dict[str, Path]) -> tuple[list[str], float]:
    """Run a job in which nothing goes wrong; gives its digests, and the median seconds of a round."""
    fleet = Fleet(root / f"{kind}-undisturbed", job_of(kind), shards)
    try:
        fleet.start()
        wait_for("the job to end", lambda: fleet.job_state()[0] == "COMPLETED", limit_s=600)
        rows = fleet.query("SELECT committed_at FROM rounds ORDER BY round_number")
    finally:
        fleet.stop()
    times = [at for (at,) in rows]
    gaps = sorted(later - earlier for earlier, later in itertools.pairwise(times))
    return fleet.digests(), gaps[len(gaps) // 2]
