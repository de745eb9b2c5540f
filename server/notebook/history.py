"""What came of a federation: curves by round, traffic, and the model."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnncore.checkpoint import save_checkpoint
from bnncore.cli.output import format_bytes
from bnncore.curves import plot_curves
from bnncore.errors import ConfigurationError
from bnncore.predictor import Predictor
from bnncore.state import State
from bnncore.tensorboard import EventWriter
from server.jobs import JobConfig
from server.simulate.report import RoundResult
from server.simulate.run import Played
from server.simulate.scalars import RoundScalars

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_UNITS = {
    "accuracy": "%",
    "loss": "nats",
    "local_accuracy": "%",
    "training_loss": "nats",
    "updates": "updates",
    "down_bytes": "bytes",
    "up_bytes": "bytes",
    "seconds": "s",
}
_MOST_ROWS = 12
"""Of the table that a notebook shows."""


@dataclass(frozen=True)
class History(Sequence[RoundResult]):
    """A completed federation: a sequence of its rounds, and the model.

    Two of the same job, data and strategy have the same ``digest``, in a notebook, in ``bitfleet-server simulate``, on
    any number of threads and on any processor.

    Attributes:
      job: as it was played, with every default.
      rounds: in order.
      state: float32 tensors of the last model, statistics included.
      digest: of its weights.
      epsilon: what the models may have told of a device; None without privacy.
      seconds: wall time of all of it.
    """

    job: JobConfig = field(repr=False)
    rounds: tuple[RoundResult, ...] = field(repr=False)
    state: State = field(repr=False)
    digest: str
    epsilon: float | None
    seconds: float

    @classmethod
    def of(cls, job: JobConfig, played: Played, seconds: float) -> History:
        """Make it of what was played."""
        return cls(job, played.rounds, played.state, played.digest, played.epsilon, seconds)

    def __len__(self) -> int:
        return len(self.rounds)

    def __getitem__(self, index: Any) -> Any:
        return self.rounds[index]

    def __iter__(self) -> Iterator[RoundResult]:
        return iter(self.rounds)

    @property
    def accuracy(self) -> float | None:
        """Of the last evaluated round, percent of the evaluation set; None: there is none."""
        return next((r.accuracy for r in reversed(self.rounds) if r.accuracy is not None), None)

    @property
    def up_bytes(self) -> int:
        """Bytes of all messages that carried updates, over all devices and rounds."""
        return sum(round_.up_bytes for round_ in self.rounds)

    @property
    def down_bytes(self) -> int:
        """Bytes of all messages that carried models, likewise."""
        return sum(round_.down_bytes for round_ in self.rounds)

    def to_dict(self) -> dict[str, list[Any]]:
        """Return the rounds as columns: ``pandas.DataFrame(history.to_dict()).set_index("round")``."""
        columns = {"number": "round"}
        return {
            columns.get(column.name, column.name): [getattr(round_, column.name) for round_ in self.rounds]
            for column in fields(RoundResult)
        }

    def plot(self, *columns: str, label: str | None = None, axes: Axes | None = None) -> Axes:
        """Draw columns over rounds; needs matplotlib (``pip install 'bitfleet[plot]'``).

        Args:
          columns: of ``to_dict``, of one unit; none: the accuracy, or the training loss where nothing was evaluated.
          label: of this history in the legend, to tell several on the same axes apart.
          axes: where to draw, such as what an earlier ``plot`` returned; None: a new figure.

        Returns:
          The axes.

        Raises:
          ConfigurationError: matplotlib is missing, there is no such column, units differ, or nothing is known of one.
        """
        chosen = columns or ("training_loss" if self.accuracy is None else "accuracy",)
        unknown = [column for column in chosen if column not in _UNITS]
        if unknown:
            raise ConfigurationError(f"columns to draw are {', '.join(_UNITS)}, not {unknown[0]!r}")
        units = {_UNITS[column] for column in chosen}
        if len(units) > 1:
            raise ConfigurationError(
                f"{', '.join(chosen)} have different units ({', '.join(sorted(units))}); draw them in a plot each"
            )
        table = self.to_dict()
        curves = {_label(column, label, alone=len(chosen) == 1): table[column] for column in chosen}
        title = f"{chosen[0].replace('_', ' ')}, " if len(chosen) == 1 else ""
        return plot_curves(table["round"], curves, x_label="round", y_label=f"{title}{units.pop()}", axes=axes)

    def predictor(self, *, batch_size: int = 100) -> Predictor:
        """Make what classifies with the last model; ``bnncore.evaluate`` takes it too."""
        return Predictor(self.job.spec, self.state, batch_size=batch_size)

    def save(self, path: str | Path) -> str:
        """Write the last model to a safetensors checkpoint, which every command and PyTorch read; returns its digest.

        Raises:
          CheckpointError: the file cannot be written.
        """
        extra = {"accuracy": self.accuracy, "classes": self.job.classes, "rounds": len(self)}
        return save_checkpoint(path, self.job.spec, self.state, extra=extra)

    def to_tensorboard(self, folder: str | Path) -> None:
        """Write the rounds to an event file for TensorBoard, which shows all histories below one folder together.

        Raises:
          ConfigurationError: the file cannot be written.
        """
        with EventWriter(folder) as writer:
            RoundScalars(writer)(self.rounds)

    def __str__(self) -> str:
        job, accuracy = self.job, "" if self.accuracy is None else f", accuracy {self.accuracy:.2f} %"
        return (
            f"{job.name}: {len(self)} rounds of {job.strategy} with {job.min_devices} devices{accuracy}, "
            f"{format_bytes(self.down_bytes)} down, {format_bytes(self.up_bytes)} up, {self.seconds:.0f} s"
        )

    def _repr_html_(self) -> str:
        """Show it in a notebook: a line, and a table of the rounds with those in the middle left out."""
        table = self.to_dict()
        shown = [name for name, values in table.items() if any(value is not None for value in values)]
        heads = "".join(f"<th>{html.escape(name.replace('_', ' '))}</th>" for name in shown)
        count = len(self)
        cut = count > _MOST_ROWS
        rows = [*range(_MOST_ROWS // 2), *range(count - _MOST_ROWS // 2, count)] if cut else range(count)
        lines = ["<tr>" + "".join(f"<td>{_cell(table[name][row])}</td>" for name in shown) + "</tr>" for row in rows]
        if cut:
            lines.insert(_MOST_ROWS // 2, f'<tr><td colspan="{len(shown)}">&hellip;</td></tr>')
        table_html = f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
        return f"<p>{html.escape(str(self))}</p>{table_html}"


def _label(column: str, label: str | None, *, alone: bool) -> str:
    name = column.replace("_", " ")
    if label is None:
        return name
    return label if alone else f"{label}: {name}"


def _cell(value: float | int | None) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
