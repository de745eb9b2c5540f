"""Fuzz everything that reads foreign bytes: ``make fuzz``.

Each target of ``targets`` gets an equal share of the inputs, or of the time, in a process of its own. Where atheris is
installed it looks for input that reaches new code, from the corpus that earlier runs left in the folder; elsewhere
mutations are drawn at random, the same ones for the same ``--seed``. An exception that is no refusal ends the run, and
so does an allocation of more than ``ROOM_BYTES``; the input lies in the folder as ``crash-*`` then.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import random
import re
import resource
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "proto")]

if TYPE_CHECKING:
    from tests.fuzz.target import Target

LONGEST = 1 << 14
"""Bytes of an input."""
ROOM_BYTES = 256 << 20
"""Address space that a process may take beyond what it has after its first inputs: an input that has more allocated at
once is a finding."""
WARM_UP = 200
"""Inputs after which a process has loaded and cached what it needs."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("--seconds", type=float, default=60, help="time for all targets together (60)")
    amount.add_argument("--inputs", type=int, help="inputs for all targets together, instead of a time")
    parser.add_argument("--folder", type=Path, default=REPOSITORY / "build/fuzz", help="corpus and findings")
    parser.add_argument("--only", metavar="TARGET", help="one target, in this process")
    parser.add_argument("--resume", action="store_true", help="leave out the targets that the last run was done with")
    parser.add_argument("--seed", type=int, default=0, help="of mutations that are drawn at random (0)")
    parser.add_argument("--without-coverage", action="store_true", help="draw at random even where atheris is there")
    arguments = parser.parse_args()
    guided = not arguments.without_coverage and importlib.util.find_spec("atheris") is not None
    if arguments.only is not None:
        folder: Path = arguments.folder / re.sub(r"\W+", "-", arguments.only)
        folder.mkdir(parents=True, exist_ok=True)
        fuzz = fuzz_guided if guided else fuzz_blindly
        return fuzz(arguments.only, Watch(arguments.only, arguments.inputs, arguments.seconds), folder, arguments.seed)

    from tests.fuzz.targets import all_targets

    if not guided:
        print("atheris is not installed: mutations are drawn without looking at what they reach", flush=True)
    names = list(all_targets())
    share = ["--seconds", str(arguments.seconds / len(names))]
    if arguments.inputs is not None:
        share = ["--inputs", str(-(-arguments.inputs // len(names)))]
    arguments.folder.mkdir(parents=True, exist_ok=True)
    kept = arguments.folder / "results.jsonl"
    if not arguments.resume:
        kept.write_text("")
    rows = [json.loads(line) for line in kept.read_text().splitlines()]
    for name in [name for name in names if name not in {row["name"] for row in rows}]:
        command = [sys.executable, "-m", "tests.fuzz", "--only", name, "--folder", str(arguments.folder), *share]
        command += ["--seed", str(arguments.seed), *["--without-coverage"] * arguments.without_coverage]
        result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            print(result.stdout, result.stderr, sep="", file=sys.stderr)
            print(f"{name}: failed; its input is in {arguments.folder}", file=sys.stderr)
            return 1
        rows.append(json.loads(result.stdout.splitlines()[-1]))
        with open(kept, "a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
        print(
            "{name}: {inputs} inputs, {loaded} loaded, {seconds:.1f} s, {peak_mib:.0f} MiB".format(**rows[-1]),
            flush=True,
        )
    (arguments.folder / "results.md").write_text(table_of(rows))
    print(f"{sum(row['inputs'] for row in rows)} inputs, 0 crashes; table in {arguments.folder / 'results.md'}")
    return 0


def table_of(rows: list[dict[str, Any]]) -> str:
    """Write the outcome as Markdown."""
    lines = ["| reader | inputs | loaded | refused | crashes | seconds | peak MiB | of which after the start |"]
    lines.append("| --- " + "| ---: " * 7 + "|")
    for row in rows:
        refused, more = row["inputs"] - row["loaded"], row["peak_mib"] - row["start_mib"]
        lines.append(
            f"| {row['name']} | {row['inputs']:,} | {row['loaded']:,} | {refused:,} | 0 | {row['seconds']:.0f} "
            f"| {row['peak_mib']:.0f} | {more:.1f} |"
        )
    total = sum(row["inputs"] for row in rows)
    loaded = sum(row["loaded"] for row in rows)
    seconds = sum(row["seconds"] for row in rows)
    lines.append(f"| all | {total:,} | {loaded:,} | {total - loaded:,} | 0 | {seconds:.0f} | | |")
    return "\n".join(lines) + "\n"


class Watch:
    """Counts the inputs of one target, and says when there were enough."""

    def __init__(self, name: str, inputs: int | None, seconds: float) -> None:
        self.name = name
        self._inputs = inputs
        self._seconds = seconds
        self._began = time.monotonic()
        self._count = self._loaded = self._start_kib = 0

    @property
    def is_over(self) -> bool:
        if self._inputs is not None:
            return self._count >= self._inputs
        return time.monotonic() - self._began >= self._seconds

    def take(self, *, loaded: bool) -> None:
        """Count an input that was dealt with."""
        self._count += 1
        self._loaded += loaded
        if self._count == WARM_UP:
            self._start_kib = _memory_kib("VmHWM")
            most = (_memory_kib("VmSize") << 10) + ROOM_BYTES
            resource.setrlimit(resource.RLIMIT_AS, (most, most))

    def tell(self) -> None:
        """Print one line of JSON: what came of it."""
        peak = _memory_kib("VmHWM")
        row = {
            "name": self.name,
            "inputs": self._count,
            "loaded": self._loaded,
            "seconds": time.monotonic() - self._began,
            "start_mib": (self._start_kib or peak) / 1024,
            "peak_mib": peak / 1024,
        }
        print(json.dumps(row), flush=True)


def _memory_kib(field: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{field}:")[1].split()[0])


def target_of(name: str) -> Target:
    from tests.fuzz.target import Target
    from tests.fuzz.targets import all_targets

    if name == "broken":  # for the test of this program
        return Target(lambda data: print(1 // (len(data) % 3), file=sys.stderr), lambda: [b"{}"])
    return all_targets()[name]


def fuzz_blindly(name: str, watch: Watch, folder: Path, seed: int) -> int:
    """Mutate valid input at random; give the exit code."""
    target = target_of(name)
    seeds = target.make_seeds()
    rng = random.Random(f"{name} {seed}")
    while not watch.is_over:
        data = target.mutate(rng.choice(seeds), rng)
        try:
            loaded = target.loads(data)
        except BaseException:  # noqa: BLE001  (a finding is whatever it is)
            traceback.print_exc()
            (folder / f"crash-{hashlib.sha1(data).hexdigest()}").write_bytes(data)
            return 1
        watch.take(loaded=loaded)
    watch.tell()
    return 0


def fuzz_guided(name: str, watch: Watch, folder: Path, seed: int) -> int:
    """Let atheris look for new paths through the readers; does not return."""
    import atheris

    ours = ["bnncore", "edge_client", "server", "json", "tomllib"]
    with atheris.instrument_imports(include=ours, exclude=["bnncore._native"]):
        target = target_of(name)
    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    for data in target.make_seeds():
        (corpus / f"seed-{hashlib.sha1(data).hexdigest()}").write_bytes(data)

    def test_one_input(data: bytes) -> None:
        watch.take(loaded=target.loads(data))
        if watch.is_over:
            watch.tell()
            os._exit(0)

    def mutate(data: bytes, longest: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.3:
            return bytes(atheris.Mutate(data, longest))
        return target.mutate(bytes(data), rng)[:longest]

    options = [f"-max_len={LONGEST}", f"-artifact_prefix={folder}/", f"-seed={seed + 1}", "-timeout=10"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], test_one_input, custom_mutator=mutate)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
