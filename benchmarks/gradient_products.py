"""Ways to multiply 8-bit gradients by sign bits, side by side on this processor: docs/kernels.md has the outcome.

    python -m benchmarks.gradient_products

Compiles ``native/gradient_products.cc`` with g++ and runs it; every way is checked against plain sums before it is
timed, on one thread, by its own processor time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parent / "native/gradient_products.cc"
PROGRAM = Path("build/gradient_products")


def measure() -> list[tuple[str, str, int]]:
    """Give (instruction set, way, GMAC/s) of every way that this processor can run."""
    PROGRAM.parent.mkdir(parents=True, exist_ok=True)
    # -w: g++ 12 warns of its own intrinsics.
    subprocess.run(["g++", "-std=c++20", "-O3", "-w", str(SOURCE), "-o", str(PROGRAM)], check=True)
    lines = subprocess.run([str(PROGRAM.resolve())], check=True, capture_output=True, text=True).stdout.splitlines()
    return [(isa, way, int(rate)) for isa, way, rate in (line.split() for line in lines)]


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="PATH", type=Path, help="write the rates to PATH")
    args = parser.parse_args()
    try:
        rows = measure()
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"the comparison needs g++ and an x86-64 processor: {error}")
    for isa, way, rate in rows:
        print(f"{isa:8} {way:18} {rate:5d} GMAC/s")
    if args.json is not None:
        args.json.write_text(json.dumps([dict(zip(("isa", "way", "gmacs_per_s"), row, strict=True)) for row in rows]))


if __name__ == "__main__":
    main()
