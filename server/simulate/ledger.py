"""What every device of a simulation sent and received, in a file that a simulation taken up again goes on with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Traffic:
    """Serialised bytes of the messages that carried models and updates, and how many updates there were."""

    down_bytes: int
    up_bytes: int
    updates: int


class Ledger:
    """One line for each (round, device); of lines for the same pair the last one counts.

    A simulation that was killed trains some tasks again, and counts them once.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("a", encoding="utf-8")
        if self._file.tell() and not path.read_bytes().endswith(b"\n"):
            self._file.write("\n")  # cut in the middle: no line now, and the device's task is done again

    def note(self, round_number: int, device_id: str, *, down_bytes: int, up_bytes: int) -> None:
        """Write down a device's part in a round."""
        self._file.write(json.dumps([round_number, device_id, down_bytes, up_bytes]) + "\n")
        self._file.flush()

    def total(self) -> Traffic:
        """Sum up over rounds and devices."""
        down = up = updates = number = 0
        of_round: dict[str, tuple[int, int]] = {}
        with self._path.open(encoding="utf-8") as file:
            for line in file:
                try:
                    round_number, device_id, *num_bytes = json.loads(line)
                except ValueError:
                    continue
                if round_number != number:  # a round ends before the next one begins
                    number, of_round = round_number, {}
                before = of_round.get(device_id)
                down += num_bytes[0] - (before[0] if before else 0)
                up += num_bytes[1] - (before[1] if before else 0)
                updates += before is None
                of_round[device_id] = (num_bytes[0], num_bytes[1])
        return Traffic(down, up, updates)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
