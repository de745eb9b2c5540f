"""Models that come as steps, updates that go as differences: with a real agent, over real gRPC."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from bitfleet.v1 import fleet_pb2 as pb
from bnncore.codec import get_difference_codec, get_state_codec
from bnncore.federated.feedback import tell_difference
from bnncore.federated.local_state import read_local_state
from bnncore.federated.replica import apply_step, make_step
from bnncore.spec import ModelSpec
from bnncore.state import State, to_float32
from tests.edge_client.conftest import Start
from tests.edge_client.device import Device
from tests.edge_client.wire import Coordinator, make_task


def digest(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()


def onebit_task(number: int, model: bytes, *steps: pb.ModelStep, from_seed: bool = False) -> pb.Task:
    task, _ = make_task(number, optimizer="latent8", from_seed=from_seed)
    task.down_codec = task.up_codec = "sign"
    task.training.statistics_batches = 3
    task.model_digest, task.model_bytes = digest(model), len(model)
    task.steps.extend(steps)
    return task


class Chain:
    """Models that follow each other, as a coordinator makes them."""

    def __init__(self) -> None:
        task, first = make_task(optimizer="latent8")
        self.spec = ModelSpec.from_json(task.spec_json)
        self.models = [first]
        self.steps: list[pb.ModelStep] = []
        self.payloads: dict[str, bytes] = {}

    def state(self, number: int) -> State:
        return get_state_codec("int8").decode(self.spec, self.models[number], kind="model")

    def grow(self) -> None:
        replica = self.state(-1)
        rng = np.random.default_rng(len(self.models))
        master = {
            name: np.clip(to_float32(array) + rng.normal(0, 0.1, array.shape), -1, 1).astype(np.float32)
            for name, array in replica.items()
        }
        step = make_step(self.spec, master, replica, get_difference_codec("sign"))
        payload = get_difference_codec("sign").encode(self.spec, step, kind="step")
        model = get_state_codec("int8").encode(self.spec, apply_step(replica, step), kind="model")
        base = bytes.fromhex(digest(self.models[-1]))
        self.steps.append(pb.ModelStep(base_digest=base, digest=bytes.fromhex(digest(payload)), num_bytes=len(payload)))
        self.payloads[digest(payload)] = payload
        self.payloads[digest(model)] = model
        self.models.append(model)


@pytest.fixture
def chain(coordinator: Coordinator) -> Chain:
    chain = Chain()
    for _ in range(3):
        chain.grow()
    coordinator.models.update(chain.payloads)
    return chain


async def train(coordinator: Coordinator, task: pb.Task) -> tuple[pb.UpdateHeader, bytes]:
    """Have a task done; give the update."""
    before = len(coordinator.updates)
    await coordinator.give(task)
    await coordinator.until(lambda: len(coordinator.updates) > before or coordinator.reports)
    assert not coordinator.reports, coordinator.reports
    return coordinator.updates[-1]


async def settled(device: Device, number: int) -> None:
    """Wait until the device has the answer to its update of a round, and has put things in order."""
    await device.until(lambda: (device.state.last_task() or {}).get("round_number") == number)


async def test_a_device_follows_steps_and_downloads_nothing_else(
    coordinator: Coordinator, start: Start, chain: Chain
) -> None:
    device = start(coordinator.port)
    await train(coordinator, onebit_task(1, chain.models[0], from_seed=True))
    await train(coordinator, onebit_task(2, chain.models[1], *chain.steps[:1], from_seed=True))
    await settled(device, 2)
    header, _ = await train(coordinator, onebit_task(4, chain.models[3], *chain.steps[:3]))

    assert [request.model_digest for request in coordinator.downloads] == [step.digest.hex() for step in chain.steps]
    assert header.metrics.downloaded_bytes == sum(step.num_bytes for step in chain.steps[1:])
    assert device.state.models.sizes()[digest(chain.models[3])] == len(chain.models[3])


async def test_a_device_that_holds_nothing_on_the_way_downloads_the_model(
    coordinator: Coordinator, start: Start, chain: Chain
) -> None:
    start(coordinator.port)
    await train(coordinator, onebit_task(4, chain.models[3], *chain.steps[1:]))

    assert [request.model_digest for request in coordinator.downloads] == [digest(chain.models[3])]


async def test_steps_that_lead_elsewhere_are_given_up_for_the_model(
    coordinator: Coordinator, start: Start, chain: Chain
) -> None:
    start(coordinator.port)
    wrong = pb.ModelStep(base_digest=chain.steps[0].base_digest, digest=chain.steps[1].digest, num_bytes=len(
        chain.payloads[chain.steps[1].digest.hex()]))  # fmt: skip
    await train(coordinator, onebit_task(2, chain.models[1], wrong, from_seed=True))

    assert [request.model_digest for request in coordinator.downloads] == [
        chain.steps[1].digest.hex(), digest(chain.models[1])
    ]  # fmt: skip


async def test_what_an_update_could_not_say_is_in_the_next_one(
    coordinator: Coordinator, start: Start, chain: Chain
) -> None:
    device = start(coordinator.port, "--device-id", "bird-1")
    await train(coordinator, onebit_task(1, chain.models[0], from_seed=True))
    await settled(device, 1)
    owed = read_local_state(device.state.local_states.path("job"), chain.spec).feedback
    _, payload = await train(coordinator, onebit_task(2, chain.models[0], from_seed=True))
    device.kill()

    start(coordinator.port, "--device-id", "bird-1", state="other")
    plain = onebit_task(2, chain.models[0], from_seed=True)
    plain.up_codec = "int8"
    _, whole = await train(coordinator, plain)

    trained = get_state_codec("int8").decode(chain.spec, whole, kind="update")
    codec = get_difference_codec("sign")
    difference, _ = tell_difference(chain.spec, trained, chain.state(0), owed, codec)
    without, _ = tell_difference(chain.spec, trained, chain.state(0), None, codec)
    assert payload == codec.encode(chain.spec, difference, kind="update")
    assert payload != codec.encode(chain.spec, without, kind="update")


async def test_a_rejected_update_leaves_the_feedback_as_it_was(
    coordinator: Coordinator, start: Start, chain: Chain
) -> None:
    device = start(coordinator.port)
    await train(coordinator, onebit_task(1, chain.models[0], from_seed=True))
    await settled(device, 1)
    kept = device.state.local_states.path("job").read_bytes()

    coordinator.answer = lambda header: pb.SubmitUpdateResponse(status=pb.SUBMIT_STATUS_LATE, reason="late")
    await train(coordinator, onebit_task(2, chain.models[0], from_seed=True))
    await settled(device, 2)

    assert device.state.local_states.path("job").read_bytes() == kept


async def test_damaged_feedback_is_left_out(
    coordinator: Coordinator, start: Start, chain: Chain, tmp_path: Path
) -> None:
    device = start(coordinator.port)
    await train(coordinator, onebit_task(1, chain.models[0], from_seed=True))
    await settled(device, 1)
    path = device.state.local_states.path("job")
    path.write_bytes(path.read_bytes()[:-1])

    await train(coordinator, onebit_task(2, chain.models[0], from_seed=True))
    await settled(device, 2)

    assert "the local state of the last update is left out" in device.log
    assert set(read_local_state(path, chain.spec).feedback) == {"dense1.weight", "dense2.weight"}
