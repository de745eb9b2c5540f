"""A device judges the models that it is given on data that it never trains on: with a real agent, over real gRPC."""

from pathlib import Path

from bitfleet.v1 import fleet_pb2 as pb
from bnncore.data import open_dataset
from bnncore.federated.validation import held_out_rows
from tests.edge_client.conftest import Start
from tests.edge_client.wire import Coordinator, make_task


def judged_task(number: int, *, steps: int = 20) -> pb.Task:
    task, _ = make_task(number, steps=steps)
    task.training.statistics_batches = 3
    task.training.local_validation = 0.25
    if steps == 0:
        task.up_codec = "float32"
    return task


async def test_a_score_travels_with_the_update(coordinator: Coordinator, start: Start, data_dir: Path) -> None:
    start(coordinator.port, "--device-id", "bird-1")
    await coordinator.give(judged_task(1))
    await coordinator.until(lambda: len(coordinator.updates) == 1)
    await coordinator.give(judged_task(2, steps=0))
    await coordinator.until(lambda: len(coordinator.updates) == 2)

    (first, _), (closing, _) = coordinator.updates
    with open_dataset(None, data_dir, split="train") as dataset:
        held_out = int(held_out_rows(dataset.keys(), 0.25, "bird-1").sum())
    assert first.metrics.validation_examples == held_out > 0
    assert first.num_examples == 60 - held_out
    assert 0 <= first.metrics.validation_correct <= held_out
    assert first.metrics.validation_loss > 0
    # Nothing was trained in between: the same model, the same part, statistics of other batches.
    assert closing.metrics.validation_examples == held_out
    assert closing.metrics.steps == 0


async def test_without_a_part_there_is_no_score(coordinator: Coordinator, start: Start) -> None:
    start(coordinator.port)
    await coordinator.give(make_task()[0])
    await coordinator.until(lambda: coordinator.updates)

    header, _ = coordinator.updates[0]
    assert (header.metrics.validation_examples, header.num_examples) == (0, 60)
