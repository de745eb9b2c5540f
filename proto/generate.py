"""Generate the Python modules of the wire protocol from their .proto files.

    python proto/generate.py           # write them beside their sources
    python proto/generate.py --check   # exit 1 when the committed ones are not what the sources say

The generated modules are committed, so that a device needs no generator.
"""

from __future__ import annotations

import sys
import tempfile
from importlib.resources import files
from pathlib import Path

PROTO_ROOT = Path(__file__).resolve().parent


def generate(out_root: Path) -> list[Path]:
    """Generate every module into ``out_root``.

    Args:
        out_root: an existing folder; modules land in it as ``bitfleet/v1/<name>_pb2.py`` and so on.

    Returns:
        The generated files, relative to ``out_root``, sorted.

    Raises:
        SystemExit: grpcio-tools is not installed, or a .proto file has an error (which protoc has printed).
    """
    try:
        from grpc_tools import protoc
    except ImportError:
        raise SystemExit("grpcio-tools is not installed; it comes with: pip install 'bitfleet[dev]'") from None

    sources = sorted(str(path.relative_to(PROTO_ROOT)) for path in PROTO_ROOT.rglob("*.proto"))
    status = protoc.main(
        [
            "protoc",
            f"--proto_path={PROTO_ROOT}",
            f"--proto_path={files('grpc_tools') / '_proto'}",
            f"--python_out={out_root}",
            f"--pyi_out={out_root}",
            f"--grpc_python_out={out_root}",
            *sources,
        ]
    )
    if status != 0:
        raise SystemExit(status)
    return sorted(path.relative_to(out_root) for path in out_root.rglob("*_pb2*.py*") if path.suffix != ".pyc")


def stale_modules() -> list[Path]:
    """List the generated modules, relative to ``proto/``, that differ from what the sources give or are missing."""
    with tempfile.TemporaryDirectory() as folder:
        fresh_root = Path(folder)
        return [
            path
            for path in generate(fresh_root)
            if not (PROTO_ROOT / path).exists() or (PROTO_ROOT / path).read_bytes() != (fresh_root / path).read_bytes()
        ]


def main(argv: list[str]) -> int:
    """Run the command line; see the module's docstring."""
    if argv == ["--check"]:
        stale = stale_modules()
        for path in stale:
            print(f"proto/{path} is not what its .proto file gives; run `make proto` and commit the result")
        return 1 if stale else 0
    if argv:
        print(__doc__)
        return 2
    generate(PROTO_ROOT)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
