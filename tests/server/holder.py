"""A scripted device that holds what a device of a job with steps or statistics holds between its tasks."""

from __future__ import annotations

import asyncio

from bitfleet.v1 import fleet_pb2 as pb
from bnncore.codec import get_difference_codec, get_state_codec, payload_digest
from bnncore.engine import Engine
from bnncore.federated.feedback import tell_difference
from bnncore.federated.replica import follow_steps
from bnncore.optimizer import resolve_preset
from bnncore.seeds import derive_seed
from bnncore.spec import ModelSpec
from bnncore.state import State
from tests.server.scripted import ScriptedDevice, samples_of, train_task


class Holder:
    """What one device holds: its newest model, and what it could not say."""

    def __init__(self, device: ScriptedDevice) -> None:
        self.device = device
        self.model = b""
        self.downloads: list[int] = []
        self._owed: State | None = None

    async def update(self, task: pb.Task) -> bytes:
        """Do a task up to its update's payload."""
        spec = ModelSpec.from_json(task.spec_json)
        await self._advance(task, spec)
        statistics = observe(task, self.device.device_id, spec, self.model)
        if task.training.local_steps == 0:
            return get_state_codec(task.up_codec).encode(spec, statistics, kind="statistics")
        plain = pb.Task.FromString(task.SerializeToString())
        plain.down_codec = "int8"
        trained = {**await asyncio.to_thread(train_task, plain, self.device.device_id, self.model), **statistics}
        base = get_state_codec("int8").decode(spec, self.model, kind="model")
        codec = get_difference_codec(task.up_codec)
        difference, self._owed = tell_difference(spec, trained, base, self._owed, codec)
        return codec.encode(spec, difference, kind="update")

    async def _advance(self, task: pb.Task, spec: ModelSpec) -> None:
        if not self.model:
            engine = Engine(spec, batch_size=1, preset=resolve_preset("bitfleet"))
            engine.initialise(task.initial_seed)
            self.model = get_state_codec("int8").encode(spec, engine.state(), kind="model")
        held = payload_digest(self.model)
        bases = [step.base_digest.hex() for step in task.steps]
        steps = []
        if held != task.model_digest:
            steps = [await self.device.download(step.digest.hex()) for step in task.steps[bases.index(held) :]]
        self.downloads.append(sum(map(len, steps)))
        self.model = bytes(follow_steps(spec, self.model, steps, task.down_codec))
        assert payload_digest(self.model) == task.model_digest

    async def work(self, rounds: int) -> list[pb.Task]:
        tasks = []
        for _ in range(rounds):
            task = await self.device.next_task()
            answer = await self.device.submit(task, await self.update(task))
            assert answer.status == pb.SUBMIT_STATUS_ACCEPTED, answer.reason
            tasks.append(task)
        return tasks


def observe(task: pb.Task, device_id: str, spec: ModelSpec, model: bytes, codec: str = "int8") -> State:
    """Take statistics of a model as a device does before it trains."""
    images, labels = samples_of(device_id)
    engine = Engine(spec, batch_size=10, preset=resolve_preset("bitfleet"), seed=derive_seed(device_id))
    engine.load_state(get_state_codec(codec).decode(spec, model, kind="model"))
    for number in range(task.training.statistics_batches):
        engine.input[:] = images[number * 10 : number * 10 + 10]
        engine.labels[:] = labels[number * 10 : number * 10 + 10]
        engine.observe(number)
    return {name: array for name, array in engine.state().items() if name.endswith((".mean", ".mean_abs_dev"))}
