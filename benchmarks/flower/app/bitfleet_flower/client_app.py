"""What a device does in Flower: takes the model, trains it, and sends it back."""

from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from bitfleet_flower.model import BinaryMlp, read_idx, train

app = ClientApp()


@app.train()
def train_round(message: Message, context: Context) -> Message:
    """Train for a round on the samples in the folder that the node's configuration names."""
    torch.set_num_threads(1)
    model = BinaryMlp()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    config = context.run_config
    samples, labels = read_idx(Path(context.node_config["data"]), "train")
    seconds = train(model, samples, labels, config["local-steps"], config["batch-size"])
    metrics = MetricRecord({"num-examples": len(labels), "training-seconds": seconds})
    return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)
