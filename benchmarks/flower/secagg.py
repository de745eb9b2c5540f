"""One round of SecAgg+ as Flower runs it, all in this process. Run by Flower's own Python (``benchmarks.secure_sum``).

    build/flower-venv/bin/python benchmarks/flower/secagg.py COHORT WEIGHTS LOST

The server is Flower's ``SecAggPlusWorkflow`` with its default ranges, ``FedAvg``, all members as each other's
neighbours and two thirds of the shares to open a secret; each client is Flower's ``secaggplus_mod``, around a client
that returns one float32 array at once. Between them is a grid that copies the small records of a message and hands its
arrays over, so no network and no training is in the times. The lost clients send their shares and then nothing. Prints
JSON: the median processor time of a surviving client in all four stages; that of the server, which is the rest of the
round without what the grid does itself; of both the part that secret sharing takes, which no number of weights changes;
and the bits a weight of a client's masked arrays.
"""

from __future__ import annotations

import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key, Stage
from flwr.compat.common import recorddict_compat as compat
from flwr.server.client_manager import SimpleClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.compat.legacy_context import LegacyContext
from flwr.server.strategy import FedAvg
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD
from flwr.server.workflow.constant import Key as WorkflowKey
from flwr.supercore.task_identity import TaskIdentity

# The first module's package has a function of the same name, which `import` would find.
client_side: Any = importlib.import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")
server_side: Any = importlib.import_module("flwr.server.workflow.secure_aggregation.secaggplus_workflow")


class Timed:
    """A function of Flower's, with the processor time that it took so far."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.seconds = 0.0
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        begin = time.process_time()
        result = self._function(*arguments)
        self.seconds += time.process_time() - begin
        return result


class Proxy(ClientProxy):
    """A client as the strategy knows it; the workflow asks only for its name and number."""

    def __init__(self, number: int) -> None:
        super().__init__(str(number))
        self.node_id = number

    def get_properties(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    get_parameters = fit = evaluate = reconnect = get_properties


class Grid:
    """Clients in this process; those that are lost send no masked vector and nothing after it."""

    def __init__(self, numbers: list[int], weights: int, lost: int) -> None:
        self.client_s = dict.fromkeys(numbers, 0.0)
        self.sharing_s = dict.fromkeys(numbers, 0.0)
        self.own_s = 0.0
        self.array_bytes = 0
        self.lost = set(numbers[:lost])
        self.updates = {
            number: np.random.default_rng(number).uniform(-1, 1, weights).astype(np.float32) for number in numbers
        }
        self._contexts = {number: Context(1, number, {}, RecordDict(), {}) for number in numbers}

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        begin, before = time.process_time(), sum(self.client_s.values())
        answers = [self._ask(message) for message in messages]
        self.own_s += time.process_time() - begin - (sum(self.client_s.values()) - before)
        return [answer for answer in answers if answer is not None]

    def _ask(self, message: Message) -> Message | None:
        number = message.metadata.dst_node_id
        configs = ConfigRecord(dict(message.content.config_records[RECORD_KEY_CONFIGS].items()))
        if number in self.lost and configs[Key.STAGE] in (Stage.COLLECT_MASKED_VECTORS, Stage.UNMASK):
            return None
        content = RecordDict({**dict(message.content.items()), RECORD_KEY_CONFIGS: configs})
        asked = Message(content=content, dst_node_id=number, message_type=message.metadata.message_type, group_id="1")
        begin, before = time.process_time(), client_side.create_shares.seconds
        answer = client_side.secaggplus_mod(asked, self._contexts[number], self._fit)
        self.client_s[number] += time.process_time() - begin
        self.sharing_s[number] += client_side.create_shares.seconds - before
        arrays = answer.content.config_records[RECORD_KEY_CONFIGS].get(Key.MASKED_PARAMETERS, [])
        self.array_bytes = max(self.array_bytes, sum(len(array) for array in arrays))
        return answer

    def _fit(self, message: Message, _: Context) -> Message:
        update = ndarrays_to_parameters([self.updates[message.metadata.dst_node_id]])
        result = FitRes(Status(Code.OK, ""), update, num_examples=1000, metrics={})
        return Message(compat.fitres_to_recorddict(result, keep_input=False), reply_to=message)


def main(cohort: int, weights: int, lost: int) -> None:
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1  # messages are made in a task's name
    numbers = list(range(1, cohort + 1))
    manager = SimpleClientManager()
    for number in numbers:
        manager.register(Proxy(number))
    strategy = FedAvg(fraction_fit=1.0, min_fit_clients=cohort, min_available_clients=cohort)
    context = LegacyContext(Context(1, 0, {}, RecordDict(), {}), strategy=strategy, client_manager=manager)
    context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({WorkflowKey.CURRENT_ROUND: 1})
    context.state.array_records[MAIN_PARAMS_RECORD] = ArrayRecord([np.zeros(1, np.float32)])
    grid = Grid(numbers, weights, lost)
    client_side.create_shares = Timed(client_side.create_shares)
    server_side.combine_shares = Timed(server_side.combine_shares)
    workflow = server_side.SecAggPlusWorkflow(num_shares=1.0, reconstruction_threshold=2 / 3)

    begin = time.process_time()
    workflow(grid, context)
    whole = time.process_time() - begin

    surviving = [number for number in numbers if number not in grid.lost]
    mean = np.mean([grid.updates[number] for number in surviving], axis=0)
    found = context.state.array_records[MAIN_PARAMS_RECORD].to_numpy_ndarrays()[0]
    outcome = {
        "cohort": cohort,
        "weights": weights,
        "dropped": lost,
        "device_s": statistics.median(grid.client_s[number] for number in surviving),
        "device_sharing_s": statistics.median(grid.sharing_s[number] for number in surviving),
        "server_s": whole - sum(grid.client_s.values()) - grid.own_s,
        "server_sharing_s": server_side.combine_shares.seconds,
        "bits_per_weight_up": 8 * grid.array_bytes / weights,
        "largest_error": float(np.abs(found - mean).max()),
    }
    print(json.dumps(outcome))


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:]))
