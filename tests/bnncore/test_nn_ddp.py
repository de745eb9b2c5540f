"""Two processes on this machine train one network together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from bnncore.nn import Sequential  # noqa: E402
from tests.bnncore.nn_cases import make_layers  # noqa: E402
from tests.patience import LIMIT_S  # noqa: E402

FOLDER = Path(__file__).resolve().parent


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed")
def test_two_processes_take_the_steps_of_their_mean_gradient(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(FOLDER.parents[1]), "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, str(FOLDER / "nn_ddp_worker.py")]
    workers = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store"), str(tmp_path / f"{rank}.pt")], env=environment)
        for rank in (0, 1)
    ]
    try:
        codes = [worker.wait(timeout=LIMIT_S) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert codes == [0, 0]
    states = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]

    modules, _ = make_layers("pool before the norm")
    expected = by_hand(Sequential(*modules))

    for name, parameter in expected.items():
        assert torch.equal(states[0][name], states[1][name])
        # Signs of weights are all that counts, and no gradient is close enough to 0 for rounding to turn one.
        assert torch.allclose(states[0][name], parameter, rtol=1e-4, atol=1e-6)


def by_hand(network: Any) -> dict[str, Any]:
    """Take the same steps in one process: the mean of the gradients of both batches."""
    from tests.bnncore.nn_ddp_worker import STEPS, half

    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(STEPS):
        optimizer.zero_grad()
        for rank in (0, 1):
            x, labels = half(rank)
            (nn.functional.cross_entropy(network(x), labels) / 2).backward()
        optimizer.step()
    return dict(network.named_parameters())
