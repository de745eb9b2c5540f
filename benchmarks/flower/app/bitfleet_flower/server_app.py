"""What the server does in Flower: federated averaging, with a note of when each round began."""

import json
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


class TimedFedAvg(FedAvg):
    """Federated averaging that writes down times and what devices say of theirs."""

    rounds: list

    def configure_train(self, server_round, arrays, config, grid):
        messages = super().configure_train(server_round, arrays, config, grid)
        self.rounds.append({"began": time.time()})
        return messages

    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        metrics = [reply.content["metrics"] for reply in replies if not reply.has_error()]
        outcome = super().aggregate_train(server_round, replies)
        seconds = [metric["training-seconds"] for metric in metrics]
        self.rounds[-1] |= {"ended": time.time(), "training_seconds": seconds}
        return outcome


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Play the rounds and write the report; without ``shapes`` the network is the MLP, in PyTorch."""
    config = context.run_config
    shapes = json.loads(config["shapes"] or "null")
    if shapes is None:
        from bitfleet_flower.model import BinaryMlp, evaluate

        model = BinaryMlp()
        arrays = ArrayRecord(model.state_dict())
    else:
        arrays = ArrayRecord({str(i): Array(np.zeros(shape, np.float32)) for i, shape in enumerate(shapes)})
    devices = config["devices"]
    strategy = TimedFedAvg(fraction_evaluate=0.0, min_train_nodes=devices, min_available_nodes=devices)
    strategy.rounds = []
    result = strategy.start(grid=grid, initial_arrays=arrays, num_rounds=config["rounds"])
    report = {"rounds": strategy.rounds}
    if shapes is None:
        model.load_state_dict(result.arrays.to_torch_state_dict())
        report["accuracy"] = evaluate(model, Path(config["test-data"]))
    unfinished = Path(config["report"] + ".part")
    unfinished.write_text(json.dumps(report))
    unfinished.rename(config["report"])
