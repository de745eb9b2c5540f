"""The streaming benchmark, small: it really measures what it says."""

import json
import subprocess
import sys
from pathlib import Path

from tests.patience import LIMIT_S

REPOSITORY = Path(__file__).resolve().parents[2]


def test_every_update_is_counted_and_the_contract_s_keys_are_there(tmp_path: Path) -> None:
    picture = tmp_path / "streaming.png"
    command = ["-m", "benchmarks.streaming", "--model", "mlp", "--devices", "1,3", "--codec", "int8", "--folds", "8"]

    done = subprocess.run(
        [sys.executable, *command, "--json", "-", "--plot", picture],
        cwd=REPOSITORY,
        capture_output=True,
        timeout=LIMIT_S,
    )

    assert done.returncode == 0, done.stderr.decode()
    assert picture.stat().st_size > 0
    result = json.loads(done.stdout)
    assert (result["model"], result["tls"], result["durable"]) == ("mlp", True, True)
    assert list(result["rss_peak_bytes_by_devices"]) == ["1", "3"]
    assert min(result["rss_peak_bytes_by_devices"].values()) > result["payload_bytes"] > result["weights"]
    assert min(result["processor_s_per_update"].values()) > 0
    assert min(result["updates_per_s"], result["fold_only_updates_per_s"]) > 0
