"""Job files: the same job in every format, mistakes with their file and line, changes from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bnncore.errors import ConfigurationError
from bnncore.zoo import mlp
from server.errors import InvalidJobError
from server.job_files import apply_changes, as_written, differences, load_job, parse_changes, read_job_file
from server.jobs import parse_job
from tests.server.conftest import make_job

TEXTS = {
    "job.toml": """\
# a comment
name = "digits"
classes = ["no", "1"]
input_shape = [4, 4]
rounds = 10
local_steps = 5
starts_at = 2026-12-01T08:00:00+01:00

[model]
zoo = "mlp"
params.widths = [16]
""",
    "job.yaml": """\
name: digits  # a comment
classes: ["no", "1"]
input_shape: [4, 4]
rounds: 10
local_steps: 5
starts_at: 2026-12-01T08:00:00+01:00
model:
  zoo: mlp
  params:
    widths: [16]
""",
    "job.json": """\
{
  "name": "digits",
  "classes": ["no", "1"],
  "input_shape": [4, 4],
  "rounds": 10,
  "local_steps": 5,
  "starts_at": "2026-12-01T08:00:00+01:00",
  "model": {"zoo": "mlp", "params": {"widths": [16]}}
}
""",
}


def written(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_all_formats_say_the_same(tmp_path: Path) -> None:
    jobs = {load_job(written(tmp_path, name, text)).to_json() for name, text in TEXTS.items()}

    (text,) = jobs
    job = parse_job(json.loads(text))
    assert job.classes == ["no", "1"]
    assert job.starts_at is not None
    assert job.starts_at.isoformat() == "2026-12-01T08:00:00+01:00"


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [
        ("job.toml", "rounds = 10", "rounds = 0", "{}:5: rounds: .*greater than or equal to 1 .got 0"),
        (
            "job.toml",
            "params.widths",
            "param.widths",
            r"{}:11: model\.param: there is no such key; did you mean params",
        ),
        ("job.toml", "name", "nome", r"{}:2: nome: there is no such key; did you mean name\?"),
        ("job.toml", "local_steps = 5\n", "", "{}: local_steps: is required, and missing"),
        ("job.yaml", '["no", "1"]', "[no, 1]", r"{0}:2: classes\.0: .*, so write it in quotes .*\n{0}:2: classes\.1: "),
        ("job.yaml", "rounds: 10", "rounds: 10\nup_codec: gzip", "{}:5: up_codec: codec must be one of .*int8"),
        ("job.yaml", "rounds: 10", "rounds: 10\nquorum: 3\ncohort_size: 2", "{}:5: job: quorum .3. can never"),
        ("job.yaml", "+01:00", "", "{}:6: starts_at: .*timezone"),
        ("job.yaml", "2026-12-01T08:00:00+01:00", "8", "{}:6: starts_at: a time with its offset is needed"),
        ("job.yaml", "zoo: mlp", "zoo: mlpp", "{}:7: model: model must be one of .*mlp"),
        ("job.json", '"local_steps": 5', '"local_steps": "5"', "{}:6: local_steps: .*valid integer .got '5'"),
        ("job.json", "  ", "\t", "."),
    ],
)
def test_a_mistake_is_told_with_its_line(tmp_path: Path, name: str, old: str, new: str, words: str) -> None:
    path = written(tmp_path, name, TEXTS[name].replace(old, new))

    if words == ".":  # no mistake: but one of a file that is no YAML is told without its line
        path = written(tmp_path, name, path.read_text().replace("10", "-1"))
        words = "{}: rounds: .*got -1"
    with pytest.raises(InvalidJobError, match=words.format(path)):
        load_job(path)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("j.yaml", "name: [", r"as YAML: (.|\n)*j\.yaml\", line 1"),
        ("j.yaml", "name: x\nname: y", "key 'name' is written twice(.|\n)*line 2"),
        ("j.yaml", "1: x", "key 1 must be a text"),
        ("j.yaml", "a: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("j.json", '{"a": 1, "a": 2}', "as JSON: key 'a' is written twice"),
        ("j.toml", "a = 1\nb = ]", "as TOML: .*line 2"),
    ],
)
def test_a_file_that_cannot_be_parsed_says_where(tmp_path: Path, name: str, text: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        read_job_file(written(tmp_path, name, text))


def test_keys_are_changed_from_the_command_line(tmp_path: Path) -> None:
    file = read_job_file(written(tmp_path, "job.toml", TEXTS["job.toml"]))
    words = ["rounds=3", "model.params.widths=[8,8]", "evaluation.dataset=digits", "recipe=onebit", "starts_at="]

    job = file.validate(parse_changes(words))

    assert (job.rounds, job.recipe, job.up_codec, job.starts_at) == (3, "onebit", "sign", None)
    assert job.spec == mlp((4, 4), (8, 8), 2)
    assert job.evaluation is not None
    assert job.evaluation.dataset == "digits"
    assert file.value["rounds"] == 10


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("rounds", "--set must be KEY=VALUE"),
        ("rounds=[", r"--set rounds: '\[' is no value"),
        ("rounds=" + 100_000 * "[", r"--set rounds: '\[{70,79} is no value: the value is nested too deeply"),
        ("rounds.more=1", "cannot set rounds.more: rounds is 10, which has no keys"),
        ("strategy_params" + 5_000 * ".a" + "=1", r"cannot set strategy_params\.a.*: it has 5001 parts, at most 32"),
        ("round=3", r"--set round: there is no such key; did you mean rounds\?"),
        ("model.params.widths=[0]", "model: .*widths|model"),
        ("deadline_s=.inf", "--set deadline_s: .*finite"),
    ],
)
def test_a_change_that_makes_no_sense_is_refused(tmp_path: Path, word: str, words: str) -> None:
    file = read_job_file(written(tmp_path, "job.yaml", TEXTS["job.yaml"]))

    with pytest.raises(InvalidJobError, match=words):
        file.validate(parse_changes([word]))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"recipe": "onebit", "statistics_batches": 7},
        {"strategy": "fedadam", "strategy_params": {"beta1": 0.5}, "evaluation": {"dataset": "digits"}},
        {"start": {"model": "other", "version": 3}, "secure_aggregation": {}, "min_devices": 3},
        {"device_labels": {f"key{number}": "value" for number in range(2_000)}},
    ],
)
def test_a_job_is_written_back_in_its_fewest_keys(changes: dict[str, Any]) -> None:
    asked = {
        "name": "stripes",
        "model": {"zoo": "mlp", "params": {"widths": [16]}},
        "classes": ["a", "b"],
        "input_shape": [4, 4],
        "rounds": 3,
        "local_steps": 4,
        **changes,
    }
    job = parse_job(asked)

    assert as_written(job) == asked
    assert parse_job(as_written(job)) == job


def test_jobs_differ_in_what_they_do_and_not_in_how_they_are_written() -> None:
    job = make_job()
    same = make_job(model={"spec": job.spec.to_dict()}, strategy_params={"server_step": 1})
    other = make_job(model={"zoo": "mlp", "params": {"widths": [8]}}, rounds=4, evaluation={"dataset": "digits"})

    assert differences(job, same) == []
    assert [(item.key, item.first, item.second) for item in differences(job, other)] == [
        ("model.params.widths", [16], [8]),
        ("rounds", 3, 4),
        ("evaluation.dataset", None, "digits"),
    ]


def test_changes_leave_the_original_alone() -> None:
    job = {"model": {"params": {"widths": [1]}}}

    assert apply_changes(job, {"model.params.widths": None, "a.b": 1}) == {"model": {"params": {}}, "a": {"b": 1}}
    assert job == {"model": {"params": {"widths": [1]}}}
