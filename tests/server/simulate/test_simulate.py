"""Simulations as users run them: by the command line, real coordinator, real training."""

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnncore.codec import get_codec
from bnncore.zoo import mlp
from tests.patience import LIMIT_S
from tests.server.simulate.federations import outcome, refusal, run, run_apart, start, wait_for

UNEVEN = ("--alpha", "0.5", "--seed", "5", "--local-steps", "400")
"""Steps enough that a signal finds the simulation at work."""
SPEC = mlp(input_shape=(8, 8), widths=(32,), classes=10)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(tmp_path_factory.mktemp("undisturbed"), *UNEVEN, "--threads", "1")


def test_threads_and_order_of_arrival_do_not_enter_the_result(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    shuffled = [run(tmp_path, *UNEVEN, "--threads", "2", "--shuffle-arrivals", str(seed)) for seed in (1, 2)]

    assert [outcome(result) for result in shuffled] == [outcome(undisturbed)] * 2


@pytest.mark.parametrize("how", [("--recipe", "onebit"), ("--strategy", "fedprox", "--strategy-param", "mu=0.1")])
def test_a_residual_network_is_simulated(tmp_path: Path, how: tuple[str, ...]) -> None:
    small = ("--model", "resnete18", "--widths", "8,16", "--convs-per-stage", "1", "--rounds", "2", *how)

    first, second = (run(tmp_path, *small, "--threads", threads) for threads in ("1", "2"))

    assert outcome(first) == outcome(second)
    assert len(first["accuracy_by_round"]) == 2


def test_another_seed_gives_another_model(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    assert run(tmp_path, "--alpha", "0.5", "--seed", "6")["digest"] != undisturbed["digest"]


def test_the_model_learns_and_every_round_is_reported(tmp_path: Path) -> None:
    result = run(tmp_path, "--rounds", "6", "--local-steps", "30", "--devices", "4")

    assert len(result["accuracy_by_round"]) == 6
    assert result["accuracy"] == result["accuracy_by_round"][-1]
    assert result["accuracy"] > 80
    assert result["accuracy"] > result["accuracy_by_round"][0]


def test_the_bytes_counted_are_those_of_the_messages(undisturbed: dict[str, Any]) -> None:
    state = {
        tensor.name: np.zeros(tensor.shape, np.int8 if tensor.role == "weight" else np.float32)
        for tensor in SPEC.tensors
    }
    update = len(get_codec("int8").encode(SPEC, state, kind="update"))
    model = len(get_codec("int8").encode(SPEC, state, kind="model"))
    shares = SPEC.num_binary_weights * 4 * 3

    up = undisturbed["bits_per_weight_up"] * shares / 8
    down = undisturbed["bits_per_weight_down"] * shares / 8

    # 12 updates: a header of some hundred bytes, one chunk. 12 tasks, with the network's description, and 8 models (the
    # first round's are made from the seed).
    task = len(SPEC.to_json())
    assert 12 * (update + 200) < up < 12 * (update + 600)
    assert 12 * task + 8 * model < down < 12 * (task + 400) + 8 * (model + 40)
    assert undisturbed["updates"] == 12


@pytest.mark.parametrize("wait", ["round 1", "update 6"])
def test_a_killed_simulation_goes_on_to_the_same_end(tmp_path: Path, undisturbed: dict[str, Any], wait: str) -> None:
    what, number = wait.split()
    process = start(*UNEVEN, "--state", str(tmp_path / "work"), json_path=tmp_path / "never.json")
    wait_for(tmp_path / "work", rounds=int(number) if what == "round" else 0, lines=int(number) * (what == "update"))
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=LIMIT_S)
    assert not (tmp_path / "never.json").exists()

    result = run(tmp_path, *UNEVEN, "--state", str(tmp_path / "work"))

    assert outcome(result) == outcome(undisturbed)


def test_an_interrupted_simulation_ends_in_order_and_goes_on(tmp_path: Path) -> None:
    # Ten times as long as the others: on a busy machine the signal must not come when all is done.
    long = (*UNEVEN, "--local-steps", "4000")
    process = start(*long, "--state", str(tmp_path / "work"), json_path=tmp_path / "never.json")
    wait_for(tmp_path / "work", rounds=0, lines=2)
    process.send_signal(signal.SIGINT)
    _, complaints = process.communicate(timeout=LIMIT_S)

    assert process.returncode == 130
    assert b"Traceback" not in complaints
    assert outcome(run(tmp_path, *long, "--state", str(tmp_path / "work"))) == outcome(run(tmp_path, *long))


def test_a_finished_simulation_tells_its_result_again(tmp_path: Path) -> None:
    work = ("--state", str(tmp_path / "work"), "--rounds", "1")

    first, second = run(tmp_path, *work), run(tmp_path, *work)

    assert outcome(first) == outcome(second)


def test_a_work_folder_of_other_options_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, "--state", str(tmp_path / "work"), "--rounds", "1")

    assert "other options" in refusal(tmp_path, capsys, "--state", str(tmp_path / "work"), "--rounds", "2")


def test_absent_devices_send_and_receive_nothing(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    some, again = (run(tmp_path, *UNEVEN, "--absent", "0.4", "--shuffle-arrivals", seed) for seed in ("1", "2"))

    assert 0 < some["updates"] < undisturbed["updates"]
    assert some["bits_per_weight_up"] == pytest.approx(
        undisturbed["bits_per_weight_up"] * some["updates"] / undisturbed["updates"], rel=1e-3
    )
    assert outcome(some) == outcome(again)


def test_attackers_do_harm_and_more_with_more_force(tmp_path: Path) -> None:
    options = ("--rounds", "5", "--local-steps", "25", "--devices", "5", "--cohort", "5")

    honest, negated, scaled = (
        run(tmp_path, *options, *attack)["accuracy"]
        for attack in ((), ("--attackers", "2", "--attack", "negate"), ("--attackers", "2", "--attack", "scale"))
    )

    assert honest > negated > scaled


def test_memory_does_not_grow_with_the_fleet(tmp_path: Path) -> None:
    wide = ("--widths", "4096", "--rounds", "2", "--threads", "1")  # 303,104 weights
    few, many = (run_apart(tmp_path, "--devices", devices, *wide)["rss_peak_bytes"] for devices in ("4", "200"))

    # An idle device is a stream, some 45 kB; one payload of this model with a byte a weight would be six times that.
    assert (many - few) / 196 < 150_000


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--cohort", "7"), "--cohort must be at most --devices (6), got 7"),
        (("--absent", "1"), "absent must be in [0, 1)"),
        (("--attackers", "2"), "need each other"),
        (("--attackers", "2", "--attack", "shout"), "negate, scale"),
        (("--alpha", "0"), "alpha must be above 0"),
        (("--strategy", "vote"), "strategy must be one of"),
        (("--strategy", "fedadam", "--strategy-param", "step"), "must be NAME=NUMBER, got 'step'"),
        (("--strategy", "fedadam", "--strategy-param", "speed=1"), "speed"),
        (("--up", "morse"), "codec must be one of"),
        (("--devices", "5000", "--cohort", "1"), "number of shards"),
    ],
)
def test_wrong_options_are_told_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], words: str
) -> None:
    assert words in refusal(tmp_path, capsys, *options)


ONEBIT = ("--recipe", "onebit", "--alpha", "0.5", "--absent", "0.3", "--seed", "2", "--local-steps", "400")


@pytest.fixture(scope="module")
def undisturbed_onebit(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(tmp_path_factory.mktemp("onebit"), *ONEBIT, "--threads", "1")


def test_onebit_sends_little_more_than_a_bit_each_way(tmp_path: Path) -> None:
    wide = ("--widths", "256,256", "--rounds", "2")
    plain = run(tmp_path, *wide)

    result = run(tmp_path, *wide, "--recipe", "onebit")

    # Statistics, scales, tasks and headers of so small a network weigh more than the signs; all in all it is far less.
    assert result["bits_per_weight_up"] < plain["bits_per_weight_up"] / 3
    assert result["bits_per_weight_down"] < plain["bits_per_weight_down"] / 2


def test_onebit_does_not_depend_on_threads_or_order_either(tmp_path: Path, undisturbed_onebit: dict[str, Any]) -> None:
    shuffled = run(tmp_path, *ONEBIT, "--threads", "2", "--shuffle-arrivals", "1")

    assert outcome(shuffled) == outcome(undisturbed_onebit)


@pytest.mark.parametrize("lines", [2, 5, 7])
def test_a_killed_onebit_simulation_forgets_and_doubles_nothing(
    tmp_path: Path, undisturbed_onebit: dict[str, Any], lines: int
) -> None:
    process = start(*ONEBIT, "--state", str(tmp_path / "work"), json_path=tmp_path / "never.json")
    wait_for(tmp_path / "work", rounds=0, lines=lines)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=LIMIT_S)

    result = run(tmp_path, *ONEBIT, "--state", str(tmp_path / "work"))

    assert outcome(result) == outcome(undisturbed_onebit)


def test_a_recipe_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "recipe must be one of onebit" in refusal(tmp_path, capsys, "--recipe", "twobit")
