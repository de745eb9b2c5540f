"""What the benchmark of a client's footprint reads, on this environment."""

import sys
from pathlib import Path

from benchmarks.client_footprint import LIMITS, installed_sizes, write_data
from bnncore.data import open_dataset


def test_packages_are_counted_without_their_bytecode(tmp_path: Path) -> None:
    sizes = installed_sizes(Path(sys.executable), "tqdm", "numpy")
    write_data(tmp_path / "data")

    assert list(sizes) == ["tqdm", "numpy"]
    assert 10_000 < sizes["tqdm"][0] < sizes["numpy"][0] < 100_000_000
    assert all(code >= 0 for _, code in sizes.values())
    assert set(LIMITS) == {"installed_bytes", "first_poll_s", "idle_rss_bytes"}
    with open_dataset(None, tmp_path / "data", split="train") as dataset:
        assert dataset.classes == ("a", "b", "c", "d")
