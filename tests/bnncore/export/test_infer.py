"""``bitfleet-infer``, a runtime in C++ of three files: the engine's logits, bit for bit, from a packed file alone."""

from __future__ import annotations

import os
import random
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest

from bnncore.export.interpreter import logits_of
from bnncore.export.packed import pack, unpack
from bnncore.spec import ModelSpec
from tests.bnncore.export_cases import SPECS, trained
from tests.patience import LIMIT_S

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("infer") / "bitfleet-infer"
    sources = sorted((REPOSITORY / "bnncore/native/infer").glob("*.cc"))
    options = ["-std=c++20", "-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-D_GLIBCXX_ASSERTIONS"]
    subprocess.run([os.environ.get("CXX", "c++"), *options, *sources, "-o", path], check=True)
    return path


def infer(program: Path, model: Path, samples: bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([program, model], input=samples, capture_output=True, check=False, timeout=LIMIT_S)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_it_gives_the_engines_bits(program: Path, spec: ModelSpec, tmp_path: Path) -> None:
    data = pack(spec, trained(spec, steps=1))
    (tmp_path / "m.bfpk").write_bytes(data)
    samples = np.random.default_rng(1).integers(0, 256, (5, spec.input_features)).astype(np.uint8)

    result = infer(program, tmp_path / "m.bfpk", samples.tobytes())

    assert result.returncode == 0, result.stderr
    rows = np.array([line.split() for line in result.stdout.decode().splitlines()])
    wanted = logits_of(unpack(data).folded, samples)
    assert np.array_equal(rows[:, 1:].astype(np.float32), wanted)
    assert np.array_equal(rows[:, 0].astype(int), wanted.argmax(axis=1))


def test_it_takes_no_damaged_file(program: Path, tmp_path: Path) -> None:
    chain, residual = (pack(spec, trained(spec, steps=1)) for spec in (SPECS[0], SPECS[6]))
    samples = bytes(SPECS[0].input_features)
    path, rng = tmp_path / "m.bfpk", random.Random(0)
    codes = []
    for number in range(120):
        body = bytearray((chain, residual)[number % 2][:-4])
        start = 12 + int.from_bytes(body[8:12], "little")  # of the table of sizes
        for _ in range(rng.randint(1, 3)):
            body[rng.randrange(start, min(len(body), start + 400))] = rng.randrange(256)
        path.write_bytes(bytes(body) + zlib.crc32(body).to_bytes(4, "little"))
        codes.append(infer(program, path, samples).returncode)
    path.write_bytes(chain[:-1])
    cut = infer(program, path, samples)
    path.write_bytes(chain)
    half = infer(program, path, samples[:-1])

    assert set(codes) <= {0, 3}  # a sign or a size that still fits goes unnoticed; nothing crashes
    assert codes.count(3) > 30
    assert (cut.returncode, b"checksum is wrong" in cut.stderr) == (3, True)
    assert (half.returncode, b"the last sample is not whole" in half.stderr) == (3, True)
