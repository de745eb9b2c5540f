"""Updates that are added up in several places: whoever folds them, the model is the same to the last bit."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bnncore.codec import CODECS, StateCodec, get_codec, payload_digest
from bnncore.errors import PayloadError
from bnncore.federated.feedback import tell_difference
from bnncore.federated.replica import model_codec
from server.coordinator.aggregation import is_mergeable
from server.coordinator.collection import Collection
from server.coordinator.disk import Disk
from server.coordinator.messages import UpdateHeader, task_id_of
from server.coordinator.partial_sums import Part, PartialSum
from server.coordinator.space import Space
from server.coordinator.upload import Upload, decode_update, keep
from server.coordinator.versions import VersionWriter, initial_state
from server.errors import PayloadLostError
from server.jobs import JobConfig
from server.replicas.partials import Partials
from server.storage.base import JobRecord, RoundRecord, VersionRecord
from server.storage.blobs import LocalBlobs
from server.storage.sql import open_storage
from server.strategies import MAX_WEIGHT, STRATEGIES
from tests.server.conftest import make_job
from tests.server.databases import lay_database
from tests.server.strategies.updates import random_update

MERGEABLE = sorted(
    name for name in STRATEGIES if name != "fedbuff" and is_mergeable(make_job(strategy=name, up_codec="int8"))
)
JOB = "stripes-1"


@dataclass
class Doors:
    """Other replicas' sums, without what carries them to the lead."""

    by_name: dict[str, Partials] = field(default_factory=dict)
    spoil: Callable[[PartialSum], PartialSum] = lambda found: found

    def is_there(self, replica: str) -> bool:
        return replica in self.by_name

    async def gather(self, base: VersionRecord, replicas: Mapping[str, Mapping[str, Part]]) -> Sequence[PartialSum]:
        asked = [self.by_name[name].give(base, len(parts)) for name, parts in replicas.items() if name in self.by_name]
        return [self.spoil(found) for found in await asyncio.gather(*asked) if found is not None]

    def drop(self, job_id: str, round_number: int | None = None) -> None:
        for partials in self.by_name.values():
            partials.drop(job_id, round_number)


class Fleet:
    """One job over one database and one store, of whose first round anybody may add updates up."""

    def __init__(self, folder: Path) -> None:
        self.disk = Disk(open_storage(lay_database(folder / "bitfleet.db")), LocalBlobs(folder / "blobs"))
        self.space = Space(self.disk, quota_bytes=0, min_free_bytes=0)

    async def begin(self, config: JobConfig) -> None:
        """Begin the job anew."""
        storage = self.disk.storage
        self.config = config
        self._writer = VersionWriter(JOB, config.spec, config.down_codec, self.disk.blobs, config.local_names)
        self.base = self._writer.write(0, initial_state(config), 0.0)
        if storage.get_job(JOB) is None:
            storage.add_job(JobRecord(JOB, "stripes", "RUNNING", config.to_json(), config.spec.to_json(), 0.0))
            storage.save_round(RoundRecord(JOB, 1, "COLLECTING", attempt=1, opened_at=0.0))
        self.doors = Doors({name: Partials(self.disk) for name in ("north", "east", "south")})
        self.collection = self.open_collection()

    def open_collection(self) -> Collection:
        """What a lead has of the round, when it begins to play it or to take it up again."""
        return Collection(self.disk, self.space, self.config, self.config.spec, self.base, self.doors)

    def update(self, seed: int) -> tuple[UpdateHeader, bytes]:
        """Make a device's update of the round."""
        config, spec = self.config, self.config.spec
        codec, device_id = get_codec(config.up_codec), f"device-{seed}"
        deployed = model_codec(config.down_codec).decode(
            spec, self.disk.blobs.get(self.base.payload_digest), kind="model"
        )
        trained = random_update(seed, spec=spec)
        if not isinstance(codec, StateCodec):
            trained, _ = tell_difference(spec, trained, deployed, None, codec)  # type: ignore[assignment]
        payload = codec.encode(spec, trained, kind="update")
        header = UpdateHeader(
            device_id, task_id_of(JOB, 1, device_id), JOB, 1, self.base.payload_digest, payload_digest(payload),
            len(payload), num_examples=1 + 977 * seed, codec=config.up_codec,
        )  # fmt: skip
        return header, payload

    async def take(self, seed: int, door: str | None, *, folds: bool = True) -> None:
        """Accept a device's update at the lead, or at a door, which may die before it folds it."""
        header, payload = self.update(seed)
        update = decode_update(self.config, 1, payload)
        writer = self.disk.blobs.writer()
        writer.write(payload)
        upload = Upload(header, writer, update)
        if door is not None:
            partial = self.doors.by_name[door].of(self.config, self.base)
            partial.check(update, header.num_examples)
            keep(self.disk, [upload])
            upload = Upload(header, folded_by=door)
        try:
            await self.collection.fold(upload)
            await self.collection.accept([upload])
        finally:
            writer.discard()
        if door is not None and folds:
            partial.fold(header.device_id, Part(header.update_digest, header.num_examples), update)

    async def finish(self) -> tuple[str, str, str | None]:
        """Make the next version; returns its digests and that of what the strategy remembers."""
        state, memory_digest = await self.collection.finish()
        version = self._writer.write(1, state, 0.0, base=self.base)
        return version.weights_digest, version.state_digest, memory_digest


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    fleet = Fleet(tmp_path)
    yield fleet
    await fleet.disk.close()


def job_of(strategy: str, codec: str = "int8") -> JobConfig:
    difference = codec in ("sign", "flips")
    return make_job(
        strategy=strategy, up_codec=codec, down_codec="sign" if difference else "int8", statistics_batches=2
    )


PLACES = st.lists(st.sampled_from((None, "north", "east", "south")), min_size=1, max_size=7)


@pytest.mark.parametrize("strategy", MERGEABLE)
def test_where_updates_are_added_up_never_enters_the_model(tmp_path: Path, strategy: str) -> None:
    with asyncio.Runner() as runner:
        fleet = runner.run(_open(tmp_path))

        @settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
        @given(PLACES, st.sampled_from(sorted(CODECS)), st.randoms(use_true_random=False))
        def check(places: list[str | None], codec: str, random: object) -> None:
            seeds = list(range(len(places)))
            shuffled = seeds.copy()
            random.shuffle(shuffled)  # type: ignore[attr-defined]

            async def compare() -> None:
                await fleet.begin(job_of(strategy, codec))
                for seed in seeds:
                    await fleet.take(seed, None)
                alone = await fleet.finish()
                await fleet.begin(job_of(strategy, codec))
                for seed in shuffled:
                    await fleet.take(seed, places[seed])

                assert await fleet.finish() == alone

            runner.run(compare())

        check()
        runner.run(fleet.disk.close())


async def _open(folder: Path) -> Fleet:
    return Fleet(folder)


async def at_the_lead_alone(fleet: Fleet, config: JobConfig, seeds: Sequence[int]) -> tuple[str, str, str | None]:
    await fleet.begin(config)
    for seed in seeds:
        await fleet.take(seed, None)
    digests = await fleet.finish()
    await fleet.begin(config)
    return digests


def without_a_part(found: PartialSum) -> PartialSum:
    return replace(found, parts=dict(itertools.islice(found.parts.items(), 1)))


def of_another_update(found: PartialSum) -> PartialSum:
    return replace(found, parts={name: Part("0" * 64, part.weight) for name, part in found.parts.items()})


@pytest.mark.parametrize(
    "fault",
    ["none", "the door dies", "it dies before it folds", "its sum is damaged", "it says less than it holds",
     "it holds another update", "the lead dies", "both die"],
)  # fmt: skip
async def test_an_accepted_update_counts_once_whatever_is_lost(fleet: Fleet, fault: str) -> None:
    alone = await at_the_lead_alone(fleet, job_of("fedadam"), range(6))
    for seed, door in enumerate(("north", "north", None, "east", "north", None)):
        await fleet.take(seed, door, folds=seed != 1 or fault != "it dies before it folds")

    match fault:
        case "the door dies" | "both die":
            del fleet.doors.by_name["north"]
        case "its sum is damaged":
            fleet.doors.spoil = lambda found: replace(found, digest=fleet.disk.blobs.put(b"no sum"))
        case "it says less than it holds":
            fleet.doors.spoil = without_a_part
        case "it holds another update":
            fleet.doors.spoil = of_another_update
    if fault in ("the lead dies", "both die"):
        fleet.collection = fleet.open_collection()
        await fleet.collection.recover()
        rows = await asyncio.to_thread(fleet.disk.storage.list_updates, JOB, 1)
        assert [row.folded_by for row in rows] == ["north", "north", None, "east", "north", None]

    assert await fleet.finish() == alone
    folded_by = {row.device_id: row.folded_by for row in fleet.collection.rows.values()}
    assert (folded_by["device-4"] == "north") == (fault in ("none", "it dies before it folds", "the lead dies"))
    assert (folded_by["device-1"] == "north") == (fault in ("none", "the lead dies"))


async def test_an_update_that_is_in_no_sum_and_whose_payload_is_lost_is_asked_for_again(fleet: Fleet) -> None:
    await fleet.begin(job_of("fedavg"))
    await fleet.take(0, "north")
    await fleet.take(1, "east")
    del fleet.doors.by_name["north"]
    fleet.disk.blobs.delete(fleet.update(0)[0].update_digest)

    with pytest.raises(PayloadLostError, match="of round 1 are lost, of devices device-0"):
        await fleet.finish()

    fleet.collection = fleet.open_collection()
    await fleet.collection.recover()
    assert {name: row.status for name, row in fleet.collection.rows.items()} == {
        "device-0": "ASSIGNED", "device-1": "ACCEPTED"
    }  # fmt: skip


async def test_a_sum_goes_on_after_it_was_given(fleet: Fleet) -> None:
    alone = await at_the_lead_alone(fleet, job_of("fedavg"), range(3))
    await fleet.take(0, "north")
    first = await fleet.doors.by_name["north"].give(fleet.base, 1)  # to a lead that dies before it commits
    await fleet.take(1, "north")
    await fleet.take(2, "east")

    assert await fleet.finish() == alone
    assert first is not None
    assert list(first.parts) == ["device-0"]


async def test_a_sum_that_is_asked_for_waits_for_updates_that_are_being_accepted(fleet: Fleet) -> None:
    await fleet.begin(job_of("fedavg"))
    await fleet.take(0, "north")
    partial = fleet.doors.by_name["north"].of(fleet.config, fleet.base)
    with partial.expecting("device-1"):
        asked = asyncio.create_task(partial.give(2))
        await asyncio.sleep(0)
        await fleet.take(1, "north")

    found = await asked
    assert sorted(found.parts) == ["device-0", "device-1"]


async def test_an_update_that_the_round_took_back_is_not_added_up_twice(fleet: Fleet) -> None:
    """Its payload was lost, so the device sent it again: the sum that holds both is of no use."""
    alone = await at_the_lead_alone(fleet, job_of("fedavg"), range(2))
    await fleet.take(0, "north")
    await fleet.take(1, "north")
    await fleet.take(1, "north")

    assert await fleet.finish() == alone


async def test_a_round_carries_only_so_many_examples_wherever_they_are_added_up(fleet: Fleet) -> None:
    await fleet.begin(job_of("fedavg"))
    header, _ = fleet.update(1)
    for number in range(1024):
        await fleet.collection.fold(
            Upload(replace(header, device_id=f"d{number}", num_examples=MAX_WEIGHT), folded_by="north")
        )

    with pytest.raises(PayloadError, match="a round carries at most"):
        await fleet.collection.fold(Upload(header, folded_by="north"))
    with pytest.raises(PayloadError, match="a round carries at most"):
        await fleet.take(1, None)


async def test_a_sum_is_forgotten_with_its_round_and_its_job(fleet: Fleet) -> None:
    await fleet.begin(job_of("fedavg"))
    await fleet.take(0, "north")
    partials = fleet.doors.by_name["north"]
    storage = fleet.disk.storage

    partials.drop(JOB, 7)
    await partials.drop_ended()
    assert len(partials) == 1  # its round is open
    storage.add_version(replace(fleet.base, version=1))
    await partials.drop_ended()
    assert len(partials) == 0
    partials.of(fleet.config, fleet.base)
    partials.of(fleet.config, replace(fleet.base, version=1))
    assert len(partials) == 1  # of a job that of the newest round
    partials.drop(JOB)
    assert len(partials) == 0


def test_strategies_whose_updates_cannot_be_added_up_apart_are_known() -> None:
    assert {"fedavg", "fedprox", "fedadam", "signvote"} <= set(MERGEABLE)
    assert not {"median", "krum", "trimmed_mean"} & set(MERGEABLE)
    assert not is_mergeable(make_job(strategy="fedbuff", quorum=2))
    assert not is_mergeable(make_job(secure_aggregation={}, up_codec="sign", statistics_batches=2))
    assert np.all([STRATEGIES[name]().late_rounds == 0 for name in MERGEABLE])
