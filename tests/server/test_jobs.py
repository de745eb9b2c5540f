"""The job file: what is filled in, and what is refused with which words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bnncore.errors import ConfigurationError
from bnncore.zoo import mlp
from server.errors import InvalidJobError
from server.job_files import load_job
from server.job_parts import EvaluationChoice
from server.jobs import JobConfig, parse_job

JOB: dict[str, Any] = {
    "name": "digits",
    "model": {"zoo": "mlp", "params": {"widths": [16]}},
    "classes": ["0", "1", "2"],
    "input_shape": [4, 4],
    "rounds": 10,
    "local_steps": 5,
}


def test_what_is_left_out_is_filled_in() -> None:
    job = parse_job(JOB)

    assert (job.min_devices, job.cohort_size, job.quorum, job.deadline_s) == (1, 0, None, 600.0)
    assert (job.batch_size, job.preset, job.optimizer, job.step_schedule) == (100, "bitfleet", None, "linear")
    assert (job.strategy, job.up_codec, job.down_codec, job.seed) == ("fedavg", "int8", "int8", 0)
    assert job.strategy_params == {"server_step": 1.0}
    assert (job.evaluation, job.max_attempts) == (None, 3)
    assert job.spec == mlp((4, 4), (16,), 3)


def test_local_tensors_are_named_by_patterns() -> None:
    job = parse_job({**JOB, "local_tensors": ["norm?.beta", "dense2.*", "*.mean_abs_dev"]})

    assert job.local_names == {
        "norm1.beta", "norm2.beta", "dense2.weight", "norm1.mean_abs_dev", "norm2.mean_abs_dev"
    }  # fmt: skip
    assert parse_job(JOB).local_names == frozenset()
    assert JobConfig.from_json(job.to_json()) == job


def test_a_network_may_be_written_out() -> None:
    spec = mlp((4, 4), (7,), 3)

    assert parse_job({**JOB, "model": {"spec": spec.to_dict()}}).spec == spec


class NewerPart(EvaluationChoice):
    """What a version to come may make of it."""

    added = frozenset({"mood"})
    mood: str = "calm"


class NewerJob(JobConfig):
    added = frozenset({"haste"})
    haste: int = 0
    evaluation: NewerPart | None = None


def test_an_older_version_reads_a_newer_ones_job_unless_that_asks_for_something_new() -> None:
    written = {**JOB, "evaluation": {"dataset": "digits"}}
    job = NewerJob.model_validate(written)
    asking = [
        NewerJob.model_validate({**written, "haste": 1}),
        NewerJob.model_validate({**written, "evaluation": {"dataset": "digits", "mood": "wild"}}),
    ]

    assert job.to_json() == parse_job(written).to_json()
    for newer, key in zip(asking, ("haste", "evaluation.mood"), strict=True):
        assert NewerJob.model_validate(json.loads(newer.to_json())) == newer
        with pytest.raises(InvalidJobError, match=key):
            JobConfig.from_json(newer.to_json())


def test_a_job_survives_being_stored() -> None:
    job = parse_job({**JOB, "seed": 2**64 - 1, "evaluation": {"dataset": "digits"}})

    assert JobConfig.from_json(job.to_json()) == job
    assert JobConfig.from_json(job.to_json()).to_json() == job.to_json()


@pytest.mark.parametrize(
    ("schedule", "expected"), [("constant", [1, 1, 1]), ("linear", [1, 0.55, 0.1]), ("cosine", [1, 0.55, 0.1])]
)
def test_the_step_size_follows_its_schedule(schedule: str, expected: list[float]) -> None:
    job = parse_job({**JOB, "rounds": 11, "step_schedule": schedule})

    assert [job.step_scale(number) for number in (1, 6, 11)] == pytest.approx(expected)


def test_cosine_is_slow_at_both_ends() -> None:
    job = parse_job({**JOB, "rounds": 11, "step_schedule": "cosine"})

    assert job.step_scale(2) > 1 - 0.09  # linear: 1 - 0.9 / 10
    assert job.step_scale(10) < 0.1 + 0.09


def test_a_single_round_takes_full_steps() -> None:
    assert parse_job({**JOB, "rounds": 1}).step_scale(1) == 1.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"colour": "red"}, "colour: there is no such key; the keys here are batch_size, classes"),
        (
            {"model": {"zoo": "mlp", "width": 3}},
            r"model\.width: there is no such key; the keys here are params, spec, zoo",
        ),
        ({"rounds": 0}, "rounds: .*greater than or equal to 1"),
        ({"rounds": "10"}, "rounds: .*valid integer"),
        ({"name": "../x"}, "name: .*pattern"),
        ({"model": {}}, "exactly one of"),
        ({"model": {"zoo": "mlp", "spec": {}}}, "exactly one of"),
        ({"model": {"spec": {"format": "x"}}}, "the job is not valid"),
        (
            {"model": {"zoo": "resnet"}},
            "model must be one of binarynet, bireal18, cnv, mlp, resnete18, sensor1d, got 'resnet'",
        ),
        (
            {"model": {"zoo": "resnete18"}, "input_shape": [32, 32, 3], "preset": "paper"},
            "trains chains of binary blocks only",
        ),
        ({"model": {"zoo": "mlp", "params": {"depth": 3}}}, "depth"),
        (
            {"local_tensors": ["*.beta", "head.*"]},
            r"'head\.\*' matches no tensor .* which has dense1\.weight, norm1\.beta",
        ),
        ({"local_tensors": ["*.weight", "*.beta"]}, "leaves no parameter that devices share"),
        ({"model": {"zoo": "cnv"}}, "'cnv' is too deep for images of 4 x 4"),
        ({"input_range": {"low": [1], "high": [1]}}, "finite low < high, got 1 and 1 of channel 0"),
        ({"input_range": {"low": [0, 1], "high": [2, 3]}}, r"shape \[4, 4\] must have 1 or 4 low and high values"),
        ({"model": {"zoo": "mlp", "params": {"classes": 4}}}, "tells 4 classes apart, but the job names 3"),
        (
            {"model": {"spec": mlp((5, 5), (7,), 3).to_dict()}},
            r"samples of shape \[5, 5\], but input_shape is \[4, 4\]",
        ),
        ({"classes": ["a", "a", "b"]}, "classes must differ"),
        ({"cohort_size": 3, "quorum": 4}, r"quorum \(4\) can never be reached with a cohort_size of 3"),
        ({"deadline_s": float("inf")}, "deadline_s"),
        ({"start": {"model": "x"}}, "start: .*exactly one of"),
        ({"start": {"checkpoint": "x", "version": 1}}, "start: .*exactly one of"),
        ({"local_seconds": 0.0}, "local_seconds: .*greater than 0"),
        ({"target_accuracy": 90.0}, "target_accuracy .* needs an evaluation"),
        ({"over_select": 0.5}, "over_select asks devices beyond cohort_size, which must be set"),
        ({"over_select": -1, "cohort_size": 3}, "over_select"),
        ({"strategy": "fedbuff"}, "strategy 'fedbuff' needs quorum"),
        ({"strategy": "fedbuff", "quorum": 2, "strategy_params": {"max_staleness": 1.5}}, "must be whole, got 1.5"),
        ({"strategy": "best"}, "strategy must be one of .*fedavg"),
        ({"strategy_params": {"beta1": 0.5}}, "strategy 'fedavg' has the parameters server_step, not 'beta1'"),
        ({"strategy_params": {"server_step": 0}}, "server_step of strategy 'fedavg' must be above 0 to 100, got 0"),
        ({"strategy_params": {"server_step": "1"}}, r"strategy_params\.server_step"),
        ({"up_codec": "gzip"}, "codec must be one of"),
        ({"step_schedule": "steep"}, "step_schedule"),
        ({"seed": -1}, "seed"),
        ({"starts_at": "2026-12-01T08:00:00"}, "starts_at: .*timezone"),
        ({"starts_at": "9999-12-31T23:59:59-12:00"}, "starts_at: a year from 1971 to 9998"),
        ({"starts_at": "0001-01-01T00:00:00+14:00"}, "starts_at: "),
        ({"starts_at": 3e9}, "starts_at: a time with its offset is needed"),
        ({"starts_at": "1800000000"}, "starts_at: a time with its offset is needed"),
        ({"evaluation": {"set": "digits"}}, r"evaluation\.set: there is no such key; did you mean dataset\?"),
    ],
)
def test_a_job_that_cannot_run_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidJobError, match=words):
        parse_job({**JOB, **changes})


@pytest.mark.parametrize("value", [None, [], "digits", 3])
def test_a_job_is_an_object(value: object) -> None:
    with pytest.raises(InvalidJobError, match="valid dictionary"):
        parse_job(value)


def test_json_and_toml_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(json.dumps(JOB))
    (tmp_path / "job.toml").write_text(
        'name = "digits"\nclasses = ["0", "1", "2"]\ninput_shape = [4, 4]\nrounds = 10\nlocal_steps = 5\n'
        '[model]\nzoo = "mlp"\nparams = {widths = [16]}\n'
    )

    assert load_job(tmp_path / "job.toml") == load_job(tmp_path / "job.json") == parse_job(JOB)


@pytest.mark.parametrize(("name", "text"), [("j.json", "{"), ("j.toml", "= 3"), ("j.json", '"\ud800"'), ("none", None)])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, text: str | None) -> None:
    if text is not None:
        (tmp_path / name).write_text(text, errors="surrogatepass")

    with pytest.raises(ConfigurationError, match=f"cannot read the job file .*{name}"):
        load_job(tmp_path / name)


def test_a_job_in_a_file_that_is_not_valid_is_named(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(json.dumps({**JOB, "rounds": -1}))

    with pytest.raises(InvalidJobError, match=r"the job is not valid:\n.*job\.json:1: rounds"):
        load_job(tmp_path / "job.json")
