"""Flower's nodes without training: one process that speaks the fleet protocol for many, by Flower's own client code.

    build/flower-venv/bin/python benchmarks/flower/virtual_nodes.py HOST:PORT COUNT SHAPES

Each node registers, pulls messages with all of their objects, and pushes replies of random arrays of these shapes,
which no other node sends: equal objects would be kept once.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import pull_objects, push_object_contents_from_iterable
from flwr.supernode.fleet_http_connection import http_request_response

POLL_S = 3.0
"""Between two questions for a message, as a SuperNode asks."""

SENDING = threading.Semaphore(4)
"""Nodes that make and send a reply at the same time, so that this process stays small."""


def play(address: str, number: int, shapes: list[list[int]]) -> None:
    """Be one node, for as many messages as come until this process is killed."""
    with http_request_response(address, insecure=True) as connection:
        _, receive, send, _, _, pull, push, confirm = connection
        generator = np.random.default_rng(number)
        while True:
            if (received := receive()) is None:
                time.sleep(POLL_S)
                continue
            message, tree = received
            with SENDING:
                answer(message, tree, make_arrays(generator, shapes), send, pull, push, confirm)


def answer(
    message: Message,
    tree: Any,
    arrays: ArrayRecord,
    send: Callable[..., Any],
    pull: Callable[..., Any],
    push: Callable[..., Any],
    confirm: Callable[..., Any],
) -> None:
    """Pull all objects of a message, and push a reply to it."""
    run_id = message.metadata.run_id
    ids = [node.object_id for node in iterate_object_tree(tree)]
    pull_objects(ids, pull_object_fn=lambda object_id: pull(run_id, object_id))
    confirm(run_id, message.metadata.message_id)
    metrics = MetricRecord({"num-examples": 100, "training-seconds": 0.0})
    reply = Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)
    with no_object_id_recompute():
        reply.metadata.__dict__["_message_id"] = reply.object_id
        objects = get_all_nested_objects(reply)
        reply_tree = get_object_tree(reply)
        wanted, session = send(reply, reply_tree, 0.0)
        contents = (
            (node.object_id, objects[node.object_id].deflate())
            for node in iterate_object_tree(reply_tree)
            if node.object_id in wanted
        )
        push_object_contents_from_iterable(
            contents, push_object_fn=lambda object_id, content: push(run_id, session, object_id, content)
        )


def make_arrays(generator: np.random.Generator, shapes: list[list[int]]) -> ArrayRecord:
    """Make what training would have."""
    return ArrayRecord({str(i): Array(generator.random(shape, np.float32)) for i, shape in enumerate(shapes)})


def main() -> None:
    """Start the nodes, a thread each."""
    address, count, shapes = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    nodes = [threading.Thread(target=play, args=(address, number, shapes)) for number in range(count)]
    for node in nodes:
        node.start()
    for node in nodes:
        node.join()


if __name__ == "__main__":
    main()
