"""Answers questions about single model versions, exports them, and says which one is to be used."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bnncore.checkpoint import save_checkpoint
from bnncore.export import SUFFIXES, export_model
from bnncore.spec import ModelSpec
from bnncore.state import State, to_float32
from server.api.model_views import (
    ComparisonView,
    LineageView,
    ParentView,
    PromotedView,
    PromotionView,
    TensorComparisonView,
)
from server.api.views import VersionView, iso_time
from server.coordinator import Coordinator
from server.coordinator.versions import read_exported_state, statistics_version
from server.errors import NotFoundError
from server.privacy import privacy_of
from server.storage.base import JobRecord, VersionRecord
from server.storage.promotions import PromotionRecord

FORMATS = {"safetensors": ".safetensors", **SUFFIXES}
"""What a version can be exported to, and how the file's name ends."""


class ModelQueries:
    """Model versions of a coordinator. A model has its job's id."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._disk = coordinator.disk
        self._storage = coordinator.disk.storage

    async def lineage(self, model_id: str, version: int) -> LineageView:
        """Say where a version comes from."""
        job, record = await self._job(model_id), await self._record(model_id, version)
        config = json.loads(job.config_json)
        round_ = await self._disk.run(self._storage.get_round, model_id, version)
        rows = await self._disk.run(self._storage.list_updates, model_id, version) if version else []
        accepted = [row for row in rows if row.status == "ACCEPTED"]
        promotions = await self._disk.run(self._storage.promotions.history, model_id)
        choice = privacy_of(job)
        epsilon = None if choice is None or not version else await asyncio.to_thread(choice.spent, version)
        start = config["start"] or {}
        made_by = "start" if not version else "statistics" if version > config["rounds"] else "training"
        return LineageView(
            version=VersionView.of(record, round_),
            job_name=job.name,
            made_by=made_by,
            parent=await self._parent(model_id, version, start),
            start_checkpoint=start.get("checkpoint"),
            spec_digest=ModelSpec.from_json(job.spec_json).digest,
            seed=config["seed"],
            round=None if round_ is None else round_.round_number,
            attempt=None if round_ is None else round_.attempt,
            committed_at=None if round_ is None or round_.committed_at is None else iso_time(round_.committed_at),
            cohort=0 if round_ is None else len(round_.cohort),
            accepted=len(accepted),
            examples=sum(row.num_examples for row in accepted),
            strategy=config["strategy"],
            strategy_params=config["strategy_params"],
            is_secure=config["secure_aggregation"] is not None,
            epsilon=epsilon,
            delta=None if choice is None else choice.delta,
            promotions=[PromotionView.of(promotion) for promotion in promotions if promotion.version == version],
        )

    async def _parent(self, model_id: str, version: int, start: dict[str, Any]) -> ParentView | None:
        if version:
            model_id, version = model_id, version - 1
        elif start.get("model") is not None:
            model_id, version = start["model"], start["version"]
        else:
            return None
        record = await self._disk.run(self._storage.get_version, model_id, version)
        return ParentView(
            id=model_id, version=version, weights_digest=None if record is None else record.weights_digest
        )

    async def compare(self, model_id: str, a: int, b: int) -> ComparisonView:
        """Say how two versions differ."""
        job = await self._job(model_id)
        views = []
        states = []
        for version in (a, b):
            record = await self._kept(model_id, version)
            views.append(VersionView.of(record, await self._disk.run(self._storage.get_round, model_id, version)))
            states.append(await asyncio.to_thread(self._state, job, record))
        spec = ModelSpec.from_json(job.spec_json)
        tensors = await asyncio.to_thread(_compare, spec, *states)
        parameters = {tensor.name for tensor in spec.tensors if not tensor.is_statistic}
        return ComparisonView(
            id=model_id,
            a=views[0],
            b=views[1],
            accuracy_difference=_difference(views[0].accuracy, views[1].accuracy),
            loss_difference=_difference(views[0].loss, views[1].loss),
            binary_weights=spec.num_binary_weights,
            changed_signs=sum(tensor.changed_signs or 0 for tensor in tensors),
            distance=float(np.sqrt(sum(tensor.distance**2 for tensor in tensors if tensor.name in parameters))),
            tensors=tensors,
        )

    async def promotions(self, model_id: str) -> PromotedView:
        """Say which version is to be used, and which were."""
        await self._job(model_id)
        found = await self._disk.run(self._storage.promotions.history, model_id)
        standing = [promotion.version for promotion in found if promotion.withdrawn_at is None]
        return PromotedView(
            id=model_id,
            promoted_version=standing[-1] if standing else None,
            history=[PromotionView.of(promotion) for promotion in found],
        )

    async def promote(self, model_id: str, version: int, actor: str) -> PromotedView:
        """Declare a version to be the one to use; its payload stays whatever room is needed.

        Raises:
          NotFoundError: there is no such version, or it is no longer kept.
          ConflictError: it is the promoted one already.
        """
        await self._job(model_id)
        promotion = PromotionRecord(model_id, version, time.time(), actor)
        await self._disk.run(self._storage.promotions.add, promotion)
        return await self._tell(model_id)

    async def roll_back(self, model_id: str, actor: str) -> PromotedView:
        """Make the version that was promoted before the one to use again.

        Raises:
          NotFoundError: there is no such model.
          ConflictError: no version was promoted before.
        """
        await self._job(model_id)
        await self._disk.run(self._storage.promotions.withdraw, model_id, time.time(), actor)
        return await self._tell(model_id)

    async def _tell(self, model_id: str) -> PromotedView:
        view = await self.promotions(model_id)
        self._disk.feed.publish("model", model_id, job_id=model_id, promoted_version=view.promoted_version)
        return view

    async def export(self, model_id: str, version: int, kind: str) -> Path:
        """Write a version into a temporary file, which the caller removes.

        Args:
          model_id: the model.
          version: its number.
          kind: one of ``FORMATS``.

        Raises:
          NotFoundError: there is no such version, or it is no longer kept.
          ConfigurationError: the format needs a package that is not installed.
        """
        job, record = await self._job(model_id), await self._kept(model_id, version)
        statistics = await self._statistics_of(job, version)
        round_ = await self._disk.run(self._storage.get_round, model_id, version)
        accuracy = None if round_ is None else round_.accuracy
        extra = {"job_id": model_id, "job_name": job.name, "version": version}
        extra |= {} if accuracy is None else {"accuracy": accuracy}
        spec, classes = ModelSpec.from_json(job.spec_json), json.loads(job.config_json)["classes"]

        def write(path: Path) -> None:
            state = self._state(job, record, statistics)
            if kind == "safetensors":
                save_checkpoint(path, spec, state, extra=extra)
            else:
                export_model(path, kind, spec, state, classes=classes)

        return await asyncio.to_thread(_into_file, kind, write)

    async def _statistics_of(self, job: JobRecord, version: int) -> VersionRecord | None:
        """Find the version whose statistics are of the weights of another; None: its own, or not there (any more)."""
        config = json.loads(job.config_json)
        taken = statistics_version(version, rounds=config["rounds"], statistics_batches=config["statistics_batches"])
        if taken == version:
            return None
        record = await self._disk.run(self._storage.get_version, job.job_id, taken)
        return record if record is not None and record.is_kept else None

    def _state(self, job: JobRecord, record: VersionRecord, statistics: VersionRecord | None = None) -> State:
        spec, down_codec = ModelSpec.from_json(job.spec_json), str(json.loads(job.config_json)["down_codec"])
        return read_exported_state(self._disk.blobs, spec, record, down_codec, statistics)

    async def _job(self, model_id: str) -> JobRecord:
        return await self._coordinator.jobs.get(model_id)

    async def _record(self, model_id: str, version: int) -> VersionRecord:
        record = await self._disk.run(self._storage.get_version, model_id, version)
        if record is None:
            raise NotFoundError(
                f"model {model_id!r} has no version {version}; list them with: bitfleet-server models list"
            )
        return record

    async def _kept(self, model_id: str, version: int) -> VersionRecord:
        record = await self._record(model_id, version)
        if not record.is_kept:
            raise NotFoundError(
                f"version {version} of model {model_id!r} is no longer kept: the disk's room was needed"
            )
        return record


def _into_file(kind: str, write: Callable[[Path], None]) -> Path:
    descriptor, name = tempfile.mkstemp(prefix="bitfleet-", suffix=FORMATS[kind])
    os.close(descriptor)
    try:
        write(Path(name))
    except BaseException:
        Path(name).unlink()
        raise
    return Path(name)


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else b - a


def _compare(spec: ModelSpec, a: State, b: State) -> list[TensorComparisonView]:
    found = []
    for tensor in spec.tensors:
        one, other = (to_float32(state[tensor.name]) for state in (a, b))
        is_binary = tensor.role == "weight"
        found.append(
            TensorComparisonView(
                name=tensor.name,
                role=tensor.role,
                values=one.size,
                changed_signs=int(np.count_nonzero((one < 0) != (other < 0))) if is_binary else None,
                distance=float(np.linalg.norm((other - one).astype(np.float64).ravel())),
            )
        )
    return found
