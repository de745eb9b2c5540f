"""A device's surroundings for the tests: its data, a coordinator, a wire that can be cut, and the agent's process."""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from bnncore.data import write_idx
from tests.edge_client.device import Device
from tests.edge_client.wire import Coordinator, Wire

Start = Callable[..., Device]


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """60 samples of 8 x 8 in three classes: a bright patch each, with noise."""
    random = np.random.default_rng(0)
    labels = np.arange(60) % 3
    images = random.integers(0, 90, (60, 8, 8), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[2 * label : 2 * label + 3, 2:6] += 150
    folder = tmp_path / "data"
    write_idx(folder, images, labels, "train", classes=["a", "b", "c"])
    return folder


@pytest.fixture
async def coordinator() -> AsyncIterator[Coordinator]:
    async with Coordinator() as running:
        yield running


@pytest.fixture
async def wire(coordinator: Coordinator) -> AsyncIterator[Wire]:
    async with Wire(coordinator.port) as running:
        yield running


@pytest.fixture
def start(tmp_path: Path, data_dir: Path) -> Iterator[Start]:
    """Start agents; those that still run when the test ends are killed and reaped, with all they started."""
    devices: list[Device] = []

    def starter(port: int, *arguments: str, data: Path | None = None, state: str = "state") -> Device:
        device = Device(port, data or data_dir, tmp_path / state, arguments)
        devices.append(device)
        return device

    yield starter
    for device in devices:
        device.kill()
