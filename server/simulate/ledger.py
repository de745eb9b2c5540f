"""What every device of a simulation sent and received, in a file that a simulation taken up again goes on with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

UPDATE = "update"
"""The part of a round that every device has."""


@dataclass(frozen=True)
class Traffic:
    """Serialised bytes of the messages that carried models and updates, and how many updates there were."""

    down_bytes: int = 0
    up_bytes: int = 0
    updates: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.down_bytes + other.down_bytes, self.up_bytes + other.up_bytes, self.updates + other.updates)


class Ledger:
    """One line for each (round, device, part), which is an update or a step of an exchange.

    A simulation that was killed does some of it again: of lines for the same the last one counts.

    Attributes:
      by_round: what is counted, by round.
    """

    def __init__(self, path: Path) -> None:
        self.by_round: dict[int, Traffic] = {}
        self._number = 0
        self._of_round: dict[tuple[str, str], tuple[int, int]] = {}
        if path.exists():
            self._read(path)
        self._file = path.open("a", encoding="utf-8")
        if self._file.tell() and not path.read_bytes().endswith(b"\n"):
            self._file.write("\n")  # cut in the middle: no line now, and the device's task is done again

    def note(self, round_number: int, device_id: str, part: str, *, down_bytes: int, up_bytes: int) -> None:
        """Write down a part of what a device sent and received in a round; ``UPDATE`` is its update, or its keys."""
        self._file.write(json.dumps([round_number, device_id, part, down_bytes, up_bytes]) + "\n")
        self._file.flush()
        self._count(round_number, device_id, part, down_bytes, up_bytes)

    def total(self) -> Traffic:
        """Sum up over rounds and devices."""
        return sum(self.by_round.values(), Traffic())

    def _read(self, path: Path) -> None:
        with path.open(encoding="utf-8") as file:
            for line in file:
                try:
                    round_number, device_id, part, down_bytes, up_bytes = json.loads(line)
                except ValueError:
                    continue
                self._count(round_number, device_id, part, down_bytes, up_bytes)

    def _count(self, round_number: int, device_id: str, part: str, down_bytes: int, up_bytes: int) -> None:
        if round_number != self._number:  # a round ends before the next one begins
            self._number, self._of_round = round_number, {}
        before = self._of_round.get((device_id, part))
        down, up = before or (0, 0)
        more = Traffic(down_bytes - down, up_bytes - up, int(before is None and part == UPDATE))
        self.by_round[round_number] = self.by_round.get(round_number, Traffic()) + more
        self._of_round[device_id, part] = (down_bytes, up_bytes)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
