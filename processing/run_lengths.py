"""COCO's run lengths as masks: pixels column by column, background first."""

import reprlib
from collections.abc import Mapping
from typing import Any

import numpy as np


# Bits per character of the compressed form, and characters of the largest number that can occur.
_BITS, _MOST_CHARACTERS = 5, 7


def read_run_lengths(rle: Any, what: str = "The RLE") -> tuple[tuple[int, int], np.ndarray]:
    """Check run lengths. pycocotools does not: counts that do not cover the image leave memory as it was found.

    Args:
        rle (`Mapping`): `{"size": [height, width], "counts": ...}`, compressed (`str` or `bytes`) or a list of counts.
        what (`str`, *optional*): The mask, as the error message shall name it.

    Returns:
        `tuple`: (height, width), and the counts as an int64 array whose sum is height x width.

    Raises:
        ValueError: It is no RLE, or its counts do not cover exactly its size.
    """
    if not isinstance(rle, Mapping) or not {"size", "counts"} <= set(rle):
        raise ValueError(f"{what} must be a dict with size and counts, not {reprlib.repr(rle)}.")
    size = _whole_numbers(rle["size"])
    if size is None or len(size) != 2 or size.min() < 1:
        raise ValueError(f"{what} has the size {reprlib.repr(rle['size'])}. Give [height, width], each 1 or more.")
    height, width = map(int, size)
    given = rle["counts"]
    counts = _decompress(given, what) if isinstance(given, (str, bytes)) else _whole_numbers(given)
    if counts is None:
        raise ValueError(
            f"{what} has the counts {reprlib.repr(given)}. Give a list of whole numbers, or COCO's compressed text."
        )
    pixels = height * width
    # each by itself too, so that the sum cannot wrap around
    if not len(counts) or counts.min() < 0 or counts.max() > pixels or counts.sum() != pixels:
        raise ValueError(
            f"{what} has counts that sum up to {sum(counts.tolist())}; its size {height} x {width} (height, width) "
            f"needs {pixels}, in counts of 0 or more."
        )
    return (height, width), counts


def fill_run_lengths(size: tuple[int, int], counts: np.ndarray) -> np.ndarray:
    """Turn what `read_run_lengths` returned into a bool mask of shape `(height, width)`."""
    height, width = size
    inside = np.arange(len(counts)) % 2 == 1
    return np.ascontiguousarray(np.repeat(inside, counts).reshape(width, height).T)


def _whole_numbers(values: Any) -> np.ndarray | None:
    """A list of whole numbers as an int64 array; None for anything else."""
    try:
        array = np.asarray(values)
    except ValueError:  # lists of different lengths
        return None
    whole = array.ndim == 1 and array.dtype.kind in "iu" and np.can_cast(array.dtype, np.int64)
    return array.astype(np.int64) if whole else None


def _decompress(text: str | bytes, what: str) -> np.ndarray:
    """The numbers of the compressed form (rleFrString of COCO's maskApi.c)."""
    data = text if isinstance(text, bytes) else text.encode("utf-8")
    characters = np.frombuffer(data, dtype=np.uint8).astype(np.int64) - 48
    goes_on = (characters & 32) != 0
    ends = np.flatnonzero(~goes_on)
    starts = np.concatenate([[0], ends[:-1] + 1])[: len(ends)]
    lengths = ends - starts + 1
    in_range = len(characters) > 0 and characters.min() >= 0 and characters.max() < 64
    if not in_range or goes_on[-1] or lengths.max() > _MOST_CHARACTERS:
        raise ValueError(f"{what} has the counts {reprlib.repr(text)}, which are no compressed counts of COCO.")
    place = np.arange(len(characters)) - np.repeat(starts, lengths)
    numbers = np.add.reduceat((characters & 31) << (_BITS * place), starts)
    numbers -= np.where((characters[ends] & 16) != 0, 1 << (_BITS * lengths), 0)
    # From the fourth on, each is the difference to the one two before.
    for first in (1, 2):
        numbers[first::2] = np.cumsum(numbers[first::2])
    return numbers


__all__ = ["fill_run_lengths", "read_run_lengths"]
