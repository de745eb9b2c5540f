"""Strategies that the package does not know: registered by a program, or offered by an installed package."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from server.errors import InvalidJobError, ServerError
from server.jobs import parse_job
from server.strategies import STRATEGIES, ServerOptimizer, make_strategy, register_strategy
from server.strategies.server_optimizer import Slots
from tests.server.strategies.updates import BASE, SPEC, random_update

JOB: dict[str, Any] = {
    "name": "digits",
    "model": {"zoo": "mlp", "params": {"widths": [8]}},
    "classes": ["a", "b"],
    "input_shape": [4],
    "rounds": 1,
    "local_steps": 1,
}


@dataclass(frozen=True)
class Momentum(ServerOptimizer):
    """FedAvgM: the server's velocity is a decaying sum of mean differences."""

    name: ClassVar[str] = "test_momentum"

    momentum: float = 0.5

    def slots(self) -> dict[str, float]:
        return {"velocity": 0.0}

    def step(self, difference: NDArray[np.float64], memory: Slots) -> NDArray[np.float64]:
        velocity = self.momentum * memory["velocity"].astype(np.float64) + difference
        memory["velocity"][:] = velocity
        return velocity


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    before = dict(STRATEGIES)
    yield
    STRATEGIES.clear()
    STRATEGIES.update(before)


def test_a_registered_strategy_is_one_that_jobs_can_name() -> None:
    assert register_strategy(Momentum) is Momentum

    job = parse_job({**JOB, "strategy": "test_momentum"})

    assert job.strategy_params == {"momentum": 0.5}
    assert make_strategy("test_momentum", {"momentum": 0.25}) == Momentum(0.25)
    register_strategy(Momentum)  # a cell of a notebook, run again


def test_a_server_optimizer_follows_its_formula_and_remembers() -> None:
    strategy, base, memory = Momentum(), BASE, None
    velocity, expected = np.zeros((8, 15)), BASE["dense1.weight"].astype(np.float64).reshape(8, 15)

    for seed in (1, 2, 3):
        update = {name: array / np.float32(8) for name, array in random_update(seed, dtype=np.float32).items()}
        accumulator = strategy.init(SPEC)
        strategy.fold(accumulator, update, 3)
        base, memory = strategy.finish(accumulator, base, memory)
        velocity = 0.5 * velocity + update["dense1.weight"].reshape(8, 15).astype(np.float64)
        expected = np.clip(expected + velocity, -1, 1)

    # weights and velocity are rounded to float32 in each round
    np.testing.assert_allclose(base["dense1.weight"].reshape(8, 15), expected, rtol=0, atol=2.0**-21)
    # a statistic is no parameter: the devices' own, in steps of 2^-19 (fan-in 15, inputs up to 255)
    np.testing.assert_allclose(base["norm1.mean"], update["norm1.mean"], rtol=0, atol=2.0**-19)
    assert memory is not None
    assert sorted(memory) == sorted(f"velocity/{t.name}" for t in SPEC.tensors if not t.is_statistic)


@pytest.mark.parametrize("step", [np.zeros(3), 0.5, np.nan])
def test_a_step_of_another_shape_or_not_finite_ends_the_job_with_a_word(step: Any) -> None:
    class Wrong(Momentum):
        def step(self, difference: NDArray[np.float64], memory: Slots) -> NDArray[np.float64]:
            return np.full_like(difference, step) if np.ndim(step) == 0 and step != 0.5 else step

    strategy = Wrong()
    accumulator = strategy.init(SPEC)
    strategy.fold(accumulator, random_update(1, dtype=np.float32), 1)

    with pytest.raises(ServerError, match=r"step of strategy 'test_momentum' must be .* finite numbers"):
        strategy.finish(accumulator, BASE, None)


def test_what_is_no_strategy_is_refused_with_what_is_missing() -> None:
    class Nameless(Momentum):
        name = "Not A Name"

    class Bare(Momentum):
        name = "test_bare"
        decay: float = 0.9

    class Abstract(ServerOptimizer):
        name = "test_abstract"

    class Taken(Momentum):
        name = "fedavg"

    for kind, complaint in [
        (Nameless, "needs a name"),
        (Bare, r"decay of strategy Bare .* write @dataclass\(frozen=True\)"),
        (Abstract, "lacks step"),
        (Taken, "is bitfleet's own"),
        (Momentum(), "must be a class derived from"),
    ]:
        with pytest.raises(InvalidJobError, match=complaint):
            register_strategy(kind)  # type: ignore[type-var]


def test_an_installed_package_offers_a_strategy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fleet_plugin.py").write_text(
        "from dataclasses import dataclass\n"
        "from server.strategies.fedavg import FedAvg\n\n"
        "@dataclass(frozen=True)\nclass Half(FedAvg):\n    name = 'plugin_half'\n    server_step: float = 0.5\n"
    )
    info = tmp_path / "fleet_plugin-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fleet-plugin\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[bitfleet.strategies]\nplugin_half = fleet_plugin:Half\nplugin_gone = fleet_plugin:Gone\n"
        "plugin_other = fleet_plugin:Half\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))

    job = parse_job({**JOB, "strategy": "plugin_half"})

    assert job.strategy_params == {"server_step": 0.5}
    for name, complaint in [
        ("plugin_gone", "cannot be loaded from fleet_plugin:Gone .*AttributeError"),
        ("plugin_other", "whose name is 'plugin_half'"),
        ("nowhere", r"plugin_gone.*'nowhere'"),
    ]:
        with pytest.raises(InvalidJobError, match=complaint):
            make_strategy(name)
    sys.modules.pop("fleet_plugin")
