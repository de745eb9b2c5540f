"""All that devices send in whole rounds, recorded: no sample, no list of labels, no canary is in it, in any codec."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bnncore.codec import CODECS
from bnncore.data import open_dataset, write_idx
from tests.e2e.processes import Fleet, split_digits
from tests.e2e.relay import Relay

DEVICES = ("device-1", "device-2", "device-3")
CLASSES = [str(digit) for digit in range(10)]
CANARIES = 20
"""Copies among the first device's samples, so that every local step is likely to see one."""


class RecordedFleet(Fleet):
    """A fleet whose devices speak through a relay."""

    relay: Relay

    def start_coordinator(self) -> None:
        super().start_coordinator()
        self.relay = Relay(self.grpc)
        self.relay.__enter__()
        self.grpc = self.relay.address

    def close(self) -> None:
        super().close()
        self.relay.__exit__()


def canary() -> NDArray[np.uint8]:
    """An image of 8 x 8 like no other."""
    return np.random.default_rng(20).integers(1, 256, (8, 8), dtype=np.uint8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The digits over the devices; the first has the canary among its own."""
    folders = split_digits(tmp_path_factory.mktemp("shards"), DEVICES)
    with open_dataset(None, folders[DEVICES[0]], split="train") as dataset:
        images, labels = samples(dataset)
        classes = list(dataset.classes)
    images[:: len(images) // CANARIES] = canary()
    write_idx(folders[DEVICES[0]], images, labels, "train", classes=classes)
    with open_dataset(None, folders[DEVICES[0]], split="train") as dataset:
        assert sum(np.array_equal(image, canary()) for image in samples(dataset)[0]) >= CANARIES
    return folders


def samples(dataset: Any) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    rows = np.empty((dataset.num_examples, 64), np.uint8)
    dataset.read(np.arange(dataset.num_examples, dtype=np.uint32), rows)
    return rows.reshape(-1, 8, 8), np.array(dataset.labels)


def job_of(name: str, **keys: Any) -> dict[str, Any]:
    return {
        "name": name,
        "model": {"zoo": "mlp", "params": {"widths": [64]}},
        "classes": CLASSES,
        "input_shape": [8, 8],
        "rounds": 2,
        "min_devices": len(DEVICES),
        "quorum": len(DEVICES),
        "deadline_s": 600.0,
        "local_steps": 40,
        "statistics_batches": 2,
        "evaluation": {"dataset": "digits"},
        **keys,
    }


JOBS = [
    *(job_of(f"up-{name}", up_codec=name) for name in CODECS),
    job_of("onebit", recipe="onebit"),
    *(
        job_of(f"secure-{name}", up_codec=name, secure_aggregation={"min_members": 3, "phase_s": 600})
        for name in ("sign", "int8")
    ),
]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, folders: dict[str, Path]) -> Iterator[RecordedFleet]:
    """A fleet that has completed all the jobs."""
    fleet = RecordedFleet(tmp_path_factory.mktemp("fleet"), JOBS, folders, "--max-jobs", str(len(JOBS)))
    try:
        fleet.start()
        fleet.wait_until_completed()
        for name in DEVICES:
            assert fleet.devices[name].terminate() == 0
        yield fleet
    finally:
        fleet.close()


def needles(image: NDArray[np.uint8]) -> Iterator[tuple[str, bytes]]:
    """An image in each way in which it could be written: whole, and a row of it where that says enough."""
    flat = image.reshape(-1)
    signed = flat.astype(np.int16) * 2 - 255
    numbers: dict[str, NDArray[Any]] = {
        "uint8": flat,
        "int8, less 128": (flat.astype(np.int16) - 128).astype(np.int8),
        "int16, 2 u - 255": signed,
        **{
            f"{dtype}, {what}": values.astype(dtype)
            for dtype in ("float16", "float32", "float64")
            for what, values in (
                ("u", flat.astype(np.float64)),
                ("u / 255", flat / 255),
                ("2 u - 255", signed.astype(np.float64)),
                ("2 u / 255 - 1", signed / 255),
                ("u / 16", flat / 16),
            )
        },
    }
    for what, values in numbers.items():
        for order, data in (("as it is", values), ("big-endian", values.astype(values.dtype.newbyteorder(">")))):
            yield f"{what}, {order}", data.tobytes()
            yield f"{what}, {order}, its second row", data.reshape(8, 8)[1].tobytes()
    for threshold in (64, 128):
        for bitorder in ("little", "big"):
            packed = np.packbits(flat >= threshold, bitorder=bitorder)
            yield f"bits from {threshold}, {bitorder}", packed.tobytes()
            yield f"bits below {threshold}, {bitorder}", (~packed).tobytes()


def haystacks(fleet: RecordedFleet) -> list[bytes]:
    """Every message, and every payload put together from its chunks."""
    return [*(data for _, _, data in fleet.relay.messages), *(data for _, data in fleet.relay.payloads())]


def test_every_kind_of_payload_was_recorded(recorded: RecordedFleet) -> None:
    payloads = recorded.relay.payloads()
    codecs = {header.codec for header, _ in payloads if header.step == 0}
    steps = {header.step for header, _ in payloads}

    assert codecs == set(CODECS)
    assert steps == {0, 1, 2, 3, 4}
    assert {method for method, _, _ in recorded.relay.messages} >= {"Connect", "SubmitUpdate"}


def test_a_search_of_this_kind_finds_what_is_there(recorded: RecordedFleet) -> None:
    image = canary()
    leaks = [b"x" + image.tobytes(), (image / 255).astype(np.float32).tobytes(), np.packbits(image >= 128).tobytes()]

    assert all(any(needle in leak for _, needle in needles(image)) for leak in leaks)


def test_the_canary_is_in_nothing_that_left(recorded: RecordedFleet) -> None:
    everything = haystacks(recorded)

    found = [what for what, needle in needles(canary()) for data in everything if needle in data]

    assert found == []


def test_no_sample_and_no_list_of_labels_is_in_anything_that_left(
    recorded: RecordedFleet, folders: dict[str, Path]
) -> None:
    everything = haystacks(recorded)
    for folder in folders.values():
        with open_dataset(None, folder, split="train") as dataset:
            images, labels = samples(dataset)
        for image in images:
            raw = image.tobytes()
            assert not any(raw in data for data in everything)
        for dtype in (np.uint8, np.int32, np.int64, np.float32):
            run = labels[:32].astype(dtype).tobytes()
            assert not any(run in data for data in everything)
        counts = np.bincount(labels, minlength=10)
        assert all(str(list(counts)).encode() not in data for data in everything)


def test_the_ledgers_hold_every_byte_that_left(recorded: RecordedFleet) -> None:
    told = 0
    for name in DEVICES:
        ledger = recorded.ledger(name)
        told += sum(row["bytes"] for row in (*ledger["payloads"], *ledger["reports"])) + ledger["other"]["bytes"]
        assert recorded.verify(name)["intact"]

    assert told == recorded.relay.num_bytes()


def test_what_is_sent_under_masks_says_nothing_of_the_data_beside(recorded: RecordedFleet) -> None:
    for header, _ in recorded.relay.payloads():
        if header.step:
            told = header.metrics
            assert (header.num_examples, told.loss, told.accuracy, told.validation_examples) == (1, 0.0, 0.0, 0)
            assert (told.validation_correct, told.validation_loss) == (0, 0.0)


def test_masked_updates_of_one_vector_have_nothing_in_common(recorded: RecordedFleet) -> None:
    masked = [data for header, data in recorded.relay.payloads() if header.step == 3]
    assert masked
    for one, other in pairwise(masked):
        size = min(len(one), len(other)) - 64
        bits = np.frombuffer(one[-size:], np.uint8) ^ np.frombuffer(other[-size:], np.uint8)
        ones = int(np.unpackbits(bits).sum())
        assert abs(ones - 4 * size) < 6 * (2 * size) ** 0.5  # six standard deviations of a fair coin
