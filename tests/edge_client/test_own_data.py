"""A device whose owner has a folder of pictures or tables, in jobs of any form: real agents, real gRPC."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from bitfleet.v1 import fleet_pb2 as pb
from edge_client.data_signature import data_signature
from tests.edge_client.conftest import Start
from tests.edge_client.wire import Coordinator, make_task


def paint(path: Path, colour: tuple[int, int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 16), colour).save(path)


async def test_pictures_are_brought_to_the_shape_of_each_job(
    coordinator: Coordinator, start: Start, tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    for number in range(12):
        paint(folder / "train" / "a" / f"{number}.png", (255, number, 0))
        paint(folder / "train" / "c" / f"{number}.png", (0, number, 255))
    start(coordinator.port, data=folder)

    await coordinator.give(make_task(1, steps=2, input_shape=(6, 5))[0])  # grey
    await coordinator.give(make_task(2, steps=2, input_shape=(7, 9, 3), job_id="other")[0])
    await coordinator.until(lambda: len(coordinator.updates) == 2 or coordinator.reports)

    assert not coordinator.reports
    assert [header.num_examples for header, _ in coordinator.updates] == [24, 24]
    data = coordinator.hellos[0].data
    assert (list(data.classes), data.num_examples) == (["a", "c"], 24)
    assert (data.any_image_shape, data.needs_input_range) == (True, False)


async def test_real_numbers_become_input_by_the_range_of_a_task(
    coordinator: Coordinator, start: Start, tmp_path: Path
) -> None:
    folder = tmp_path / "table"
    folder.mkdir()
    rows = [f"{number},{-number},{number % 7},0.5,{'ac'[number % 2]}\n" for number in range(40)]
    (folder / "train.csv").write_text("".join(rows))
    start(coordinator.port, data=folder)

    tasks = [make_task(number, steps=2, input_shape=(2, 2), job_id=f"job{number}")[0] for number in (1, 2, 3)]
    for task, low, high in zip(tasks, ([-50.0], [-50.0, 0.0], [3.0]), ([50.0], [50.0, 1.0], [2.0]), strict=True):
        task.input_range.CopyFrom(pb.InputRange(low=low, high=high))
        await coordinator.give(task)
    await coordinator.until(lambda: len(coordinator.updates) == 2 and coordinator.reports)

    assert [header.num_examples for header, _ in coordinator.updates] == [40, 40]
    assert "the task's input_range makes no sense: a range must have finite low < high" in coordinator.reports[0].reason
    data = coordinator.hellos[0].data
    assert (list(data.classes), list(data.input_shape), data.num_examples) == (["a", "c"], [4], 40)
    assert (data.any_image_shape, data.needs_input_range) == (False, True)


async def test_what_comes_later_is_announced_when_no_task_is_at_hand(
    coordinator: Coordinator, start: Start, tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    for number in range(12):
        paint(folder / "train" / "a" / f"{number}.png", (255, number, 0))
    device = start(coordinator.port, "--watch", "0.1", data=folder)
    await coordinator.give(make_task(1, steps=30_000)[0])  # ten heartbeats long, not one
    await coordinator.until(lambda: any(beat.step > 0 for beat in coordinator.heartbeats))
    for number in range(3):
        paint(folder / "train" / "c" / f"{number}.png", (0, number, 255))
    await coordinator.until(lambda: len(coordinator.hellos) == 2)

    (header, _), *rest = coordinator.updates  # it came first, and of what was there when the task began
    assert (header.num_examples, rest) == (12, [])
    assert (list(coordinator.hellos[1].data.classes), coordinator.hellos[1].data.num_examples) == (["a", "c"], 15)
    assert "no link to server" not in device.log

    await coordinator.give(make_task(2, steps=2)[0])
    await coordinator.until(lambda: len(coordinator.updates) == 2)
    assert coordinator.updates[1][0].num_examples == 15
    shutil.rmtree(folder / "train")
    (folder / "train").mkdir()
    await coordinator.until(lambda: len(coordinator.hellos) == 3)
    assert (list(coordinator.hellos[2].data.classes), coordinator.hellos[2].data.num_examples) == (["a", "c"], 0)


def test_a_folder_that_nobody_touches_is_not_read_again(tmp_path: Path) -> None:
    paint(tmp_path / "train" / "a" / "0.png", (1, 2, 3))
    known = data_signature(tmp_path)

    def look(signature: str) -> dict[str, Any]:
        code = (
            "import sys; from edge_client import inspect; inspect.SETTLE_S = 0.01\n"
            f"inspect.main(['--data', {str(tmp_path)!r}, '--known', {signature!r}])\n"
            "assert ('numpy' in sys.modules) == (sys.argv[1] == 'read')"
        )
        expected = "known" if signature == known else "read"
        done = subprocess.run([sys.executable, "-c", code, expected], check=True, stdout=subprocess.PIPE)
        return dict(json.loads(done.stdout))

    assert look(known) == {"signature": known}
    changed = look("before")
    assert (changed["signature"], changed["num_examples"], changed["any_image_shape"]) == (known, 1, True)
    (tmp_path / "train" / "a" / ".0.png.part").write_bytes(b"half")
    assert data_signature(tmp_path) == known
    paint(tmp_path / "train" / "a" / "0.png", (1, 2, 4))
    assert data_signature(tmp_path) != known
