"""Fuzz the readers of files and messages for a while: ``make fuzz``.

Each target of ``fuzz_targets`` gets an equal share of the time, in a process of its own. Where atheris is installed it
looks for input that reaches new code, from the corpus that earlier runs left in the folder; elsewhere mutations are
drawn at random. An exception that is not one of bitfleet's ends the run; its input lies in the folder as ``crash-*``.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import random
import re
import subprocess
import sys
import time
import traceback
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
LONGEST = 1 << 14


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="time for all targets together (60)")
    parser.add_argument("--folder", type=Path, default=REPOSITORY / "build/fuzz", help="corpus and findings")
    parser.add_argument("--only", metavar="TARGET", help="one target, in this process")
    parser.add_argument("--without-coverage", action="store_true", help="draw at random even where atheris is there")
    arguments = parser.parse_args()
    guided = not arguments.without_coverage and importlib.util.find_spec("atheris") is not None
    sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests/bnncore")]
    if arguments.only is not None:
        folder: Path = arguments.folder / arguments.only
        folder.mkdir(parents=True, exist_ok=True)
        return (fuzz_guided if guided else fuzz_blindly)(arguments.only, arguments.seconds, folder)

    import fuzz_targets

    if not guided:
        print("atheris is not installed: mutations are drawn without looking at what they reach", flush=True)
    for name in fuzz_targets.TARGETS:
        command = [sys.executable, __file__, "--only", name, "--folder", str(arguments.folder)]
        command += ["--seconds", str(arguments.seconds / len(fuzz_targets.TARGETS))]
        command += ["--without-coverage"] * arguments.without_coverage
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            print(result.stdout, result.stderr, sep="", file=sys.stderr)
            print(f"{name}: failed; its input is in {arguments.folder / name}", file=sys.stderr)
            return 1
        executed = re.findall(r"^stat::number_of_executed_units: *(\d+)", result.stderr, re.MULTILINE)
        print(f"{name}: {executed[0]} inputs" if executed else result.stdout.strip(), flush=True)
    return 0


def fuzz_blindly(name: str, seconds: float, folder: Path) -> int:
    """Mutate valid input at random; give the exit code."""
    import fuzz_targets

    if name == "broken":  # for the test of this program
        fuzz_targets.TARGETS[name] = lambda data: print(1 // (len(data) % 3), file=sys.stderr)
    seeds = fuzz_targets.seeds().get(name, [b"{}"])
    rng = random.Random(time.time_ns())
    runs = loaded = 0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        data = fuzz_targets.mutate(rng.choice(seeds), rng)
        try:
            loaded += fuzz_targets.run_target(name, data)
        except BaseException:  # noqa: BLE001  (a finding is whatever it is)
            traceback.print_exc()
            (folder / f"crash-{hashlib.sha1(data).hexdigest()}").write_bytes(data)
            return 1
        runs += 1
    print(f"{name}: {runs} inputs, {loaded} of them loaded", flush=True)
    return 0


def fuzz_guided(name: str, seconds: float, folder: Path) -> int:
    """Let atheris look for new paths through the readers; does not return where it finds something."""
    import atheris  # type: ignore[import-not-found]

    with atheris.instrument_imports(include=["bnncore", "json"], exclude=["bnncore._native"]):
        import fuzz_targets

    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    for seed in fuzz_targets.seeds()[name]:
        (corpus / f"seed-{hashlib.sha1(seed).hexdigest()}").write_bytes(seed)

    def test_one_input(data: bytes) -> None:
        fuzz_targets.run_target(name, data)

    def mutate(data: bytes, longest: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.3:
            return bytes(atheris.Mutate(data, longest))
        return fuzz_targets.mutate(bytes(data), rng)[:longest]

    options = [f"-max_total_time={max(1, round(seconds))}", f"-max_len={LONGEST}", f"-artifact_prefix={folder}/"]
    atheris.Setup(
        [sys.argv[0], *options, "-print_final_stats=1", "-timeout=10", str(corpus)],
        test_one_input,
        custom_mutator=mutate,
    )
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
