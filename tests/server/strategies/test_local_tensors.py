"""Tensors that stay on devices: no strategy and no codec moves the coordinator's own, and all others still move."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bnncore.codec import CODECS, StateCodec, get_codec
from bnncore.federated.feedback import tell_difference
from bnncore.federated.replica import model_codec
from bnncore.state import State
from server.coordinator.aggregation import Aggregation
from server.coordinator.versions import VersionWriter, initial_state, read_state
from server.jobs import JobConfig
from server.storage.blobs import LocalBlobs
from server.strategies import STRATEGIES
from tests.server.conftest import make_job
from tests.server.strategies.updates import random_update

LOCAL = ["dense2.weight", "*.beta", "norm2.mean*"]


def job_of(strategy: str, codec: str) -> JobConfig:
    quorum = 2 if strategy == "fedbuff" else None
    return make_job(
        strategy=strategy, up_codec=codec, down_codec="sign" if codec in ("sign", "flips") else "int8",
        statistics_batches=2, local_tensors=LOCAL, quorum=quorum,
    )  # fmt: skip


def payload_of(config: JobConfig, trained: State, base: State) -> bytes:
    codec = get_codec(config.up_codec)
    if isinstance(codec, StateCodec):
        return codec.encode(config.spec, trained, kind="update", local=config.local_names)
    difference, _ = tell_difference(config.spec, trained, base, None, codec, config.local_names)
    return codec.encode(config.spec, difference, kind="update", local=config.local_names)


@pytest.mark.parametrize("codec", sorted(CODECS))
@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_the_coordinators_own_stay_as_they_were(tmp_path: Path, strategy: str, codec: str) -> None:
    config = job_of(strategy, codec)
    spec, local = config.spec, config.local_names
    blobs = LocalBlobs(tmp_path)
    writer = VersionWriter("job", spec, config.down_codec, blobs, local)
    base = writer.write(0, initial_state(config), 0.0)
    start = read_state(blobs, spec, base)
    deployed = model_codec(config.down_codec).decode(spec, blobs.get(base.payload_digest), kind="model")
    aggregation = Aggregation(config, spec, blobs, base)

    for seed in range(5):
        payload = payload_of(config, random_update(seed, spec=spec), deployed)
        update = get_codec(codec).decode(spec, payload, kind="update", local=local)
        aggregation.add(f"device-{seed}", update, 10 + seed, base)
    state, memory = aggregation.finish(blobs.put)
    aggregation.close()
    version = writer.write(1, state, 0.0, base=base)

    assert list(state) == list(spec.tensor_shapes())
    unmoved = {name for name in state if np.array_equal(state[name], start[name])}
    assert unmoved == local
    after = model_codec(config.down_codec).decode(spec, blobs.get(version.payload_digest), kind="model")
    assert {name for name in after if np.array_equal(after[name], deployed[name])} == local & set(after)
    assert memory is None or blobs.get(memory)
