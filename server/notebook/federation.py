"""``federate``: a job played in this process by devices with data of their own, to its end."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bnncore.data import Dataset
from bnncore.errors import ConfigurationError
from bnncore.processors import usable_processors
from bnncore.spec import ModelSpec
from server.coordinator.cohort import why_ineligible
from server.coordinator.evaluation import open_evaluation
from server.job_files import load_job
from server.jobs import JobConfig
from server.notebook.background import run_beside
from server.notebook.history import History
from server.simulate.cast import Cast, Share, split
from server.simulate.progress import progress_bar
from server.simulate.run import play
from server.simulate.scenario import timeless_job
from server.simulate.trainers import ThreadTrainer
from server.strategies import CohortStrategy, FoldingStrategy, register_strategy

_NUM_DEVICES = 10
"""Over which a data set is split."""

_DEFAULTS: dict[str, Any] = {"name": "notebook", "rounds": 10, "local_steps": 60}
"""Keys that every job has, where neither the job nor the caller gives them."""


def federate(
    job: JobConfig | Mapping[str, Any] | str | Path | None = None,
    *,
    datasets: Sequence[Dataset] | None = None,
    dataset: Dataset | None = None,
    num_devices: int | None = None,
    alpha: float = float("inf"),
    evaluation: Dataset | None = None,
    model: ModelSpec | Mapping[str, Any] | str | None = None,
    strategy: FoldingStrategy | CohortStrategy | str | None = None,
    absent: float = 0.0,
    attackers: int = 0,
    attack: str | None = None,
    threads: int | None = None,
    progress: bool = True,
    **keys: Any,
) -> History:
    """Play a job here: the real coordinator, the devices' own training code, every message serialised and counted.

    It is what ``bitfleet-server simulate`` does, with the same bits for the same job and data, and may be called in a
    notebook, whose event loop goes on. Ctrl-C (a notebook's stop button) ends it::

        history = federate(dataset=train_set, num_devices=4, alpha=0.5, evaluation=test_set, model="mlp", rounds=5)

    Args:
      job: a job's keys, a validated job, or a job file; None: ``keys`` alone. What is about time and about which
        devices may take part (``deadline_s``, ``min_devices``, ``device_labels``, ``starts_at``) does not count here.
      datasets: one for each device. Their classes are told apart by name and may differ.
      dataset: in place of ``datasets`` one that is split over ``num_devices`` devices.
      num_devices: with ``dataset``; None: 10.
      alpha: with ``dataset``, Dirichlet parameter of the split: 0.1 gives most devices a few classes, infinity all the
        same mixture.
      evaluation: on which every round's model is evaluated; None: as the job says.
      model: a spec, the name of a network of the zoo, or a job's ``model``; None: as the job says.
      strategy: a name, or a strategy of your own, which is registered; None: as the job says.
      absent: chance of each member of a cohort to be away in a round.
      attackers: how many devices, the first ones, send poison.
      attack: with ``attackers``, what they send: ``negate`` or ``scale``.
      threads: devices that train at once, which does not change the result; None: all processors.
      progress: show a bar.
      keys: keys of the job that win over those of ``job``: ``rounds`` (10), ``local_steps`` (60), ``batch_size``,
        ``cohort_size``, ``up_codec``, ``recipe``, ``secure_aggregation``, ``seed`` and so on.

    Raises:
      ConfigurationError: arguments contradict each other, or a device's data do not fit the job.
      InvalidJobError: the job is not valid; the message says what, key by key.
      SimulationError: the job or a device failed.
    """
    began = time.monotonic()
    sources = _sources(datasets, dataset, num_devices)
    values = _job_values(job, keys, sources, model, strategy, evaluation)
    devices = len(sources) if dataset is None else num_devices or _NUM_DEVICES
    cast = Cast(devices=devices, absent=absent, attackers=attackers, attack=attack)
    config = timeless_job(values, cast)
    cast = replace(cast, seed=config.seed)
    shares = [Share(one) for one in sources] if dataset is None else split(dataset, devices, alpha, config.seed)
    _check_shares(config, shares)
    with (
        _only_errors(),
        tempfile.TemporaryDirectory(prefix="bitfleet-federate-") as folder,
        progress_bar(config.rounds, is_shown=progress) as show,
        ThreadTrainer(threads or max(1, int(usable_processors()))) as trainer,
    ):
        played = run_beside(
            lambda tell: play(
                config,
                cast,
                shares,
                Path(folder),
                trainer=trainer,
                open_evaluation=open_evaluation if evaluation is None else lambda *_: Share(evaluation).open(),
                on_rounds=tell,
            ),
            show,
        )
    return History.of(config, played, time.monotonic() - began)


@contextlib.contextmanager
def _only_errors() -> Iterator[None]:
    """Keep a coordinator's warnings, such as of devices that are away, out of a notebook that did not ask for them."""
    log = logging.getLogger("server")
    before = log.level
    if before == logging.NOTSET:
        log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def _sources(datasets: Sequence[Dataset] | None, dataset: Dataset | None, num_devices: int | None) -> Sequence[Dataset]:
    """Return the data sets that are given one way or the other."""
    if (datasets is None) == (dataset is None):
        raise ConfigurationError("give either datasets, one for each device, or one dataset that is split over devices")
    if dataset is not None:
        return [dataset]
    if not datasets:
        raise ConfigurationError("datasets must be those of one device at least, got none")
    if num_devices not in (None, len(datasets)):
        raise ConfigurationError(f"num_devices is how many datasets there are ({len(datasets)}); leave it out")
    return datasets


def _job_values(
    job: JobConfig | Mapping[str, Any] | str | Path | None,
    keys: Mapping[str, Any],
    sources: Sequence[Dataset],
    model: ModelSpec | Mapping[str, Any] | str | None,
    strategy: FoldingStrategy | CohortStrategy | str | None,
    evaluation: Dataset | None,
) -> dict[str, Any]:
    """Collect the job's keys; what the data say themselves need not be given."""
    if isinstance(job, str | Path):
        job = load_job(Path(job))
    given = job.model_dump(mode="json") if isinstance(job, JobConfig) else dict(job or {})
    classes = list(dict.fromkeys(name for source in sources for name in source.classes))
    data = {"classes": classes, "input_shape": list(sources[0].input_shape)}
    values = {**_DEFAULTS, **data, **given, **keys}
    if model is not None:
        values["model"] = (
            {"spec": model.to_dict()}
            if isinstance(model, ModelSpec)
            else {"zoo": model}
            if isinstance(model, str)
            else dict(model)
        )
    if isinstance(strategy, str):
        values |= {"strategy": strategy, "strategy_params": keys.get("strategy_params", {})}
    elif strategy is not None:
        values |= {"strategy": register_strategy(type(strategy)).name, "strategy_params": strategy.parameters()}
    if evaluation is not None:
        values["evaluation"] = {"dataset": evaluation.name}
    return values


def _check_shares(job: JobConfig, shares: Sequence[Share]) -> None:
    """Refuse data that do not fit the job, whose device would wait for ever."""
    for number, share in enumerate(shares):
        problem = why_ineligible(
            job_classes=job.classes,
            job_input_shape=job.input_shape,
            job_has_input_range=False,  # data sets are opened in the form that the network reads
            device_classes=share.dataset.classes,
            device_input_shape=share.dataset.input_shape,
            device_num_examples=share.num_examples,
        )
        if problem is not None:
            raise ConfigurationError(f"the data of device {number} (counted from 0) do not fit the job: {problem}")
