"""The owner's rules in the middle of a training: a real trainer stands, goes on, and never outlives the agent."""

import asyncio
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitfleet.v1 import fleet_pb2 as wire
from edge_client.budgets import Budgets
from edge_client.child import TASK_FILE
from edge_client.cli import main
from edge_client.conditions import Surroundings
from edge_client.errors import TaskDeclinedError
from edge_client.pacing import Pace, Pacer
from edge_client.policy import Policy
from edge_client.settings import ClientSettings
from edge_client.trainer_process import Trainer, TrainingResult
from tests.edge_client.conftest import Start
from tests.edge_client.test_conditions import machine
from tests.edge_client.test_trainer import describe
from tests.edge_client.wire import Coordinator, make_task
from tests.patience import LIMIT_S


def state_of(pid: int) -> str:
    """A process's state as the kernel has it: T where it stands, Z or empty where it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


class Bench:
    """A trainer under a pacer, on a machine whose temperature the test decides."""

    def __init__(
        self, folder: Path, data_dir: Path, *, steps: int, share: float = 1.0, max_pause_s: float = 600.0
    ) -> None:
        self.root = folder / "machine"
        self.heat(40)
        self.told: list[list[str]] = []
        self.steps = 0
        settings = ClientSettings(server="h:1", state=folder, max_temperature=70.0)
        self.pacer = Pacer(
            Surroundings(settings, Budgets.of(settings, Policy()), root=self.root),
            cpu_share=share,
            max_pause_s=max_pause_s,
            on_pause=self.told.append,
        )
        self.folder = folder / "task"
        self.folder.mkdir()
        task, _ = describe(data_dir, steps=steps)
        (self.folder / TASK_FILE).write_text(json.dumps(task))

    def heat(self, degrees: int) -> None:
        machine(self.root, sys__class__thermal__thermal_zone0__temp=str(1000 * degrees))

    async def train(self) -> TrainingResult:
        def on_step(step: int, _: int) -> None:
            self.steps = step

        trainer = Trainer(keep_s=0, threads=1)
        try:
            return await trainer.train(self.folder, on_step=on_step, pacer=self.pacer)
        finally:
            await trainer.close()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():  # noqa: ASYNC110 - it shows in other processes and files
            await asyncio.sleep(0.02)


async def test_a_training_that_stood_gives_the_same_bits(tmp_path: Path, data_dir: Path) -> None:
    held, free = (tmp_path / name for name in ("held", "free"))
    held.mkdir()
    free.mkdir()
    undisturbed = await Bench(free, data_dir, steps=30_000).train()
    bench = Bench(held, data_dir, steps=30_000, share=0.2)  # lasts some looks at the temperature
    training = asyncio.create_task(bench.train())

    await until(lambda: bench.steps)
    bench.heat(71)
    await until(lambda: bench.told)
    await asyncio.sleep(0.5)  # what it said just before it stood is read
    seen = bench.steps
    bench.heat(66)  # not cool enough yet
    await asyncio.sleep(1.5)
    assert bench.told == [["it is too hot"]]
    assert bench.steps == seen
    bench.heat(60)
    result = await training

    assert bench.told == [["it is too hot"], []]
    assert (result["update_digest"], result["loss"]) == (undisturbed["update_digest"], undisturbed["loss"])
    assert result["training_seconds"] < result["seconds"]


async def test_a_task_that_is_held_too_long_is_given_back(tmp_path: Path, data_dir: Path) -> None:
    bench = Bench(tmp_path, data_dir, steps=10_000_000, max_pause_s=0.2)
    training = asyncio.create_task(bench.train())

    await until(lambda: bench.steps)
    bench.heat(90)

    with pytest.raises(TaskDeclinedError, match=r"0.2 s, and still it is too hot; the task is given back"):
        await training
    assert bench.told[-1] == []


def test_only_the_pauses_within_the_training_are_taken_out() -> None:
    pace = Pace()
    pace.pauses = [(0.0, 10.0), (20.0, 25.0), (90.0, 200.0)]

    assert pace.seconds(8.0, 100.0) == 2.0 + 5.0 + 10.0


async def test_the_agent_tells_that_it_is_paused_and_gives_the_task_back(
    coordinator: Coordinator, start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('[task]\nmax_pause = 5\n[device]\nhours = "03:00-03:01,15:00-15:01"\n')
    device = start(coordinator.port, "--policy", str(policy), "--hours", "09:00-09:01")  # never both

    async def until_pause_or_report(number: int) -> None:
        await device.until(lambda: device.state.pause() or len(coordinator.reports) == number)

    status: dict[str, Any] = {"paused": None}
    number = 0
    while status["paused"] is None:  # a machine that stalls may miss a pause of five seconds
        number += 1
        await coordinator.give(make_task(number)[0])
        await until_pause_or_report(number)
        assert main(["status", "--json", "--state", str(device.state.root)]) == 0  # a process of its own might be late
        status = json.loads(capsys.readouterr().out)
        await coordinator.until_count(coordinator.reports, number)

    assert coordinator.hellos[0].conditions.outside_hours
    assert status["paused"]["reasons"] == ["it is outside of its hours"]
    assert status["budgets"]["hours"] == ["09:00-09:01", "03:00-03:01,15:00-15:01"]
    assert wire.DEVICE_STATE_PAUSED in {beat.state for beat in coordinator.heartbeats}
    report = coordinator.reports[0]
    assert report.outcome == wire.TASK_OUTCOME_DECLINED
    assert "outside of its hours; the task is given back" in report.reason
    assert device.ask("status")["paused"] is None
    assert device.trainers() == []


async def test_a_trainer_that_stands_ends_with_an_agent_that_is_killed(coordinator: Coordinator, start: Start) -> None:
    device = start(coordinator.port, "--cpu-share", "1")
    await coordinator.give(make_task(steps=10_000_000)[0])
    trainer = await device.trainer()
    await device.until(lambda: state_of(trainer) == "T")

    device.signal(signal.SIGKILL)

    device.wait()
    await until(lambda: state_of(trainer) in ("", "Z"))
