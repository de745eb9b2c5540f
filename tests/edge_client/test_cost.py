import asyncio

from edge_client.cost import Cost
from edge_client.pacing import Pace
from tests.patience import until


class Stairs:
    """A meter that counts one joule more each time; after some it breaks."""

    source = "ina219"

    def __init__(self, breaks_after: int = 1000) -> None:
        self._left = breaks_after
        self._next = 100.0

    def take(self) -> float:
        self._left -= 1
        if self._left < 0:
            raise OSError("gone")
        joules, self._next = self._next, 1.0
        return joules


async def measured(cost: Cost) -> dict[str, object]:
    sampler = asyncio.create_task(cost.sample())
    await until(lambda: cost._peak_bytes)  # so the meter was asked a first time
    sampler.cancel()
    result: dict[str, object] = {"modelled_joules": 0.25}
    await cost.end(result)
    return {name: result[name] for name in ("joules", "joules_source")}


async def test_what_a_meter_counts_during_a_task_is_told() -> None:
    # The 100 J since the meter was last asked are no part of the task.
    assert await measured(Cost(Stairs(), Pace())) == {"joules": 1.0, "joules_source": "ina219"}


async def test_what_is_modelled_stands_for_what_is_not_measured() -> None:
    standing = Pace()
    standing.stands = True

    assert await measured(Cost(None, Pace())) == {"joules": 0.25, "joules_source": "model"}
    assert await measured(Cost(Stairs(breaks_after=1), Pace())) == {"joules": 0.25, "joules_source": "model"}
    assert await measured(Cost(Stairs(), standing)) == {"joules": 0.25, "joules_source": "model"}
