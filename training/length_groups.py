"""The order in which LLaVA learns: batches of rows of about one length, with images or without (llava_trainer.py)."""

from collections.abc import Iterator, Sequence
from itertools import chain

import torch
from torch.utils.data import Sampler


class ModalityLengthSampler(Sampler[int]):
    """
    Rows of similar length side by side, and rows with and without an image apart, in an order that seed and epoch
    alone decide.

    The rows of each kind are shuffled, cut into groups of `batch_size * num_batches`, and each group is dealt into
    `num_batches` batches, longest first, each row to the batch with the fewest words so far. The groups of both kinds
    are then shuffled. What is left over of both kinds comes last and may share a batch, as in the original.

    Args:
        lengths (`Sequence[int]`): Words of each row, negative for a row without an image; never 0.
        batch_size (`int`): Rows of a batch.
        num_batches (`int`): Batches of a step, over all processes and accumulated ones.
        seed (`int`): Of the order.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, num_batches: int = 1, seed: int = 0):
        self.lengths, self.batch_size, self.num_batches, self.seed = list(lengths), batch_size, num_batches, seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        with_image = [row for row, length in enumerate(self.lengths) if length > 0]
        without = [row for row, length in enumerate(self.lengths) if length < 0]
        if not with_image or not without:
            return chain.from_iterable(self._groups(with_image or without, generator))
        *seen, last_seen = self._groups(with_image, generator)
        *read, last_read = self._groups(without, generator)
        groups = seen + read
        groups = [groups[place] for place in torch.randperm(len(groups), generator=generator).tolist()]
        # Sorted by row rather than by length, as the original leaves them.
        return chain.from_iterable([*groups, sorted(last_seen + last_read)])

    def _groups(self, rows: list[int], generator: torch.Generator) -> list[list[int]]:
        """The rows of one kind, shuffled, as the rows of one step after the other."""
        size = self.batch_size * self.num_batches
        shuffled = [rows[place] for place in torch.randperm(len(rows), generator=generator).tolist()]
        groups = [shuffled[start : start + size] for start in range(0, len(shuffled), size)]
        return [self._deal(sorted(group, key=self._length, reverse=True)) for group in groups]

    def _deal(self, rows: list[int]) -> list[int]:
        """Rows, longest first, in the order of batches with about as many words each."""
        if len(rows) % self.num_batches:
            return [row for start in range(self.num_batches) for row in rows[start :: self.num_batches]]
        size = len(rows) // self.num_batches
        batches, words = [[] for _ in range(self.num_batches)], [0.0] * self.num_batches
        for row in rows:
            shortest = words.index(min(words))
            batches[shortest].append(row)
            words[shortest] = words[shortest] + self._length(row) if len(batches[shortest]) < size else float("inf")
        return [row for batch in batches for row in batch]

    def _length(self, row: int) -> int:
        return abs(self.lengths[row])


__all__ = ["ModalityLengthSampler"]
