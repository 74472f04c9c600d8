"""In which order rows are trained on: shuffled, and within a step by their length.

Every row of a batch is filled up to its longest, and the fill is computed like the rest. A step of
several batches may have its rows in any order, as their losses are summed: with the longest first,
rows of like length meet in a batch, and at the same time in all processes. What is learned stays
the same but for rounding, and for what dropout draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import Sampler


class StepsByLength(Sampler[int]):
    """The order that `seed` gives each epoch, sorted within every `rows_per_step` rows of it.

    `rows_per_step` are those of all processes together; `lengths` are tokens of a row.
    """

    def __init__(self, lengths: Sequence[int], rows_per_step: int, seed: int) -> None:
        self._shuffled = SeedableRandomSampler(lengths, data_seed=seed)
        self._lengths = lengths
        self._rows_per_step = rows_per_step

    def __len__(self) -> int:
        return len(self._shuffled)

    def __iter__(self) -> Iterator[int]:
        order = list(self._shuffled)
        for start in range(0, len(order), self._rows_per_step):
            step = order[start : start + self._rows_per_step]
            yield from sorted(step, key=self._lengths.__getitem__, reverse=True)

    def set_epoch(self, epoch: int) -> None:
        """Whose order it is; accelerate calls it."""
        self._shuffled.set_epoch(epoch)
