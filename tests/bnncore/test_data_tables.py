"""Tables of real numbers: read, split by content, quantised by a range, and told what is wrong with them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pytest
from numpy.typing import NDArray
from pyarrow import parquet

from bnncore.checkpoint import load_checkpoint
from bnncore.data import Dataset, InputRange, open_dataset, open_for_job, survey_data
from bnncore.data.tables.csv_rows import read_csv
from bnncore.data.tables.npz_rows import read_npz
from bnncore.data.tables.opening import prepare_table
from bnncore.data.tables.sources import SETTLED_S
from bnncore.data.tables.values import write_values
from bnncore.errors import DataError
from tests.bnncore.cli_runs import run_json

UNIT = InputRange((0.0,), (255.0,))
"""Leaves whole numbers of one byte as they are."""


@pytest.fixture(autouse=True)
def no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """No data folder from outside."""
    monkeypatch.delenv("BITFLEET_DATA", raising=False)


def read_all(dataset: Dataset) -> NDArray[np.uint8]:
    out = np.zeros((dataset.num_examples, dataset.rows.row_bytes), np.uint8)
    dataset.read(np.arange(dataset.num_examples, dtype=np.uint32), out)
    return out.reshape(-1, *dataset.input_shape)


def samples(rows: int = 60) -> tuple[NDArray[np.float64], list[str]]:
    """Rows that can be told apart: a large first number, or a large second one."""
    random = np.random.default_rng(0)
    labels = ["walk" if row % 2 else "sit" for row in range(rows)]
    values = random.normal(0, 0.2, (rows, 6))
    values[:, 0] += [3.0 if label == "walk" else -3.0 for label in labels]
    return np.round(values, 4), labels


def write(kind: str, path: Path, values: NDArray[Any], labels: list[str]) -> None:
    names = [f"a{column}" for column in range(values.shape[1])]
    if kind == "csv":
        lines = [",".join(["label", *names])]
        lines += [",".join([label, *map(repr, row)]) for label, row in zip(labels, values.tolist(), strict=True)]
        path.write_text("\n".join(lines) + "\n")
    elif kind == "npz":
        np.savez_compressed(path, x=values, y=np.array(labels))
    else:
        columns = {name: values[:, position] for position, name in enumerate(names)}
        parquet.write_table(arrow.table({"label": labels, **columns}), path, row_group_size=7)


@pytest.mark.parametrize("kind", ["csv", "npz", "parquet"])
def test_rows_are_split_by_what_they_hold_and_quantised(tmp_path: Path, kind: str) -> None:
    values, labels = samples()
    write(kind, tmp_path / f"monday.{kind}", values, labels)
    input_range = InputRange((-4.0,), (4.0,))
    opened = {}
    for split in ("train", "test"):
        with open_dataset(None, tmp_path, split=split, input_range=input_range) as dataset:
            assert (dataset.name, dataset.classes, dataset.input_shape) == (kind, ("sit", "walk"), (6,))
            assert dataset.description["input_range"] == {"low": [-4.0], "high": [4.0]}
            rows = read_all(dataset)
            opened[split] = {
                row.tobytes(): dataset.classes[label] for row, label in zip(rows, dataset.labels, strict=True)
            }

    expected = {row.tobytes(): label for row, label in zip(input_range.quantise(values), labels, strict=True)}
    assert {**opened["train"], **opened["test"]} == expected
    assert 1 <= len(opened["test"]) <= 15
    survey = survey_data(kind, tmp_path)
    assert (survey.classes, survey.input_shape, survey.num_examples) == (("sit", "walk"), (6,), len(opened["train"]))
    assert (survey.needs_input_range, survey.any_image_shape) == (True, False)


def test_what_comes_later_before_or_in_another_file_leaves_every_row_in_its_split(tmp_path: Path) -> None:
    def keys(folder: Path) -> dict[str, set[int]]:
        write_values("csv", tmp_path, folder)
        return {split: set(np.fromfile(folder / f"{split}.keys", np.uint64).tolist()) for split in ("train", "test")}

    values, labels = samples(90)
    write("csv", tmp_path / "monday.csv", values[:60], labels[:60])
    before = keys(tmp_path / "before")
    write("csv", tmp_path / "monday.csv", values[::-1].copy(), labels[::-1])
    write("csv", tmp_path / "tuesday.csv", values[:3] + 100, labels[:3])
    after = keys(tmp_path / "after")

    assert len(before["train"] | before["test"]) == 60
    assert len(after["train"] | after["test"]) == 93
    assert before["train"] <= after["train"]
    assert before["test"] <= after["test"]


def test_a_job_gives_rows_their_shape_and_range(tmp_path: Path) -> None:
    values, labels = np.arange(24.0).reshape(4, 6), ["10", "9", "10", "2"]
    write("csv", tmp_path / "train.csv", values, labels)
    write("csv", tmp_path / "test.csv", values[:1], labels[:1])
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "walk.png").touch()  # makes no data set of pictures of it
    assert survey_data(None, tmp_path).name == "csv"
    input_range = InputRange((0.0, 1.0), (255.0, 256.0))

    with open_for_job("csv", tmp_path, split="train", input_shape=(3, 2), input_range=input_range) as dataset:
        assert dataset.classes == ("2", "9", "10")
        assert dataset.labels.tolist() == [2, 1, 2, 0]
        assert read_all(dataset)[1].tolist() == [[6, 6], [8, 8], [10, 10]]
        keys = dataset.keys()
    with open_for_job("csv", tmp_path, split="train", input_shape=(6,), input_range=UNIT) as dataset:
        assert np.array_equal(dataset.keys(), keys)  # held out by what was measured, whatever a job makes of it
    with open_dataset("csv", tmp_path, split="test") as dataset:  # by the training split's own range
        assert dataset.description["input_range"] == {"low": values[0].tolist(), "high": values[3].tolist()}
        assert read_all(dataset).tolist() == [[0] * 6]
    with pytest.raises(DataError, match=r"6 numbers, samples of shape \[7\] others"):
        open_for_job("csv", tmp_path, split="train", input_shape=(7,), input_range=UNIT)
    with pytest.raises(DataError, match="nothing says by input_range what they become"):
        open_for_job("csv", tmp_path, split="train", input_shape=(6,))


def test_rows_that_cannot_be_read_are_left_out_counted_and_named(tmp_path: Path) -> None:
    lines = [
        "time,x,y,label",
        "1,2,3,a",
        "",
        "1,,3,a",
        "1,x7,3,a",
        "1,2,a",
        "1,nan,3,b",
        "1,2,-inf,b",
        "1,2,3,",
        ' 4 , 5e0,"6", b ',
    ]
    (tmp_path / "train.csv").write_text("\n".join(lines) + "\n", encoding="utf-8-sig")

    with open_dataset("csv", tmp_path, split="train", input_range=UNIT) as dataset:
        assert (read_all(dataset).tolist(), dataset.classes) == ([[1, 2, 3], [4, 5, 6]], ("a", "b"))
        assert dataset.broken.count == 6
        told = [reason.partition("train.csv, ")[2] for reason in dataset.broken.reasons]
    assert told == [
        "line 4, column 'x': is empty",
        "line 5, column 'x': 'x7' is no number",
        "line 6 has 3 cells, 4 are wanted",
        "line 9 has no label",
        "line 7, column 'x': nan is no finite number",
        "line 8, column 'y': -inf is no finite number",
    ]


def test_a_line_that_is_still_being_written_waits(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("1,2,walking\n3,4,wal")  # no names, and a last line without an end
    os.utime(path, (later := time.time() + 60, later))  # however slow this machine is
    (rows,) = read_csv(path).blocks
    assert rows.labels == ["walking"]

    os.utime(path, (1, 1))
    (rows,) = read_csv(path).blocks
    assert rows.labels == ["walking", "wal"]


def test_what_another_process_has_prepared_meanwhile_stays_as_it_is(tmp_path: Path) -> None:
    write("csv", tmp_path / "train.csv", *samples(20))
    values, form = tmp_path / "values", json.dumps({"shape": [6], "low": [0.0], "high": [1.0]})

    def files() -> dict[str, int]:
        prepare_table(tmp_path, "train", values, kind="csv")
        prepare_table(tmp_path, "train", values / "train-form", form, kind="csv")
        return {str(path): path.stat().st_ino for path in values.rglob("*")}

    assert files() == files()


def test_a_line_that_waited_is_read_when_the_file_has_settled(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text("1,2,a\n3,4,b")
    survey_data("csv", tmp_path)
    time.sleep(max(0.0, path.stat().st_mtime + SETTLED_S + 0.1 - time.time()))

    assert survey_data("csv", tmp_path).classes == ("a", "b")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("a;b;label\n1;2;x\n", "separated by commas, got 'a;b;label'"),
        ("a,a,label\n1,2,x\n", "must name each column once"),
        ("a,b,label\nx,y,z\n", r"no row of the csv files .* line 2, column 'a': 'x' is no number"),
        ("a,label\n" + "".join(f"1,{number}\n" for number in range(300)), "more than 256 classes"),
        ("a,label\n" + "1" * (1 << 21), "line 2 is longer than"),
    ],
)
def test_a_file_that_is_no_table_is_told_so(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "train.csv").write_text(text)

    with pytest.raises(DataError, match=words):
        open_dataset("csv", tmp_path, split="train")


def test_arrays_keep_their_shape_and_are_never_unpickled(tmp_path: Path) -> None:
    x = np.arange(2 * 4 * 3, dtype=np.int16).reshape(2, 4, 3)
    np.savez(tmp_path / "train.npz", x=x, y=np.array([1, 0]), classes=np.array(["dog", "cat"]))
    with open_dataset("npz", tmp_path, split="train", input_range=UNIT) as dataset:
        assert dataset.input_shape == (4, 3)
        assert [dataset.classes[label] for label in dataset.labels] == ["cat", "dog"]
        assert np.array_equal(read_all(dataset), x)

    wrong: dict[str, dict[str, Any]] = {
        r"must hold numbers, got dtype object": {"x": np.array([[object()]]), "y": [1]},
        r"must hold x \[n, \.\.\.\] and y": {"x": x},
        r"n >= 1, got x \[2, 4, 3\] and y \[3\]": {"x": x, "y": [1, 2, 3]},
        r"lies in columns": {"x": np.asfortranarray(x), "y": [1, 0]},
        r"whole numbers or short texts, got dtype float64": {"x": x, "y": [0.5, 1.0]},
        r"y must be in \[0, 1\], as classes has 2, got 5": {"x": x, "y": [0, 5], "classes": ["a", "b"]},
    }
    for words, arrays in wrong.items():
        np.savez(tmp_path / "wrong.npz", **arrays)
        with pytest.raises(DataError, match=words):
            list(read_npz(tmp_path / "wrong.npz").blocks)
    whole = (tmp_path / "train.npz").read_bytes()
    for content in (whole[:200], b"", whole.replace(b"NUMPY", b"MUNPY")):
        (tmp_path / "wrong.npz").write_bytes(content)
        with pytest.raises(DataError, match="cannot be read"):
            list(read_npz(tmp_path / "wrong.npz").blocks)


def test_tables_whose_columns_differ_and_columns_of_texts_are_refused(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("a,b,label\n1,2,x\n")
    (tmp_path / "two.csv").write_text("a,c,label\n1,2,x\n")
    with pytest.raises(DataError, match=r"two\.csv must have the columns of .*one\.csv, a, b; got a, c"):
        open_dataset("csv", tmp_path, split="train")

    parquet.write_table(arrow.table({"a": [1, None], "b": ["p", "q"], "label": ["x", "y"]}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match="column 'b' must hold numbers, got string"):
        open_dataset("parquet", tmp_path, split="train")
    parquet.write_table(arrow.table({"a": [1, None, 3], "label": ["x", "y", None]}), tmp_path / "train.parquet")
    with open_dataset("parquet", tmp_path, split="train", input_range=UNIT) as dataset:
        assert (read_all(dataset).tolist(), dataset.broken.count) == ([[1]], 2)


def test_a_network_learns_from_a_table_and_is_tested_by_the_same_range(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write("csv", tmp_path / "all.csv", *samples(400))
    saved = tmp_path / "model.safetensors"
    options = ("--dataset", "csv", "--data", str(tmp_path), "--batch-size", "20")

    network = ("--model", "mlp", "--widths", "16", "--epochs", "5")
    trained = run_json(capsys, "train", *network, *options, "--save", str(saved))
    tested = run_json(capsys, "evaluate", str(saved), *options)

    assert trained["dataset"] == "csv"
    assert trained["accuracy"] == tested["accuracy"] > 90
    assert len(load_checkpoint(saved).extra["input_range"]["low"]) == 6


def test_a_range_is_checked_where_it_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    for low, high in ((1.0, 1.0), (2.0, 1.0), (0.0, float("nan")), (-1e308, 1e308)):
        with pytest.raises(DataError, match="finite low < high"):
            InputRange((low,), (high,))
    with pytest.raises(DataError, match="as many low as high"):
        InputRange((1.0,), ())
    with pytest.raises(DataError, match="must be LOW,HIGH, such as -2,2, got '3'"):
        InputRange.parse("3")
    assert InputRange((0.0, 10.0), (1.0, 20.0)).quantise(np.array([[-1.0, 15.0], [0.5, 99.0]])).tolist() == [
        [0, 128],
        [128, 255],
    ]


def test_training_imports_nothing_that_reads_tables(tmp_path: Path) -> None:
    write("csv", tmp_path / "train.csv", *samples(20))
    code = (
        "import json, sys; from pathlib import Path; from bnncore.data import open_dataset\n"
        "open_dataset('csv', Path(sys.argv[1]), split='train').close()\n"
        "print(json.dumps([name for name in ('pyarrow', 'zipfile', 'csv') if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True)

    assert json.loads(done.stdout) == []
