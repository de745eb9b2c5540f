"""Run jobs from their templates, in one process, and say what came of them.

python -m benchmarks.templates har --json PATH
python -m benchmarks.templates cifar10 --devices 10 --set rounds=6 --json PATH

``har``: one device a person of the training split, with that person's windows alone. Others: the training split,
split over the devices.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import mean

import numpy as np

from bnncore.data import open_dataset
from server.job_files import parse_changes, read_template
from server.notebook import federate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("template", help="its name is that of its data set")
    parser.add_argument("--devices", type=int, default=10, metavar="N", help="not for har, which has people (10)")
    parser.add_argument(
        "--alpha", type=float, default=float("inf"), metavar="A", help="Dirichlet's, of the split (inf)"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the job; again")
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    parser.add_argument("--json", type=Path, required=True, metavar="PATH")
    arguments = parser.parse_args()

    changes = parse_changes(arguments.set)
    job = read_template(arguments.template).validate(changes)
    began = time.monotonic()
    with open_dataset(job.name, None, split="train") as dataset:
        if job.name == "har":
            assert dataset.groups is not None
            people = [
                np.flatnonzero(dataset.groups == person).astype(np.uint32) for person in np.unique(dataset.groups)
            ]
            shares = [dataset.subset(rows) for rows in people]
            history = federate(job, datasets=shares, threads=arguments.threads, progress=False)
        else:
            history = federate(
                job, dataset=dataset, num_devices=arguments.devices, alpha=arguments.alpha, threads=arguments.threads,
                progress=False,
            )  # fmt: skip
    accuracies = [round_.accuracy for round_ in history.rounds]
    result = {
        "template": arguments.template,
        "changes": changes,
        "devices": len(people) if job.name == "har" else arguments.devices,
        "accuracies": accuracies,
        "seconds": round(time.monotonic() - began, 1),
        "down_bytes_per_device_round": round(mean(round_.down_bytes / round_.updates for round_ in history.rounds)),
        "up_bytes_per_device_round": round(mean(round_.up_bytes / round_.updates for round_ in history.rounds)),
    }
    arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "accuracies"}), accuracies[-1])


if __name__ == "__main__":
    main()
