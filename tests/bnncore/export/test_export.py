"""Exported networks give the engines' logits, bit for bit: ONNX in onnxruntime, the packed file in NumPy."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest

from bnncore.checkpoint import save_checkpoint
from bnncore.cli.main import main
from bnncore.data import open_dataset
from bnncore.errors import CheckpointError
from bnncore.export.folded import fold
from bnncore.export.interpreter import logits_of
from bnncore.export.onnx_model import onnx_model
from bnncore.export.packed import load_packed, pack, unpack
from bnncore.optimizer import resolve_preset
from bnncore.predictor import Predictor
from bnncore.reference import ReferenceEngine
from bnncore.reference.residual import ResidualReference
from bnncore.spec import ModelSpec
from bnncore.zoo import mlp
from tests.bnncore.export_cases import SPECS, trained

onnxruntime = pytest.importorskip("onnxruntime")


def run_onnx(model: object, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])  # type: ignore[attr-defined]
    logits, labels = session.run(["logits", "label"], {"samples": samples})
    return logits, labels


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_every_network_gives_the_engines_bits(spec: ModelSpec) -> None:
    state = trained(spec)
    samples = np.random.default_rng(1).integers(0, 256, (40, spec.input_features)).astype(np.uint8)
    reference = (ReferenceEngine if spec.residual is None else ResidualReference)(
        spec, resolve_preset("bitfleet", None).optimizer, state, 0
    )
    wanted = reference.evaluate(samples, np.zeros(40, np.int32))["logits"]
    predictor = Predictor(spec, state, batch_size=40)
    predictor.input[:] = samples

    logits, labels = run_onnx(onnx_model(spec, state), samples.reshape(40, *spec.input_shape))
    packed = unpack(pack(spec, state, classes=["a"] * spec.classes))

    assert np.array_equal(logits.view(np.uint32), wanted.view(np.uint32))
    assert np.array_equal(labels, predictor.predict_batch(40))
    assert np.array_equal(logits_of(packed.folded, samples).view(np.uint32), wanted.view(np.uint32))
    assert packed.folded.spec == spec


def test_thresholds_beyond_all_sums_and_the_largest_sums_are_exact() -> None:
    spec = mlp((65_536,), (8,), 3)  # the most that an engine takes
    state = trained(spec, steps=1)
    state["norm1.mean_abs_dev"] = np.array([0, 0, 1e30, 1e30, 5, 5, 5, 5], np.float32)
    state["norm1.beta"] = np.array([-1, 1, -1, 1, 0, 0, 0, 0], np.float32)
    state["norm1.mean"] = np.array([0, 0, 0, 0, 16_711_680.0, -16_711_680.0, 1, 0], np.float32)
    samples = np.random.default_rng(1).integers(0, 256, (9, 65_536)).astype(np.uint8)
    signs = fold(spec, state).blocks[0].signs.reshape(8, -1)  # type: ignore[union-attr]
    samples[0] = np.where(signs[4] > 0, 255, 0)  # the largest sum of one channel, the least of another
    samples[1] = np.where(signs[5] > 0, 0, 255)
    reference = ReferenceEngine(spec, resolve_preset("bitfleet", None).optimizer, state, 0)

    logits, _ = run_onnx(onnx_model(spec, state), samples)

    assert np.array_equal(logits, reference.evaluate(samples, np.zeros(9, np.int32))["logits"])


def test_the_command_exports_what_was_trained_on_real_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = tmp_path / "digits.safetensors"
    train = ["train", "--dataset", "digits", "--widths", "32", "--epochs", "3", "--batch-size", "50"]
    assert main([*train, "--save", str(checkpoint)]) == 0
    capsys.readouterr()

    assert main(["export", str(checkpoint), "--format", "onnx", "--classes", ",".join("0123456789")]) == 0
    assert (
        main(["export", str(checkpoint), "--format", "packed", "--output", str(tmp_path / "d.bfpk"), "--json", "-"])
        == 0
    )
    told = json.loads(capsys.readouterr().out.partition("{")[2].join(["{", ""]))

    session = onnxruntime.InferenceSession(str(tmp_path / "digits.onnx"), providers=["CPUExecutionProvider"])
    packed = load_packed(tmp_path / "d.bfpk")
    with open_dataset("digits", None, split="test") as dataset:
        samples = np.empty((len(dataset.labels), dataset.rows.row_bytes), np.uint8)
        dataset.read(np.arange(len(samples), dtype=np.uint32), samples)
        labels = np.asarray(dataset.labels)
    logits, label = session.run(["logits", "label"], {"samples": samples.reshape(-1, 8, 8)})
    assert (label == labels).mean() > 0.8
    assert np.array_equal(logits, logits_of(packed.folded, samples))
    properties = session.get_modelmeta().custom_metadata_map
    assert json.loads(properties["classes"]) == list("0123456789")
    assert properties["weights_digest"] == packed.weights_digest == told["weights_digest"]
    assert told["bytes"] == (tmp_path / "d.bfpk").stat().st_size < 5000


def test_what_cannot_be_exported_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = mlp((2, 2), (4,), 2)
    state = {name: array for name, array in trained(spec).items() if "mean" not in name}
    save_checkpoint(tmp_path / "bare.safetensors", spec, state)
    save_checkpoint(tmp_path / "whole.safetensors", spec, trained(spec))

    def complaint(*options: str) -> str:
        assert main(["export", *options]) == 3
        return capsys.readouterr().err

    assert "has no running statistics" in complaint(str(tmp_path / "bare.safetensors"), "--format", "onnx")
    whole = str(tmp_path / "whole.safetensors")
    assert "--classes must name 2 classes, got 1" in complaint(whole, "--format", "packed", "--classes", "a")
    assert "cannot be written" in complaint(whole, "--format", "packed", "--output", str(tmp_path / "no" / "x"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: b"", "does not begin as one"),
        (lambda data: b"x" + data[1:], "does not begin as one"),
        (lambda data: data[:4] + b"\2\0" + data[6:], "version 2, this bitfleet reads 1"),
        (lambda data: data[:-9], "checksum is wrong"),
        (lambda data: data[:40] + b"!" + data[41:], "checksum is wrong"),
        (lambda data: signed(data[:8] + b"\xff\xff\xff\0" + data[12:-4]), "header ends beyond the file"),
        (lambda data: signed(data[:12] + b"[" + data[13:-4]), "header is not valid"),
        (lambda data: signed(data[:-4] + bytes(8)), "8 bytes follow its network"),
        (lambda data: signed(data[:-12]), "ends before the numbers"),
        (lambda data: signed(data[:-12] + b"\0\0\0\0\0\0\xf0\x7f"), "is not finite"),
    ],
)
def test_a_damaged_packed_file_is_refused(tmp_path: Path, change: object, words: str) -> None:
    spec = mlp((2, 2), (4,), 2)
    data = change(pack(spec, trained(spec)))  # type: ignore[operator]
    (tmp_path / "x.bfpk").write_bytes(data)

    with pytest.raises(CheckpointError, match=f"x.bfpk is no valid packed file: .*{words}"):
        load_packed(tmp_path / "x.bfpk")


def signed(body: bytes) -> bytes:
    return body + zlib.crc32(body).to_bytes(4, "little")
