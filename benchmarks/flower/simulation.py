"""A federation in Flower's simulation on Ray. It runs in Flower's own environment.

    PYTHONPATH=benchmarks/flower/app build/flower-venv/bin/python benchmarks/flower/simulation.py OPTIONS.json

The options name the folder of the data set (``data``), the file that says which samples each device has (``shards``:
an array of their numbers for each), ``devices``, ``rounds``, ``local_steps``, ``batch_size``, ``workers`` (devices at
once) and where the ``report`` goes.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from bitfleet_flower.model import BinaryMlp, evaluate, read_idx, train
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

OPTIONS = json.loads(Path(sys.argv[1]).read_text())

client = ClientApp()
server = ServerApp()


@client.train()
def train_round(message: Message, context: Context) -> Message:
    """Train for a round on the device's part of the samples."""
    torch.set_num_threads(1)
    model = BinaryMlp()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    samples, labels = read_idx(Path(OPTIONS["data"]), "train")
    with np.load(OPTIONS["shards"]) as shards:
        own = shards[str(context.node_config["partition-id"])]
    train(model, samples[own], labels[own], OPTIONS["local_steps"], OPTIONS["batch_size"])
    metrics = MetricRecord({"num-examples": len(own)})
    return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)


@server.main()
def play(grid: Grid, context: Context) -> None:
    """Play the rounds with federated averaging, and write the report."""
    model, devices = BinaryMlp(), OPTIONS["devices"]
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=devices, min_available_nodes=devices)
    began = time.monotonic()
    result = strategy.start(grid=grid, initial_arrays=ArrayRecord(model.state_dict()), num_rounds=OPTIONS["rounds"])
    seconds = time.monotonic() - began
    model.load_state_dict(result.arrays.to_torch_state_dict())
    report = {"rounds_s": seconds, "accuracy": evaluate(model, Path(OPTIONS["data"]))}
    Path(OPTIONS["report"]).write_text(json.dumps(report))


if __name__ == "__main__":
    backend = {
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {"num_cpus": OPTIONS["workers"], "include_dashboard": False},
    }
    run_simulation(server, client, OPTIONS["devices"], backend_config=backend)
