"""How large masks shall be, and what of the segmenter's view they lie in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .token_rows import as_list


@dataclass(frozen=True)
class MaskSizes:
    """
    Sizes of one picture, each (height, width).

    Args:
        original (`tuple[int, int]`): The size that masks shall have.
        resized (`tuple[int, int]`): The picture within the segmenter's view.
        target (`tuple[int, int]`): The segmenter's view.
    """

    original: tuple[int, int]
    resized: tuple[int, int]
    target: tuple[int, int]


def read_mask_sizes(
    inputs: Mapping[str, Any], original_sizes: Any, source: Sequence[int], segmenter_view: Any
) -> list[MaskSizes]:
    """
    Args:
        inputs (`Mapping[str, Any]`): What the processor returned; empty where that is not known.
        original_sizes (`list[tuple[int, int]]` or `torch.Tensor`, *optional*):
            (height, width) that masks shall have, one per image, per row, or one for all; by default `inputs` say it.
        source (`Sequence[int]`): For each row of the output the row of the inputs it belongs to.
        segmenter_view: The image processor that made the segmenter's view; asked where the inputs do not tell.

    Returns:
        `list[MaskSizes]`: One for each row of the output.

    Raises:
        ValueError: If the sizes are unknown, or their number is none of these.
    """
    given = inputs.get("original_sizes")
    wanted = original_sizes if original_sizes is not None else given
    if wanted is None:
        raise ValueError("The size of the pictures is unknown. Pass the processor's `inputs` or `target_sizes`.")
    wanted = _size_pairs(wanted)
    known = wanted if given is None else _size_pairs(given)
    resized = inputs.get("sam_resized_sizes")
    if resized is None:
        resized = [segmenter_view.get_resized_size(*size) for size in known]
    resized = _size_pairs(resized)
    target = segmenter_view.segmenter_target_size
    if "sam_pixel_values" in inputs:
        target = tuple(int(side) for side in np.shape(inputs["sam_pixel_values"])[-2:])
    index = inputs.get("image_index")
    index = None if index is None else as_list(index)
    num_images = len(known)
    return [
        MaskSizes(
            original=_of_row(wanted, row, source, index, num_images),
            resized=_of_row(resized, row, source, index, num_images),
            target=target,
        )
        for row in range(len(source))
    ]


def _size_pairs(sizes: Any) -> list[tuple[int, int]]:
    return [(int(height), int(width)) for height, width in as_list(sizes)]


def _of_row(
    sizes: list[tuple[int, int]], row: int, source: Sequence[int], index: list[int] | None, num_images: int
) -> tuple[int, int]:
    """The entry for an output row of a list with one per image, per input row or per output row, or one for all."""
    num_inputs = source[-1] + 1
    if len(sizes) == 1:
        return sizes[0]
    if index is not None and len(sizes) == num_images:
        return sizes[index[source[row]]]
    if len(sizes) == num_inputs:
        return sizes[source[row]]
    if len(sizes) == len(source):
        return sizes[row]
    raise ValueError(
        f"{len(sizes)} sizes were given for {len(source)} rows of output, {num_inputs} rows of input and {num_images} "
        "images. Give one per image, one per row, or one for all."
    )


__all__ = ["MaskSizes", "read_mask_sizes"]
