"""One of two processes that train together under DistributedDataParallel; started by test_nn_ddp.py.

Usage: nn_ddp_worker.py RANK STORE OUT
"""

from __future__ import annotations

import sys

import torch
from torch import distributed, nn

from bnncore.nn import Sequential
from tests.bnncore.nn_cases import make_layers

PROCESSES, STEPS = 2, 3


def half(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Give a process its own batch."""
    generator = torch.Generator().manual_seed(rank)
    x = torch.randint(0, 256, (8, 3, 9, 8), generator=generator).float() * 2 - 255
    return x, torch.randint(0, 3, (8,), generator=generator)


def train(network: nn.Module, rank: int) -> None:
    """Take some steps of the usual loop."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(STEPS):
        optimizer.zero_grad()
        x, labels = half(rank)
        nn.functional.cross_entropy(network(x), labels).backward()
        optimizer.step()


def main() -> None:
    rank, store, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=PROCESSES)
    modules, _ = make_layers("pool before the norm")
    network = Sequential(*modules)
    train(nn.parallel.DistributedDataParallel(network, broadcast_buffers=False), rank)
    torch.save(network.state_dict(), out)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
