"""What strategies share whose accumulator is the weighted sum of the updates, in fixed point."""

from __future__ import annotations

from bnncore.secure.scales import Scales
from bnncore.secure.values import ValueSum
from server.strategies.base import Accumulator, FoldingStrategy, Update
from server.strategies.fixed_point import add_sums, add_update, check_update, merge_sums


class SummingStrategy(FoldingStrategy):
    """Sums updates as they are; a subclass says what becomes of the sums."""

    def fold(self, accumulator: Accumulator, update: Update, weight: int) -> None:
        check_update(accumulator, update, weight)
        add_update(accumulator, update, weight)

    def fold_sum(self, accumulator: Accumulator, total: ValueSum, scales: Scales) -> None:
        add_sums(accumulator, total.tensors(scales), total.form.units, total.num_updates)

    def merge(self, accumulator: Accumulator, other: Accumulator) -> Accumulator:
        return merge_sums(accumulator, other)
