"""A bar that shows which round was committed and what the last evaluated model reaches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from server.simulate.report import RoundResult
from server.simulate.run import OnRounds


@contextmanager
def progress_bar(num_rounds: int, *, is_shown: bool) -> Iterator[OnRounds]:
    """Show a bar for the block, on a terminal or in a notebook; what is yielded is told of the rounds."""
    from tqdm.auto import tqdm

    with tqdm(total=num_rounds, desc="rounds", unit="round", disable=not is_shown) as bar:

        def show(rounds: Sequence[RoundResult]) -> None:
            bar.update(len(rounds) - bar.n)
            accuracy = next((r.accuracy for r in reversed(rounds) if r.accuracy is not None), None)
            if accuracy is not None:
                bar.set_postfix_str(f"accuracy {accuracy:.2f} %")

        yield show
